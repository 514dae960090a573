"""The programs that a VM has beside the host's own: each a module with ``main``, run as ``python -I -m``."""
