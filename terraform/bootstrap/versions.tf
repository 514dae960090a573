terraform {
  required_version = ">= 1.5"

  required_providers {
    google = {
      source = "hashicorp/google"
      # The same as gpu-vm, so that one download serves both.
      version = ">= 7.19, < 8"
    }
  }
}
