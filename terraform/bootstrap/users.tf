# People: they find a VM, put their key and address in, and log in. They make and delete nothing.
resource "google_project_iam_custom_role" "users" {
  project     = var.project
  role_id     = "${local.role_prefix}_users"
  title       = "Users of GPU VMs"
  description = "Open notebooks and log in to VMs that GitLab jobs have made."
  permissions = local.permissions.users

  depends_on = [google_project_service.needed]
}

resource "google_project_iam_member" "users" {
  for_each = var.users

  project = var.project
  role    = google_project_iam_custom_role.users.name
  member  = each.value
}

resource "google_project_iam_member" "users_tunnel" {
  for_each = var.iap ? var.users : toset([])

  project = var.project
  role    = "roles/iap.tunnelResourceAccessor"
  member  = each.value
}
