resource "google_compute_instance" "run" {
  project      = var.project
  zone         = var.zone
  name         = var.name
  machine_type = var.machine.type
  labels       = var.labels
  metadata     = local.metadata
  tags         = concat([var.name], var.network.tags)

  boot_disk {
    auto_delete = true

    initialize_params {
      image = var.machine.disk.image
      size  = var.machine.disk.size_gb
      type  = var.machine.disk.type
    }
  }

  # Machine types such as g2 or a2 bring their GPUs; only those of N1 are ordered beside it.
  dynamic "guest_accelerator" {
    for_each = try(var.machine.gpu.attached, false) ? [var.machine.gpu] : []

    content {
      type  = guest_accelerator.value.type
      count = guest_accelerator.value.count
    }
  }

  network_interface {
    network    = var.network.name
    subnetwork = var.network.subnetwork
    nic_type   = var.machine.gvnic ? "GVNIC" : null

    # An ephemeral address: it goes with the VM, a static one would stay and cost.
    dynamic "access_config" {
      for_each = var.network.external_ip ? [true] : []

      content {}
    }
  }

  # The last net under every other teardown: Compute Engine deletes the VM by itself. There is no way to leave it out.
  scheduling {
    automatic_restart           = false
    instance_termination_action = "DELETE"
    on_host_maintenance         = "TERMINATE"
    preemptible                 = var.machine.spot
    provisioning_model          = var.machine.spot ? "SPOT" : "STANDARD"

    max_run_duration {
      seconds = var.machine.max_run_seconds
    }
  }

  dynamic "service_account" {
    for_each = var.machine.service_account == null ? [] : [var.machine.service_account]

    content {
      email  = service_account.value.email
      scopes = service_account.value.scopes
    }
  }

  # After this time the provider forgets a VM that may still come up, so it is longer than any healthy insert takes.
  timeouts {
    create = "20m"
    delete = "20m"
  }

  # Jobs change these through the API while the VM lives; a second apply must not take it back.
  lifecycle {
    ignore_changes = [
      labels["glgpu-expires"],
      metadata["glgpu-host-key"],
      metadata["glgpu-ssh-port"],
      metadata["ssh-keys"],
    ]
  }
}
