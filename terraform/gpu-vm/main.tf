locals {
  # Read by outputs.tf, which is the same file in every module that makes a VM.
  instance = {
    external_address = try(google_compute_instance.run.network_interface[0].access_config[0].nat_ip, null)
    id               = google_compute_instance.run.instance_id
    internal_address = google_compute_instance.run.network_interface[0].network_ip
    name             = google_compute_instance.run.name
    project          = google_compute_instance.run.project
    self_link        = google_compute_instance.run.self_link
    ssh_port         = try(tonumber(google_compute_instance.run.metadata["glgpu-ssh-port"]), 22)
    zone             = google_compute_instance.run.zone
  }

  metadata = merge(var.metadata, {
    # Project-wide keys would let in people whom nobody asked about this VM.
    block-project-ssh-keys = "TRUE"
    # The guest publishes its SSH host key there, so that nobody has to trust the first connection.
    enable-guest-attributes = "TRUE"
    # OS Login would ignore the login keys that jobs write into the metadata.
    enable-oslogin = "FALSE"
  }, var.startup_script == null ? {} : { startup-script = var.startup_script })
}
