"""What it means when this machine cannot write a file."""

from __future__ import annotations

import errno

from glgpu.errors import ErrorClass, Failure


def cannot_write(error: OSError, what: object) -> Failure:
    """Describe a file that could not be written here.

    Args:
        error: What the operating system said.
        what: Path or name of the file.
    """
    why = "the disk of this machine is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot be written"
    return Failure(
        ErrorClass.DISK_FULL,
        f"{what}: {why}: {error.strerror or error}",
        "make room on this machine, or mend its rights; then retry the job: what is on the VM stays there",
    )
