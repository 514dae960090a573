locals {
  project_ids = [for id in var.gitlab_projects : format("%d", id)]

  # Everybody's jobs on a shared GitLab have tokens from the same issuer: without a condition all of them would be let in.
  whose = format("assertion.project_id in [%s]", join(", ", [for id in local.project_ids : "'${id}'"]))
}

resource "google_iam_workload_identity_pool" "gitlab" {
  project                   = var.project
  workload_identity_pool_id = var.pool_id
  display_name              = "GitLab"

  depends_on = [google_project_service.needed]
}

resource "google_iam_workload_identity_pool_provider" "gitlab" {
  project                            = var.project
  workload_identity_pool_id          = google_iam_workload_identity_pool.gitlab.workload_identity_pool_id
  workload_identity_pool_provider_id = "gitlab"
  display_name                       = "GitLab"
  attribute_condition                = var.protected_refs_only ? "${local.whose} && assertion.ref_protected == 'true'" : local.whose

  # Not assertion.sub: it holds the branch's name, and Google refuses a subject of more than 127 bytes.
  attribute_mapping = {
    "google.subject"       = "'project_id:' + assertion.project_id + ':job_id:' + assertion.job_id"
    "attribute.project_id" = "assertion.project_id"
  }

  # No audience of its own: tokens are then for the provider's full name, which no other provider takes.
  oidc {
    issuer_uri = var.gitlab_url
    jwks_json  = var.jwks_file == null ? null : file(var.jwks_file)
  }
}

resource "google_service_account_iam_member" "gitlab" {
  for_each = toset(local.project_ids)

  service_account_id = google_service_account.jobs.name
  role               = "roles/iam.workloadIdentityUser"
  member             = "principalSet://iam.googleapis.com/${google_iam_workload_identity_pool.gitlab.name}/attribute.project_id/${each.value}"
}
