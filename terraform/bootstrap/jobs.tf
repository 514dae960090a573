# Who the jobs are in Google Cloud. There is no key: only a job of the GitLab projects can be this account.
resource "google_service_account" "jobs" {
  project      = var.project
  account_id   = "${var.name}-jobs"
  display_name = "GPU jobs of GitLab"

  depends_on = [google_project_service.needed]
}

resource "google_project_iam_custom_role" "jobs" {
  project     = var.project
  role_id     = "${local.role_prefix}_jobs"
  title       = "GPU jobs of GitLab"
  description = "Bring up VMs, let the job in, and take everything away again."
  permissions = concat(local.permissions.run, local.permissions.look)

  depends_on = [google_project_service.needed]
}

resource "google_project_iam_member" "jobs" {
  project = var.project
  role    = google_project_iam_custom_role.jobs.name
  member  = google_service_account.jobs.member
}

resource "google_project_iam_member" "jobs_tunnel" {
  count = var.iap ? 1 : 0

  project = var.project
  role    = "roles/iap.tunnelResourceAccessor"
  member  = google_service_account.jobs.member
}
