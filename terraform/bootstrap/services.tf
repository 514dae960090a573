locals {
  services = concat([
    "cloudbilling.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "compute.googleapis.com",
    "iam.googleapis.com",
    "iamcredentials.googleapis.com",
    "orgpolicy.googleapis.com",
    "serviceusage.googleapis.com",
    "storage.googleapis.com",
    "sts.googleapis.com",
  ], var.iap ? ["iap.googleapis.com"] : [])
}

resource "google_project_service" "needed" {
  for_each = toset(local.services)

  project = var.project
  service = each.value

  # Others in the project may use them too.
  disable_on_destroy = false
}
