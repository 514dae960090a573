"""Which permissions glgpu needs in a Google Cloud project, as the calls that it makes ask for them.

Sources: the IAM section of each method in https://cloud.google.com/compute/docs/reference/rest/v1, and
https://cloud.google.com/iam/docs/permissions-reference. ``terraform/bootstrap`` makes its custom roles of these lists.
"""

from __future__ import annotations

RUN = (
    # Terraform's insert of an instance with a new boot disk, and what it reads afterwards.
    "compute.disks.create",
    "compute.disks.get",
    "compute.instances.create",
    "compute.instances.get",
    "compute.instances.setLabels",
    "compute.instances.setMetadata",
    "compute.instances.setServiceAccount",
    "compute.instances.setTags",
    "compute.subnetworks.use",
    "compute.subnetworks.useExternalIp",
    "compute.zoneOperations.get",
    # A boot image of one's own project; Google's public ones ask for nothing.
    "compute.images.useReadOnly",
    # Finding runs and operations by name and label, in every zone.
    "compute.disks.list",
    "compute.instances.list",
    "compute.globalOperations.list",
    "compute.zoneOperations.list",
    "compute.zones.list",
    # What a guest tells before anybody can log in.
    "compute.instances.getGuestAttributes",
    "compute.instances.getSerialPortOutput",
    # The run's two firewall rules.
    "compute.firewalls.create",
    "compute.firewalls.delete",
    "compute.firewalls.get",
    "compute.firewalls.update",
    "compute.globalOperations.get",
    "compute.networks.updatePolicy",
    # The end of a run.
    "compute.disks.delete",
    "compute.instances.delete",
)
"""In the project: without any of these some run fails."""

LOOK = (
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
)
"""In the project: without these ``glgpu doctor`` and ``glgpu gpus`` see less, and ``glgpu cleanup`` no firewall rules;
runs go well all the same."""

ORGANISATION = ("orgpolicy.policy.get",)
"""To read organisation policies in force: part of the basic roles, and not grantable to one's own role everywhere."""

ACT_AS = ("iam.serviceAccounts.actAs",)
"""On the service account that the VM itself gets, where settings name one for it."""

TUNNEL = ("iap.tunnelInstances.accessViaIAP",)
"""In the project, where ``network.access`` is ``iap``."""

BUCKET = (
    "storage.buckets.get",
    "storage.objects.create",
    "storage.objects.delete",
    "storage.objects.get",
    "storage.objects.list",
    "storage.objects.update",
)
"""On the bucket of states and checkpoints, for jobs. ``delete`` is also what writing over an object asks for."""

UPLOAD = ("storage.objects.create",)
"""On the bucket, for the VM of a detached run: it adds, and neither reads nor overwrites."""

USERS = (
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
)
"""In the project, for people who open a notebook, give it more time, or log in to a VM from a laptop."""
USERS_ROLE = "glgpu_users"
"""The role that has them, as terraform/bootstrap names it by default."""
