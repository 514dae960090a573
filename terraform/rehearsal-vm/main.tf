locals {
  # What the google provider sends for the same variables, name by name; README.md lists where the two differ. A field
  # that is null here is not sent.
  _body = {
    canIpForward       = false
    deletionProtection = false
    disks = [{
      autoDelete = true
      boot       = true
      mode       = "READ_WRITE"
      initializeParams = {
        diskSizeGb  = tostring(var.machine.disk.size_gb)
        diskType    = "${local._zone}/diskTypes/${var.machine.disk.type}"
        sourceImage = var.machine.disk.image
      }
    }]
    guestAccelerators = !try(var.machine.gpu.attached, false) ? null : [{
      acceleratorCount = var.machine.gpu.count
      acceleratorType  = "${local._zone}/acceleratorTypes/${var.machine.gpu.type}"
    }]
    labels            = var.labels
    machineType       = "${local._zone}/machineTypes/${var.machine.type}"
    metadata          = { items = [for key, value in local.metadata : { key = key, value = value }] }
    name              = var.name
    networkInterfaces = [{ for field, value in local._network_interface : field => value if value != null }]
    params            = {}
    scheduling = {
      automaticRestart          = false
      instanceTerminationAction = "DELETE"
      maxRunDuration            = { seconds = tostring(var.machine.max_run_seconds) }
      onHostMaintenance         = "TERMINATE"
      preemptible               = var.machine.spot
      provisioningModel         = var.machine.spot ? "SPOT" : "STANDARD"
    }
    serviceAccounts = var.machine.service_account == null ? null : [var.machine.service_account]
    tags            = { items = sort(distinct(concat([var.name], var.network.tags))) }
  }

  _network_interface = {
    accessConfigs = var.network.external_ip ? [{ type = "ONE_TO_ONE_NAT" }] : null
    nicType       = var.machine.gvnic ? "GVNIC" : null
    network       = startswith(var.network.name, "projects/") ? var.network.name : "projects/${var.project}/global/networks/${var.network.name}"
    subnetwork = (
      var.network.subnetwork == null || try(startswith(var.network.subnetwork, "projects/"), false)
      ? var.network.subnetwork
      : "projects/${var.project}/regions/${local._region}/subnetworks/${var.network.subnetwork}"
    )
  }

  # Read by outputs.tf, which is the same file in every module that makes a VM; null where the VM is gone.
  instance = {
    external_address = try(local._answer.address != local._answer.internal_address ? local._answer.address : null, null)
    id               = try(local._answer.instance_id, null)
    internal_address = try(local._answer.internal_address, null)
    name             = try(local._answer.name, null)
    project          = var.project
    self_link        = try("${var.compute_endpoint}/compute/v1/${local._zone}/instances/${local._answer.name}", null)
    ssh_port         = try(local._answer.ssh_port, 22)
    zone             = try(local._answer.zone, null)
  }

  metadata = merge(var.metadata, {
    block-project-ssh-keys  = "TRUE"
    enable-guest-attributes = "TRUE"
    enable-oslogin          = "FALSE"
  }, var.startup_script == null ? {} : { startup-script = var.startup_script })

  body = { for field, value in local._body : field => value if value != null }

  _answer = data.terraform_remote_state.instance.outputs.instance
  _region = join("-", slice(split("-", var.zone), 0, 2))
  _zone   = "projects/${var.project}/zones/${var.zone}"
}
