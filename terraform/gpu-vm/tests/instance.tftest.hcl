# The instance as planned for the google provider, which is mocked: `terraform init` has to find its binary all the same.
# What the variables refuse is in ../../rehearsal-vm/tests/variables.tftest.hcl; the tests run that file here as well.

mock_provider "google" {}

variables {
  labels  = { glgpu = "managed", glgpu-expires = "1764000000" }
  name    = "glgpu-a1b2c3-42-1001-train"
  project = "my-dl"
  zone    = "europe-west4-a"

  machine = {
    type            = "g2-standard-4"
    gpu             = { type = "nvidia-l4" }
    max_run_seconds = 3600
    disk            = { image = "projects/my-images/global/images/family/cuda-ubuntu" }
  }
}

run "an_instance_always_has_an_end_at_which_it_is_deleted" {
  command = plan

  assert {
    condition     = google_compute_instance.run.scheduling[0].max_run_duration[0].seconds == 3600
    error_message = "the hard end is where machine.max_run_seconds says"
  }

  assert {
    condition     = google_compute_instance.run.scheduling[0].instance_termination_action == "DELETE"
    error_message = "the hard end deletes"
  }

  assert {
    condition     = google_compute_instance.run.scheduling[0].provisioning_model == "STANDARD" && !google_compute_instance.run.scheduling[0].preemptible
    error_message = "a machine is no spot machine where nothing is said"
  }

  assert {
    condition     = google_compute_instance.run.boot_disk[0].auto_delete
    error_message = "the disk goes with the instance"
  }
}

run "a_startup_script_is_a_metadata_item" {
  command = plan

  variables {
    metadata       = { colour = "blue" }
    startup_script = "#!/bin/sh\ntrue\n"
  }

  assert {
    condition     = google_compute_instance.run.metadata["startup-script"] == "#!/bin/sh\ntrue\n" && google_compute_instance.run.metadata["colour"] == "blue"
    error_message = "the script is the item startup-script, beside the others"
  }
}

run "without_a_startup_script_there_is_no_item_for_it" {
  command = plan

  assert {
    condition     = !contains(keys(google_compute_instance.run.metadata), "startup-script")
    error_message = "null is no script"
  }
}

run "what_is_not_said_of_machine_and_network_is_filled_in" {
  command = plan

  assert {
    condition     = google_compute_instance.run.boot_disk[0].initialize_params[0].size == 100
    error_message = "the disk has 100 GB"
  }

  assert {
    condition     = google_compute_instance.run.boot_disk[0].initialize_params[0].type == "pd-balanced"
    error_message = "the disk is a balanced one"
  }

  assert {
    condition     = google_compute_instance.run.network_interface[0].network == "default" && length(google_compute_instance.run.network_interface[0].access_config) == 1
    error_message = "the VM is in the default network, with an external address"
  }

  assert {
    condition     = google_compute_instance.run.labels == tomap({ glgpu = "managed", glgpu-expires = "1764000000" })
    error_message = "the labels are those of the variable, and no more"
  }

  assert {
    condition     = google_compute_instance.run.scheduling[0].on_host_maintenance == "TERMINATE" && !google_compute_instance.run.scheduling[0].automatic_restart
    error_message = "a GPU cannot move to another host, and nothing starts the VM again"
  }

  assert {
    condition     = google_compute_instance.run.timeouts.create == "20m"
    error_message = "Terraform is more patient than any healthy insert is slow"
  }
}

run "nobody_comes_in_who_was_not_let_in" {
  command = plan

  assert {
    condition     = google_compute_instance.run.metadata["block-project-ssh-keys"] == "TRUE"
    error_message = "keys of the project do not count"
  }

  assert {
    condition     = google_compute_instance.run.metadata["enable-oslogin"] == "FALSE"
    error_message = "OS Login is off"
  }

  assert {
    condition     = google_compute_instance.run.metadata["enable-guest-attributes"] == "TRUE"
    error_message = "the host key can be published"
  }

  assert {
    condition     = length(google_compute_instance.run.service_account) == 0
    error_message = "there is no service account where none is asked for"
  }

  assert {
    condition     = google_compute_instance.run.tags == toset(["glgpu-a1b2c3-42-1001-train"])
    error_message = "the run's own tag is there, for its firewall rules"
  }
}

run "a_machine_type_that_brings_its_gpu_orders_none_beside_it" {
  command = plan

  assert {
    condition     = length(google_compute_instance.run.guest_accelerator) == 0
    error_message = "no GPU is attached"
  }
}

run "an_n1_spot_machine_without_external_address_has_its_gpu_attached" {
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
    network = { external_ip = false, tags = ["nat"] }
  }

  assert {
    condition     = google_compute_instance.run.guest_accelerator[0].count == 2
    error_message = "two GPUs are attached"
  }

  assert {
    condition     = google_compute_instance.run.scheduling[0].provisioning_model == "SPOT" && google_compute_instance.run.scheduling[0].preemptible
    error_message = "the machine is a spot machine"
  }

  assert {
    condition     = length(google_compute_instance.run.network_interface[0].access_config) == 0
    error_message = "there is no external address"
  }

  assert {
    condition     = google_compute_instance.run.service_account[0].email == "vm@my-dl.iam.gserviceaccount.com"
    error_message = "the service account is the one asked for"
  }
}

run "an_instance_without_external_address_is_reached_through_identity_aware_proxy" {
  variables {
    network = { external_ip = false }
  }

  assert {
    condition     = endswith(output.login_command, "--tunnel-through-iap")
    error_message = "the login command goes through Identity-Aware Proxy"
  }

  assert {
    condition     = output.ssh_port == 22
    error_message = "the SSH port is 22 where the metadata say nothing"
  }
}

run "what_jobs_change_while_the_vm_lives_is_not_taken_back" {
  variables {
    labels = { glgpu = "managed", glgpu-expires = "1764009999", cost-centre = "vision" }
    metadata = {
      glgpu-host-key = "ssh-ed25519 AAAA"
      glgpu-settings = "{}"
      glgpu-ssh-port = "2222"
    }
  }

  assert {
    condition     = google_compute_instance.run.labels == tomap({ glgpu = "managed", glgpu-expires = "1764000000", cost-centre = "vision" })
    error_message = "of the labels, the soft end alone is left as it was"
  }

  assert {
    condition     = length(setintersection(keys(google_compute_instance.run.metadata), ["glgpu-host-key", "glgpu-ssh-port"])) == 0
    error_message = "host key and SSH port are left as they were"
  }

  assert {
    condition     = google_compute_instance.run.metadata["glgpu-settings"] == "{}"
    error_message = "every other item is as it is asked for"
  }
}
