"""A Spot VM that Google takes away ends no training: another VM goes on from what is home."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from glgpu.clock import poll
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance, Operation
from glgpu.job_times import ending_seconds
from glgpu.lifetime import spoken
from glgpu.processes import time_limit
from glgpu.steps.audience import lost_audience
from glgpu.steps.checkpoints import Checkpoints, Home
from glgpu.steps.container import Ended
from glgpu.steps.context import Run, hard_end_of, price_of, vanished
from glgpu.steps.deadline import end_of
from glgpu.steps.door import Guest
from glgpu.steps.end_vms import Ending, instances_of, still_alive
from glgpu.steps.failover import WORST_LAST
from glgpu.steps.follow import Told
from glgpu.steps.guest import ask
from glgpu.steps.move_out import move_out
from glgpu.steps.persist import Attempts
from glgpu.steps.ready import new_vm

MOST_VMS = 10
"""How many VMs a job brings up for its training, one after another."""
MOST_AGAIN = 3
"""How often what broke between two VMs is tried again: a later try of the job would begin without the checkpoints."""
AGAIN_SECONDS = 10.0
LEAST_SECONDS = 5 * 60.0
"""What the job's time and the VM's must still hold for another VM to be worth its boot."""
NOTICE_SECONDS = 30.0
"""From Google's notice to the end of the VM's power
(https://cloud.google.com/compute/docs/instances/spot#preemption-process)."""
CLOSING_SECONDS = 4.0
"""Before that end: what is under way is given up then."""
DYING_SECONDS = 10.0
"""How long a VM is asked for checkpoints that shuts down without a word."""
TRANSFER_SHARE = 0.4
"""Of the time that is left: for how long a transfer that was under way at the notice is waited for."""
CHECKPOINTS_SHARE = 0.5
"""Of the job's time that is left: how long checkpoints of a training that failed may take, before its outputs come."""
WITNESS_SECONDS = 5.0
"""For how long Compute Engine is asked whether it has taken a vanished VM away."""
TAKEN_AWAY = "compute.instances.preempted"
"""Type of the operation by which Compute Engine takes a Spot VM away."""
NO_OTHER = (*WORST_LAST, ErrorClass.QUOTA_GLOBAL, ErrorClass.LIVE_VMS)
"""Why there is no other VM to go on with."""
BROKEN = (ErrorClass.SSH, ErrorClass.CODE, ErrorClass.DRIVER, ErrorClass.IMAGE_PULL, ErrorClass.NOT_FOUND)
"""What work on a VM ends with that goes meanwhile, whoever takes it."""
PASSING = (ErrorClass.SSH, ErrorClass.NETWORK, ErrorClass.TRANSIENT, ErrorClass.RATE_LIMIT)
"""What may go well a little later."""
REMEDY = "retry the job; `spot: never` buys a VM that is not preempted"
KILLED = 137
"""Exit code of a program that got SIGKILL."""
_STEP = re.compile(rb"\bstep\s*[:=#]?\s*(\d{1,15})\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Ending:
    """What the VM knows of its training's end.

    Attributes:
        noticed: Seconds since Google said that it takes the VM away; None: it has not.
        heeds: Whether the program was told to end, and had a handler for that.
    """

    noticed: float | None
    heeds: bool


class Steps:
    """Hears the training's output for the number behind the word `step`: how far it says it is."""

    def __init__(self) -> None:
        self._line = b""
        self.first: int | None = None
        self.last: int | None = None

    def feed(self, data: bytes, stamp: str) -> None:
        """Take more of the output."""
        del stamp
        whole, newline, self._line = (self._line[-1000:] + data).rpartition(b"\n")
        if not newline:
            return
        for found in _STEP.findall(whole):
            self.last = int(found)
            self.first = self.last if self.first is None else self.first


class Tries:
    """The VMs that a training has run on, one after another.

    Args:
        run: The run.

    Attributes:
        told: What they have printed.
        steps: Hears what the current one prints.
        runs: Whether the program runs on it, or has: a later try of the job would take it up.
    """

    def __init__(self, run: Run) -> None:
        self.told = Told()
        self.steps = Steps()
        self.runs = False
        self._run = run
        self._home = Home()
        self._taken: list[Instance] = []
        self._bought = self._again = 0
        self._known: set[str] = set()
        self._begun = run.clock.now()
        self._ended_at: float | None = None
        self._last_step: int | None = None

    def checkpoints(self, guest: Guest) -> Checkpoints:
        """The training's checkpoints on a VM."""
        return Checkpoints(self._run, guest, self._home)

    def first_vm(self) -> Instance:
        """A VM, where none is there yet.

        Raises:
            Failure: whatever stands in the way.
        """
        return self._bring_up("A VM of this job's own", math.inf, math.inf)

    def begin(self, instance: Instance, checkpoints: Checkpoints) -> None:
        """Before the program starts on a VM: what is home from an earlier one is put back there.

        Raises:
            Failure: SSH.
        """
        run = self._run
        self._begun = run.clock.now()
        if not self._taken:
            return
        is_home = self._home.newest(run.settings.train.checkpoints) is not None
        # Without a checkpoint the program starts anew, and what it had written belongs to another beginning.
        files, size = checkpoints.put_back() if is_home else (0, 0)
        idle = run.clock.now() - (self._ended_at or run.clock.now())
        if files:
            start = f"going on from {files} files, {size} bytes"
        elif run.settings.train.checkpoints is None:
            start = "the training starts anew: there is no train.checkpoints"
        else:
            start = f"the training starts anew: no checkpoint of {run.settings.train.checkpoints} had come home"
        where = f"Google took the VM in {self._taken[-1].zone} away; on another one in {instance.zone}"
        self.told.heading = f"glgpu: {where}: {start}"
        run.console.say(self.told.heading)
        run.record.add(
            "training-resumed",
            instance=instance.name,
            zone=instance.zone,
            files=files,
            bytes=size,
            idle_seconds=round(idle, 3),
        )
        self._begun = run.clock.now()

    def ended(self, instance: Instance, guest: Guest, checkpoints: Checkpoints, how: Ended, seconds: float) -> None:
        """The program has ended: bring home what it has left in its checkpoints, unless all went well.

        One that ends with 0 because it was told to end has not: with a checkpoint it goes on, and knows by that how
        far it is.

        Args:
            instance: The VM.
            guest: The same.
            checkpoints: The training's checkpoints there.
            how: How it ended.
            seconds: What is left of the job's time.

        Raises:
            Failure: PREEMPTED, where it was told to end because Google takes the VM away.
        """
        run = self._run
        self._tell_steps()
        self._ended_at = run.clock.now()
        may_go_on = run.settings.train.checkpoints is not None and run.settings.machine.spot != "never"
        ending = self._ending(guest) if how.code != 0 or may_go_on else _Ending(None, False)
        if how.code == 0 and (ending.noticed is None or not ending.heeds):
            checkpoints.end()
            return
        heeds = ending.heeds and how.code != KILLED
        if ending.noticed is None:
            gone = self._gone(instance)
            checkpoints.end()
            self._bring(checkpoints, seconds * CHECKPOINTS_SHARE if gone is None else DYING_SECONDS, heeds=heeds)
            if gone is not None:
                raise gone
            return
        left = NOTICE_SECONDS - CLOSING_SECONDS - ending.noticed
        run.console.say(
            f"glgpu: Google takes the VM {instance.name} in {instance.zone} away; the training ended with exit code "
            f"{how.code}, and {spoken(max(0.0, left))} are left to bring home what it has saved"
        )
        self._known.add(instance.id)
        whole = False
        if left > 0:
            try:
                with time_limit(left, f"not all of it came home within {spoken(left)}"):
                    checkpoints.end(left * TRANSFER_SHARE)
                    whole = self._bring(checkpoints, left, heeds=heeds, outputs=True)
            except Failure as failure:
                if failure.klass is ErrorClass.INTERRUPTED:
                    raise
                run.console.say(f"glgpu: {failure.cause}")
        if how.code == 0 and self._home.newest(run.settings.train.checkpoints) is None:
            return
        if whole:
            self._let_go(guest)
        raise Failure(ErrorClass.PREEMPTED, f"Google took the VM {instance.name} in {instance.zone} away", REMEDY)

    def next_vm(self, instance: Instance, failure: Failure) -> Instance:
        """The VM to go on with after a failure: another one, where Google has taken this one away.

        Args:
            instance: The VM.
            failure: What ended the work on it.

        Raises:
            Failure: the same, where neither another VM nor another try can help; else why there is no other VM.
        """
        try:
            return self._next_vm(instance, failure)
        except Failure as last:
            if last.klass is not ErrorClass.INTERRUPTED:
                self._leave()
            raise

    def _leave(self) -> None:
        """What is home may be all there is, and has to arrive as artifacts, however much it is."""
        try:
            move_out(self._run, last_copy=True)
        except Failure as failure:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise
            self._run.console.say(f"{failure.klass}: {failure.cause}")

    def _next_vm(self, instance: Instance, failure: Failure) -> Instance:
        run = self._run
        if not self.runs and self._once_more(failure):
            return instance
        if failure.klass is not ErrorClass.PREEMPTED or not (instance.id in self._known or self._took({instance.id})):
            raise failure
        self._note(instance)
        end = end_of(run, instance).at - ending_seconds(run.settings)
        try:
            return self._bring_up("Another VM goes on with the training", hard_end_of(instance), end)
        except Failure as other:
            if other.klass not in NO_OTHER:
                raise
            cause = f"Google took the VM {instance.name} away, and there is no other one: {other.cause}"
            raise Failure(ErrorClass.PREEMPTED, cause, other.remedy, other.evidence) from other

    def _bring_up(self, header: str, hard_end: float, end: float) -> Instance:
        """A new VM; where Google takes it away before the training has begun, the next one.

        Args:
            header: What for.
            hard_end: Unix time beyond which it must not live.
            end: Unix time at which the training is told to end.
        """
        run = self._run
        while self._bought < MOST_VMS:
            if end - run.clock.now() < LEAST_SECONDS:
                raise Failure(ErrorClass.PREEMPTED, "what is left of the time is too short for one", REMEDY)
            self._insist_on_need()
            self._bought += 1
            with run.console.section("bring-up", header):
                if self._taken or self._bought > 1:
                    self._clear_away()
                before = {one.instance_id for one in run.cloud.operations(str(run.name))}
                try:
                    scarce = {one.zone for one in self._taken}
                    return new_vm(run, hard_end=hard_end, scarce=scarce, wanted=self._insist_on_need)
                except Failure as failure:
                    may_be = failure.klass in (ErrorClass.PREEMPTED, *BROKEN)
                    if may_be and self._took(before, others=True):
                        run.console.say(f"{failure.klass}: {failure.cause}")
                    elif not self._once_more(failure):
                        raise
        cause = f"Google took away {self._bought} VMs of this job, one after another"
        raise Failure(ErrorClass.PREEMPTED, cause, REMEDY)

    def _once_more(self, failure: Failure) -> bool:
        """Whether what broke is tried again by this job, which alone has the checkpoints at hand."""
        if not self._taken or failure.klass not in PASSING or self._again >= MOST_AGAIN:
            return False
        self._again += 1
        self._run.console.say(f"{failure.klass}: {failure.cause}; trying again")
        self._run.clock.sleep(AGAIN_SECONDS)
        return True

    def _insist_on_need(self) -> None:
        """See that nobody has ended this job, or all of its run, while it had no VM.

        A teardown removes the run's firewall rules, which are there since its first VM was reached, and then looks
        once more for VMs. So one that is bought meanwhile is seen by it, or not wanted here.

        Raises:
            Failure: PREEMPTED.
        """
        run = self._run
        why = lost_audience(run)
        if not why and self._taken and run.cloud.rule(run.name.closed_rule) is None:
            why = f"somebody has ended the run {run.name} meanwhile: its firewall rules are gone"
        if why:
            raise Failure(ErrorClass.PREEMPTED, why, "nothing to do if that was meant; else retry the job")

    def _ending(self, guest: Guest) -> _Ending:
        """What the VM knows of the training's end; nothing where it cannot be asked any more."""
        try:
            said = ask(self._run, guest.machine, "ending", doing="asking why the training ended", timeout=10)
        except Failure as failure:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise
            return _Ending(None, False)
        age, _, kind = said.text.strip().partition(" ")
        return _Ending(float(age) if age.isdigit() else None, kind == "heeds")

    def _let_go(self, guest: Guest) -> None:
        """Tell the VM that nothing keeps it any more: it has delayed its shutdown for this."""
        try:
            ask(self._run, guest.machine, "set-home", doing="letting the VM go", timeout=10)
        except Failure as failure:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise
            self._run.console.say(f"{failure.cause}; the VM goes all the same")

    def _gone(self, instance: Instance) -> Failure | None:
        """Why a VM that has heard nothing is not running any more; None where it runs, or nobody can tell."""
        try:
            return vanished(self._run, instance)
        except Failure as failure:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise
            return None

    def _bring(self, checkpoints: Checkpoints, seconds: float, *, heeds: bool, outputs: bool = False) -> bool:
        """Bring home what the program has left; whether that went well."""
        run = self._run
        try:
            files = checkpoints.bring_last(seconds, heeds=heeds, outputs=outputs)
        except Failure as failure:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise
            run.console.say(f"glgpu: what the training has left did not come home: {failure.cause}")
            return False
        if files:
            run.console.say(f"glgpu: {files} files came home that the training had left")
        return True

    def _took(self, ids: set[str], *, others: bool = False) -> bool:
        """Whether Google has taken one of these VMs away, or one that is none of these; and not somebody ended it."""
        run = self._run

        def witnessed() -> bool | None:
            taken = {one.instance_id for one in run.cloud.operations(str(run.name)) if _takes_away(one)}
            return bool(taken - ids if others else taken & ids) or None

        try:
            return poll(run.clock, witnessed, seconds=WITNESS_SECONDS, every=0.5) is not None
        except Failure as failure:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise
            run.console.say(f"Google cannot be asked what became of the VM: {failure.cause}")
            return False

    def _note(self, instance: Instance) -> None:
        """Write down what was lost."""
        run = self._run
        self._tell_steps()
        if instance.id not in self._known:
            self._ended_at = run.clock.now()
        newest = self._home.newest(run.settings.train.checkpoints)
        lost = max(0.0, (self._ended_at or 0.0) - max(self._begun, newest or self._begun))
        price = price_of(instance)
        self._taken.append(instance)
        self.runs, self._again = False, 0
        self._last_step, self.steps = self.steps.last, Steps()
        run.record.add(
            "preempted",
            instance=instance.name,
            zone=instance.zone,
            noticed=instance.id in self._known,
            lost_seconds=round(lost, 3),
            lost_usd=None if price is None else round(price * lost / 3600, 4),
        )

    def _tell_steps(self) -> None:
        """Write down how many steps have to be done again, where the training says how far it is."""
        last, first = self._last_step, self.steps.first
        if last is not None and first is not None:
            self._run.record.add("steps-repeated", steps=max(0, last - first), last=last, resumed=first)
        self._last_step = None

    def _clear_away(self) -> None:
        """Wait until nothing of the last VM is left: its name is taken as long as it is there.

        Raises:
            Failure: STILL_ALIVE, INTERRUPTED.
        """
        run = self._run
        attempts = Attempts(run)
        ending = Ending(run, attempts)
        ending.go_on(run.settings.limits.delete_minutes * 60)
        for failure in attempts.failures:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise failure
        left = instances_of(run)
        if left:
            raise still_alive(run, left, ending.why.cause if ending.why else "Google has taken it away, and yet there")


def _takes_away(operation: Operation) -> bool:
    """Whether by this operation Google takes a VM away, be it before it runs."""
    failure = operation.failure
    return operation.kind == TAKEN_AWAY or (failure is not None and failure.klass is ErrorClass.PREEMPTED)
