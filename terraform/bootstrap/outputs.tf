locals {
  ci_variables = merge(
    {
      GLGPU_PROJECT             = var.project
      GLGPU_WIF_PROVIDER        = google_iam_workload_identity_pool_provider.gitlab.name
      GLGPU_WIF_SERVICE_ACCOUNT = google_service_account.jobs.email
    },
    var.bucket == null ? {} : {
      GLGPU_STORAGE_BUCKET   = google_storage_bucket.runs[0].name
      GLGPU_STORAGE_UPLOADER = google_service_account.uploader[0].email
    },
  )
}

output "ci_variables" {
  description = "The CI/CD variables that each of the GitLab projects needs. None is secret."
  value       = local.ci_variables
}

output "next_step" {
  description = "What to do now, in words."
  value = join("\n", concat(
    ["Settings > CI/CD > Variables of each GitLab project; none of these is secret, so neither mask nor protect them:", ""],
    [for name, value in local.ci_variables : "  ${name}=${value}"],
    ["", "Then, in a job or on a laptop: glgpu doctor"],
  ))
}

output "service_account" {
  description = "Who the jobs are in Google Cloud."
  value       = google_service_account.jobs.email
}

output "uploader" {
  description = "The account of VMs whose trainings no job waits for (storage.uploader), null without a bucket."
  value       = one(google_service_account.uploader[*].email)
}

output "users_role" {
  description = "The role of people who open notebooks and log in to VMs, for those whom users does not name."
  value       = google_project_iam_custom_role.users.name
}
