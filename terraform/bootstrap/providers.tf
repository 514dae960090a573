# Credentials of somebody who owns the project, from the environment: `gcloud auth application-default login`.
provider "google" {
  project = var.project

  add_terraform_attribution_label  = false
  compute_custom_endpoint          = var.compute_endpoint == null ? null : "${var.compute_endpoint}/compute/v1/"
  iam_beta_custom_endpoint         = var.google_endpoint == null ? null : "${var.google_endpoint}/v1/"
  poll_interval                    = "1s"
  resource_manager_custom_endpoint = var.google_endpoint == null ? null : "${var.google_endpoint}/v1/"
  service_usage_custom_endpoint    = var.google_endpoint == null ? null : "${var.google_endpoint}/v1/"
  storage_custom_endpoint          = var.google_endpoint == null ? null : "${var.google_endpoint}/storage/v1/"
  user_project_override            = false
}
