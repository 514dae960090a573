"""``shutdown -P +MINUTES | now`` and ``shutdown -c``, by the rehearsal's clock. Everything else is refused."""

from __future__ import annotations

import re
import sys
import time

from glgpu.rehearsal.guest_programs.guest import Guest


def main(argv: list[str]) -> int:
    """Schedule or cancel the power-off of this VM."""
    guest = Guest()
    words = [word for word in argv if word != "--no-wall"]
    cancel = words == ["-c"]
    when = words[-1] if words and words[0] in ("-P", "-h", "--poweroff") and len(words) == 2 else ""
    minutes = 0 if when == "now" else int(when[1:]) if re.fullmatch(r"\+\d{1,9}", when) else None
    if not cancel and minutes is None:
        print(f"Failed to parse command line: shutdown {' '.join(argv)}", file=sys.stderr)
        return 1
    if not guest.is_root:
        verb = "CancelScheduledShutdown" if cancel else "ScheduleShutdown"
        print(f"Call to {verb} failed: Interactive authentication required.", file=sys.stderr)
        return 1
    answer = guest.ask(do="shutdown", minutes=minutes)
    if minutes:
        moment = time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime(answer["at"]))
        print(f"Shutdown scheduled for {moment}, use 'shutdown -c' to cancel.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
