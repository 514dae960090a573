"""notebook extend: a later soft end, within the hard one."""

from __future__ import annotations

from glgpu.errors import ErrorClass, Failure
from glgpu.lifetime import spoken
from glgpu.notebook import KIND, SAVE_SECONDS, UNTIL_VERB
from glgpu.steps.context import hard_end_of
from glgpu.steps.guest import ask
from glgpu.steps.notebook_visit import notebook_state
from glgpu.steps.visit import Visitor, look_in


def extend(visitor: Visitor, seconds: float) -> None:
    """Move the soft end of the notebook that is meant.

    Args:
        visitor: Who looks in.
        seconds: By how much.

    Raises:
        Failure: USAGE, where the hard end comes before that; NOT_FOUND, SSH, PERMISSION.
    """
    with look_in(visitor, KIND) as visited:
        run, instance = visited.run, visited.instance
        # The VM's own word, and not the label's: told twice after a failure, it is moved once.
        now = notebook_state(visited).soft_end
        last = hard_end_of(instance) - SAVE_SECONDS
        if now + seconds > last:
            raise Failure(
                ErrorClass.USAGE,
                f"its hard end leaves room for {spoken(last - now)} more, and {spoken(seconds)} were asked for",
                "ask for less; machine.max_hours moves the hard end of the next notebook",
            )
        end = int(now + seconds)
        # The label first: until then cleanup would end what the VM lets live.
        run.cloud.edit_labels(instance.name, instance.zone, {"glgpu-expires": str(end)})
        ask(run, visited.machine, UNTIL_VERB, str(end), doing="telling the VM its new end")
        run.console.say(f"the notebook now ends in {spoken(end - run.clock.now())}, or once it is idle")
