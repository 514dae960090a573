"""What stages are made of; each step speaks to the outside only through `glgpu.interfaces`."""
