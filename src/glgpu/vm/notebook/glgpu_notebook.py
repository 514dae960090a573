"""JupyterLab inside the run's container: how it starts, and what it says of itself to the VM.

Runs in the image's own Python, whichever that is, so that it keeps to what Python 3.8 knows and to what Jupyter brings.
As a program: ``glgpu_notebook.py MEMORY HOME WORKSPACE FOLDER LAYER`` serves, ``glgpu_notebook.py ask MEMORY`` asks
whether that answers. As a module it is an extension of Jupyter's server.

What it says goes into a file every second: Unix time, Unix time of the last work, and 1 while something is at work.
Work is a cell, or a program in a terminal and what it prints. That somebody has the notebook open is none.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

NAME = "glgpu_notebook"
LOOK_MILLISECONDS = 1000
ASK_SECONDS = 20
WARN_SECONDS = 600
"""Before the soft end: from then on JupyterLab tells whoever has it open."""
memory = Path()
"""What the VM shares with us, in memory: ``socket``, ``token``, ``until``, ``seen``."""


def serve(home: str, workspace: str, folder: str, layer: str) -> None:
    """Run JupyterLab until it is told to end.

    Args:
        home: Where this program lies.
        workspace: The repository, which JupyterLab shows.
        folder: In it, where it begins.
        layer: Folder with Jupyter's packages; empty: the image's own are used.
    """
    if layer:
        # Before the image's, and for this process alone: kernels and terminals do without (see kernel.py).
        sys.path.insert(0, layer)
    sys.path.insert(0, home)
    from jupyter_server import version_info
    from jupyterlab.labapp import LabApp

    # An image's own settings may say otherwise; what is said here counts. No other process sees these words.
    token = "IdentityProvider.token" if version_info[0] >= 2 else "ServerApp.token"
    said = {
        "ServerApp.sock": str(memory / "socket"),
        # Whoever is let into the folder above it; that is the VM's login user alone.
        "ServerApp.sock_mode": "0666",
        "ServerApp.root_dir": workspace,
        "ServerApp.preferred_dir": folder,
        token: (memory / "token").read_text().strip(),
        "ServerApp.password": "",
        "ServerApp.open_browser": "False",
        "ServerApp.allow_root": "True",
    }
    os.chdir(folder)
    words = [f"--{name}={value}" for name, value in said.items()]
    # Terminals are an extension too, which an image may have left without the file that turns it on.
    extensions = {name: True for name in (NAME, "jupyter_server_terminals") if importlib.util.find_spec(name)}
    LabApp.launch_instance(argv=[*words, f"--ServerApp.jpserver_extensions={extensions}"])


def ask() -> int:
    """Whether JupyterLab answers whoever has the token, as an exit code."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("localhost", timeout=ASK_SECONDS)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(ASK_SECONDS)
        connection.sock.connect(str(memory / "socket"))
        token = (memory / "token").read_text().strip()
        connection.request("GET", "/api/status", headers={"Authorization": f"token {token}"})
        return 0 if connection.getresponse().status == http.client.OK else 1
    return 1


class Watch:
    """Looks at kernels and terminals, and tells the VM.

    Args:
        app: Jupyter's server.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._used = time.time()
        self._heard: dict[str, Any] = {}
        self._printed: dict[str, int] = {}

    def look(self) -> None:
        """Look once; what goes wrong with one of them hides no other."""
        busy = False
        for name in list(self._app.kernel_manager.list_kernel_ids()):
            with contextlib.suppress(Exception):
                busy |= self._kernel_works(name)
        terminals = getattr(self._app.web_app.settings.get("terminal_manager"), "terminals", {})
        for name, terminal in list(terminals.items()):
            with contextlib.suppress(Exception):
                busy |= self._terminal_works(name, terminal)
        now = time.time()
        if busy:
            self._used = now
        part = memory / "seen.part"
        part.write_text(f"{int(now)} {int(self._used)} {int(busy)}\n")
        part.replace(memory / "seen")

    def _kernel_works(self, name: str) -> bool:
        kernel = self._app.kernel_manager.get_kernel(name)
        # A kernel that was restarted has other sockets.
        ports = (kernel.iopub_port, id(kernel))
        if self._heard.get(name) != ports:
            self._heard[name] = ports
            self._listen(kernel)
        return bool(kernel.execution_state == "busy")

    def _listen(self, kernel: Any) -> None:
        """Hear of cells: one that is over between two looks is work as well.

        `last_activity` does not tell. Up to jupyter_server 2.14 what a tab asks when it opens or comes back counts.
        """
        from zmq.eventloop.zmqstream import ZMQStream

        def hear(parts: Any) -> None:
            with contextlib.suppress(Exception):
                _, rest = kernel.session.feed_identities(parts)
                message = kernel.session.deserialize(rest, content=False)
                if message["parent_header"].get("msg_type") == "execute_request":
                    self._used = time.time()

        stream = kernel.connect_iopub()
        if not isinstance(stream, ZMQStream):
            stream = ZMQStream(stream)
        stream.on_recv(hear)

    def _terminal_works(self, name: str, terminal: Any) -> bool:
        """Whether a program is in front of its shell, or something was printed, what somebody types included.

        Its `last_activity` does not tell: a tab that comes back is sent what was printed before.
        """
        printed = hash(tuple(terminal.read_buffer))
        before = self._printed.get(name)
        self._printed[name] = printed
        if before not in (None, printed):
            self._used = time.time()
        return bool(os.tcgetpgrp(terminal.ptyproc.fd) != terminal.ptyproc.pid)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": NAME}]


def _load_jupyter_server_extension(app: Any) -> None:
    """What Jupyter's server calls: the look every second, and the answer for what warns in the browser."""
    from jupyter_server.base.handlers import APIHandler
    from jupyter_server.utils import url_path_join
    from tornado.ioloop import PeriodicCallback
    from tornado.web import authenticated

    # The program and the extension are two modules of one file.
    globals()["memory"] = sys.modules["__main__"].memory

    # Jupyter and tornado are no dependencies of ours, so nothing is known of their types here.
    class Until(APIHandler):  # type: ignore[misc]
        @authenticated  # type: ignore[untyped-decorator]
        def get(self) -> None:
            end = int((memory / "until").read_text())
            self.finish(json.dumps({"now": int(time.time()), "until": end, "warn_seconds": WARN_SECONDS}))

    app.web_app.add_handlers(".*$", [(url_path_join(app.base_url, "glgpu", "until"), Until)])
    watch = Watch(app)
    PeriodicCallback(watch.look, LOOK_MILLISECONDS).start()


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        memory = Path(sys.argv[2])
        sys.exit(ask())
    memory = Path(sys.argv[1])
    serve(*sys.argv[2:6])
