"""Files that are either whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a machine that loses power, never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file for people to read, whole."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write an ``.npz`` file, whole; the numbers are kept to the last bit."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, Any]:
    """Read an ``.npz`` file; nothing in it is executed."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
