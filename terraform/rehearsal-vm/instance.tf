resource "terraform_data" "instance" {
  input = {
    body = local.body
    url  = "${var.compute_endpoint == null ? "" : var.compute_endpoint}/compute/v1/projects/${var.project}/zones/${var.zone}/instances"
  }
  # The provider makes a VM again that has vanished; this resource does so when the order is a new one.
  triggers_replace = [var.name, var.zone, lookup(var.labels, "glgpu-expires", "")]

  # Both run the same few calls as the google provider. A failed insert leaves this resource tainted, and Terraform runs
  # no destroy provisioner of a tainted resource: what the insert half made stays behind, as it does with the provider.
  provisioner "local-exec" {
    interpreter = ["python3", "${path.module}/compute_instance.py"]
    command     = "insert"
    quiet       = true
    environment = {
      INSTANCES_URL = self.input.url
      INSTANCE_NAME = self.input.body.name
      INSTANCE_BODY = jsonencode(self.input.body)
    }
  }

  provisioner "local-exec" {
    when        = destroy
    interpreter = ["python3", "${path.module}/compute_instance.py"]
    command     = "delete"
    quiet       = true
    environment = {
      INSTANCES_URL = self.input.url
      INSTANCE_NAME = self.input.body.name
    }
  }

  lifecycle {
    precondition {
      condition     = var.compute_endpoint != null
      error_message = "compute_endpoint must be set: this module makes VMs of a rehearsal only."
    }
  }
}

# What Compute Engine says of the instance now, read from it at every refresh.
data "terraform_remote_state" "instance" {
  backend = "http"

  config = {
    address = "${var.compute_endpoint}/rehearsal/v1/instances/${var.zone}/${var.name}/state"
    # Given, so that TF_HTTP_USERNAME and TF_HTTP_PASSWORD, which open the real state, are not sent to this address.
    username = "none"
    password = "none"
  }
  defaults   = { instance = null }
  depends_on = [terraform_data.instance]
}
