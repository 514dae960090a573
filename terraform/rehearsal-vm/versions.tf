# The builtin provider alone: nothing is downloaded.
terraform {
  required_version = ">= 1.5"
}
