"""What a laptop asks the VM of a notebook."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.notebook import STATE_VERB, State, read_state
from glgpu.steps.guest import ask
from glgpu.steps.visit import Visited


def notebook_state(visited: Visited) -> State:
    """How the notebook is.

    Raises:
        Failure: NOT_FOUND, where there is none on the VM yet; SSH.
    """
    doing = "asking the VM for its notebook"
    text = ask(visited.run, visited.machine, STATE_VERB, doing=doing).text
    try:
        state = read_state(text)
    except ValueError as error:
        raise Failure(ErrorClass.SSH, f"{doing}: {error}", "call it again", text) from None
    if state is None:
        raise Failure(
            ErrorClass.NOT_FOUND,
            f"there is no notebook on {visited.instance.name} yet",
            "wait until its job `start notebook` has ended, then call it again",
        )
    return state
