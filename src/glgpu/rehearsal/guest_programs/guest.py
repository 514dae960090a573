"""What every program of a VM knows: the VM's folder, its hardware, who calls, and how to ask outside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from glgpu.rehearsal.guest_programs import folder_socket


class Guest:
    """The VM in which a program runs."""

    def __init__(self) -> None:
        self.folder = Path(os.environ["GLGPU_VM_FOLDER"])
        self.machine: dict[str, Any] = json.loads((self.folder / "machine.json").read_text())

    @property
    def is_root(self) -> bool:
        """Whether ``sudo`` called us; the real user id is the rehearsal's own."""
        return os.environ.get("GLGPU_VM_USER") == "root"

    def ask(self, **question: Any) -> dict[str, Any]:
        """Ask the machine room.

        Raises:
            OSError: It has gone; the VM is about to.
        """
        return folder_socket.ask(self.folder / "guest.sock", question)
