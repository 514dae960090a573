"""GitLab CI/CD trainings and notebooks on Compute Engine GPUs that never outlive their run."""

__version__ = "0.1.0"
