"""The container on the VM: started detached, so that neither job nor runner nor network can end the training."""

from __future__ import annotations

import io
import json
import shlex
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from glgpu.clock import Clock, poll
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance, Machine
from glgpu.masking import StreamMasker
from glgpu.steps.context import Run, vanished
from glgpu.steps.door import Way
from glgpu.steps.gpu import check_inside
from glgpu.steps.guest import ask, command
from glgpu.steps.log_reader import LogReader

PULL_SECONDS = 1800
RECONNECT_SECONDS = 600.0
"""How long a lost VM is looked for before the job gives up; the container goes on meanwhile."""
END_SECONDS = 10.0
"""How long the VM may take to hear that the container is to end."""
BEAT_SECONDS = 1.0
"""Between two looks at what goes along with a training."""
DOCKER_HUB = "https://index.docker.io/v1/"
"""What Docker Hub is called in DOCKER_AUTH_CONFIG."""


@dataclass(frozen=True)
class Workload:
    """What runs on the VM.

    Attributes:
        image: Container image.
        argv: Its command.
        environment: Variables that are no secrets.
        secrets: Name -> (value, whether the program expects a file).
        collect: Paths to bring home, below `base`.
        base: Working directory within the repository.
        gpu: Whether the container gets the GPUs.
        shm_gb: Size of /dev/shm; None: the host's IPC namespace.
        mounts: Folders of the VM that the container sees beside the code, as Docker's ``-v`` wants them.
    """

    image: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    secrets: Mapping[str, tuple[str, bool]] = field(repr=False)
    collect: Sequence[str]
    base: str
    gpu: bool
    shm_gb: float | None
    mounts: Sequence[str] = ()


class Sink(Protocol):
    """Takes the container's output, masked."""

    def feed(self, data: bytes) -> None:
        """Take more of it."""


@dataclass(frozen=True)
class Ended:
    """How the container ended.

    Attributes:
        code: Its exit code.
        out_of_memory: Whether the kernel ended it for want of memory.
    """

    code: int
    out_of_memory: bool


class Container:
    """The run's one container.

    Args:
        run: The run.
        machine: The VM.
        instance: The same VM as Compute Engine knows it.
        way: Opens the door again when this job's address changes.
    """

    def __init__(self, run: Run, machine: Machine, instance: Instance, way: Way) -> None:
        self._run = run
        self._machine = machine
        self._instance = instance
        self._way = way

    def state(self) -> dict[str, Any] | None:
        """The engine's word on the container; None where there is none.

        Raises:
            Failure: SSH.
        """
        done = ask(self._run, self._machine, "state", doing="asking for the container")
        return _json_line(done.text)

    def start(self, work: Workload, home: str) -> None:
        """Pull the image, see that the GPU answers in it, hand over the secrets and start; returns once it runs.

        Raises:
            Failure: IMAGE_PULL, DRIVER, SSH, ...
        """
        run, machine, name = self._run, self._machine, str(self._run.name)
        ask(run, machine, "wall", doing="keeping containers away from the metadata server")
        pinned = self.pull(work.image)
        if work.gpu:
            check_inside(run, machine, work.image, pinned)
        memory = f"/dev/shm/{name}/run"
        ask(run, machine, "secrets", stdin=_secrets(work, memory), doing="handing over the environment")
        code = f"{home}/code"
        argv = [
            "--init",
            "--name",
            name,
            "--workdir",
            f"{code}/{work.base}".rstrip("/"),
            "--label",
            f"glgpu-run={name}",
        ]
        argv += ["--gpus", "all"] if work.gpu else []
        argv += ["--ipc=host"] if work.shm_gb is None else ["--shm-size", f"{work.shm_gb:g}g"]
        # The same paths inside as outside: what an error message names can be looked at on the VM.
        argv += ["-v", f"{code}:{code}", "-v", f"{memory}:{memory}:ro"]
        argv += [word for mount in work.mounts for word in ("-v", mount)]
        argv += [pinned, "/bin/sh", f"{memory}/start", *work.argv]
        ask(
            run,
            machine,
            "start",
            *argv,
            timeout=300,
            klass=ErrorClass.IMAGE_PULL,
            doing=f"starting {work.image}",
        )
        run.record.add("container-started", image=work.image, pinned=pinned)

    def attach(
        self,
        sink: Sink,
        beat: Callable[[], None] = lambda: None,
        caught_up: Callable[[], None] | None = None,
        stamped: Callable[[str], None] = lambda _: None,
    ) -> Ended:
        """Follow the container's output from its first line to its end, through whatever happens to the connection.

        Args:
            sink: Takes the output.
            beat: Called about once a second, output or none, and also while the connection is lost.
            caught_up: Called once, when the sink has what the container had printed before; None: nobody asks.
            stamped: Called with the engine's time stamp of the last of what the sink is given next.

        Raises:
            Failure: PREEMPTED or OUT_OF_TIME when the VM is gone, SSH when it cannot be reached any more.
        """
        run, reader, masker = self._run, LogReader(), StreamMasker(self._run.console.masker)
        lost_since: float | None = None
        beat = _Pulse(run.clock, beat)
        while True:
            reader.connection()
            verb = "logged" if caught_up else "logs"
            with self._machine.stream(command(run, verb, reader.since)) as stream:
                for data in stream.chunks(BEAT_SECONDS):
                    beat()
                    if not data:
                        continue
                    lost_since = None
                    new = reader.feed(data)
                    stamped(reader.since)
                    sink.feed(masker.feed(new))
                code = stream.wait(30)
                said = stream.complaint
            if code == 0 and caught_up is not None:
                caught_up()
                caught_up = None
                continue
            if code != 255:
                # The engine ends the log a moment before it says that the container has ended.
                ended = poll(run.clock, self._ended, seconds=5 if code == 0 else 0, every=0.5)
                if ended is not None:
                    sink.feed(masker.flush())
                    return ended
            lost_since = self._lost(lost_since, said)
            beat()

    def stop(self, grace: int) -> None:
        """SIGTERM, and SIGKILL after ``grace`` seconds; waits for it."""
        ask(self._run, self._machine, "stop", str(grace), timeout=grace + 30, doing="stopping the container")

    def end(self, grace: int) -> None:
        """The same without waiting for it: whoever follows sees the end."""
        ask(self._run, self._machine, "end", str(grace), timeout=END_SECONDS, doing="telling the training to end")

    def _ended(self) -> Ended | None:
        try:
            state = self.state()
        except Failure as failure:
            if failure.klass is not ErrorClass.SSH:
                raise
            return None
        if state is None:
            raise Failure(
                ErrorClass.TRAINING_FAILED,
                "the container is no longer on the VM: somebody removed it",
                "retry the job",
            )
        if state.get("Running"):
            return None
        return Ended(int(state.get("ExitCode", 1)), bool(state.get("OOMKilled")))

    def _lost(self, since: float | None, said: str) -> float:
        """The connection broke: is the VM still there, and are we still allowed in? Then once more."""
        run = self._run
        now = run.clock.now()
        if since is None:
            run.console.say("glgpu: the connection to the VM was lost; the training goes on, connecting again")
            run.record.add("connection-lost", said=said)
        gone = vanished(run, self._instance)
        if gone is not None:
            raise gone
        if since is not None and now - since > RECONNECT_SECONDS:
            raise Failure(
                ErrorClass.SSH,
                f"the VM runs but cannot be reached since {RECONNECT_SECONDS / 60:.0f} minutes: {said}",
                "retry the job: it attaches to the training, which goes on",
            )
        self._way.again()
        run.clock.sleep(1.0)
        return now if since is None else since

    def pull(self, image: str) -> str:
        """Have the image on the VM and resolve it, once, to what exactly it is."""
        run, machine = self._run, self._machine
        host, logins = _registry(image), run.job.registry_logins
        # Our own pair of variables goes before what the job's environment holds for that registry anyway.
        login = logins.get("") or logins.get(host) or (logins.get(DOCKER_HUB) if host == "docker.io" else None)
        klass = ErrorClass.IMAGE_PULL
        # The VM may be pulling it since it booted; the answer comes after that.
        here = ask(run, machine, "image", image, timeout=PULL_SECONDS, klass=klass, doing=f"looking for {image}")
        if not here.text.strip():
            try:
                if login:
                    user, password = login
                    words = ("login", host, user)
                    ask(run, machine, *words, stdin=password.encode(), klass=klass, doing=f"logging in to {host}")
                ask(run, machine, "pull", image, timeout=PULL_SECONDS, klass=klass, doing=f"pulling {image}")
            finally:
                if login:
                    machine.run(command(run, "logout", host))
            here = ask(run, machine, "image", image, klass=klass, doing=f"looking for {image}")
        found = _json_line(here.text) or {}
        digests = found.get("RepoDigests") or []
        # An image that was never pulled (baked into the boot image) has no digest: its own id is as exact.
        return str(digests[0] if digests else found.get("Id") or image)


class _Pulse:
    """Lets a beat through at most once a second, however fast the output comes."""

    def __init__(self, clock: Clock, beat: Callable[[], None]) -> None:
        self._clock = clock
        self._beat = beat
        self._next = 0.0

    def __call__(self) -> None:
        now = self._clock.now()
        if now >= self._next:
            self._next = now + BEAT_SECONDS
            self._beat()


def _registry(image: str) -> str:
    """The host part of an image reference (https://docs.docker.com/reference/cli/docker/image/tag/)."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


def _json_line(text: str) -> dict[str, Any] | None:
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return None


def _secrets(work: Workload, memory: str) -> bytes:
    """A tar of the environment, of secrets that are files, and of the line that starts the program."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in work.environment.items()]
    files = {}
    for name, (value, is_file) in work.secrets.items():
        if is_file:
            files[f"files/{name}"] = value
            value = f"{memory}/files/{name}"
        lines.append(f"export {name}={shlex.quote(value)}")
    files["env"] = "\n".join(lines) + "\n"
    files["start"] = f'. {shlex.quote(memory)}/env\nexec "$@"\n'
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            data = text.encode("utf-8", "surrogateescape")
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
