"""The first process of a VM: every login session is its child, and it dies with the rehearsal.

Its standard input is one end of a SOCK_SEQPACKET pair. A message is ``{"argv", "env", "cwd"}`` with three file
descriptors; answers are ``{"started": pid}`` or ``{"failed": reason}`` in order of asking, and ``{"exited": pid,
"code": n}``. When the other end closes, because the power was cut or because the rehearsal died, it kills everything.
"""

from __future__ import annotations

import json
import os
import select
import socket
from typing import Any

from glgpu.rehearsal.guest_programs.process_tree import ProcessTree

LONGEST_MESSAGE = 1 << 20


def main() -> None:
    """Serve until the other end closes."""
    control = socket.socket(fileno=os.dup(0))
    tree = ProcessTree()

    def tell(message: dict[str, Any]) -> None:
        try:
            control.send(json.dumps(message).encode())
        except OSError:
            tree.end()
            os._exit(0)

    def start(order: dict[str, Any], fds: list[int]) -> None:
        pid = 0
        try:
            pid = tree.spawn(
                order["argv"], fds, env=order["env"], cwd=order["cwd"],
                on_exit=lambda code: tell({"exited": pid, "code": code}),
            )  # fmt: skip
        except OSError as error:
            tell({"failed": str(error)})
        else:
            tell({"started": pid})
        finally:
            for fd in fds:
                os.close(fd)

    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(tree.wakeup, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if tree.wakeup in ready:
            tree.reap()
        if control.fileno() in ready:
            data, fds, _, _ = socket.recv_fds(control, LONGEST_MESSAGE, 3)
            if not data:
                tree.end()
                return
            start(json.loads(data), fds)


if __name__ == "__main__":
    main()
