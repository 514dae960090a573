"""What glgpu brings onto a VM: one POSIX-sh helper."""
