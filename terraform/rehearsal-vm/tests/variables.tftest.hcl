# The variables that both modules share: what is refused, and that the rest of a value is filled in. Needs no download.

variables {
  compute_endpoint = "http://127.0.0.1:8080"
  labels           = { glgpu = "managed", glgpu-expires = "1764000000" }
  name             = "glgpu-a1b2c3-42-1001-train"
  project          = "my-dl"
  zone             = "europe-west4-a"

  machine = {
    type            = "g2-standard-4"
    gpu             = { type = "nvidia-l4" }
    max_run_seconds = 3600
    disk            = { image = "projects/my-images/global/images/family/cuda-ubuntu" }
  }
}

run "four_lines_of_machine_are_enough" {
  command = plan

  assert {
    condition     = terraform_data.instance.input.body.disks[0].initializeParams.diskSizeGb == "100"
    error_message = "the disk has 100 GB where nothing is said"
  }

  assert {
    condition     = terraform_data.instance.input.body.scheduling.instanceTerminationAction == "DELETE"
    error_message = "the hard end deletes"
  }

  assert {
    condition     = terraform_data.instance.input.body.scheduling.maxRunDuration.seconds == "3600"
    error_message = "the hard end is where machine.max_run_seconds says"
  }

  assert {
    condition     = !contains(keys(terraform_data.instance.input.body), "guestAccelerators")
    error_message = "a machine type that brings its GPU orders none beside it"
  }

  assert {
    condition     = !contains(keys(terraform_data.instance.input.body), "serviceAccounts")
    error_message = "there is no service account where none is asked for"
  }
}

run "a_spot_machine_without_external_address_has_its_gpu_attached" {
  command = plan

  variables {
    machine = {
      type            = "n1-standard-4"
      gpu             = { type = "nvidia-tesla-t4", count = 2, attached = true }
      spot            = true
      max_run_seconds = 3600
      disk            = { image = "projects/my-images/global/images/cuda-1" }
      service_account = { email = "vm@my-dl.iam.gserviceaccount.com" }
    }
    network = { external_ip = false, subnetwork = "gpu", tags = ["nat"] }
  }

  assert {
    condition     = terraform_data.instance.input.body.guestAccelerators[0].acceleratorCount == 2
    error_message = "two GPUs are ordered"
  }

  assert {
    condition     = terraform_data.instance.input.body.scheduling.provisioningModel == "SPOT" && terraform_data.instance.input.body.scheduling.preemptible
    error_message = "the machine is a spot machine"
  }

  assert {
    condition     = !contains(keys(terraform_data.instance.input.body.networkInterfaces[0]), "accessConfigs")
    error_message = "there is no external address"
  }

  assert {
    condition     = terraform_data.instance.input.body.networkInterfaces[0].subnetwork == "projects/my-dl/regions/europe-west4/subnetworks/gpu"
    error_message = "a subnetwork's name becomes its path in the zone's region"
  }
}

run "a_rehearsal_needs_an_endpoint" {
  command = plan

  variables {
    compute_endpoint = null
  }

  expect_failures = [terraform_data.instance]
}

run "an_endpoint_with_a_path_is_refused" {
  command = plan

  variables {
    compute_endpoint = "http://127.0.0.1:8080/compute/v1"
  }

  expect_failures = [var.compute_endpoint]
}

run "labels_without_glgpu_managed_are_refused" {
  command = plan

  variables {
    labels = { cost-centre = "vision" }
  }

  expect_failures = [var.labels]
}

run "a_label_in_capitals_is_refused" {
  command = plan

  variables {
    labels = { glgpu = "managed", team = "Vision" }
  }

  expect_failures = [var.labels]
}

run "a_machine_type_as_path_is_refused" {
  command = plan

  variables {
    machine = { type = "zones/z/machineTypes/g2-standard-4", max_run_seconds = 3600, disk = { image = "projects/p/global/images/i" } }
  }

  expect_failures = [var.machine]
}

run "a_gpu_of_no_known_kind_is_refused" {
  command = plan

  variables {
    machine = { type = "g2-standard-4", max_run_seconds = 3600, disk = { image = "projects/p/global/images/i" }, gpu = { type = "l4" } }
  }

  expect_failures = [var.machine]
}

run "three_gpus_are_refused" {
  command = plan

  variables {
    machine = { type = "g2-standard-4", max_run_seconds = 3600, disk = { image = "projects/p/global/images/i" }, gpu = { type = "nvidia-l4", count = 3 } }
  }

  expect_failures = [var.machine]
}

run "an_end_after_less_than_half_a_minute_is_refused" {
  command = plan

  variables {
    machine = { type = "g2-standard-4", max_run_seconds = 29, disk = { image = "projects/p/global/images/i" } }
  }

  expect_failures = [var.machine]
}

run "an_end_after_more_than_120_days_is_refused" {
  command = plan

  variables {
    machine = { type = "g2-standard-4", max_run_seconds = 10368001, disk = { image = "projects/p/global/images/i" } }
  }

  expect_failures = [var.machine]
}

run "half_a_second_is_refused" {
  command = plan

  variables {
    machine = { type = "g2-standard-4", max_run_seconds = 3600.5, disk = { image = "projects/p/global/images/i" } }
  }

  expect_failures = [var.machine]
}

run "an_image_in_shorthand_is_refused" {
  command = plan

  variables {
    machine = { type = "g2-standard-4", max_run_seconds = 3600, disk = { image = "debian-cloud/debian-12" } }
  }

  expect_failures = [var.machine]
}

run "a_disk_of_9_gb_is_refused" {
  command = plan

  variables {
    machine = { type = "g2-standard-4", max_run_seconds = 3600, disk = { image = "projects/p/global/images/i", size_gb = 9 } }
  }

  expect_failures = [var.machine]
}

run "a_disk_type_as_path_is_refused" {
  command = plan

  variables {
    machine = { type = "g2-standard-4", max_run_seconds = 3600, disk = { image = "projects/p/global/images/i", type = "diskTypes/pd-ssd" } }
  }

  expect_failures = [var.machine]
}

run "a_service_account_without_address_is_refused" {
  command = plan

  variables {
    machine = { type = "g2-standard-4", max_run_seconds = 3600, disk = { image = "projects/p/global/images/i" }, service_account = { email = "vm" } }
  }

  expect_failures = [var.machine]
}

run "a_scope_in_shorthand_is_refused" {
  command = plan

  variables {
    machine = { type = "g2-standard-4", max_run_seconds = 3600, disk = { image = "projects/p/global/images/i" }, service_account = { email = "vm@my-dl.iam.gserviceaccount.com", scopes = ["cloud-platform"] } }
  }

  expect_failures = [var.machine]
}

run "a_login_key_in_metadata_is_refused" {
  command = plan

  variables {
    metadata = { ssh-keys = "glgpu:ssh-ed25519 AAAA" }
  }

  expect_failures = [var.metadata]
}

run "a_startup_script_is_refused" {
  command = plan

  variables {
    metadata = { startup-script = "true" }
  }

  expect_failures = [var.metadata]
}

run "an_item_of_the_module_itself_is_refused" {
  command = plan

  variables {
    metadata = { enable-oslogin = "TRUE" }
  }

  expect_failures = [var.metadata]
}

run "a_metadata_key_with_a_blank_is_refused" {
  command = plan

  variables {
    metadata = { "a b" = "1" }
  }

  expect_failures = [var.metadata]
}

run "a_name_that_no_run_has_is_refused" {
  command = plan

  variables {
    name = "my-vm"
  }

  expect_failures = [var.name]
}

run "a_name_of_more_than_54_characters_is_refused" {
  command = plan

  variables {
    name = "glgpu-a1b2c3-12345678901234567890-12345678901-12345-notebook"
  }

  expect_failures = [var.name]
}

run "a_network_with_capitals_is_refused" {
  command = plan

  variables {
    network = { name = "Default" }
  }

  expect_failures = [var.network]
}

run "a_subnetwork_as_url_is_refused" {
  command = plan

  variables {
    network = { subnetwork = "https://www.googleapis.com/compute/v1/projects/p/regions/r/subnetworks/s" }
  }

  expect_failures = [var.network]
}

run "a_tag_with_an_underscore_is_refused" {
  command = plan

  variables {
    network = { tags = ["my_tag"] }
  }

  expect_failures = [var.network]
}

run "a_project_number_is_refused" {
  command = plan

  variables {
    project = "123456789"
  }

  expect_failures = [var.project]
}

run "a_region_as_zone_is_refused" {
  command = plan

  variables {
    zone = "europe-west4"
  }

  expect_failures = [var.zone]
}
