"""The text to learn: Python's own reference, as every Python ships it for ``help()``, so that nothing is downloaded."""

from __future__ import annotations

import hashlib
import pydoc_data.topics
from dataclasses import dataclass
from typing import Any

import numpy as np

LENGTH = 400_000
"""Characters to keep: the whole text differs in length between versions of Python."""
HELD_OUT = 0.1
"""Share at the end of the text that is never trained on."""


@dataclass(frozen=True)
class Corpus:
    """A text, and the same as numbers.

    Attributes:
        text: The text.
        vocabulary: Its distinct characters in order; a character's number is its place here.
        training: Numbers of the part to learn from.
        held_out: Numbers of the part to be measured by.
    """

    text: str
    vocabulary: str
    training: Any
    held_out: Any

    @property
    def sha256(self) -> str:
        """Which text it was: it changes with the version of Python."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def unigram_entropy(self) -> float:
        """Nats per character for whoever knows how often each character occurs, and nothing else."""
        counts = np.bincount(np.concatenate([self.training, self.held_out]))
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum())

    def batch(self, rng: np.random.Generator, length: int, rows: int) -> tuple[Any, Any]:
        """Random windows of the training part as (T, B), and the character that follows each of theirs."""
        starts = rng.integers(0, len(self.training) - length, size=rows)
        window = self.training[starts + np.arange(length + 1)[:, None]]
        return window[:-1], window[1:]

    def held_out_rows(self, rows: int) -> tuple[Any, Any]:
        """The held-out part cut into equal rows, as (T, B), and the character that follows each."""
        length = (len(self.held_out) - 1) // rows
        cut = [self.held_out[first : first + rows * length].reshape(rows, length).T for first in (0, 1)]
        return cut[0], cut[1]


def load() -> Corpus:
    """The topics of Python's reference, one after the other."""
    return from_text("\n".join(pydoc_data.topics.topics.values())[:LENGTH])


def from_text(text: str) -> Corpus:
    """Number the characters and set the end aside."""
    vocabulary = "".join(sorted(set(text)))
    numbers = {character: number for number, character in enumerate(vocabulary)}
    encoded = np.array([numbers[character] for character in text])
    cut = int(len(encoded) * (1 - HELD_OUT))
    return Corpus(text, vocabulary, encoded[:cut], encoded[cut:])
