# Each run denies everybody whom it has not let in, at priority 900; this stands before it, so that people with the right
# to use the tunnel can look at a VM whose own rules are for its job.
resource "google_compute_firewall" "iap" {
  count = var.iap ? 1 : 0

  project       = var.project
  name          = "${var.name}-iap"
  description   = "SSH from Identity-Aware Proxy, which lets in whom the project's policy names."
  network       = var.network
  priority      = 850
  direction     = "INGRESS"
  source_ranges = ["35.235.240.0/20"]

  allow {
    protocol = "tcp"
    ports    = ["22"]
  }

  depends_on = [google_project_service.needed]
}

resource "google_compute_router" "nat" {
  for_each = var.nat

  project = var.project
  region  = each.value
  name    = "${var.name}-nat"
  network = var.network

  depends_on = [google_project_service.needed]
}

resource "google_compute_router_nat" "nat" {
  for_each = var.nat

  project                            = var.project
  region                             = each.value
  name                               = "${var.name}-nat"
  router                             = google_compute_router.nat[each.key].name
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"
}
