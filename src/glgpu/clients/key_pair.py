"""Key pairs for SSH, as ssh-keygen makes them."""

from __future__ import annotations

from pathlib import Path

from glgpu.disk import cannot_write
from glgpu.errors import ErrorClass, Failure
from glgpu.processes import need_tool, run


def make_key_pair(key: Path, comment: str, why: str) -> str:
    """Make an ed25519 key pair, or take the one that is there; the public half.

    Args:
        key: Where the private half lies, for our eyes only.
        comment: What is written beside it.
        why: What it is for.

    Raises:
        Failure: TOOL_MISSING or DISK_FULL.
    """
    try:
        key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise cannot_write(error, key.parent) from None
    public = key.with_name(f"{key.name}.pub")
    if not public.exists():
        key.unlink(missing_ok=True)
        keygen = need_tool("ssh-keygen", f"to make the key that {why}")
        done = run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)], timeout=30)
        if done.code != 0:
            raise Failure(
                ErrorClass.DISK_FULL,
                f"the key that {why} could not be made: {done.complaint}",
                "make room, then retry",
            )
    return " ".join(public.read_text(encoding="ascii").split()[:2])
