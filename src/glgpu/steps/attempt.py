"""One candidate is asked for: Terraform creates, Compute Engine testifies, and a try that failed leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Apply, Instance, Operation
from glgpu.lifetime import spoken
from glgpu.machines import Candidate
from glgpu.steps.context import Run
from glgpu.steps.end_vms import clear_away
from glgpu.steps.failover import TOO_SLOW

LOOK_SECONDS = 0.25
"""Between two looks at first: Google says within half a minute that it has no capacity, and every look not taken then
is time lost for the next candidate."""
EAGER_SECONDS = 30.0
PATIENT_LOOK_SECONDS = 1.0
"""Between two looks later on; Compute Engine counts them (https://cloud.google.com/compute/api-quota)."""
FIRST_WORD_SECONDS = 5.0
"""After which a line says that an insert takes its time; the next one comes after twice as long."""
PASSING = (ErrorClass.NETWORK, ErrorClass.TRANSIENT, ErrorClass.RATE_LIMIT)
"""What may keep us from looking while Terraform does well."""
ENDING = ("STOPPING", "TERMINATED", "SUSPENDING", "SUSPENDED")
WORD_SECONDS = 5.0
"""For which a VM that went while its insert was under way waits for that to end: the insert says why."""


class Attempt:
    """One try of one candidate.

    Args:
        run: The run.
        candidate: What is asked for.

    Attributes:
        candidate: The same.
        begun: Unix time of its begin.
        lock_left: Whether Terraform had to be killed, and so may have left a lock.
    """

    def __init__(self, run: Run, candidate: Candidate) -> None:
        self._run = run
        self._name = str(run.name)
        self._patience = run.settings.limits.create_minutes * 60.0
        self.candidate = candidate
        self.begun = run.clock.now()
        self.lock_left = False
        self._inserted: float | None = None
        self._failed = self._ended = self.begun
        # What earlier tries and jobs inserted is not ours to judge.
        self._before = {one.operation for one in run.cloud.inserts(self._name, candidate.zone)}

    @contextmanager
    def stopping(self, apply: Apply) -> Iterator[None]:
        """End Terraform at once if the block fails."""
        try:
            yield
        except Failure:
            self._failed = self._run.clock.now()
            self.lock_left = not (apply.ended() or apply.stop())
            self._ended = self._run.clock.now()
            raise

    def terraform_times(self) -> dict[str, float | None]:
        """Seconds that Terraform needed until its insert was seen (None: never), and to end when it was told to."""
        start = None if self._inserted is None else round(self._inserted - self.begun, 3)
        return {"terraform_start_seconds": start, "terraform_exit_seconds": round(self._ended - self._failed, 3)}

    def own_seconds(self, now: float) -> float:
        """What has passed since this try's failure was seen, less Terraform's own exit: none of ours runs beside it."""
        return now - self._ended

    def until_running(self, apply: Apply) -> Instance:
        """Look for the VM while Terraform waits: it notices a refusal late, a vanished VM never.

        Raises:
            Failure: why there is none.
        """
        clock, zone, due = self._run.clock, self.candidate.zone, FIRST_WORD_SECONDS
        seen: float | None = None
        while True:
            over = apply.ended()
            spent = clock.now() - self.begun
            try:
                # In this order: an insert that is done while we look has its VM.
                inserts = self._inserts()
                instance = self._run.cloud.get(self._name, zone)
            except Failure as failure:
                if over:
                    apply.result()
                if failure.klass not in PASSING or spent > self._patience:
                    raise
            else:
                if instance is not None and instance.status == "RUNNING":
                    return instance
                failed = next((one.failure for one in inserts if one.failure is not None), None)
                if failed is not None:
                    raise self._seen_rightly(failed)
                if instance is not None and instance.status not in ENDING:
                    seen = clock.now()
                elif any(one.done for one in inserts) or (seen is not None and clock.now() - seen > WORD_SECONDS):
                    raise self._vanished()
                if over:
                    self._judge(apply, instance)
            if spent > self._patience:
                raise Failure(
                    ErrorClass.STOCKOUT,
                    f"the VM {self._name} {TOO_SLOW} {spoken(self._patience)} in {zone}",
                    "retry the job, name more zones, or raise limits.create_minutes",
                )
            if self._inserted is not None and clock.now() - self._inserted >= due:
                self._run.console.say(f"Google is still creating the VM after {spoken(clock.now() - self._inserted)}")
                due *= 2
            clock.sleep(LOOK_SECONDS if spent < EAGER_SECONDS else PATIENT_LOOK_SECONDS)

    def clear(self, failure: Failure) -> bool:
        """Remove what the failed try left: its VM, now or when it appears, and its disk.

        Only what this try's own inserts made: a VM that was there before is somebody's.

        Args:
            failure: Why it failed.

        Returns:
            Whether nothing can come any more; else an insert is still under way after all patience.

        Raises:
            Failure: what lives cannot be deleted.
        """
        clock = self._run.clock
        end = clock.now() + self._patience
        waited = False
        if failure.klass is ErrorClass.CONFLICT:
            return True
        while not self.settle():
            if clock.now() > end:
                self._run.console.say(f"Google has still not ended the insert in {self.candidate.zone}: going on")
                self._run.record.add("insert-under-way", zone=self.candidate.zone)
                return False
            if not waited:
                self._run.console.say(f"the insert in {self.candidate.zone} is still under way: waiting for its end")
                waited = True
            clock.sleep(LOOK_SECONDS)
        return True

    def settle(self) -> bool:
        """Delete the VM of this try if it is there, and its disk; whether nothing can come any more.

        Raises:
            Failure: it cannot be deleted.
        """
        zone = self.candidate.zone
        inserts = self._inserts()
        if not inserts:
            return True
        instance = self._run.cloud.get(self._name, zone)
        if instance is not None and any(one.instance_id == instance.id for one in inserts):
            self._run.console.say(f"deleting what the try left: {instance.name} in {zone} ({instance.status})")
            clear_away(self._run, instance)
            self._run.record.add("left-over-deleted", instance=instance.name, zone=zone, status=instance.status)
        elif instance is not None or not all(one.done for one in inserts):
            return instance is not None
        for name, where in self._run.cloud.disks(self._name):
            if where == zone:
                self._run.cloud.delete_disk(name, where)
        return True

    def _inserts(self) -> list[Operation]:
        """This try's own inserts."""
        found = self._run.cloud.inserts(self._name, self.candidate.zone)
        own = [one for one in found if one.operation not in self._before]
        if own and self._inserted is None:
            self._inserted = self._run.clock.now()
        return own

    def _seen_rightly(self, failure: Failure) -> Failure:
        """An insert that does not find its own VM any more: it was taken away."""
        own = f"/instances/{self._name}'" in failure.evidence
        return self._vanished() if failure.klass is ErrorClass.NOT_FOUND and own else failure

    def _vanished(self) -> Failure:
        return Failure(
            ErrorClass.PREEMPTED,
            f"the VM {self._name} vanished from {self.candidate.zone} while it was created",
            "retry the job, or set spot: never",
        )

    def _judge(self, apply: Apply, instance: Instance | None) -> None:
        """Terraform is over, and no VM runs: say why."""
        apply.result()
        if instance is None:
            raise Failure(
                ErrorClass.TERRAFORM,
                f"Terraform ended well, but Compute Engine knows no VM {self._name} in {self.candidate.zone}",
                "check that GLGPU_TERRAFORM, or terraform on PATH, is Terraform",
            )
