"""notebook open: a notebook on a VM, in a browser here, through a tunnel that comes back when the network does."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path

from glgpu.disk import cannot_write
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance, Tunnel
from glgpu.notebook import KIND, TOKEN_VERB, socket_of
from glgpu.steps.context import Run
from glgpu.steps.guest import ask
from glgpu.steps.notebook_visit import notebook_state
from glgpu.steps.visit import Visited, Visitor, look_in

Browse = Callable[[str], bool]
"""Opens an address in a browser; whether there is one."""

OPEN_SECONDS = 30.0
"""How long one try to connect may take."""
FIRST_TRIES = 5
"""Before the notebook was open once; after that it is tried for as long as its VM lives."""
PAUSE_SECONDS = 2.0
"""Between two tries."""
PASSING = (ErrorClass.NETWORK, ErrorClass.TRANSIENT, ErrorClass.RATE_LIMIT, ErrorClass.SSH)
"""What passes by itself where a network has dropped."""


def open_notebook(visitor: Visitor, browse: Browse | None) -> None:
    """Open the notebook that is meant, and stay until Ctrl-C or its end.

    The token is fetched over SSH, and is neither printed nor on a command line: the browser is given a file that only
    this user can read, which sends it on.

    Args:
        visitor: Who looks in.
        browse: Opens a browser; None: only tell where to find the notebook.

    Raises:
        Failure: USAGE, NOT_FOUND, SSH; PERMISSION, with the role that is missing.
    """
    with look_in(visitor, KIND) as visited:
        if not notebook_state(visited).answers:
            raise Failure(
                ErrorClass.NOT_FOUND,
                f"the notebook on {visited.instance.name} does not answer yet",
                "wait until its job `start notebook` has ended, then call it again",
            )
        token = ask(visited.run, visited.machine, TOKEN_VERB, doing="fetching the notebook's token").text.strip()
        visited.run.console.masker.add(token)
        try:
            _stay(visited, token, browse)
        except Failure as failure:
            if failure.klass is not ErrorClass.INTERRUPTED:
                raise
            visited.run.console.say("closed; the notebook runs on until it is idle, or at its soft end")


def _stay(visited: Visited, token: str, browse: Browse | None) -> None:
    """Keep a tunnel, at one and the same address, until somebody ends it here or the VM is gone there."""
    run, port, tries, down = visited.run, 0, 0, False
    while True:
        with visited.machine.forward(socket_of(run.name), port) as tunnel:
            if tunnel.opens(OPEN_SECONDS):
                if not port:
                    port = tunnel.port
                    _show(run, tunnel, token, browse)
                elif down:
                    run.console.say("connected again, at the same address")
                down = False
                tunnel.last()
            why = tunnel.complaint or "no answer"
        tries += 1
        if not port and tries >= FIRST_TRIES:
            raise Failure(
                ErrorClass.SSH, f"no way to the notebook: {why}", "call it again; `glgpu ssh` shows more", why
            )
        if not down:
            run.console.say(f"no connection to the VM ({why.splitlines()[-1]}): connecting again until Ctrl-C")
            down = True
        if _ended(run, visited.instance):
            run.console.say(
                "the notebook has ended. Its saved work comes home with its job `stop notebook`, or the next cleanup"
            )
            return
        run.clock.sleep(PAUSE_SECONDS)
        try:
            visited.way.again()
        except Failure as failure:
            _pass(failure)


def _show(run: Run, tunnel: Tunnel, token: str, browse: Browse | None) -> None:
    """Send the browser there, or say how to get there."""
    address = f"http://127.0.0.1:{tunnel.port}/lab"
    page = _write_page(run.job.scratch / "notebook.html", f"{address}?token={token}")
    shown = browse(page.as_uri()) if browse else False
    run.console.say(f"the notebook is at {address}, for as long as this runs; Ctrl-C closes it")
    if not shown:
        run.console.say(f"open {page.as_uri()} in a browser: that file logs you in, and is gone afterwards")


def _write_page(path: Path, address: str) -> Path:
    """A page for our eyes only that sends a browser on; an address on a command line is for everybody's."""
    told = html.escape(address, quote=True)
    text = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>glgpu</title>'
        f'<meta name="referrer" content="no-referrer"><meta http-equiv="refresh" content="0; url={told}"></head>'
        f'<body><a href="{told}">To the notebook</a></body></html>\n'
    )
    try:
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(error, path) from None
    return path


def _ended(run: Run, instance: Instance) -> bool:
    """Whether the VM does not run any more; no answer is not an end."""
    try:
        now = run.cloud.get(instance.name, instance.zone)
    except Failure as failure:
        _pass(failure)
        return False
    return now is None or now.status != "RUNNING"


def _pass(failure: Failure) -> None:
    if failure.klass not in PASSING:
        raise failure
