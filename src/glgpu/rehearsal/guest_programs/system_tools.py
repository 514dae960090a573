"""What a boot image has beside Docker and the driver: package tools, services, the kernel's log. They change nothing.

Nothing is ever missing in a stand-in VM, so nothing can be installed: ``apt-get install`` finds no package.
"""

from __future__ import annotations

import re
import sys

from glgpu.rehearsal.guest_programs.guest import Guest

LOGIND_READ = "logind"
"""File below the VM's ``run`` with the seconds that logind lets programs delay a shutdown, as it read them last."""
DELAY = re.compile(r"^InhibitDelayMaxSec=(\d+)$", re.MULTILINE)
SERVICES = re.compile(r"(?:mask|stop|start|restart|disable|is-active)")


def main(argv: list[str]) -> int:
    """Be the program that the first argument names."""
    program, *words = argv
    plain = [word for word in words if not word.startswith("-")]
    match program, plain:
        case ("systemctl", ["restart", "systemd-logind"]):
            return read_logind_settings(Guest())
        case ("systemctl", [verb, *units]) if SERVICES.fullmatch(verb) and units:
            return 0
        case ("nvidia-ctk", ["runtime", "configure"]) if "--runtime=docker" in words:
            return 0
        case ("apt-get", ["install", package, *_]):
            print(f"E: Unable to locate package {package}", file=sys.stderr)
            return 100
        case ("dmesg", []) if not words:
            return dmesg(Guest())
        case _:
            pass
    print(f"{program}: this virtual machine's {program} does not know: {' '.join(words)}", file=sys.stderr)
    return 2


def read_logind_settings(guest: Guest) -> int:
    """Logind reads its settings when it starts (logind.conf(5)); the last file by name wins."""
    files = sorted((guest.folder / "etc/systemd/logind.conf.d").glob("*.conf"))
    said = [seconds for file in files for seconds in DELAY.findall(file.read_text())]
    if said:
        noted = guest.folder / "run" / LOGIND_READ
        noted.parent.mkdir(exist_ok=True)
        noted.write_text(said[-1])
    return 0


def dmesg(guest: Guest) -> int:
    """The kernel's log, for root."""
    if not guest.is_root:
        print("dmesg: read kernel buffer failed: Operation not permitted", file=sys.stderr)
        return 1
    driver, library = guest.machine["driver"], guest.machine["library"]
    if driver != library:
        print(
            f"[   12.345678] NVRM: API mismatch: the client has the version {library}, but\n"
            f"[   12.345679] NVRM: this kernel module has the version {driver}.  Please\n"
            "[   12.345680] NVRM: make sure that this kernel module and all NVIDIA driver\n"
            "[   12.345681] NVRM: components have the same version."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
