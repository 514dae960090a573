"""End every VM of a run, those included that are still on their way, with Compute Engine as the only witness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from glgpu.clock import poll
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance, Operation
from glgpu.lifetime import spoken
from glgpu.steps.context import Run
from glgpu.steps.persist import Attempts

FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.25, 2.0
"""Between two looks: at first, and in the end; Compute Engine counts them."""
FIRST_WORD_SECONDS = 5.0
"""After which a line says that something takes its time; the next one comes after twice as long."""
MOST_DELETES = 3
"""How often one VM is asked for: a delete that was accepted may fail all the same, and another one fare better."""
PASSING = (ErrorClass.NETWORK, ErrorClass.TRANSIENT, ErrorClass.RATE_LIMIT)
NOT_READY = "resourceNotReady"


def instances_of(run: Run) -> list[Instance]:
    """Every instance of the run, found by name and by label: either alone can be fooled.

    Google is asked once, for the name or the run's number. Others may have that number too (a run of another GitLab
    server, or of another kind): what is the run's own is decided here.
    """
    found = run.cloud.of_run(str(run.name), run.name.run)
    named = [one for one in found if one.name == str(run.name)]
    labelled = [one for one in found if run.name.own_labels.items() <= one.labels.items()]
    return list({(one.name, one.zone): one for one in [*named, *labelled]}.values())


def under_way(operations: Sequence[Operation]) -> list[Operation]:
    """What may still become a VM of the run: until an insert is over, no list need show what it makes.

    A Terraform that was killed leaves such an insert behind, and so does one whose patience is over. What was deleted
    while it came up does not come up any more, however long its insert goes on.
    """
    deleted = {one.instance_id for one in operations if one.kind == "delete" and one.done and one.failure is None}
    return [one for one in operations if one.kind == "insert" and not one.done and one.instance_id not in deleted]


class Ending:
    """The end of a run's VMs.

    Args:
        run: The run.
        attempts: Takes what goes wrong.

    Attributes:
        deleted: The VMs that were asked for, as ``NAME in ZONE``.
        coming: The inserts that were under way at the last look.
        clear: Whether the last look saw nothing, be it there or coming.
    """

    def __init__(self, run: Run, attempts: Attempts) -> None:
        self._run = run
        self._attempts = attempts
        self._asked: Counter[str] = Counter()
        self._refused: dict[str, Failure] = {}
        self._operations: list[Operation] | None = []
        self.deleted: list[str] = []
        self.coming: list[Operation] = []
        self.clear = False

    @property
    def why(self) -> Failure | None:
        """Why a VM is still there; None where nobody refused to delete one."""
        return next(iter(self._refused.values()), None)

    def go_on(self, seconds: float, *, until_gone: bool = True) -> None:
        """Look and ask until nothing is there and nothing can come.

        Args:
            seconds: For how long at most.
            until_gone: Whether to wait for the deletes; else until each VM was asked for and nothing can come.
        """
        clock, say = self._run.clock, self._run.console.say
        begun, pause, due = clock.now(), FIRST_LOOK_SECONDS, FIRST_WORD_SECONDS
        while (alive := self._look()) is not None:
            for one in alive:
                self._delete(one, once=not until_gone)
            going = [one for one in alive if until_gone and _key(one) not in self._refused]
            if not going and not self.coming:
                return
            told = ", ".join(
                [
                    *(f"the insert in {one.zone}" for one in self.coming),
                    *(f"the delete of {one.name} in {one.zone} ({one.status})" for one in going),
                ]
            )
            spent = clock.now() - begun
            if spent >= seconds:
                say(f"still under way after {spoken(spent)}, and not waited for any longer: {told}")
                return
            if spent >= due:
                say(f"still under way after {spoken(spent)}: {told}")
                due *= 2
            clock.sleep(min(pause, seconds - spent))
            pause = min(pause * 1.5, LONGEST_LOOK_SECONDS)

    def _look(self) -> list[Instance] | None:
        """The VMs that are there; None where Google cannot be asked."""
        # In this order: an insert that ends between the two looks has its VM in the second.
        if self._operations is not None:
            self._operations = self._attempts.insist(partial(self._run.cloud.operations, str(self._run.name)))
        self.coming = under_way(self._operations or [])
        found = self._attempts.insist(partial(instances_of, self._run))
        self.clear = found == [] and self._operations is not None and not self.coming
        return found

    def _delete(self, instance: Instance, *, once: bool) -> None:
        """Ask for the end of a VM, unless that is under way; one that was stopped is as alive as any other.

        Args:
            instance: The VM.
            once: Whether nobody looks again: then also what is STOPPING without a delete is asked for.
        """
        key = _key(instance)
        times = self._asked[key]
        if key in self._refused or (once and times) or (instance.status == "STOPPING" and not once):
            return
        deletes = [one for one in self._operations or [] if one.kind == "delete" and one.instance_id == instance.id]
        if any(not one.done for one in deletes):
            return
        if times >= MOST_DELETES:
            # A list may lag behind a delete that went well; one that failed says why.
            if failed := [one.failure for one in deletes if one.failure is not None]:
                self._refuse(instance, failed[-1])
            return
        self._ask(instance, once=once)

    def _ask(self, instance: Instance, *, once: bool) -> None:
        run, key, place = self._run, _key(instance), f"{instance.name} in {instance.zone}"
        run.console.say(f"deleting {place}" + (" once more" if self._asked[key] else ""))
        self._asked[key] += 1
        try:
            self._attempts.undisturbed(partial(run.cloud.delete_instance, instance.name, instance.zone))
        except Failure as failure:
            if NOT_READY in failure.evidence:
                self._asked[key] -= 1  # something else is done to it first
            elif once or failure.klass not in PASSING or self._asked[key] >= MOST_DELETES:
                self._refuse(instance, failure)
            return
        self.deleted.append(place)
        run.record.add("delete-requested", instance=instance.name, zone=instance.zone)

    def _refuse(self, instance: Instance, failure: Failure) -> None:
        self._run.console.say(f"{instance.name}: {failure.klass}: {failure.cause}")
        self._refused[_key(instance)] = failure


def clear_away(run: Run, instance: Instance) -> None:
    """End a VM that is in the way of another one of its name, whatever is being done to it.

    Raises:
        Failure: STILL_ALIVE, when it is not gone within ``limits.delete_minutes``; else what Google says.
    """

    def ask() -> None:
        try:
            run.cloud.delete_instance(instance.name, instance.zone)
        except Failure as failure:
            if NOT_READY not in failure.evidence:
                raise

    def gone() -> bool | None:
        current = run.cloud.get(instance.name, instance.zone)
        if current is not None and current.status != "STOPPING":
            ask()  # it was only stopping before
        return True if current is None else None

    operations = run.cloud.operations(instance.name)
    if not any(one.kind == "delete" and one.instance_id == instance.id and not one.done for one in operations):
        ask()
    seconds = run.settings.limits.delete_minutes * 60.0
    if not poll(run.clock, gone, seconds=seconds, every=FIRST_LOOK_SECONDS * 4):
        raise still_alive(run, [instance], f"it is not gone after {spoken(seconds)}")


def _key(instance: Instance) -> str:
    return f"{instance.zone}/{instance.name}/{instance.id}"


def still_alive(run: Run, instances: Sequence[Instance], why: str) -> Failure:
    """Say what lives, where to see it, and how to end it by hand."""
    first = instances[0]
    project = run.cloud.project
    link = f"https://console.cloud.google.com/compute/instancesDetail/zones/{first.zone}/instances/{first.name}?project={project}"
    names = ", ".join(f"{one.name} ({one.status}, {one.zone})" for one in instances)
    return Failure(
        ErrorClass.STILL_ALIVE,
        f"still alive: {names}: {why}; see {link}",
        f"`gcloud compute instances delete {first.name} --zone {first.zone} --project {project}`",
    )


def still_coming(run: Run, inserts: Sequence[Operation]) -> Failure:
    """Say that a VM may yet come up."""
    made = [Instance(str(run.name), one.zone, "being created") for one in inserts]
    return still_alive(run, made, "its insert has not ended, and nobody waits for it any longer")
