terraform {
  required_version = ">= 1.5"

  required_providers {
    google = {
      source = "hashicorp/google"
      # 7.19 brought poll_interval, without which every wait is rounded up to ten seconds.
      version = ">= 7.19, < 8"
    }
  }
}
