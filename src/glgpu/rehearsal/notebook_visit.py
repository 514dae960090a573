"""A notebook that somebody has started, opens through a laptop's tunnel, works in, and has stopped."""

from __future__ import annotations

import asyncio
import html
import os
import re
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from glgpu.console import Console
from glgpu.errors import ErrorClass, Failure
from glgpu.notebook import WORKSPACE
from glgpu.processes import Running
from glgpu.rehearsal.browser import Browser
from glgpu.rehearsal.fault_catalogue import NotebookFault
from glgpu.rehearsal.job_turn import Outcome
from glgpu.rehearsal.occasion import predefined_variables
from glgpu.rehearsal.player import Player
from glgpu.rehearsal.world import Adopted, World

START, STOP = "start notebook", "stop notebook"
EDITED, COUNTED = "rehearsal.ipynb", "counted.txt"
CODE = "import os, sys\nprint('Python', sys.version.split()[0], 'sees', *sorted(os.listdir()))"
HANGS = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"
COUNTS = f"""\
import itertools, pathlib, time
for number in itertools.count():
    pathlib.Path("{COUNTED}").write_text(f"{{number:09d}}\\n")
    time.sleep(0.05)
"""
DROP_SECONDS = 1.0
HEAR_SECONDS = 90.0
"""How long the laptop is waited for."""


class NotebookVisit:
    """One such visit.

    Args:
        console: Where it is told.
        world: The started stand-ins.
        adopted: Whose notebook.
        player: Plays the jobs that are clicked.
        befalls: What goes wrong while it is open.
    """

    def __init__(
        self, console: Console, world: World, adopted: Adopted, player: Player, befalls: Sequence[NotebookFault]
    ) -> None:
        self._console = console
        self._world = world
        self._adopted = adopted
        self._player = player
        self._befalls = befalls

    def pay(self) -> list[str]:
        """Start the notebook, work in it, and stop it.

        Returns:
            What of the work is lost.

        Raises:
            Failure: OUT_OF_TIME, where the laptop hears nothing.
        """
        if self._click(START).status != "success":
            self._click(STOP)
            return []
        with self._laptop() as laptop:
            address, token = laptop.address(), laptop.token
            self._console.masker.add(token)
            with Browser(address, token) as browser:
                kept = self._work(laptop, browser)
                stopped = self._click(STOP)
            laptop.ends()
        return _lost(stopped, kept)

    def _click(self, job: str) -> Outcome:
        return self._world.call(self._player.play_job(job))

    def _work(self, laptop: _Laptop, browser: Browser) -> dict[str, bytes | None]:
        """Run a cell, save a notebook, suffer what befalls it; the files that have to come home, with their bytes."""
        tab = browser.open_tab(browser.kernel())
        said = browser.cell(tab, CODE)
        self._console.say(f"   a cell ran: {said.strip()}")
        cell = {"cell_type": "code", "id": "one", "source": CODE, "metadata": {}, "execution_count": 1}
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": said}]
        notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}
        status, answer = browser.ask("PUT", f"api/contents/{EDITED}", type="notebook", content=notebook)
        if status not in (200, 201):
            raise RuntimeError(f"JupyterLab does not save: {status} {answer}")
        kept: dict[str, bytes | None] = {EDITED: browser.read(EDITED)}
        if "drop tunnel" in self._befalls:
            self._console.say("   the network breaks off")
            self._world.call(self._drop())
            laptop.hear("connected again")
            status, _ = browser.ask("GET", "api/kernels")
            self._console.say(f"   the notebook answers again: {status}")
        if "hang kernel" in self._befalls:
            browser.send(tab, HANGS)
            self._console.say("   the kernel hangs")
        if "stop during cell" in self._befalls:
            browser.send(tab, COUNTS)
            while browser.ask("GET", f"api/contents/{COUNTED}?content=0")[0] != 200:
                time.sleep(0.2)
            self._console.say("   a cell runs and writes")
            kept[COUNTED] = None
        return kept

    async def _drop(self) -> None:
        network = self._world.network
        network.change(dropped="reset")
        await asyncio.sleep(DROP_SECONDS)
        network.change()

    @contextmanager
    def _laptop(self) -> Iterator[_Laptop]:
        """The clicker's own machine: a Google login and the address of GitLab; no token of GitLab's."""
        home = self._world.folder / "laptop"
        home.mkdir()
        known = predefined_variables(self._player.occasion)
        variables = {name: known[name] for name in ("CI_SERVER_URL", "CI_PROJECT_ID", "CI_PROJECT_PATH")}
        variables |= {"GOOGLE_OAUTH_ACCESS_TOKEN": self._world.google_token, **self._world.endpoints()}
        variables |= {"CI_COMMIT_REF_NAME": self._adopted.branch, "HOME": str(home), "PATH": self._world.job_path()}
        argv = ["glgpu", "notebook", "open", "--no-browser"]
        with Running(argv, env=variables, cwd=home) as process:
            yield _Laptop(process, self._console)


class _Laptop:
    """`glgpu notebook open`, which runs.

    Args:
        process: It.
        console: Where it is shown.
    """

    def __init__(self, process: Running, console: Console) -> None:
        self._process = process
        self._console = console
        self._said: list[str] = []
        self._more = threading.Condition()
        self._over = False
        self.token = ""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._process.lines():
            text = line.decode("utf-8", "replace").rstrip()
            self._console.say(f"   laptop: {text}")
            with self._more:
                self._said.append(text)
                self._more.notify_all()
        with self._more:
            self._over = True
            self._more.notify_all()

    def hear(self, words: str) -> str:
        """Wait for a line with these words.

        Raises:
            Failure: OUT_OF_TIME.
        """

        def found() -> str | None:
            return next((line for line in self._said if re.search(words, line)), None)

        with self._more:
            self._more.wait_for(lambda: found() or self._over, HEAR_SECONDS)
            line = found()
        if line is None:
            raise Failure(
                ErrorClass.OUT_OF_TIME, f"the laptop has not said {words!r}", "read above what it said instead"
            )
        return line

    def address(self) -> str:
        """Where the notebook is; its token is known then."""
        page = Path(unquote(urlsplit(self.hear("open file:").split()[1]).path))
        (address,) = re.findall(r'url=([^"]+)"', page.read_text(encoding="utf-8"))
        base, _, self.token = html.unescape(address).partition("/lab?token=")
        return base

    def ends(self) -> None:
        """Wait for its end: it goes with the notebook."""
        self.hear("the notebook has ended")
        self._process.wait(HEAR_SECONDS)


def _lost(stopped: Outcome, kept: dict[str, bytes | None]) -> list[str]:
    """What is not in a job's artifacts as it was saved; where its bytes are not known, a whole file is enough."""
    lost = []
    archive = stopped.last.artifacts
    with zipfile.ZipFile(archive) if archive else zipfile.ZipFile(os.devnull, "w") as found:
        names = set(found.namelist()) if archive else set()
        for name, data in kept.items():
            path = f"outputs/{WORKSPACE}/{name}"
            if path not in names:
                lost.append(f"{name} is not in the artifacts of {STOP!r}")
            elif data is None:
                if not re.fullmatch(rb"\d{9}\n", found.read(path)):
                    lost.append(f"{name} is no whole file in the artifacts of {STOP!r}")
            elif found.read(path) != data:
                lost.append(f"{name} is not what was saved in the artifacts of {STOP!r}")
    return lost
