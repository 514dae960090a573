"""What a step may expect of the VM: one suite over the fake and over OpenSSH, the helper and a stand-in VM."""

from __future__ import annotations

import hashlib
import http.client
import os
import shlex
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from fakes import FakeMachine
from glgpu.clients import remote_machine
from glgpu.clients.remote_machine import RemoteMachine
from glgpu.clock import poll
from glgpu.errors import Failure
from glgpu.interfaces import Endpoint, Instance, Machine
from glgpu.steps.context import Run
from glgpu.steps.door import Guest, Way, log_in, open_door
from glgpu.steps.guest import command
from lab import SETTINGS, Lab, lab, vm_of

NO_SOCKETS = """\
#!/bin/sh
# As in a folder whose file system has no sockets.
case $1 in
-M) shift 3 && exec {ssh} -M -S /proc/login "$@" ;;
-S) shift 2 && exec {ssh} -S /proc/login "$@" ;;
esac
exit 1
"""


HOLDS_ON = """\
#!/bin/sh
# As with sshd, whose side of a command stays open until that ends: somebody else has its standard error, too.
case $1 in
-M) echo && exec cat ;;
esac
setsid sh -c 'echo $$ >{folder}/new; mv {folder}/new {folder}/holder; exec sleep 60' >/dev/null </dev/null &
until [ -e {folder}/holder ]; do sleep 0.01; done
echo first
exec sleep 60
"""


@dataclass
class Real:
    """A stand-in VM that lets us in.

    Attributes:
        lab: The world.
        run: Whose VM it is.
        vm: The VM.
        guest: The way in.
    """

    lab: Lab
    run: Run
    vm: Instance
    guest: Guest


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp("lab")
    with lab(folder) as world:
        checkout = folder / "check out"
        checkout.mkdir()
        (checkout / "glgpu.yml").write_text(SETTINGS)
        run = world.run(checkout)
        vm = vm_of(run)
        with open_door(run, vm) as way:
            guest = log_in(run, vm, way)
        yield Real(world, run, vm, guest)
        guest.machine.hang_up()


@pytest.fixture(autouse=True)
def _open(request: pytest.FixtureRequest) -> Iterator[None]:
    """The door is open for as long as a test lasts."""
    made: Real = request.getfixturevalue("real")
    with open_door(made.run, made.vm):
        yield


@dataclass
class Bench:
    """A VM and what the helper is called with."""

    machine: Machine
    run: str

    def __call__(self, verb: str, *words: str, stdin: bytes = b"") -> tuple[int, bytes]:
        done = self.machine.run(shlex.join(["sh", "glgpu/helper", verb, self.run, *words]), stdin=stdin)
        return done.code, done.stdout


@pytest.fixture(params=["fake", "real"])
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.param == "fake":
        return Bench(FakeMachine(), "glgpu-000000-1-1-train")
    made: Real = request.getfixturevalue("real")
    return Bench(made.guest.machine, str(made.run.name))


def test_hello_names_glgpus_folder(bench: Bench) -> None:
    code, said = bench("hello")
    assert code == 0
    assert said.decode().rstrip().endswith("/glgpu")


def test_what_is_home_is_remembered(bench: Bench) -> None:
    assert bench("is-home") == (0, b"no\n")
    bench("set-home")
    assert bench("is-home") == (0, b"yes\n")


def test_without_container_there_is_no_state_and_no_image(bench: Bench) -> None:
    assert bench("state") == (0, b"")
    assert bench("image", "registry.example.com/never:pulled") == (0, b"")


def test_a_deploy_key_is_made_and_stays_the_same(bench: Bench) -> None:
    first, second = bench("keygen"), bench("keygen")
    assert first == second
    assert first[1].startswith(b"ssh-ed25519 ")


def test_a_port_that_nobody_answers_at_is_no_success(bench: Bench) -> None:
    code, said = bench("reach", "127.0.0.1", "9", "2")
    assert code != 0
    assert said == b""


def test_wiping_may_be_done_twice(bench: Bench) -> None:
    assert [bench("wipe")[0], bench("wipe")[0]] == [0, 0]


# What only the real way in can show.


def test_both_streams_and_the_exit_code_come_back(real: Real) -> None:
    done = real.guest.machine.run("cat; echo err >&2; exit 5", stdin=b"in\0put")
    assert (done.code, done.stdout, done.complaint) == (5, b"in\0put", "err")


def test_a_command_without_end_is_a_lost_connection(real: Real) -> None:
    begun = time.monotonic()
    done = real.guest.machine.run("sleep 60", timeout=0.7)
    assert done.code == 255
    assert time.monotonic() - begun < 10


def test_a_stream_ends_in_time(real: Real) -> None:
    with real.guest.machine.stream("while :; do echo tick; sleep 0.1; done", timeout=1.0) as stream:
        said = b"".join(stream.chunks())
        assert stream.wait(10) == 255
    assert b"tick" in said


def test_a_silent_stream_says_so_with_empty_pieces_and_loses_nothing(real: Real) -> None:
    with real.guest.machine.stream("read word; echo heard $word") as stream:
        pieces = stream.chunks(0.05)
        assert next(pieces) == b""
        stream.stdin.write(b"it\n")
        stream.stdin.close()
        assert b"".join(pieces) == b"heard it\n"


def test_a_stream_that_ends_by_itself_has_its_own_code(real: Real) -> None:
    with real.guest.machine.stream("cat; exit 3", timeout=60) as stream:
        stream.stdin.write(b"x" * 200_000)
        stream.stdin.close()
        assert sum(len(data) for data in stream.chunks()) == 200_000
        assert stream.wait(10) == 3


def test_a_wrong_host_key_is_refused(real: Real, tmp_path: Path) -> None:
    (tmp_path / "login").write_bytes((real.run.job.scratch / "login").read_bytes())
    (tmp_path / "login").chmod(0o600)
    port = int(real.run.cloud.find(real.vm.name)[0].metadata["glgpu-ssh-port"])
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAfuCHKVTjquxvt6CM6tdG4SLp1Btn/nOeHHE5UOzRdf"
    done = RemoteMachine(Endpoint("vm", "z", real.vm.address, port), tmp_path, other).run("true", timeout=20)
    assert done.code == 255
    assert "Host key verification failed" in done.complaint


def test_a_guest_attribute_that_is_changed_later_is_ignored(real: Real) -> None:
    instance = next(iter(real.lab.world.machines._machines.values()))
    call = real.lab.world.call

    async def overwrite() -> None:
        instance.hypervisor.publish("hostkeys", "ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAI" + "B" * 43)

    call(overwrite())
    way = Way(real.run, real.vm)
    way.open()
    assert log_in(real.run, real.vm, way).home == real.guest.home
    way.hang_up()
    assert real.run.cloud.guest_attributes(real.vm.name, real.vm.zone, "hostkeys")["ssh-ed25519"].endswith("BBBB")


def test_all_commands_share_one_login(real: Real) -> None:
    real.guest.machine.hang_up()
    before = len(real.lab.requests("vm", "login"))
    assert [real.guest.machine.run(f"exit {code}").code for code in (3, 4)] == [3, 4]
    with real.guest.machine.stream("echo first; cat") as stream:
        assert next(stream.chunks()) == b"first\n"
        assert real.guest.machine.run("echo beside it").text == "beside it\n"
    assert len(real.lab.requests("vm", "login")) == before + 1


def test_when_the_connection_breaks_what_runs_ends_and_the_next_command_logs_in_anew(real: Real) -> None:
    before = len(real.lab.requests("vm", "login"))
    real.guest.machine.hang_up()
    with real.guest.machine.stream("echo first; exec sleep 60") as stream:
        assert next(stream.chunks()) == b"first\n"
        real.lab.world.network.change(dropped="reset")
        assert stream.wait(20) == 255
        real.lab.world.network.change()
    assert poll(real.run.clock, lambda: real.guest.machine.run("true").code == 0 or None, seconds=20, every=0.1)
    assert len(real.lab.requests("vm", "login")) == before + 2


def test_a_login_goes_with_the_glgpu_that_made_it(real: Real) -> None:
    port = int(real.run.cloud.find(real.vm.name)[0].metadata["glgpu-ssh-port"])
    before = real.lab.requests("vm", "exec").count(remote_machine.STAY)
    key = real.run.cloud.find(real.vm.name)[0].metadata["glgpu-host-key"]
    program = f"""
import os, pathlib, signal
from glgpu.clients.remote_machine import RemoteMachine
from glgpu.interfaces import Endpoint
folder = pathlib.Path({str(real.run.job.scratch)!r})
machine = RemoteMachine(Endpoint("vm", "z", {real.vm.address!r}, {port}), folder, {key!r})
assert machine.run("true").code == 0
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == -9

    def ended() -> bool | None:
        return real.lab.requests("vm", "exec").count(remote_machine.STAY) > before or None

    assert poll(real.run.clock, ended, seconds=20, every=0.05)


def test_where_no_socket_can_be_each_command_logs_in_for_itself(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = shutil.which("ssh")
    real.guest.machine.hang_up()
    (tmp_path / "ssh").write_text(NO_SOCKETS.format(ssh=ssh))
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = len(real.lab.requests("vm", "login"))
    with open_door(real.run, real.vm) as way:
        machine = log_in(real.run, real.vm, way).machine
        assert machine.run("echo all the same").text == "all the same\n"
        with machine.stream("exit 7") as stream:
            assert stream.wait(20) == 7
    assert len(real.lab.requests("vm", "login")) == before + 4  # the first sees it once it is in


def test_whoever_leaves_a_command_does_not_wait_for_its_end(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ssh").write_text(HOLDS_ON.format(folder=tmp_path))
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with open_door(real.run, real.vm) as way:
        machine = way.connect(Endpoint("vm", "z", real.vm.address, 22), "ssh-ed25519 A")
        with machine.stream("anything") as stream:
            assert next(stream.chunks()) == b"first\n"
    holder = int((tmp_path / "holder").read_text())
    os.kill(holder, signal.SIGTERM)  # it is there: nobody has waited for it


def test_a_login_that_comes_to_no_end_is_given_up(real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(remote_machine, "LOGIN_SECONDS", 0.1)
    with open_door(real.run, real.vm) as way:
        machine = way.connect(Endpoint("vm", "z", real.vm.address, 22), "ssh-ed25519 A")
        assert machine.run("true", timeout=50).code == 255
        with machine.stream("true") as stream:
            assert (list(stream.chunks()), stream.wait(0)) == ([], 255)


def test_a_newcomer_whom_the_rule_does_not_name_hears_nothing(real: Real) -> None:
    before = real.lab.world.network.caller_address
    assert real.guest.machine.run("true").code == 0
    real.guest.machine.hang_up()
    real.lab.world.network.change(caller_address="203.0.113.250")
    try:
        assert real.guest.machine.run("true", timeout=3).code == 255
        with real.guest.machine.stream("true", timeout=3) as stream:
            assert (list(stream.chunks()), stream.wait(0)) == ([], 255)
    finally:
        real.lab.world.network.change(caller_address=before)


def test_the_scratch_folder_is_for_our_eyes_only(real: Real) -> None:
    scratch = real.run.job.scratch
    assert scratch.stat().st_mode & 0o777 == 0o700
    assert (scratch / "login").stat().st_mode & 0o777 == 0o600
    assert (scratch / ".gitignore").read_text() == "*\n"


def test_nothing_of_a_secret_is_on_a_command_line(real: Real) -> None:
    secret = hashlib.sha256(b"secret").hexdigest()
    real.guest.machine.run(command(real.run, "secrets"), stdin=secret.encode())
    assert secret not in "\n".join(real.lab.requests("vm"))
    assert "secrets" in "\n".join(real.lab.requests("vm", "exec"))


def test_an_ssh_that_is_missing_is_40(real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failure) as caught:
        RemoteMachine(Endpoint("vm", "z", real.vm.address, 22), tmp_path, "ssh-ed25519 A")
    assert caught.value.exit_code == 40


def test_a_command_at_our_own_terminal_writes_there_and_tells_how_it_ended(
    real: Real, capfd: pytest.CaptureFixture[str]
) -> None:
    assert real.guest.machine.attached("echo $USER; exit 7") == 7
    assert capfd.readouterr().out == "glgpu\n"


def test_only_a_login_shell_asks_for_a_terminal(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def note(argv: list[str], **_: object) -> int:
        asked.extend(word for word in argv if word in ("-t", "-T"))
        return 0

    monkeypatch.setattr(remote_machine, "attached", note)
    real.guest.machine.attached("true")
    real.guest.machine.attached("")
    assert asked == ["-T", "-t"]


class Page(BaseHTTPRequestHandler):
    """Answers whoever finds the socket."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the notebook")

    def address_string(self) -> str:
        return "a socket"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    """A UNIX socket on the VM, whose file system is this machine's, on which something answers."""
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "socket"), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield str(tmp_path / "socket")
        server.shutdown()
        thread.join()


def read(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/lab")
    body = connection.getresponse().read()
    connection.close()
    return body


def test_a_tunnel_leads_to_a_socket_on_the_vm_and_ends_with_its_block(real: Real, page: str) -> None:
    with real.guest.machine.forward(page) as tunnel:
        assert tunnel.opens(20)
        assert read(tunnel.port) == b"the notebook"
    with pytest.raises(ConnectionRefusedError):
        read(tunnel.port)


def test_a_tunnel_that_a_dropped_network_has_ended_is_made_again_on_the_same_port(real: Real, page: str) -> None:
    with real.guest.machine.forward(page) as tunnel:
        assert tunnel.opens(20)
        port = tunnel.port
        real.lab.world.network.change(dropped="reset")
        tunnel.last()
        assert tunnel.complaint
    with real.guest.machine.forward(page, port) as tunnel:
        assert not tunnel.opens(20)
    real.lab.world.network.change()
    with real.guest.machine.forward(page, port) as tunnel:
        assert tunnel.opens(20)
        assert (tunnel.port, read(port)) == (port, b"the notebook")


def test_no_tunnel_for_whoever_may_not_log_in(real: Real, page: str, tmp_path: Path) -> None:
    endpoint = Endpoint(
        "vm", "z", real.vm.address, int(real.run.cloud.find(real.vm.name)[0].metadata["glgpu-ssh-port"])
    )
    key = real.run.cloud.find(real.vm.name)[0].metadata["glgpu-host-key"]
    remote_machine.make_login_key(tmp_path, "a key that the VM does not know")
    with RemoteMachine(endpoint, tmp_path, key).forward(page) as tunnel:
        assert not tunnel.opens(20)
        assert "Permission denied" in tunnel.complaint
        with pytest.raises(ConnectionRefusedError):
            read(tunnel.port)


def test_no_tunnel_where_the_port_here_is_taken(real: Real, page: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with real.guest.machine.forward(page, port) as tunnel:
            assert not tunnel.opens(20)
            assert str(port) in tunnel.complaint
