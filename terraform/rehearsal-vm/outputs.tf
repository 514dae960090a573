output "address" {
  description = "The address at which the VM is reached: its external one, or the internal one where it has no other."
  value       = local.instance.external_address != null ? local.instance.external_address : local.instance.internal_address
}

output "instance_id" {
  description = "The number that Compute Engine gave the instance; unlike the name it is never used again."
  value       = local.instance.id
}

output "internal_address" {
  description = "The address inside the network."
  value       = local.instance.internal_address
}

output "login_command" {
  description = "A command that logs in to the VM, once the caller's key and address have been let in; through Identity-Aware Proxy where the VM has no external address."
  value = (
    local.instance.external_address != null
    ? "ssh -p ${local.instance.ssh_port} glgpu@${local.instance.external_address}"
    : local.instance.internal_address != null
    ? "gcloud compute ssh glgpu@${local.instance.name} --project=${local.instance.project} --zone=${local.instance.zone} --tunnel-through-iap"
    : null
  )
}

output "name" {
  description = "The instance's name, as Compute Engine says it."
  value       = local.instance.name
}

output "self_link" {
  description = "The instance's address in the Compute Engine API."
  value       = local.instance.self_link
}

output "ssh_port" {
  description = "The port of the VM's SSH server: its metadata item glgpu-ssh-port, else 22."
  value       = local.instance.ssh_port
}

output "zone" {
  description = "The zone's short name, as Compute Engine says it."
  value       = local.instance.zone
}
