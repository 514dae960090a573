# The insert's body, and what is filled in of it. Needs no download.

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
