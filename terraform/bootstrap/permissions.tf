# The same lists as in glgpu's permissions.py, where each permission is explained; a test holds them together.
locals {
  permissions = {
    run = [
      "compute.disks.create",
      "compute.disks.delete",
      "compute.disks.get",
      "compute.disks.list",
      "compute.firewalls.create",
      "compute.firewalls.delete",
      "compute.firewalls.get",
      "compute.firewalls.update",
      "compute.globalOperations.get",
      "compute.globalOperations.list",
      "compute.images.useReadOnly",
      "compute.instances.create",
      "compute.instances.delete",
      "compute.instances.get",
      "compute.instances.getGuestAttributes",
      "compute.instances.getSerialPortOutput",
      "compute.instances.list",
      "compute.instances.setLabels",
      "compute.instances.setMetadata",
      "compute.instances.setServiceAccount",
      "compute.instances.setTags",
      "compute.networks.updatePolicy",
      "compute.subnetworks.use",
      "compute.subnetworks.useExternalIp",
      "compute.zoneOperations.get",
      "compute.zoneOperations.list",
      "compute.zones.list",
    ]
    look = [
      "compute.acceleratorTypes.list",
      "compute.diskTypes.list",
      "compute.firewalls.list",
      "compute.images.get",
      "compute.machineTypes.get",
      "compute.machineTypes.list",
      "compute.networks.get",
      "compute.projects.get",
      "compute.regions.get",
      "compute.regions.list",
      "compute.routers.list",
      "compute.subnetworks.get",
      "compute.subnetworks.list",
      "resourcemanager.projects.get",
      "serviceusage.services.get",
      "serviceusage.services.list",
    ]
    bucket = [
      "storage.buckets.get",
      "storage.objects.create",
      "storage.objects.delete",
      "storage.objects.get",
      "storage.objects.list",
      "storage.objects.update",
    ]
    users = [
      "compute.firewalls.get",
      "compute.firewalls.update",
      "compute.globalOperations.get",
      "compute.instances.get",
      "compute.instances.getGuestAttributes",
      "compute.instances.list",
      "compute.instances.setLabels",
      "compute.instances.setMetadata",
      "compute.networks.updatePolicy",
      "compute.projects.get",
      "compute.zoneOperations.get",
    ]
  }

  # Ids of roles have no dashes.
  role_prefix = replace(var.name, "-", "_")
}
