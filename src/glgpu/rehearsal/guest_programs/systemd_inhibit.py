"""``systemd-inhibit --what=shutdown --mode=delay ... COMMAND`` for root: a shutdown waits for the command.

See systemd-inhibit(1); the machine room waits no longer than logind's InhibitDelayMaxSec. Other locks are refused.
"""

from __future__ import annotations

import os
import subprocess
import sys

from glgpu.rehearsal.guest_programs.guest import Guest

LOCKS = "inhibit"
"""Folder below the VM's ``run`` with a file for each lock, named after the process that holds it."""


def main(argv: list[str]) -> int:
    """Run the command behind a lock."""
    guest, options, words = Guest(), dict[str, str](), list(argv)
    while words and words[0].startswith("--"):
        name, _, value = words.pop(0).removeprefix("--").partition("=")
        options[name] = value
    locks = {"what": "shutdown", "mode": "delay"}
    if not words or not locks.items() <= options.items() or set(options) - set(locks) - {"who", "why"}:
        print(f"systemd-inhibit: this virtual machine's does not know: {' '.join(argv)}", file=sys.stderr)
        return 1
    if not guest.is_root:
        print("Failed to inhibit: Interactive authentication required.", file=sys.stderr)
        return 1
    lock = guest.folder / "run" / LOCKS / str(os.getpid())
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    try:
        return subprocess.call(words)
    finally:
        lock.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
