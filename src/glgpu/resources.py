"""Files that glgpu brings along: Terraform modules, pipeline files, the example."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def resource(name: str) -> Path:
    """Where ``terraform``, ``ci`` or ``examples`` (or something below) lies: in the wheel, or in a checkout."""
    installed = _PACKAGE / "_data" / name
    return installed if installed.exists() else _PACKAGE.parents[1] / name


def resource_text(name: str) -> bytes:
    """The bytes of a file inside the package itself."""
    return (_PACKAGE / name).read_bytes()
