# What the module plans, and what its variables refuse, for the google provider, which is mocked: `terraform init` has to
# find its binary all the same. terraform/bootstrap as a whole is tested in tests/provider.

mock_provider "google" {}

variables {
  project         = "my-dl"
  gitlab_projects = [4711]
  bucket          = { location = "europe-west4" }
}

run "only_the_named_gitlab_projects_are_let_in" {
  command = plan

  variables {
    gitlab_projects = [4711, 42]
  }

  assert {
    condition     = google_iam_workload_identity_pool_provider.gitlab.attribute_condition == "assertion.project_id in ['42', '4711']"
    error_message = "the condition names the GitLab projects and nothing else"
  }

  assert {
    condition     = toset(keys(google_service_account_iam_member.gitlab)) == toset(["42", "4711"])
    error_message = "each GitLab project may be the service account"
  }

  assert {
    condition     = google_iam_workload_identity_pool_provider.gitlab.oidc[0].issuer_uri == "https://gitlab.com"
    error_message = "the issuer is gitlab.com where nothing is said"
  }
}

run "protected_refs_alone_where_asked_for" {
  command = plan

  variables {
    protected_refs_only = true
  }

  assert {
    condition     = google_iam_workload_identity_pool_provider.gitlab.attribute_condition == "assertion.project_id in ['4711'] && assertion.ref_protected == 'true'"
    error_message = "a job of an unprotected branch is refused"
  }
}

run "the_bucket_is_closed_and_keeps_old_versions_for_a_while" {
  command = plan

  assert {
    condition     = google_storage_bucket.runs[0].name == "my-dl-glgpu"
    error_message = "the bucket is called after the project"
  }

  assert {
    condition     = google_storage_bucket.runs[0].uniform_bucket_level_access && google_storage_bucket.runs[0].public_access_prevention == "enforced"
    error_message = "no object of it can be made public"
  }

  assert {
    condition     = google_storage_bucket.runs[0].versioning[0].enabled && google_storage_bucket.runs[0].force_destroy != true
    error_message = "what is overwritten is kept, and a full bucket is not destroyed"
  }

  assert {
    condition     = google_storage_bucket_iam_member.uploader[0].role == "roles/storage.objectCreator"
    error_message = "the uploader may only create"
  }

  assert {
    condition     = google_storage_bucket_iam_member.uploader[0].condition[0].expression == "resource.name.startsWith(\"projects/_/buckets/my-dl-glgpu/objects/glgpu/outputs/\")"
    error_message = "and only outputs"
  }
}

run "without_a_bucket_there_is_nothing_of_it" {
  command = plan

  variables {
    bucket = null
  }

  assert {
    condition     = length(google_storage_bucket.runs) + length(google_service_account.uploader) + length(google_project_iam_custom_role.bucket) == 0
    error_message = "neither bucket nor uploader nor role"
  }
}

run "the_tunnel_has_one_rule_for_its_own_range" {
  command = plan

  assert {
    condition     = google_compute_firewall.iap[0].source_ranges == toset(["35.235.240.0/20"]) && join(" ", flatten([for allow in google_compute_firewall.iap[0].allow : [for port in allow.ports : "${allow.protocol}:${port}"]])) == "tcp:22"
    error_message = "SSH from Identity-Aware Proxy, and from nowhere else"
  }

  assert {
    condition     = google_compute_firewall.iap[0].priority < 900 && google_compute_firewall.iap[0].priority > 800
    error_message = "between what a run allows and what it denies"
  }
}

run "without_the_tunnel_nobody_may_use_it" {
  command = plan

  variables {
    iap   = false
    users = ["user:ada@example.com"]
  }

  assert {
    condition     = length(google_compute_firewall.iap) + length(google_project_iam_member.jobs_tunnel) + length(google_project_iam_member.users_tunnel) == 0
    error_message = "neither rule nor role"
  }

  assert {
    condition     = !contains(keys(google_project_service.needed), "iap.googleapis.com")
    error_message = "nor the service"
  }

  assert {
    condition     = google_project_iam_member.users["user:ada@example.com"].member == "user:ada@example.com"
    error_message = "users are users all the same"
  }
}

run "a_nat_only_where_asked_for" {
  command = plan

  variables {
    nat = ["europe-west4"]
  }

  assert {
    condition     = keys(google_compute_router.nat) == ["europe-west4"] && google_compute_router_nat.nat["europe-west4"].region == "europe-west4"
    error_message = "one router with one NAT in that region"
  }
}

run "keys_of_a_gitlab_that_google_cannot_reach_are_uploaded" {
  command = plan

  variables {
    gitlab_url = "https://gitlab.internal.example.com"
    jwks_file  = "tests/keys.json"
  }

  assert {
    condition     = length(jsondecode(google_iam_workload_identity_pool_provider.gitlab.oidc[0].jwks_json).keys) == 1
    error_message = "the file's keys are the provider's"
  }
}

run "refuses_no_gitlab_project" {
  command = plan

  variables {
    gitlab_projects = []
  }

  expect_failures = [var.gitlab_projects]
}

run "refuses_a_gitlab_without_tls_or_with_a_slash" {
  command = plan

  variables {
    gitlab_url = "http://gitlab.example.com/"
  }

  expect_failures = [var.gitlab_url]
}

run "refuses_a_file_without_keys" {
  command = plan

  variables {
    jwks_file = "tests/bootstrap.tftest.hcl"
  }

  expect_failures = [var.jwks_file]
}

run "refuses_names_that_google_refuses" {
  command = plan

  variables {
    bucket  = { location = "europe-west4", name = "Goog_Bucket", old_days = 0 }
    name    = "a-name-that-is-too-long-for-it"
    nat     = ["europe-west4-a"]
    network = "projects/other/global/networks/shared"
    pool_id = "gcp-pool"
    project = "My Project"
    users   = ["ada@example.com"]
  }

  expect_failures = [var.bucket, var.name, var.nat, var.network, var.pool_id, var.project, var.users]
}
