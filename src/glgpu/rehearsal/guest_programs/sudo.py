"""``sudo`` for an account that may do everything without a password, as Google's guest agent sets it up.

Like Debian's: the environment starts anew with a fixed PATH (``-E`` keeps it, ``VAR=value`` adds to it), HOME is the
target's. Known: ``-n -E -H -u USER --``. Everything else is refused.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import NoReturn

from glgpu.rehearsal.guest_programs.guest import Guest

KEPT = ("GLGPU_VM", "LANG", "LC_ALL", "TERM")


def fail(text: str) -> NoReturn:
    """End as sudo does."""
    print(f"sudo: {text}", file=sys.stderr)
    sys.exit(1)


def main(argv: list[str]) -> NoReturn:
    """Become the target user as far as the VM's programs can tell, and run the command."""
    guest = Guest()
    user, keep, words = "root", False, list(argv)
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option == "--":
            break
        if option == "-u" and words:
            user = words.pop(0)
        elif not re.fullmatch(r"-[nEH]+", option):
            fail(f"this virtual machine's sudo does not know the option {option}")
        keep = keep or "E" in option
    given = {}
    while words and re.match(r"[A-Za-z_]\w*=", words[0]):
        name, _, value = words.pop(0).partition("=")
        given[name] = value
    if not words:
        fail("a command is needed")
    home = guest.folder / ("root" if user == "root" else f"home/{user}")
    if not home.is_dir():
        fail(f"unknown user {user}")
    path = guest.machine["path"]
    before = os.environ if keep else {name: os.environ[name] for name in KEPT if name in os.environ}
    environment = {
        **before, "PATH": path, "HOME": str(home), "USER": user, "LOGNAME": user, "SHELL": "/bin/sh",
        "SUDO_USER": os.environ.get("USER", ""), "GLGPU_VM_USER": user, **given,
    }  # fmt: skip
    program = shutil.which(words[0], path=environment["PATH"])
    if program is None:
        fail(f"{words[0]}: command not found")
    os.execve(program, words, environment)


if __name__ == "__main__":
    main(sys.argv[1:])
