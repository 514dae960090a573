"""What is seen of a training beside its output: GPU samples come home, silence and idle GPUs are remarked on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime

from glgpu.errors import ErrorClass, Failure
from glgpu.gpu_idle import SPOKEN, Idling
from glgpu.gpu_samples import Sample, Samples, read_samples
from glgpu.interfaces import Instance, Machine
from glgpu.lifetime import spoken
from glgpu.losses import Losses, read_losses
from glgpu.machines import dollars
from glgpu.run_record import write_atomically
from glgpu.steps.context import Run, price_of
from glgpu.steps.guest import ask, command
from glgpu.steps.sums import OWN_FOLDER

SAMPLES_FILE, LOSSES_FILE = f"{OWN_FOLDER}/gpu.csv", f"{OWN_FOLDER}/loss.csv"
SILENT_SECONDS = 60.0
"""Of silence before a line says so, and between two such lines."""
MANY_REMARKS, RARE_SECONDS = 600, 600.0
"""After how many of these lines they come more rarely, and how rarely: a job log has an end."""
STALE_SECONDS = 600.0
"""Age from which a sample tells nothing of now."""
AGAIN_SECONDS = 30.0
"""Before a broken connection to the samples is made again."""
KEEP_SECONDS = 60.0
"""Between two writings of the samples: a job that is killed has most of them."""
SAMPLES_SECONDS = 20.0
"""How long their last coming home may take: weights may be waiting, and time short."""
WARNING_SECONDS = 3600.0
"""Between two warnings of an idle GPU."""


def bring_samples(run: Run, machine: Machine, known: Samples | None = None) -> None:
    """Bring what the VM has sampled of its GPUs home; that it cannot be had is only said.

    Args:
        run: The run.
        machine: The VM.
        known: What is at home already; by default it is read.
    """
    samples = known or samples_at_home(run)
    try:
        done = ask(run, machine, "samples", timeout=SAMPLES_SECONDS, doing="bringing the GPU's samples home")
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        run.console.say(f"{failure.cause}; {SAMPLES_FILE} lacks the last of them")
    else:
        samples.add(read_samples(done.text))
    if samples:
        _keep(run, SAMPLES_FILE, samples.text)


def samples_at_home(run: Run) -> Samples:
    """The samples that an earlier job, or an earlier VM of this run, has left."""
    samples = Samples()
    samples.add(read_samples(text_at_home(run, SAMPLES_FILE)))
    return samples


def text_at_home(run: Run, name: str) -> str:
    """A file below outputs/; empty where there is none."""
    with suppress(OSError):
        return (run.outputs / name).read_text(encoding="utf-8", errors="replace")
    return ""


def _keep(run: Run, name: str, text: str) -> None:
    try:
        write_atomically(run.outputs / name, text.encode("ascii"))
    except OSError as error:
        run.console.say(f"glgpu: outputs/{name} cannot be written: {error.strerror}")


@contextmanager
def watching(run: Run, machine: Machine, instance: Instance) -> Iterator[Watch]:
    """Watch a training while the block follows it; afterwards all samples are home.

    Args:
        run: The run.
        machine: The VM.
        instance: The same VM as Compute Engine knows it.
    """
    watch = Watch(run, machine, instance)
    try:
        yield watch
    except BaseException:
        watch.close()
        raise
    else:
        watch.close()
        if watch.has_gpu:
            bring_samples(run, machine, watch.samples)


class Watch:
    """Goes along with a training and hears its output; waits for nothing.

    Args:
        run: The run.
        machine: The VM.
        instance: The same VM as Compute Engine knows it.

    Attributes:
        has_gpu: Whether there is a GPU to look at.
        samples: What has come of its samples.
    """

    def __init__(self, run: Run, machine: Machine, instance: Instance) -> None:
        now = run.clock.now()
        self._run = run
        self._machine = machine
        self._price = price_of(instance)
        self.has_gpu = "none" not in run.settings.machine.gpu
        self.samples = samples_at_home(run)
        self._latest: dict[int, Sample] = {}
        self._told = now
        self._idling = Idling()
        self._losses = Losses()
        self._losses.add(read_losses(text_at_home(run, LOSSES_FILE)))
        self._heard = now
        self._remark_at = now + SILENT_SECONDS
        self._remarks = 0
        self._warn_at = now
        self._keep_at = now + KEEP_SECONDS
        self._open_at = now
        self._connection = ExitStack()
        self._chunks: Iterator[bytes] | None = None
        self._rest = b""

    def feed(self, data: bytes, stamp: str) -> None:
        """The training has said something."""
        self._losses.feed(data, stamp)
        self._heard = self._run.clock.now()
        self._remark_at = self._heard + SILENT_SECONDS

    def beat(self) -> None:
        """Look at what has come, and say what is worth a line."""
        now = self._run.clock.now()
        if self.has_gpu:
            self._look(now)
            self._warn(now)
        if now >= self._remark_at:
            self._remark(now)
        if now >= self._keep_at:
            self._write()
            self._keep_at = now + KEEP_SECONDS

    def close(self) -> None:
        """The following is over: write what has come."""
        self._hang_up()
        self._write()

    def _write(self) -> None:
        if self.samples:
            _keep(self._run, SAMPLES_FILE, self.samples.text)
        if self._losses:
            _keep(self._run, LOSSES_FILE, self._losses.text)

    def _look(self, now: float) -> None:
        """Take what the VM has sampled since the last look; a connection that has ended is made again, later."""
        if self._chunks is None:
            if now < self._open_at:
                return
            stream = self._machine.stream(command(self._run, "sampling"))
            self._chunks = self._connection.enter_context(stream).chunks(0.0)
        for data in self._chunks:
            if not data:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            new = self.samples.add(read_samples(b"\n".join(lines).decode("utf-8", "replace")))
            for one in new:
                self._told = now
                self._latest[one.gpu] = one
                self._idling.add(one)
        self._hang_up()
        self._open_at = now + AGAIN_SECONDS

    def _hang_up(self) -> None:
        self._connection.close()
        self._chunks, self._rest = None, b""

    def _remark(self, now: float) -> None:
        since = datetime.fromtimestamp(self._heard, UTC).strftime("%H:%M:%S UTC")
        self._run.console.say(f"glgpu: no output since {since} ({spoken(now - self._heard)}); {self._gpu(now)}")
        self._remarks += 1
        self._remark_at = now + (SILENT_SECONDS if self._remarks < MANY_REMARKS else RARE_SECONDS)

    def _gpu(self, now: float) -> str:
        if not self.has_gpu:
            return "the container runs"
        if not self._latest or now - self._told > STALE_SECONDS:
            return "the container runs, GPU use not known"
        return gpu_text([self._latest[gpu] for gpu in sorted(self._latest)])

    def _warn(self, now: float) -> None:
        idle = self._idling.verdict(self._run.settings.limits.idle_minutes * 60)
        if idle is None or now < self._warn_at:
            return
        self._warn_at = now + WARNING_SECONDS
        all_of_them = len(idle.gpus) == len(self._latest)
        who = "the GPU has" if all_of_them else f"GPU {', '.join(map(str, idle.gpus))} of {len(self._latest)} has"
        price = f" The VM costs about {dollars(self._price)} USD per hour." if self._price is not None else ""
        text = f"{who} been idle for {spoken(idle.seconds)}: {SPOKEN[idle.reason]}."
        self._run.console.say(f"glgpu: WARNING: {text}{price}")
        self._run.record.add("gpu-idle", gpus=list(idle.gpus), seconds=idle.seconds, reason=idle.reason)


def gpu_text(latest: list[Sample]) -> str:
    """What GPUs do, for people: ``GPU 97 %, 14.2 of 22.5 GiB, 61 °C``; several are told side by side."""
    uses = ", ".join("?" if one.use is None else f"{one.use:.0f}" for one in latest)
    used = ", ".join("?" if one.used_mib is None else f"{one.used_mib / 1024:.1f}" for one in latest)
    memory = latest[0].memory_mib
    whole = f" of {memory / 1024:.1f}" if memory is not None else ""
    celsius = ", ".join("?" if one.celsius is None else f"{one.celsius:.0f}" for one in latest)
    return f"GPU {uses} %, {used}{whole} GiB, {celsius} °C"
