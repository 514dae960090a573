# What the variables refuse, which are the same in both modules; the tests run this file in either. Needs no download.

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

run "a_startup_script_among_the_metadata_is_refused" {
  command = plan

  variables {
    metadata = { startup-script = "true" }
  }

  expect_failures = [var.metadata]
}

run "a_startup_script_that_is_no_script_is_refused" {
  command = plan

  variables {
    startup_script = "true"
  }

  expect_failures = [var.startup_script]
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
