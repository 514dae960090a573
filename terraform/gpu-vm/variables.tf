variable "compute_endpoint" {
  description = "Where the Compute Engine API answers, as scheme, host and port without a path; null: Google's own address."
  type        = string
  default     = null

  validation {
    condition     = var.compute_endpoint == null || can(regex("^https?://[^/?#[:space:]]+$", var.compute_endpoint))
    error_message = "compute_endpoint must be http://HOST:PORT or https://HOST:PORT, without a path, or null."
  }
}

variable "labels" {
  description = "Labels of the instance. They must hold glgpu = managed, by which every teardown finds the VM."
  type        = map(string)
  nullable    = false

  validation {
    condition     = lookup(var.labels, "glgpu", "") == "managed"
    error_message = "labels must hold glgpu = managed: a VM without it could not be found again."
  }

  validation {
    condition = length(var.labels) <= 64 && alltrue([
      for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))
    ])
    error_message = "labels must be at most 64; a key has 1 to 63 and a value 0 to 63 of a-z, 0-9, _ and -, and a key starts with a letter."
  }
}

variable "machine" {
  description = <<-EOT
    What is rented. gpu.attached: order the GPU beside the machine type (N1); false where the machine type brings it.
    gvnic: with Google's own network card, without which A3 and newer machines do not come up.
    max_run_seconds: the hard end, at which Compute Engine itself deletes the VM. disk.image: the path of an image or
    of an image family. service_account: null for none.
  EOT
  type = object({
    type = string
    gpu = optional(object({
      type     = string
      count    = optional(number, 1)
      attached = optional(bool, false)
    }))
    gvnic           = optional(bool, false)
    spot            = optional(bool, false)
    max_run_seconds = number
    disk = object({
      image   = string
      size_gb = optional(number, 100)
      type    = optional(string, "pd-balanced")
    })
    service_account = optional(object({
      email  = string
      scopes = optional(list(string), ["https://www.googleapis.com/auth/cloud-platform"])
    }))
  })
  nullable = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]*[a-z0-9]$", var.machine.type))
    error_message = "machine.type must be the short name of a machine type, such as g2-standard-4."
  }

  validation {
    condition     = var.machine.gpu == null || can(regex("^nvidia-[a-z0-9-]*[a-z0-9]$", var.machine.gpu.type))
    error_message = "machine.gpu.type must be the short name of an accelerator type, such as nvidia-l4."
  }

  validation {
    condition     = var.machine.gpu == null || try(contains([1, 2, 4, 8, 16], var.machine.gpu.count), false)
    error_message = "machine.gpu.count must be 1, 2, 4, 8 or 16."
  }

  validation {
    condition = (
      var.machine.max_run_seconds >= 30 && var.machine.max_run_seconds <= 10368000 &&
      floor(var.machine.max_run_seconds) == var.machine.max_run_seconds
    )
    error_message = "machine.max_run_seconds must be a whole number from 30 to 10368000 (120 days)."
  }

  validation {
    condition     = can(regex("^projects/[a-z0-9.:-]+/global/images/(family/)?[a-z0-9-]+$", var.machine.disk.image))
    error_message = "machine.disk.image must be projects/PROJECT/global/images/NAME or projects/PROJECT/global/images/family/FAMILY."
  }

  validation {
    condition = (
      var.machine.disk.size_gb >= 10 && var.machine.disk.size_gb <= 65536 &&
      floor(var.machine.disk.size_gb) == var.machine.disk.size_gb
    )
    error_message = "machine.disk.size_gb must be a whole number from 10 to 65536."
  }

  validation {
    condition     = can(regex("^(pd|hyperdisk)-[a-z]+(-[a-z]+)*$", var.machine.disk.type))
    error_message = "machine.disk.type must be a Persistent Disk or Hyperdisk type: pd-balanced, pd-ssd, pd-standard, hyperdisk-balanced."
  }

  validation {
    condition = var.machine.service_account == null || (
      can(regex("^[^@[:space:]]+@[^@[:space:]]+$", var.machine.service_account.email)) &&
      try(alltrue([for scope in var.machine.service_account.scopes : startswith(scope, "https://www.googleapis.com/auth/")]), false)
    )
    error_message = "machine.service_account must be null, or an e-mail address with scopes that start with https://www.googleapis.com/auth/."
  }
}

variable "metadata" {
  description = "Metadata items beside those that this module sets. Readable by every process on the VM: no secret here."
  type        = map(string)
  default     = {}
  nullable    = false

  # The first three are this module's own and would be overridden in silence. Login keys come from each job, with an
  # end to them. A startup script has a variable of its own: two would be one too many.
  validation {
    condition = length(setintersection(keys(var.metadata), [
      "block-project-ssh-keys", "enable-guest-attributes", "enable-oslogin", "ssh-keys", "sshKeys", "startup-script", "startup-script-url",
    ])) == 0
    error_message = "metadata must not hold block-project-ssh-keys, enable-guest-attributes, enable-oslogin, ssh-keys, sshKeys, startup-script or startup-script-url."
  }

  validation {
    condition     = alltrue([for key in keys(var.metadata) : can(regex("^[a-zA-Z0-9_-]{1,128}$", key))])
    error_message = "metadata keys must have 1 to 128 of a-z, A-Z, 0-9, _ and -."
  }
}

variable "name" {
  description = "The run's name; also that of its boot disk, and a network tag."
  type        = string
  nullable    = false

  validation {
    condition = length(var.name) <= 54 && can(regex(
      "^glgpu-[0-9a-f]{6}-[0-9]+-([0-9]+(-[0-9]+)?|u[0-9a-f]{8}-[0-9]+)-(train|notebook)$", var.name
    ))
    error_message = "name must be glgpu-<6 hex digits>-<project id>-<run>-<train or notebook>, at most 54 characters; a run is a pipeline id, a pipeline id with -<n>, or u<8 hex digits>-<Unix time>."
  }
}

variable "network" {
  description = "Where the VM is connected: network and subnetwork by name or path, and network tags beside the run's own."
  type = object({
    name        = optional(string, "default")
    subnetwork  = optional(string)
    external_ip = optional(bool, true)
    tags        = optional(list(string), [])
  })
  default  = {}
  nullable = false

  validation {
    condition     = can(regex("^(projects/[a-z0-9.:-]+/global/networks/)?[a-z]([-a-z0-9]{0,61}[a-z0-9])?$", var.network.name))
    error_message = "network.name must be a network's name, or projects/PROJECT/global/networks/NAME."
  }

  validation {
    condition = var.network.subnetwork == null || can(regex(
      "^(projects/[a-z0-9.:-]+/regions/[a-z0-9-]+/subnetworks/)?[a-z]([-a-z0-9]{0,61}[a-z0-9])?$", var.network.subnetwork
    ))
    error_message = "network.subnetwork must be null, a subnetwork's name, or projects/PROJECT/regions/REGION/subnetworks/NAME."
  }

  validation {
    condition = try(length(var.network.tags) <= 63 && alltrue([
      for tag in var.network.tags : can(regex("^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$", tag))
    ]), false)
    error_message = "network.tags must be at most 63 names of 1 to 63 of a-z, 0-9 and -, each starting with a letter and not ending with -."
  }
}

variable "project" {
  description = "Id of the Google Cloud project that pays."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9:.-]{1,61}[a-z0-9]$", var.project))
    error_message = "project must be a project's id (3 to 63 of a-z, 0-9, -, . and :), not its number or its display name."
  }
}

variable "startup_script" {
  description = "What the VM runs as root at each boot, or null. Readable by every process on the VM: no secret here."
  type        = string
  default     = null

  validation {
    condition     = var.startup_script == null || try(startswith(var.startup_script, "#!") && length(var.startup_script) <= 65536, false)
    error_message = "startup_script must be null, or a script of at most 65536 characters that begins with #!."
  }
}

variable "zone" {
  description = "The zone."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+-[a-z]$", var.zone))
    error_message = "zone must be a zone's short name, such as europe-west4-a."
  }
}
