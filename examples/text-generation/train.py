"""Train a character LSTM on Python's own reference and keep what it learned.

Leaves ``weights/`` (parameters and vocabulary), ``samples/epoch-N.txt`` (text it writes after each epoch) and
``metrics.json``. ``checkpoints/latest.npz`` holds all that is needed to go on: a run that was stopped anywhere and
started again ends with the same weights, to the last bit on the same machine.

Settings come by environment: EPOCHS, STEPS (per epoch), HIDDEN, BATCH, LEARNING_RATE, SEED, DTYPE. Without a GPU the
defaults are small enough for a few seconds on one core.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import corpus
import numpy as np
import storage
from corpus import Corpus
from lstm import Adam, CharacterLSTM, host

CHECKPOINT = Path("checkpoints/latest.npz")
CHECKPOINT_STEPS = 50
WINDOW = 32
"""Characters through which the gradient flows back."""
HELD_OUT_ROWS = 100
SAMPLE_LENGTH = 400
TEMPERATURE = 0.8
"""Below 1 the sample keeps closer to what is likely."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be chosen. The defaults are for one core of a CPU."""

    epochs: int = 3
    steps: int = 200
    hidden: int = 64
    batch: int = 32
    learning_rate: float = 0.01
    seed: int = 1
    dtype: str = "float32"

    @classmethod
    def read(cls, environment: Mapping[str, str], *, gpu: bool) -> Settings:
        """Take each setting from the variable of its name, else from what suits the device."""
        defaults = GPU_DEFAULTS if gpu else cls()
        chosen = {}
        for field in dataclasses.fields(cls):
            default = getattr(defaults, field.name)
            try:
                chosen[field.name] = type(default)(environment.get(field.name.upper(), default))
            except ValueError:
                sys.exit(f"{field.name.upper()} must be a number, not {environment[field.name.upper()]!r}")
        settings = cls(**chosen)
        if settings.dtype not in ("float32", "float64"):
            sys.exit(f"DTYPE must be float32 or float64, not {settings.dtype!r}")
        for name in ("epochs", "steps", "hidden", "batch"):
            if getattr(settings, name) < 1:
                sys.exit(f"{name.upper()} must be at least 1, not {getattr(settings, name)}")
        return settings


GPU_DEFAULTS = Settings(epochs=20, steps=1000, hidden=512, batch=256, learning_rate=0.002)


@dataclasses.dataclass
class Progress:
    """How far the training has come; together with the arrays of model and optimiser it is all there is to resume.

    Attributes:
        steps: Updates so far.
        seconds: Time spent on them, over all runs.
        loss_sum: Sum of the losses of this epoch's updates.
        history: One entry per finished epoch.
    """

    steps: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


class Training:
    """Everything that changes while it trains, and how it is kept."""

    def __init__(self, xp: ModuleType, device: str, settings: Settings, text: Corpus) -> None:
        self.xp, self.device, self.settings, self.text = xp, device, settings, text
        self.rng = np.random.default_rng(settings.seed)
        self.model = CharacterLSTM.fresh(xp, self.rng, len(text.vocabulary), settings.hidden, settings.dtype)
        self.optimiser = Adam(self.model, settings.learning_rate)
        self.progress = Progress()
        self.identity = {**dataclasses.asdict(settings), "text_sha256": text.sha256}
        # More epochs may be asked of a training that has ended; everything else would make it another one.
        del self.identity["epochs"]

    @property
    def done(self) -> bool:
        """Whether all epochs are over."""
        return self.progress.steps >= self.settings.epochs * self.settings.steps

    def step(self) -> None:
        """Learn from one batch."""
        started = time.perf_counter()
        characters, targets = self.text.batch(self.rng, WINDOW, self.settings.batch)
        loss, gradients = self.model.loss_and_gradients(self.xp.asarray(characters), self.xp.asarray(targets))
        self.optimiser.update(gradients)
        self.progress.steps += 1
        self.progress.loss_sum += float(loss)
        self.progress.seconds += time.perf_counter() - started

    def end_epoch(self) -> None:
        """Measure, write a sample, and keep the weights of this epoch."""
        progress, steps = self.progress, self.settings.steps
        epoch = progress.steps // steps
        held_out = self.held_out_loss()
        progress.history.append({"epoch": epoch, "training": progress.loss_sum / steps, "held_out": held_out})
        progress.loss_sum = 0.0
        storage.write_text(Path(f"samples/epoch-{epoch}.txt"), self.sample(epoch) + "\n")
        self.save_results()
        print(
            f"epoch {epoch} of {self.settings.epochs}: training {progress.history[-1]['training']:.3f}, "
            f"held out {held_out:.3f} nats/character, {progress.seconds:.1f} s",
            flush=True,
        )

    def held_out_loss(self) -> float:
        """Mean loss over the whole held-out part, read from its beginning in a few long rows."""
        characters, targets = (self.xp.asarray(part) for part in self.text.held_out_rows(HELD_OUT_ROWS))
        state, total = self.model.start(HELD_OUT_ROWS), 0.0
        for first in range(0, len(characters), WINDOW):
            part = slice(first, first + WINDOW)
            loss, state = self.model.loss(characters[part], targets[part], state)
            total += float(loss) * len(characters[part])
        return total / len(characters)

    def sample(self, epoch: int) -> str:
        """A piece of text as the model writes it; the same for the same weights, seed and epoch."""
        first = self.text.text[0]
        return generate(self.model, self.text.vocabulary, first, SAMPLE_LENGTH, seed=[self.settings.seed, epoch])

    def save_results(self) -> None:
        """Write weights and metrics."""
        storage.write_arrays(Path("weights/lstm.npz"), {k: host(v) for k, v in self.model.parameters.items()})
        storage.write_json(Path("weights/vocabulary.json"), list(self.text.vocabulary))
        held_out = self.progress.history[-1]["held_out"]
        storage.write_json(
            Path("metrics.json"),
            {
                "held_out_loss_nats_per_character": held_out,
                "held_out_loss_bits_per_character": held_out / math.log(2),
                "unigram_entropy_nats_per_character": self.text.unigram_entropy,
                "steps": self.progress.steps,
                "seconds": round(self.progress.seconds, 3),
                "device": self.device,
                "text_characters": len(self.text.text),
                "text_sha256": self.text.sha256,
                "settings": dataclasses.asdict(self.settings),
                "history": self.progress.history,
            },
        )

    def save_checkpoint(self) -> None:
        """Write all that is needed to go on from here."""
        arrays = {
            f"{group}/{name}": host(array)
            for group, members in self._groups().items()
            for name, array in members.items()
        }
        about = {
            "identity": self.identity,
            "progress": dataclasses.asdict(self.progress),
            "random": self.rng.bit_generator.state,
        }
        storage.write_arrays(CHECKPOINT, {**arrays, "about": np.array(json.dumps(about))})

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one."""
        if not CHECKPOINT.exists():
            return
        arrays = storage.read_arrays(CHECKPOINT)
        about = json.loads(str(arrays.pop("about")))
        other = [f"{key} {about['identity'].get(key)} there, {value} now" for key, value in self.identity.items()
                 if about["identity"].get(key) != value]  # fmt: skip
        if other:
            sys.exit(f"{CHECKPOINT} belongs to another training ({'; '.join(other)}): remove it, or set these back")
        for group, members in self._groups().items():
            for name in members:
                members[name] = self.xp.asarray(arrays[f"{group}/{name}"])
        self.progress = Progress(**about["progress"])
        self.optimiser.steps = self.progress.steps
        self.rng.bit_generator.state = about["random"]
        print(f"resumed after step {self.progress.steps}", flush=True)

    def _groups(self) -> dict[str, dict[str, Any]]:
        return {"weights": self.model.parameters, "mean": self.optimiser.mean, "square": self.optimiser.square}


def generate(model: CharacterLSTM, vocabulary: str, beginning: str, length: int, seed: int | list[int]) -> str:
    """Let the model go on from ``beginning`` for ``length`` characters."""
    rng = np.random.default_rng(seed)
    state = model.start(1)
    for character in beginning:
        log_probabilities, state = model.step(model.xp.asarray([vocabulary.index(character)]), state)
    written = ""
    for _ in range(length):
        weights = np.exp(host(log_probabilities)[0].astype(np.float64) / TEMPERATURE)
        number = int(np.searchsorted(np.cumsum(weights / weights.sum()), rng.random()))
        written += vocabulary[min(number, len(vocabulary) - 1)]
        log_probabilities, state = model.step(model.xp.asarray([vocabulary.index(written[-1])]), state)
    return written


def choose_device() -> tuple[ModuleType, str]:
    """CuPy and the GPU's name where both are there, else NumPy and ``cpu``."""
    try:
        import cupy
    except ImportError:
        return np, "cpu"
    if not cupy.is_available():
        return np, "cpu"
    name: bytes = cupy.cuda.runtime.getDeviceProperties(0)["name"]
    return cupy, name.decode()


def main() -> int:
    """Train to the end, or until SIGTERM; return the exit code."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    xp, device = choose_device()
    settings = Settings.read(os.environ, gpu=xp is not np)
    text = corpus.load()
    print(
        f"device {device}, {settings}\n{len(text.text)} characters, {len(text.vocabulary)} distinct, "
        f"unigram entropy {text.unigram_entropy:.3f} nats/character",
        flush=True,
    )
    training = Training(xp, device, settings, text)
    training.resume()
    while not training.done and not stopped:
        training.step()
        if training.progress.steps % settings.steps == 0:
            training.end_epoch()
            training.save_checkpoint()
        elif training.progress.steps % CHECKPOINT_STEPS == 0:
            training.save_checkpoint()
    if stopped and not training.done:
        training.save_checkpoint()
        print(f"stopped by a signal after step {training.progress.steps}; the checkpoint is saved", flush=True)
        return 128 + stopped[0]
    training.save_results()
    return 0


if __name__ == "__main__":
    sys.exit(main())
