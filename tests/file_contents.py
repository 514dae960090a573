"""What files hold while others write and remove them; what has gone meanwhile, or is another user's, is left out."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every regular file below a folder."""
    return _read(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)


def matching(pattern: str) -> Iterator[tuple[Path, bytes]]:
    """Every regular file that a shell would find by this pattern."""
    return _read(map(Path, glob.iglob(pattern)))


def _read(paths: Iterable[Path]) -> Iterator[tuple[Path, bytes]]:
    for path in paths:
        with suppress(OSError):
            if stat.S_ISREG(path.lstat().st_mode):
                yield path, path.read_bytes()
