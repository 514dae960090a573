locals {
  bucket_name = var.bucket == null ? null : coalesce(var.bucket.name, "${var.project}-${var.name}")
  with_bucket = var.bucket == null ? 0 : 1
}

# States and outputs. It goes with `terraform destroy` only when it is empty.
resource "google_storage_bucket" "runs" {
  count = local.with_bucket

  project                     = var.project
  name                        = local.bucket_name
  location                    = var.bucket.location
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  versioning {
    enabled = var.bucket.versioning
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }

    condition {
      days_since_noncurrent_time = var.bucket.old_days
      num_newer_versions         = var.bucket.old_versions
      with_state                 = "ARCHIVED"
    }
  }

  # Outputs never take each other's names, so that of one that was deleted no newer version comes.
  lifecycle_rule {
    action {
      type = "Delete"
    }

    condition {
      days_since_noncurrent_time = 7
      matches_prefix             = ["glgpu/outputs/"]
      with_state                 = "ARCHIVED"
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }

    condition {
      age = 7
    }
  }

  depends_on = [google_project_service.needed]
}

resource "google_project_iam_custom_role" "bucket" {
  count = local.with_bucket

  project     = var.project
  role_id     = "${local.role_prefix}_bucket"
  title       = "Bucket of GPU jobs"
  description = "Keep states and checkpoints in one bucket."
  permissions = local.permissions.bucket

  depends_on = [google_project_service.needed]
}

resource "google_storage_bucket_iam_member" "jobs" {
  count = local.with_bucket

  bucket = google_storage_bucket.runs[0].name
  role   = google_project_iam_custom_role.bucket[0].name
  member = google_service_account.jobs.member
}

# For the VM of a run that goes on without its job: it adds outputs, and can neither read nor list, overwrite or delete any.
# States are not its business: whoever could put one there would have a say in what a job's Terraform does.
resource "google_service_account" "uploader" {
  count = local.with_bucket

  project      = var.project
  account_id   = "${var.name}-uploader"
  display_name = "VMs that save their outputs by themselves"

  depends_on = [google_project_service.needed]
}

resource "google_storage_bucket_iam_member" "uploader" {
  count = local.with_bucket

  bucket = google_storage_bucket.runs[0].name
  role   = "roles/storage.objectCreator"
  member = google_service_account.uploader[0].member

  condition {
    title      = "outputs"
    expression = "resource.name.startsWith(\"projects/_/buckets/${google_storage_bucket.runs[0].name}/objects/glgpu/outputs/\")"
  }
}

# Whoever gives a VM an account must be allowed to act as that account.
resource "google_service_account_iam_member" "uploader" {
  count = local.with_bucket

  service_account_id = google_service_account.uploader[0].name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.jobs.member
}
