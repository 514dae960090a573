"""The command lines of everything that is started for a while."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

WATCH = Path(__file__).resolve().parent / "process_watch.py"


class Watch:
    """The command line of every process that starts meanwhile."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def __enter__(self) -> Watch:
        self._process = subprocess.Popen(
            [sys.executable, "-I", WATCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.how = json.loads(self._process.stdout.readline())
        # Read all the while: a full pipe would stop the watch on a machine on which much is going on.
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._reader.join()
        assert self._process.returncode == 0, "the watch has ended before its time"

    def _read(self, lines: IO[str]) -> None:
        self.commands += [json.loads(line) for line in lines]
