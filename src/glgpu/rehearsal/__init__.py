"""A whole pipeline on this machine: stand-ins for GitLab, Compute Engine, its VMs and Docker.

Only the ``rehearse`` command imports this package. Product code knows nothing of it: faults live here, in the
stand-ins, and reach the product through the same doors as in the real world.
"""
