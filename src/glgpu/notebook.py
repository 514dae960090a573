"""What the notebook's two sides agree on: names on the VM, verbs of the helper, and the answer to one of them."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from urllib.parse import quote

from glgpu.run_names import AnyName, Kind

KIND: Kind = "notebook"
"""Kind of its runs, in names and labels."""
STATE_VERB = "notebook-state"
"""Verb of the helper on the VM that tells `State`, as one line of JSON."""
TOKEN_VERB = "notebook-token"
"""Verb that prints JupyterLab's token alone. The token is made on the VM and goes nowhere but to whoever opens it."""
UNTIL_VERB = "notebook-until"
"""Verb with one word, a Unix time in seconds: the VM ends the notebook then. Whoever says so moves the label too."""
USED_ATTRIBUTE = "notebook-used"
"""Guest attribute of the VM: the Unix time in seconds when something was last at work on it; told every half minute."""
AT_WORK_SECONDS = 60
"""As long ago as that may be of a notebook that is at work."""
WORKSPACE = "workspace"
"""The folder in saves and below outputs/ that holds the workspace's files; the one beside it is glgpu's own."""
SOFT_SECONDS = 8 * 3600
"""After its start, where its hard end is not sooner: `extend` moves it."""
SAVE_SECONDS = 300
"""Between two looks for changed files; each that finds some ends in a save."""
BRANCHES = "glgpu-notebook/"
"""What the names of branches with saved work begin with; ci/train.yml trains on none of them."""
LONGEST_PIECE = 120
"""Bytes between two slashes of such a name: a file system takes no more than 255."""


def branch_of(user: str, ref: str) -> str:
    """The branch for what somebody works on in notebooks on a branch: no two users have one in common.

    What git does not take in a name stands there as in an address (``%7E``). On such a branch of their own they go on.

    Args:
        user: Their login.
        ref: The branch that the notebook was started on.
    """
    own = f"{BRANCHES}{_piece(user)}/"
    return ref if ref.startswith(own) else own + "/".join(_piece(part) for part in ref.split("/"))


def _piece(text: str) -> str:
    """Anything as what git takes between two slashes (git-check-ref-format(1)), another for each."""
    plain = quote(text.encode("utf-8", "surrogateescape"), safe="+#@").replace("~", "%7E") or "%"
    plain = re.sub(r"^\.|\.(?=\.|$)|\.(?=lock$)", "%2E", plain)
    if len(plain) <= LONGEST_PIECE:
        return plain
    # No other piece has an equals sign in it, which is written %3D.
    return f"{plain[: LONGEST_PIECE - 20].rstrip('.')}={hashlib.sha256(plain.encode()).hexdigest()[:16]}"


def memory_of(run: AnyName) -> str:
    """The folder on the VM, in memory and for the login user alone, that holds what opens the notebook."""
    return f"/dev/shm/{run}/notebook"


def socket_of(run: AnyName) -> str:
    """The UNIX socket on which JupyterLab listens, and on nothing else.

    So nothing of the VM's network leads there: neither from outside, nor from its loopback, nor from the container's
    own network. ``ssh -L 127.0.0.1:PORT:SOCKET`` does, for whoever may log in. The address to open is then
    ``http://127.0.0.1:PORT/lab?token=...``.
    """
    return f"{memory_of(run)}/door/socket"


@dataclass(frozen=True)
class State:
    """What the VM says of its notebook.

    Attributes:
        answers: Whether JupyterLab answers now.
        busy: Whether something is at work: a cell, a program in a terminal.
        idle_seconds: Since when nothing has been at work, be it there or on the GPU; 0: it is.
        soft_end: Unix time at which the VM saves and ends itself.
        saved: Unix time of the newest save that came where it belongs; None: nothing has been saved yet.
    """

    answers: bool
    busy: bool
    idle_seconds: int
    soft_end: int
    saved: int | None


def read_state(text: str) -> State | None:
    """Understand the answer to `STATE_VERB`; None: there is no notebook on the VM.

    Raises:
        ValueError: It is no such answer.
    """
    if not text.strip():
        return None
    try:
        found = json.loads(text)
        return State(
            answers=bool(found["answers"]),
            busy=bool(found["busy"]),
            idle_seconds=int(found["idle_seconds"]),
            soft_end=int(found["soft_end"]),
            saved=None if found["saved"] is None else int(found["saved"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not understood: {error!r}") from None
