# Credentials come from the environment only (GOOGLE_OAUTH_ACCESS_TOKEN or application default credentials): what is
# written here ends in plans and logs.
provider "google" {
  project = var.project
  zone    = var.zone

  # The run's labels are the whole truth about what it owns.
  add_terraform_attribution_label = false
  compute_custom_endpoint         = var.compute_endpoint == null ? null : "${var.compute_endpoint}/compute/v1/"
  poll_interval                   = "1s"
  user_project_override           = false
}
