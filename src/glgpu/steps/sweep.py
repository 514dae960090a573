"""Remove what goes: several at a time, each looked at once more right before, and at the end it is proved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.leftovers import OVER, Thing, Verdict, Vm, What, judge_thing, judge_vm
from glgpu.lifetime import spoken
from glgpu.notebook import KIND
from glgpu.run_names import PREFIX, ReadName, RunName, read_name
from glgpu.steps.context import Run
from glgpu.steps.push_work import push_work
from glgpu.steps.rescue import rescue
from glgpu.steps.survey import Survey, each, pool, vm_of

T = TypeVar("T", Vm, Thing)
U = TypeVar("U")
BUCKETS = "gs://"
GONE_SECONDS = 300.0
"""How long VMs may take to go after they were asked to."""
LOOK_SECONDS = 3.0
RESCUE_SECONDS = 1200.0
"""For saving the outputs of all VMs together, where the job's own time does not tell."""


@dataclass(frozen=True)
class Outcome:
    """What became of something.

    Attributes:
        item: What it is.
        verdict: Whether it was to go, and why.
        removed: Whether it is gone.
        problem: Why it is still there although it was to go.
    """

    item: Vm | Thing
    verdict: Verdict
    removed: bool = False
    problem: str = ""

    @property
    def left_behind(self) -> bool:
        """Whether it should be gone and is not."""
        return self.verdict.goes and not self.removed

    @property
    def told(self) -> str:
        """In a few words."""
        if self.removed:
            return f"removed: {self.verdict.why}"
        return f"still there: {self.problem}" if self.verdict.goes else f"stays: {self.verdict.why}"


def sweep(run: Run, found: Survey, named: Callable[[RunName], Run]) -> list[Outcome]:
    """Remove what goes, VMs first, and say what became of everything.

    Args:
        run: The run that cleans up.
        found: What there is.
        named: Makes a run of our own project under another name, to save its outputs.

    Raises:
        Failure: INTERRUPTED.
    """
    return _Sweep(run, found, named).outcomes()


class _Sweep:
    def __init__(self, run: Run, found: Survey, named: Callable[[RunName], Run]) -> None:
        self._run = run
        self._found = found
        self._outlook = found.world.outlook
        self._named = named
        self._begun = run.clock.now()
        self._outcomes = {item: Outcome(item, verdict) for item, verdict in found.world.judged()}

    def outcomes(self) -> list[Outcome]:
        """Do it."""
        doomed = self._doomed(Vm)
        # Saving ends the training on every VM of a run. Of two the one that stays is in use, the other came too late.
        used = {one.item.run for one in self._outcomes.values() if isinstance(one.item, Vm) and not one.verdict.goes}
        own = [vm for vm in doomed if self._is_own(vm.run) and vm.run not in used and vm.status == "RUNNING"]
        asked = self._several([vm for vm in doomed if vm not in own], self._end)
        asked += self._save_and_end(own)
        self._await_gone(asked)
        self._find_what_outlives([vm for vm in asked if self._outcomes[vm].removed])
        self._prove(self._several(self._free(self._doomed(Thing)), self._end_thing))
        return list(self._outcomes.values())

    def _doomed(self, kind: type[T]) -> list[T]:
        return [item for item, outcome in self._outcomes.items() if isinstance(item, kind) and outcome.verdict.goes]

    def _is_own(self, run: ReadName) -> bool:
        return (run.server, run.project_id) == (self._outlook.server, self._run.name.project_id)

    def _several(self, items: Iterable[T], do: Callable[[T], Verdict | None]) -> list[T]:
        """Do something with many things, several at a time; returns those for which it went well.

        What the other side had no time for is asked once more.

        Args:
            items: The things.
            do: Returns a verdict where a thing turns out to stay.
        """
        rest, done = list(items), list[T]()
        for last in (False, True):
            with pool() as several:
                answers = each(several, do, rest)
            rest = []
            for item, answer in answers.items():
                if isinstance(answer, Verdict):
                    self._outcomes[item] = Outcome(item, answer)
                elif answer is None:
                    done.append(item)
                else:
                    self._problem(item, answer.cause)
                    rest += [item] if answer.retry and not last else []
        return done

    def _problem(self, item: Vm | Thing, cause: str) -> None:
        self._outcomes[item] = replace(self._outcomes[item], problem=cause)

    def _gone(self, item: Vm | Thing) -> None:
        self._outcomes[item] = replace(self._outcomes[item], removed=True)

    def _add(self, thing: Thing, vm: Vm) -> None:
        """Add what was not seen at first, and hangs on a VM."""
        self._outcomes[thing] = Outcome(thing, judge_thing(thing, [(vm, self._outcomes[vm].verdict)], self._outlook))

    # VMs

    def _end(self, vm: Vm) -> Verdict | None:
        """Ask Compute Engine to delete a VM; why not, where it turns out to stay."""
        stays = self._stays(vm)
        if stays is None:
            self._run.cloud.delete_instance(vm.name, vm.zone)
        return stays

    def _stays(self, vm: Vm) -> Verdict | None:
        """Why a VM stays after all: it was claimed, or its job retried, since we looked."""
        instance = self._run.cloud.get(vm.name, vm.zone)
        again = vm_of(instance) if instance is not None else None
        if again is None:
            return None
        outlook = replace(self._outlook, now=self._outlook.now + self._run.clock.now() - self._begun, pipelines={})
        verdict = judge_vm(again, outlook)
        if not verdict.goes and (status := self._fresh_status(again.run)) is not None:
            verdict = judge_vm(again, replace(outlook, pipelines=status))
        return None if verdict.goes else verdict

    def _fresh_status(self, run: ReadName) -> dict[tuple[int, int], str | None] | None:
        """The status that a run's pipeline has now; None where GitLab did not tell before."""
        if run.pipeline is None or self._outlook.status(run) is None:
            return None
        where = (run.project_id, run.pipeline)
        return {where: self._run.forge.pipeline_status(*where)}

    def _save_and_end(self, vms: Sequence[Vm]) -> list[Vm]:
        """The same for VMs of our own project that run, one by one: first what is not home comes home.

        A VM that cannot be reached goes like any other: it would be no nearer in an hour, and costs money. But one for
        which there was no time is left to the next clean-up.
        """
        budget = self._run.clock.now() + (
            self._run.job.script_timeout / 2 if self._run.job.script_timeout else RESCUE_SECONDS
        )
        asked, work = list[Vm](), list[tuple[Run, Instance]]()
        for vm in vms:
            if not self._several([vm], self._stays):
                continue
            name = RunName(self._run.name.server_url, vm.run.project_id, vm.run.run, vm.run.kind)
            run = self._named(name)
            instance = self._found.instances[vm.name, vm.zone]
            wanted = run.knowing(instance).settings.limits.rescue_minutes * 60.0
            left = budget - self._run.clock.now()
            if left < min(wanted, 60.0):
                self._problem(vm, "no time was left to save its outputs; the next clean-up does")
                continue
            with self._run.console.section(f"rescue-{vm.run.run}", f"What is not home yet of {vm.name}"):
                try:
                    whole = rescue(run, most=min(wanted, left))
                except Failure as failure:
                    if failure.klass is ErrorClass.INTERRUPTED:
                        raise
                    self._problem(vm, f"nobody keeps its outputs: {failure.cause}; the next clean-up tries again")
                    continue
            rules = {one.name for one in self._outcomes if isinstance(one, Thing) and one.what == "firewall rule"}
            # The door to it was opened by two rules, which may not have been there when we looked.
            for rule in (Thing("firewall rule", one, vm.run) for one in (str(name), name.closed_rule)):
                if rule.name not in rules:
                    self._add(rule, vm)
            asked += self._several([vm], self._end)
            work += [(run, one) for one in whole if vm.run.kind == KIND]
        # Once all of them go.
        for run, instance in work:
            push_work(run, instance)
        return asked

    def _await_gone(self, asked: Sequence[Vm]) -> None:
        """Wait until Compute Engine shows none of these any more."""
        waiting = set(asked)
        end = self._run.clock.now() + GONE_SECONDS
        while waiting:
            seen = self._look(lambda: self._run.cloud.instances_named(PREFIX))
            if isinstance(seen, Failure):
                cause = f"whether it is gone cannot be seen: {seen.cause}"
            else:
                cause = f"asked to go {spoken(GONE_SECONDS)} ago, and yet there"
                there = {(one.name, one.zone) for one in seen}
                for vm in [vm for vm in waiting if (vm.name, vm.zone) not in there]:
                    waiting.remove(vm)
                    self._gone(vm)
            if self._run.clock.now() >= end:
                for vm in waiting:
                    self._problem(vm, cause)
                return
            if waiting:
                self._run.clock.sleep(LOOK_SECONDS)

    # Everything else

    def _find_what_outlives(self, gone: Sequence[Vm]) -> None:
        """Add what did not go with the VMs that are gone: their disks, and their states in buckets that they named."""
        places = {(vm.name, vm.zone): vm for vm in gone}
        disks = self._look(lambda: self._run.cloud.disks_named(PREFIX)) if gone else []
        if isinstance(disks, Failure):
            self._run.console.say(f"disks that outlive their VMs are left to the next clean-up: {disks.cause}")
            disks = []
        outliving = [
            (Thing("disk", disk.name, vm.run, disk.zone), vm)
            for disk in disks
            if (vm := places.get((disk.name, disk.zone))) is not None
        ]
        for vm in gone:
            bucket = self._run.knowing(self._found.instances[vm.name, vm.zone]).settings.storage.bucket
            if bucket and self._is_own(vm.run):
                outliving.append((Thing("Terraform state", str(vm.run), vm.run, f"{BUCKETS}{bucket}"), vm))
        for thing, vm in outliving:
            self._add(thing, vm)

    def _free(self, things: Sequence[Thing]) -> list[Thing]:
        """Those of whose run no VM is left: until then a state is one more way to find it, and a disk is in use."""
        if not things:
            return []
        found = self._look(lambda: self._run.cloud.instances_named(PREFIX))
        there = set() if isinstance(found, Failure) else {read_name(one.name) for one in found}
        stay = {item.run for item, one in self._outcomes.items() if isinstance(item, Vm) and not one.verdict.goes}
        left = {item.run for item, one in self._outcomes.items() if isinstance(item, Vm) and one.left_behind}
        free = []
        for thing in things:
            if isinstance(found, Failure):
                self._problem(thing, f"whether it has a VM cannot be seen: {found.cause}")
            elif thing.run in left:
                self._problem(thing, "its VM is still there")
            elif thing.run in stay | there:
                self._outcomes[thing] = Outcome(thing, Verdict(False, "its VM stays"))
            else:
                free.append(thing)
        return free

    def _end_thing(self, thing: Thing) -> Verdict | None:
        """Remove a thing; why not, where it turns out to stay."""
        status = (self._fresh_status(thing.run) or {}).get((thing.run.project_id, thing.run.pipeline or 0))
        if status is not None and status not in OVER:
            return Verdict(False, f"its pipeline is {status} again")
        cloud, forge = self._run.cloud, self._run.forge
        if thing.what == "disk":
            cloud.delete_disk(thing.name, thing.zone)
        elif thing.what == "firewall rule":
            cloud.delete_rule(thing.name)
        elif thing.what == "deploy key":
            forge.remove_deploy_keys(thing.name)
        elif thing.what == "deploy token":
            forge.remove_deploy_tokens(thing.name)
        elif thing.what == "Terraform state":
            bucket = thing.zone.removeprefix(BUCKETS)
            store = self._run.bucket_for(bucket) if bucket else forge
            # Its run is over, and no Terraform of it at work: a lock is one that a dead job left.
            store.break_lock(thing.name)
            store.delete_state(thing.name)
        else:
            forge.stop_environment(thing.number)
        return None

    @staticmethod
    def _look(look: Callable[[], U]) -> U | Failure:
        """What a look shows, or why it shows nothing.

        Raises:
            Failure: INTERRUPTED.
        """
        try:
            return look()
        except Failure as failure:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise
            return failure

    def _prove(self, asked: Sequence[Thing]) -> None:
        """Ask once more what is there of each kind."""
        lists: dict[What, Callable[[], set[str]]] = {
            "disk": lambda: {f"{one.name} {one.zone}" for one in self._run.cloud.disks_named(PREFIX)},
            "firewall rule": lambda: {f"{one.name} " for one in self._run.cloud.rules_named(PREFIX)},
            "deploy key": lambda: {f"{one.name} " for one in self._run.forge.deploy_keys()},
            "deploy token": lambda: {f"{one.name} " for one in self._run.forge.deploy_tokens()},
            "Terraform state": lambda: {f"{one.name} " for one in self._run.forge.all_states()},
            # One that was stopped is still there; GitLab's answer to the stop is all there is to know.
            "environment": set,
        }
        for what in dict.fromkeys(thing.what for thing in asked):
            answer = self._look(lists[what])
            for thing in (one for one in asked if one.what == what):
                if isinstance(answer, Failure):
                    self._problem(thing, f"whether it is gone cannot be seen: {answer.cause}")
                elif f"{thing.name} {thing.zone}" in answer:
                    self._problem(thing, "deleted, and yet there")
                else:
                    self._gone(thing)
