"""An OpenSSH server on the loopback interface as a VM: its account is a folder with glgpu's helper in it."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from results import NotMeasured

from fakes import Stage, make_stage
from glgpu.clients import remote_machine
from glgpu.clients.remote_machine import RemoteMachine, make_login_key
from glgpu.interfaces import Endpoint
from glgpu.resources import resource_text
from glgpu.steps.guest import ask

SETTINGS = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/login.pub
ForceCommand {folder}/session
StrictModes no
SetEnv HOME={folder}/home
UsePAM no
PidFile none
"""
# The account's own shell runs the session, and would read this machine's start-up files for it each time.
SESSION = """\
#!/bin/sh
HOME={home} PATH={folder}/bin:"$PATH" {variables}
export HOME PATH {names}
cd "$HOME" && exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""
SUDO = """\
#!/bin/sh
[ "$1" != -n ] || shift
exec "$@"
"""


@dataclass(frozen=True)
class Loopback:
    """A server that runs.

    Attributes:
        folder: Everything of it.
        stage: A run made of fakes, whose outputs come to ``folder/job/outputs``.
        machine: The server as glgpu knows a VM.
        ssh: The command line of a plain client, for rivals.
    """

    folder: Path
    stage: Stage
    machine: RemoteMachine
    ssh: list[str]

    @property
    def home(self) -> Path:
        """The helper's folder on the VM."""
        return self.folder / "home/glgpu"

    @property
    def code(self) -> Path:
        """Where the training ran."""
        return self.home / "code"

    @property
    def outputs(self) -> Path:
        """Where outputs come to."""
        return self.stage.run.outputs

    def program(self, name: str, text: str) -> None:
        """A program of the VM's own, before those of this machine."""
        path = self.folder / "bin" / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def shell(self, command: str) -> str:
        """A command line for a shell that has ``command`` run on the VM."""
        return f"{shlex.join(self.ssh)} {shlex.quote(command)}"


@contextmanager
def loopback(within: Path | None = None) -> Iterator[Loopback]:
    """A server for the length of a block.

    Args:
        within: Where its files are; by default where temporary files are.

    Raises:
        NotMeasured: There is no sshd.
    """
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if sshd is None:
        raise NotMeasured("no sshd on this machine (Debian: apt install openssh-server)")
    with tempfile.TemporaryDirectory(dir=within) as name:
        folder = Path(name)
        for part in ("bin", "home/glgpu/code", "job"):
            (folder / part).mkdir(parents=True)
        made = _prepare(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (folder / "sshd_config").write_text(SETTINGS.format(folder=folder, port=port))
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with subprocess.Popen(
            [sshd, "-D", "-e", "-f", folder / "sshd_config"], stderr=(folder / "sshd.log").open("w")
        ) as server:
            try:
                _await(port, server, folder / "sshd.log")
                connected = _connected(folder, port, made)
                run = connected.stage.run
                try:
                    ask(run, connected.machine, "hello", doing="making the helper's folders")
                    yield connected
                finally:
                    connected.machine.hang_up()
                    shutil.rmtree(Path("/dev/shm") / str(run.name), ignore_errors=True)
            finally:
                server.terminate()


def _prepare(folder: Path) -> str:
    """Keys, the session's environment and the helper; the public half of the host key."""
    make_login_key(folder, "benchmark")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host_key"], check=True)
    own: Mapping[str, str] = {name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ}
    session = SESSION.format(
        folder=folder, home=folder / "home", names=" ".join(own),
        variables=" ".join(f"{name}={shlex.quote(value)}" for name, value in own.items()),
    )  # fmt: skip
    for path, text in ((folder / "session", session), (folder / "bin/sudo", SUDO)):
        path.write_text(text)
        path.chmod(0o755)
    (folder / "home/glgpu/helper").write_bytes(resource_text("vm/helper.sh"))
    return (folder / "host_key.pub").read_text()


def _connected(folder: Path, port: int, host_key: str) -> Loopback:
    remote_machine.USER = getpass.getuser()  # this machine has no account of a VM's name
    endpoint = Endpoint("loopback", "nowhere", "127.0.0.1", port, False)
    machine = RemoteMachine(endpoint, folder, " ".join(host_key.split()[:2]))
    options = {"IdentityFile": folder / "login", "IdentitiesOnly": "yes", "BatchMode": "yes"}
    options |= {"UserKnownHostsFile": folder / f"known_hosts-127.0.0.1-{port}", "LogLevel": "ERROR"}
    words = [word for option, value in options.items() for word in ("-o", f"{option}={value}")]
    ssh = ["ssh", "-F", "none", "-T", "-p", str(port), *words, "127.0.0.1"]
    return Loopback(folder, make_stage(folder / "job"), machine, ssh)


def _await(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until it listens."""
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    raise NotMeasured(f"sshd does not start here: {log.read_text().strip()}")
