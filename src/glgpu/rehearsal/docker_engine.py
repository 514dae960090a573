"""A small Docker without an engine: containers are processes of this machine. Where Docker runs, Docker is used.

``python -I -m glgpu.rehearsal.docker_engine ROOT VERB...`` is a ``docker`` command whose whole state lies in ROOT:
``images.json`` (the images it has), ``mounts.json`` (folders below which a container may mount), ``containers/``
and ``names/``. What it plays, it plays as Docker 28's client with a 20.10 daemon does, exit codes and words included;
one contract suite runs over both.

It has no namespaces, and refuses whatever would need one:

- ``-v A:B`` with A other than B, named volumes, and folders outside those of ``mounts.json``; ``:ro`` is not enforced
- networks other than ``host`` and ``bridge`` (both are the machine's own), published ports, users other than root
- ``-i``, ``-t``, limits of memory or processors, other log drivers, restart policies, devices

``--ipc`` and ``--shm-size`` are accepted: /dev/shm is the machine's own. A container sees the machine's files, its
environment is the image's and what ``-e`` gives, and its HOME is a folder of its own.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

from glgpu.rehearsal.guest_programs import folder_socket
from glgpu.rehearsal.guest_programs.container_supervisor import timestamp, write_json

VERSION = "20.10.24+processes"
NEVER = "0001-01-01T00:00:00Z"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kKmMgGtT]?)[bB]?")
DAEMON = "Error response from daemon: "


class Refusal(Exception):
    """An end with Docker's own words.

    Attributes:
        code: The client's exit code.
    """

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Verb:
    """The command line of one verb.

    Attributes:
        run: What it does.
        usage: The rest of the usage line.
        switches: Options without a value, short form to long form where there is one.
        valued: Options with a value, likewise.
        least: How many arguments it needs.
        interspersed: Whether options may follow arguments.
    """

    run: Callable[[Engine, Call], int]
    usage: str
    switches: dict[str, str] = field(default_factory=dict)
    valued: dict[str, str] = field(default_factory=dict)
    least: int = 1
    interspersed: bool = True


@dataclass
class Call:
    """A parsed command line: options by their long names, in order, and arguments."""

    verb: str
    options: dict[str, list[str]]
    arguments: list[str]

    def has(self, name: str) -> bool:
        """Whether a switch is on."""
        return self.options.get(name, ["false"])[-1] == "true"

    def last(self, name: str, default: str = "") -> str:
        """The value that counts where an option is given more than once."""
        return self.options.get(name, [default])[-1]

    def all(self, name: str) -> list[str]:
        """Every value of an option."""
        return self.options.get(name, [])


class Container:
    """A container as its folder tells it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())

    @property
    def id(self) -> str:
        """64 hex digits."""
        return self.folder.name

    @property
    def name(self) -> str:
        """Without Docker's leading slash."""
        return str(self.config["Name"])[1:]

    def state(self) -> dict[str, Any]:
        """The state of ``docker inspect``; a container whose machine lost power has ended with 255."""
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        if state["Running"] and not supervisor_lives(self.folder):
            state = json.loads((self.folder / "state.json").read_text())
        if state["Running"] and not supervisor_lives(self.folder):
            state |= {"Status": "exited", "Running": False, "Pid": 0, "ExitCode": 255, "FinishedAt": timestamp()}
            write_json(self.folder / "state.json", state)
        return state

    def ask(self, question: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
        """Ask the supervisor.

        Raises:
            OSError: The container has ended.
        """
        return folder_socket.ask(self.folder / "control", question, fds)

    def subscribe(self, to: str) -> socket.socket:
        """Connect to the supervisor for ``follow`` (a byte for each log entry) or ``wait`` (the exit code).

        Raises:
            OSError: The container has ended.
        """
        news = folder_socket.connect(self.folder / "control")
        news.sendall(json.dumps({"do": to}).encode() + b"\n")
        return news

    def wait(self) -> int:
        """Return the exit code once there is one."""
        state = self.state()
        if not state["Running"]:
            return int(state["ExitCode"])
        try:
            return int(self.ask({"do": "wait"})["code"])
        except OSError:
            return int(self.state()["ExitCode"])

    def inspect(self) -> dict[str, Any]:
        """The object of ``docker inspect``."""
        return self.config | {"State": self.state()}


def supervisor_lives(folder: Path) -> bool:
    """Whether the process that watches a container is the one that was started for it."""
    with suppress(FileNotFoundError, psutil.NoSuchProcess):
        noted = json.loads((folder / "supervisor.json").read_text())
        process = psutil.Process(noted["pid"])
        return bool(process.create_time() == noted["started"] and process.status() != psutil.STATUS_ZOMBIE)
    return False


class Engine:
    """What the daemon would know, read from and written to a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("containers", "names"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def image(self, reference: str) -> dict[str, Any] | None:
        """The image of that name, id or id prefix; None if it is not here."""
        images: dict[str, dict[str, Any]] = json.loads((self.root / "images.json").read_text())
        for image in images.values():
            names = [*image["RepoTags"], *image["RepoDigests"], image["Id"]]
            if with_tag(reference) in names or reference in names:
                return image
            if re.fullmatch(r"[0-9a-f]{6,64}", reference) and image["Id"].startswith(f"sha256:{reference}"):
                return image
        return None

    def mount_roots(self) -> list[Path]:
        """The folders below which containers may mount."""
        return [Path(path).resolve() for path in json.loads((self.root / "mounts.json").read_text())]

    def containers(self) -> list[Container]:
        """All of them, newest first."""
        folders = [path for path in (self.root / "containers").iterdir() if (path / "state.json").exists()]
        return sorted(map(Container, folders), key=lambda c: str(c.config["Created"]), reverse=True)

    def find(self, reference: str) -> Container | None:
        """The container of that name, id or unambiguous id prefix; None if there is none."""
        claim = self.root / "names" / reference
        if NAME.fullmatch(reference) and claim.exists():
            folder = self.root / "containers" / claim.read_text()
            return Container(folder) if (folder / "state.json").exists() else None
        if re.fullmatch(r"[0-9a-f]{1,64}", reference):
            found = [c for c in self.containers() if c.id.startswith(reference)]
            return found[0] if len(found) == 1 else None
        return None

    def get(self, reference: str) -> Container:
        """Like ``find``.

        Raises:
            Refusal: There is none.
        """
        container = self.find(reference)
        if container is None:
            raise Refusal(f"{DAEMON}No such container: {reference}")
        return container

    def remove(self, container: Container) -> None:
        """Forget a container that does not run."""
        (self.root / "names" / container.name).unlink(missing_ok=True)
        shutil.rmtree(container.folder, ignore_errors=True)

    def claim(self, name: str, container_id: str) -> None:
        """Take a name.

        Raises:
            Refusal: It is no name, or taken.
        """
        if not NAME.fullmatch(name):
            raise Refusal(f"{DAEMON}Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", 125)
        try:
            with (self.root / "names" / name).open("x") as file:
                file.write(container_id)
        except FileExistsError:
            holder = (self.root / "names" / name).read_text()
            raise Refusal(
                f'{DAEMON}Conflict. The container name "/{name}" is already in use by container "{holder}". '
                "You have to remove (or rename) that container to be able to reuse that name.", 125,
            ) from None  # fmt: skip


def with_tag(reference: str) -> str:
    """Add ``:latest`` where a reference has neither tag nor digest."""
    last = reference.rsplit("/", 1)[-1]
    return reference if ":" in last or "@" in last else f"{reference}:latest"


# --- verbs ------------------------------------------------------------------------------------------------------------


def run(engine: Engine, call: Call) -> int:
    """``docker run``: create, start, and follow unless ``-d``."""
    reference, *command = call.arguments
    config = container_config(engine, call, reference, command)
    folder = engine.root / "containers" / config["Id"]
    engine.claim(config["Name"][1:], config["Id"])
    (folder / "home").mkdir(parents=True)
    write_json(folder / "config.json", config)
    state: dict[str, Any] = {
        "Status": "created", "Running": False, "Paused": False, "Restarting": False, "OOMKilled": False, "Dead": False,
        "Pid": 0, "ExitCode": 0, "Error": "", "StartedAt": NEVER, "FinishedAt": NEVER,
    }  # fmt: skip
    write_json(folder / "state.json", state)
    if call.has("detach"):
        print(config["Id"], flush=True)
    if call.all("gpus"):
        error = 'could not select device driver "" with capabilities: [[gpu]]'
        write_json(folder / "state.json", state | {"ExitCode": 128, "Error": error})
        raise Refusal(DAEMON + error, 125)
    try:
        os.makedirs(config["Config"]["WorkingDir"] or "/", exist_ok=True)
    except OSError as error:
        raise Refusal(f"{DAEMON}mkdir {config['Config']['WorkingDir']}: {error.strerror}", 125) from None
    container = Container(folder)
    # Opened before the start, because a container with --rm takes its log with it.
    with (folder / "container.log").open("x+b") as log, start_supervisor(folder) as supervisor:
        failure = json.loads(supervisor.readline() or b"null")
        if failure is None:
            raise Refusal(DAEMON + (folder / "supervisor.log").read_text(), 125)
        if failure:
            if call.has("rm"):
                engine.remove(container)
            raise Refusal(DAEMON + failure["error"], failure["code"])
        if call.has("detach"):
            return 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: forward(container, received))
        with suppress(OSError), container.subscribe("follow") as news:
            copy_entries(log)
            while news.recv(4096):
                copy_entries(log)
        copy_entries(log)
        return int(json.loads(supervisor.readline() or b'{"code": 255}')["code"])


def forward(container: Container, number: int) -> None:
    """Pass a signal of the client on to its container, if that still runs."""
    with suppress(OSError):
        container.ask({"do": "kill", "signal": number})


def start_supervisor(folder: Path) -> IO[bytes]:
    """Start the process that watches a container.

    Returns:
        A pipe with two lines: ``{}`` or what kept the container from starting, and later its exit code.
    """
    read_end, write_end = os.pipe()
    program = [sys.executable, "-I", "-m", "glgpu.rehearsal.guest_programs.container_supervisor"]
    with (folder / "supervisor.log").open("ab") as errors:
        subprocess.Popen(
            [*program, str(folder), str(write_end)], pass_fds=[write_end], start_new_session=True, cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
    os.close(write_end)
    return open(read_end, "rb")


def container_config(engine: Engine, call: Call, reference: str, command: list[str]) -> dict[str, Any]:
    """What ``docker inspect`` will tell of a new container.

    Raises:
        Refusal: An option that means nothing, or that this engine cannot honour.
    """
    image = engine.image(reference)
    if image is None and call.last("pull") == "never":
        raise Refusal(f"{DAEMON}No such image: {with_tag(reference)}", 125)
    if image is None:
        print(f"Unable to find image '{with_tag(reference)}' locally", file=sys.stderr)
        raise Refusal(DAEMON + no_registry(reference), 125)
    refuse_unless(call, "network", ("", "default", "bridge", "host"), "network {} not found")
    refuse_unless(call, "log-driver", ("", "json-file"), 'error looking up logging plugin {0}: plugin "{0}" not found')
    refuse_unless(call, "user", ("", "0", "root", "0:0", "root:root"), "this engine has no users but its own: {}")
    refuse_unless(call, "ipc", ("", "host", "private", "shareable"), "invalid IPC mode: {}")
    if call.last("shm-size") and not SIZE.fullmatch(call.last("shm-size")):
        bad_value(call.verb, call.last("shm-size"), "--shm-size", f"invalid size: '{call.last('shm-size')}'")
    container_id = secrets.token_hex(32)
    home = engine.root / "containers" / container_id / "home"
    environment = {"HOSTNAME": container_id[:12], "HOME": str(home)}
    environment |= dict(item.split("=", 1) for item in image["Config"]["Env"])
    environment |= given_environment(call)
    argv = command or image["Config"]["Cmd"] or []
    if call.all("entrypoint"):
        argv = [call.last("entrypoint"), *command] if call.last("entrypoint") else command
    if not argv:
        raise Refusal(f"{DAEMON}No command specified", 125)
    labels = dict(item.partition("=")[::2] for item in call.all("label"))
    binds = [mount(engine, volume) for volume in call.all("volume")]
    return {
        "Id": container_id, "Created": timestamp(), "Path": argv[0], "Args": argv[1:], "Image": image["Id"],
        "Name": "/" + call.last("name", f"container_{container_id[:12]}"), "RestartCount": 0, "Driver": "processes",
        "Platform": "linux",
        "HostConfig": {
            "Binds": binds, "NetworkMode": call.last("network", "default"), "IpcMode": call.last("ipc", "private"),
            "Init": call.has("init"), "AutoRemove": call.has("rm"), "LogConfig": {"Type": "json-file", "Config": {}},
        },
        "Mounts": [
            {"Type": "bind", "Source": bind.split(":")[0], "Destination": bind.split(":")[0], "Mode": "",
             "RW": not bind.endswith(":ro"), "Propagation": "rprivate"}
            for bind in binds
        ],
        "Config": {
            "Hostname": container_id[:12], "User": call.last("user"), "Tty": False, "Cmd": argv, "Image": reference,
            "Env": [f"{key}={value}" for key, value in environment.items()],
            "WorkingDir": call.last("workdir", image["Config"]["WorkingDir"]), "Entrypoint": None,
            "Labels": image["Config"]["Labels"] | labels,
        },
    }  # fmt: skip


def refuse_unless(call: Call, option: str, known: tuple[str, ...], text: str) -> None:
    """Refuse a value with the daemon's words."""
    if call.last(option) not in known:
        raise Refusal(DAEMON + text.format(call.last(option)), 125)


def given_environment(call: Call) -> dict[str, str]:
    """The variables of ``-e`` and ``--env-file``; a name alone takes the client's value, if it has one."""
    items = []
    for path in call.all("env-file"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError as error:
            raise Refusal(f"open {path}: {error.strerror.lower() if error.strerror else error}", 125) from None
        items += [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    environment = {}
    for item in items + call.all("env"):
        name, equals, value = item.partition("=")
        if not name:
            bad_value(call.verb, item, "-e, --env", f"invalid environment variable: {item}")
        if equals:
            environment[name] = value
        elif name in os.environ:
            environment[name] = os.environ[name]
    return environment


def mount(engine: Engine, volume: str) -> str:
    """Check a ``-v`` and make its folder, as Docker does.

    Raises:
        Refusal: It is invalid, or would need a mount namespace.
    """
    source, colon, rest = volume.partition(":")
    target, _, mode = rest.partition(":")
    if not colon or not source.startswith("/"):
        raise Refusal(f"{DAEMON}this engine has no volumes, only folders of the machine: {volume}", 125)
    if mode not in ("", "ro", "rw"):
        raise Refusal(f"{DAEMON}invalid mode: {mode}", 125)
    if not target.startswith("/"):
        raise Refusal(
            f"{DAEMON}invalid volume specification: '{volume}': invalid mount config for type \"bind\": "
            f"invalid mount path: '{target}' mount path must be absolute", 125,
        )  # fmt: skip
    if os.path.normpath(source) != os.path.normpath(target):
        raise Refusal(f"{DAEMON}this engine has no mount namespaces: {source} can only be mounted as {source}", 125)
    if not any(Path(source).resolve().is_relative_to(root) for root in engine.mount_roots()):
        raise Refusal(f"{DAEMON}{source} is not a folder of this virtual machine: not mounted", 125)
    if not Path(source).exists():
        os.makedirs(source)
    return f"{source}:{target}:{mode}" if mode else f"{source}:{target}"


def no_registry(reference: str) -> str:
    """The daemon's words where a registry's name cannot be resolved; this engine knows no registry."""
    first, slash, _ = reference.partition("/")
    host = first if slash and (("." in first) or (":" in first)) else "registry-1.docker.io"
    return f'Get "https://{host}/v2/": dial tcp: lookup {host.split(":")[0]}: no such host'


def logs(engine: Engine, call: Call) -> int:
    """``docker logs``."""
    container = engine.get(call.arguments[0])
    since = moment(call.last("since")) if call.last("since") else ""
    tail = call.last("tail", "all")
    if tail != "all" and not tail.isdigit():
        raise Refusal(f'{DAEMON}invalid value for "tail": {tail}')
    follower = None
    if call.has("follow"):
        with suppress(OSError):
            follower = container.subscribe("follow")
    path = container.folder / "container.log"
    path.touch()
    with path.open("rb") as log:
        lines = log.readlines()
        kept = lines if tail == "all" else lines[max(0, len(lines) - int(tail)) :]
        stamps = call.has("timestamps")
        print_entries(iter(kept), since=since, timestamps=stamps)
        if follower:
            # A supervisor that ends may reset the connection instead of closing it: the container is over either way.
            with follower, suppress(ConnectionResetError):
                while follower.recv(4096):
                    copy_entries(log, since=since, timestamps=stamps)
            copy_entries(log, since=since, timestamps=stamps)
    return 0


def copy_entries(log: IO[bytes], *, since: str = "", timestamps: bool = False) -> None:
    """Print the entries that are new in a log, but not one that is still being written."""
    while (line := log.readline()).endswith(b"\n"):
        print_entries(iter([line]), since=since, timestamps=timestamps)
    log.seek(-len(line), os.SEEK_CUR)


def print_entries(lines: Iterator[bytes], *, since: str = "", timestamps: bool = False) -> None:
    """Print log entries, each to the stream it came from."""
    for line in lines:
        entry = json.loads(line)
        time_text = nine_digits(entry["time"])
        if time_text < since:
            continue
        stream = sys.stdout if entry["stream"] == "stdout" else sys.stderr
        text = f"{time_text} {entry['log']}" if timestamps else entry["log"]
        stream.buffer.write(text.encode())
        stream.buffer.flush()


def nine_digits(text: str) -> str:
    """Write a time of the log with all nine digits, as ``--timestamps`` does; such texts sort as their times do."""
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    return f"{seconds}.{fraction:0<9}Z"


def moment(text: str) -> str:
    """Read the argument of ``--since``: RFC 3339 with Z, or Unix seconds.

    Raises:
        Refusal: It is neither.
    """
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", text):
        return nine_digits(text)
    if re.fullmatch(r"\d+(\.\d{1,9})?", text):
        seconds, _, fraction = text.partition(".")
        whole = datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return nine_digits(f"{whole}.{fraction}Z")
    raise Refusal(f'invalid value for "since": parsing time "{text}" as "2006-01-02": cannot parse "{text}" as "2006"')


def wait(engine: Engine, call: Call) -> int:
    """``docker wait``."""
    return for_each(engine, call, lambda container, _: str(container.wait()))


def stop(engine: Engine, call: Call) -> int:
    """``docker stop``: SIGTERM, then SIGKILL."""
    text = call.last("timeout") or call.last("time") or "10"
    if not re.fullmatch(r"-?\d+", text):
        bad_value(call.verb, text, "-t, --timeout", f'strconv.ParseInt: parsing "{text}": invalid syntax')

    def stop_one(container: Container, name: str) -> str:
        if container.state()["Running"]:
            with suppress(OSError), container.subscribe("wait") as waiting:
                container.ask({"do": "kill", "signal": int(signal.SIGTERM)})
                waiting.settimeout(None if int(text) < 0 else max(int(text), 0.001))
                try:
                    waiting.recv(4096)
                except TimeoutError:
                    waiting.settimeout(None)
                    container.ask({"do": "kill", "signal": int(signal.SIGKILL)})
                    waiting.recv(4096)
        return name

    return for_each(engine, call, stop_one)


def kill(engine: Engine, call: Call) -> int:
    """``docker kill``."""
    number = signal_number(call.last("signal", "KILL"))

    def kill_one(container: Container, name: str) -> str:
        not_running = f"{DAEMON}Cannot kill container: {name}: Container {container.id} is not running"
        if not container.state()["Running"]:
            raise Refusal(not_running)
        try:
            container.ask({"do": "kill", "signal": number})
        except OSError:
            raise Refusal(not_running) from None
        return name

    missing = f"{DAEMON}Cannot kill container: {{0}}: No such container: {{0}}"
    return for_each(engine, call, kill_one, missing)


def signal_number(text: str) -> int:
    """A signal by number or name.

    Raises:
        Refusal: There is no such signal.
    """
    if text.isdigit() and int(text) in set(signal.Signals):
        return int(text)
    name = "SIG" + text.upper().removeprefix("SIG")
    if name not in signal.Signals.__members__:
        raise Refusal(f"{DAEMON}Invalid signal: {text}")
    return int(signal.Signals[name])


def remove(engine: Engine, call: Call) -> int:
    """``docker rm``."""

    def remove_one(container: Container, name: str) -> str:
        if container.state()["Running"]:
            if not call.has("force"):
                raise Refusal(
                    f"{DAEMON}You cannot remove a running container {container.id}. "
                    "Stop the container before attempting removal or force remove"
                )
            with suppress(OSError), container.subscribe("wait") as waiting:
                container.ask({"do": "kill", "signal": int(signal.SIGKILL)})
                waiting.recv(4096)
        engine.remove(container)
        return name

    code = for_each(engine, call, remove_one)
    # With -f a container that is not there is told of, and no failure (Docker 28's client).
    return 0 if call.has("force") and all(engine.find(name) is None for name in call.arguments) else code


def for_each(
    engine: Engine,
    call: Call,
    do: Callable[[Container, str], str],
    missing: str = DAEMON + "No such container: {0}",
) -> int:
    """Do something to every container named and print what it returns; a failure of one does not keep the others."""
    code = 0
    for name in call.arguments:
        try:
            container = engine.find(name)
            if container is None:
                raise Refusal(missing.format(name))
            print(do(container, name), flush=True)
        except Refusal as refusal:
            print(refusal, file=sys.stderr)
            code = refusal.code
    return code


def execute(engine: Engine, call: Call) -> int:
    """``docker exec``."""
    name, *argv = call.arguments
    container = engine.get(name)
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        if not container.state()["Running"]:
            raise OSError
        answer = container.ask(
            {"do": "exec", "argv": argv, "env": given_environment(call), "cwd": call.last("workdir")},
            (nothing, *((nothing, nothing) if call.has("detach") else (1, 2))),
        )
    except OSError:
        raise Refusal(f"{DAEMON}Container {container.id} is not running") from None
    if "error" in answer:
        print(
            "OCI runtime exec failed: exec failed: unable to start container process: "
            f"{answer['error']}: unknown", flush=True,
        )  # fmt: skip
    return int(answer["code"])


def inspect(engine: Engine, call: Call) -> int:
    """``docker inspect`` and ``docker container inspect``."""
    containers = [(name, engine.find(name)) for name in call.arguments]
    objects = [container.inspect() if container else None for _, container in containers]
    missing = [f"Error: No such object: {name}" for name, container in containers if container is None]
    return print_objects(objects, missing, call.last("format"))


def image_inspect(engine: Engine, call: Call) -> int:
    """``docker image inspect``."""
    images = [(name, engine.image(name)) for name in call.arguments]
    missing = [
        f"{DAEMON}no such image: {name}: No such image: {with_tag(name)}" for name, image in images if image is None
    ]
    return print_objects([image for _, image in images], missing, call.last("format"))


def print_objects(objects: list[dict[str, Any] | None], missing: list[str], template: str) -> int:
    """Print what is there, then say what is not."""
    found = [thing for thing in objects if thing is not None]
    if template:
        lines = [render(template, thing) for thing in found]
        print("\n".join(lines))
    else:
        print(json.dumps(found, indent=4, ensure_ascii=False))
    for line in missing:
        print(line, file=sys.stderr)
    return 1 if missing else 0


def list_containers(engine: Engine, call: Call) -> int:
    """``docker ps``."""
    chosen = [c for c in engine.containers() if call.has("all") or c.state()["Running"]]
    for item in call.all("filter"):
        name, equals, value = item.partition("=")
        if not equals:
            bad_value(call.verb, item, "-f, --filter", "bad format of filter (expected name=value)")
        chosen = [c for c in chosen if matches(c, name, value)]
    if call.has("quiet"):
        for container in chosen:
            print(container.id if call.has("no-trunc") else container.id[:12])
        return 0
    rows = [summary(container, call.has("no-trunc")) for container in chosen]
    if call.last("format"):
        for row in rows:
            print(render(call.last("format"), row))
        return 0
    print("CONTAINER ID   IMAGE   COMMAND   CREATED   STATUS   PORTS   NAMES")
    for row in rows:
        print("   ".join(row[key] for key in ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")))
    return 0


def matches(container: Container, name: str, value: str) -> bool:
    """One ``--filter`` of ``docker ps``."""
    match name:
        case "name":
            return re.search(value, container.name) is not None
        case "id":
            return container.id.startswith(value)
        case "label":
            key, equals, wanted = value.partition("=")
            labels = container.config["Config"]["Labels"]
            return key in labels and (not equals or labels[key] == wanted)
        case "status":
            return bool(container.state()["Status"] == value)
    raise Refusal(f"{DAEMON}Invalid filter '{name}'")


def summary(container: Container, whole: bool) -> dict[str, str]:
    """One line of ``docker ps``."""
    state = container.state()
    command = shlex.join([container.config["Path"], *container.config["Args"]])
    created = datetime.fromisoformat(container.config["Created"][:19] + "+00:00")
    age = f"{max(0, int(time.time() - created.timestamp()))} seconds"
    status = {"created": "Created", "running": f"Up {age}", "exited": f"Exited ({state['ExitCode']}) {age} ago"}
    shown = command if whole or len(command) <= 20 else command[:19] + "…"
    return {
        "Command": f'"{shown}"', "CreatedAt": created.strftime("%Y-%m-%d %H:%M:%S +0000 UTC"),
        "ID": container.id if whole else container.id[:12], "Image": container.config["Config"]["Image"],
        "Labels": ",".join(f"{key}={value}" for key, value in container.config["Config"]["Labels"].items()),
        "LocalVolumes": "0", "Mounts": ",".join(m["Source"] for m in container.config["Mounts"]),
        "Names": container.name, "Networks": container.config["HostConfig"]["NetworkMode"], "Ports": "",
        "RunningFor": f"{age} ago", "Size": "0B", "State": state["Status"], "Status": status[state["Status"]],
    }  # fmt: skip


def pull(_: Engine, call: Call) -> int:
    """``docker pull``: there is no registry here."""
    raise Refusal(DAEMON + no_registry(call.arguments[0]))


def version(_: Engine, call: Call) -> int:
    """``docker version``."""
    part = {"Version": VERSION, "ApiVersion": "1.41", "Os": "linux", "Arch": os.uname().machine}
    known = {
        "Client": part | {"DefaultAPIVersion": "1.41", "Context": "default"},
        "Server": {"Platform": {"Name": "processes without isolation"}} | part,
    }
    print(render(call.last("format"), known) if call.last("format") else json.dumps(known, indent=1))
    return 0


# --- Docker's templates, as far as the verbs above need them ----------------------------------------------------------


def render(template: str, thing: dict[str, Any]) -> str:
    """Fill in ``{{json .A.B}}``, ``{{.A.B}}`` and ``{{index .A "key"}}``.

    Raises:
        Refusal: The template is torn, asks for a field that is not there, or for more than these forms.
    """
    if template in ("json", "{{json .}}"):
        return go_json(thing)
    if template.count("{{") != template.count("}}"):
        raise Refusal("template parsing error: template: :1: unclosed action", 64)
    return re.sub(r"\{\{(.*?)\}\}", lambda action: evaluate(action[1].strip(), thing), template)


def evaluate(action: str, thing: dict[str, Any]) -> str:
    """The text of one action of a template."""
    words = shlex.split(action)
    as_json = words[:1] == ["json"]
    indexed = words[:1] == ["index"]
    path, *keys = words[1:] if as_json or indexed else words
    if not path.startswith(".") or (keys and not indexed):
        raise Refusal(f'template parsing error: template: :1: function "{words[0]}" not defined', 64)
    value: Any = thing
    for name in path.split(".")[1:]:
        if name and (not isinstance(value, dict) or name not in value):
            raise Refusal(
                f'template parsing error: template: :1:2: executing "" at <{path}>: map has no entry for key "{name}"'
            )
        value = value[name] if name else value
    for key in keys:
        try:
            value = value[int(key)] if isinstance(value, list) else value.get(key, "")
        except IndexError:
            raise Refusal(f"template parsing error: error calling index: index out of range: {key}") from None
    if as_json:
        return go_json(value)
    if isinstance(value, dict | list):
        raise Refusal(f"template parsing error: this engine prints {path} only with json", 64)
    return str(value).lower() if isinstance(value, bool) else str(value)


def go_json(value: Any) -> str:
    """JSON as Go writes it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# --- the command line -------------------------------------------------------------------------------------------------

VERBS = {
    "run": Verb(
        run, "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        {"d": "detach", "init": "init", "rm": "rm", "q": "quiet"},
        {"e": "env", "env-file": "env-file", "v": "volume", "w": "workdir", "l": "label", "name": "name",
         "gpus": "gpus", "ipc": "ipc", "shm-size": "shm-size", "log-driver": "log-driver", "network": "network",
         "net": "network", "entrypoint": "entrypoint", "pull": "pull", "u": "user"},
        interspersed=False,
    ),
    "exec": Verb(
        execute, "[OPTIONS] CONTAINER COMMAND [ARG...]", {"d": "detach"}, {"e": "env", "w": "workdir"},
        least=2, interspersed=False,
    ),
    "logs": Verb(
        logs, "[OPTIONS] CONTAINER", {"f": "follow", "t": "timestamps"}, {"since": "since", "n": "tail"}
    ),
    "wait": Verb(wait, "CONTAINER [CONTAINER...]"),
    "stop": Verb(stop, "[OPTIONS] CONTAINER [CONTAINER...]", {}, {"t": "timeout", "time": "time"}),
    "kill": Verb(kill, "[OPTIONS] CONTAINER [CONTAINER...]", {}, {"s": "signal"}),
    "rm": Verb(remove, "[OPTIONS] CONTAINER [CONTAINER...]", {"f": "force", "v": "volumes"}),
    "inspect": Verb(inspect, "[OPTIONS] NAME|ID [NAME|ID...]", {}, {"f": "format"}),
    "ps": Verb(
        list_containers, "[OPTIONS]", {"a": "all", "q": "quiet", "no-trunc": "no-trunc"},
        {"f": "filter", "format": "format"}, least=0,
    ),
    "pull": Verb(pull, "[OPTIONS] NAME[:TAG|@DIGEST]", {"q": "quiet"}),
    "version": Verb(version, "[OPTIONS]", {}, {"f": "format"}, least=0),
    "image inspect": Verb(image_inspect, "[OPTIONS] IMAGE [IMAGE...]", {}, {"f": "format"}),
    "container inspect": Verb(inspect, "[OPTIONS] CONTAINER [CONTAINER...]", {}, {"f": "format"}),
}  # fmt: skip


def parse(argv: list[str]) -> tuple[Verb, Call]:
    """Read a command line as Docker's client does.

    Raises:
        Refusal: It is no command line of this engine.
    """
    name, rest = (" ".join(argv[:2]), argv[2:]) if argv[:1] in (["image"], ["container"]) else (argv[0], argv[1:])
    if name not in VERBS:
        raise Refusal(f"docker: unknown command: docker {name}\n\nRun 'docker --help' for more information")
    verb = VERBS[name]
    call = Call(name, {}, [])
    words = list(rest)
    while words:
        word = words.pop(0)
        if word == "--":
            call.arguments += words
            break
        if not word.startswith("-") or word == "-":
            call.arguments.append(word)
            if not verb.interspersed:
                call.arguments += words
                break
        elif word.startswith("--"):
            read_long(verb, call, word[2:], words)
        else:
            read_short(verb, call, word[1:], words)
    if len(call.arguments) < verb.least:
        raise Refusal(
            f"docker: 'docker {name}' requires at least {verb.least} argument{'s' * (verb.least > 1)}\n\n"
            f"Usage:  docker {name} {verb.usage}\n\nSee 'docker {name} --help' for more information"
        )
    return verb, call


def read_long(verb: Verb, call: Call, text: str, words: list[str]) -> None:
    """Take one ``--option`` off a command line."""
    name, equals, value = text.partition("=")
    if name in verb.switches.values():
        call.options.setdefault(name, []).append(value if equals else "true")
    elif name in verb.valued.values() or name in verb.valued:
        if not equals and not words:
            bad_usage(call.verb, f"flag needs an argument: --{name}")
        call.options.setdefault(verb.valued.get(name, name), []).append(value if equals else words.pop(0))
    else:
        bad_usage(call.verb, f"unknown flag: --{name}")


def read_short(verb: Verb, call: Call, letters: str, words: list[str]) -> None:
    """Take one ``-xyz`` off a command line."""
    for position, letter in enumerate(letters):
        if letter in verb.switches:
            call.options.setdefault(verb.switches[letter], []).append("true")
        elif letter in verb.valued:
            value = letters[position + 1 :].removeprefix("=")
            if not value and not words:
                bad_usage(call.verb, f"flag needs an argument: '{letter}' in -{letters}")
            call.options.setdefault(verb.valued[letter], []).append(value or words.pop(0))
            return
        else:
            bad_usage(call.verb, f"unknown shorthand flag: '{letter}' in -{letters}")


def bad_value(verb: str, value: str, flag: str, reason: str) -> NoReturn:
    """Refuse the value of an option with the client's words."""
    bad_usage(verb, f'invalid argument "{value}" for "{flag}" flag: {reason}')


def bad_usage(verb: str, text: str) -> NoReturn:
    """Refuse a command line with the client's words and its exit code 125."""
    usage = f"Usage:  docker {verb} {VERBS[verb].usage}"
    raise Refusal(f"{text}\n\n{usage}\n\nRun 'docker {verb} --help' for more information", 125)


def main(root: Path, argv: list[str]) -> int:
    """Run one ``docker`` command on the engine in ``root`` and return its exit code."""
    if not argv:
        print("docker: 'docker' needs a command\n\nRun 'docker --help' for more information", file=sys.stderr)
        return 1
    try:
        verb, call = parse(argv)
        return verb.run(Engine(root), call)
    except Refusal as refusal:
        from_run = argv[0] == "run" and str(refusal).startswith(DAEMON)
        more = "\n\nRun 'docker run --help' for more information" if from_run else ""
        print(("docker: " if from_run else "") + str(refusal) + more, file=sys.stderr)
        return refusal.code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
