"""What glgpu brings onto a VM: one POSIX-sh helper, and the script that runs at its boot."""
