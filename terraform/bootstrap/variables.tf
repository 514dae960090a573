variable "bucket" {
  description = <<-EOT
    The bucket for Terraform's states and for outputs; null for none. location: a region or multi-region, such as
    europe-west4. name: by default PROJECT-NAME. versioning: keep what was overwritten, which a lost state is restored
    from. old_versions and old_days: a version that was overwritten is deleted when so many newer ones are there and so
    many days have gone.
  EOT
  type = object({
    location     = string
    name         = optional(string)
    versioning   = optional(bool, true)
    old_versions = optional(number, 10)
    old_days     = optional(number, 30)
  })

  validation {
    condition     = var.bucket == null || can(regex("^[A-Za-z]+(-[A-Za-z0-9]+)*$", var.bucket.location))
    error_message = "bucket.location must be a region or multi-region of Cloud Storage, such as europe-west4 or EU."
  }

  validation {
    condition = (
      can(regex("^[a-z0-9][a-z0-9_.-]{1,61}[a-z0-9]$", coalesce(try(var.bucket.name, null), "default"))) &&
      !startswith(coalesce(try(var.bucket.name, null), "default"), "goog")
    )
    error_message = "bucket.name must have 3 to 63 of a-z, 0-9, -, _ and ., with a letter or digit at both ends, and not begin with goog."
  }

  validation {
    condition = var.bucket == null || try(
      var.bucket.old_versions >= 1 && var.bucket.old_days >= 1 &&
      floor(var.bucket.old_versions) == var.bucket.old_versions && floor(var.bucket.old_days) == var.bucket.old_days, false
    )
    error_message = "bucket.old_versions and bucket.old_days must be whole numbers from 1 on."
  }
}

variable "compute_endpoint" {
  description = "Where the Compute Engine API answers, as scheme, host and port without a path; null: Google's own address."
  type        = string
  default     = null

  validation {
    condition     = var.compute_endpoint == null || can(regex("^https?://[^/?#[:space:]]+$", var.compute_endpoint))
    error_message = "compute_endpoint must be http://HOST:PORT or https://HOST:PORT, without a path, or null."
  }
}

variable "gitlab_projects" {
  description = "Ids of the GitLab projects whose jobs are let in, as on the front page of each project."
  type        = set(number)
  nullable    = false

  validation {
    condition = length(var.gitlab_projects) > 0 && alltrue([
      for id in var.gitlab_projects : try(id >= 1 && floor(id) == id, false)
    ])
    error_message = "gitlab_projects must be the numeric ids of one GitLab project or more."
  }
}

variable "gitlab_url" {
  description = "Address of GitLab, exactly as its jobs see it in CI_SERVER_URL. Google insists on https."
  type        = string
  default     = "https://gitlab.com"
  nullable    = false

  validation {
    condition     = can(regex("^https://[^/?#[:space:]]+(/[^?#[:space:]]*[^/?#[:space:]])?$", var.gitlab_url))
    error_message = "gitlab_url must begin with https:// and must not end with a slash."
  }
}

variable "google_endpoint" {
  description = "Where all other Google APIs answer, as scheme, host and port without a path; null: Google's own addresses."
  type        = string
  default     = null

  validation {
    condition     = var.google_endpoint == null || can(regex("^https?://[^/?#[:space:]]+$", var.google_endpoint))
    error_message = "google_endpoint must be http://HOST:PORT or https://HOST:PORT, without a path, or null."
  }
}

variable "iap" {
  description = "Whether jobs and users may reach VMs through Identity-Aware Proxy (network.access: iap), and the network lets it in."
  type        = bool
  default     = true
  nullable    = false
}

variable "jwks_file" {
  description = "A file with GitLab's public keys, for a GitLab that Google cannot reach: what GITLAB/oauth/discovery/keys answers. Null: Google asks GitLab."
  type        = string
  default     = null

  validation {
    condition = var.jwks_file == null || (
      can(length(jsondecode(file(var.jwks_file)).keys)) && try(length(jsondecode(file(var.jwks_file)).keys) > 0, false)
    )
    error_message = "jwks_file must be a readable JSON file with a list named keys, as GITLAB/oauth/discovery/keys answers it."
  }
}

variable "name" {
  description = "What the names of the service accounts, the roles, the rule, the NATs and the bucket begin with."
  type        = string
  default     = "glgpu"
  nullable    = false

  # With -uploader behind it, it still has to be the id of a service account: 6 to 30 characters.
  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,19}[a-z0-9])?$", var.name))
    error_message = "name must have 1 to 21 of a-z, 0-9 and -, begin with a letter and not end with -."
  }
}

variable "nat" {
  description = "Regions that get a NAT, for VMs without an external address (network.external_ip: false). A NAT costs money by the hour."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for region in var.nat : can(regex("^[a-z]+-[a-z]+[0-9]+$", region))])
    error_message = "nat must hold regions, such as europe-west4."
  }
}

variable "network" {
  description = "Name of the project's network that the VMs are in."
  type        = string
  default     = "default"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$", var.network))
    error_message = "network must be the name of a network of this project."
  }
}

variable "pool_id" {
  description = "Id of the workload identity pool. Google keeps a deleted one for 30 days and refuses its id meanwhile."
  type        = string
  default     = "glgpu"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9-]{4,32}$", var.pool_id)) && !startswith(var.pool_id, "gcp-")
    error_message = "pool_id must have 4 to 32 of a-z, 0-9 and -, and not begin with gcp-."
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

variable "protected_refs_only" {
  description = "Whether only jobs of protected branches and tags are let in."
  type        = bool
  default     = false
  nullable    = false
}

variable "users" {
  description = "Who may open notebooks and log in to VMs from a laptop: user:E-MAIL, group:E-MAIL or domain:NAME."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for user in var.users : can(regex("^((user|group):[^@[:space:]]+@[^@[:space:]]+|domain:[^@[:space:]]+)$", user))])
    error_message = "users must be user:E-MAIL, group:E-MAIL or domain:NAME."
  }
}
