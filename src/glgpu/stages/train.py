"""train: the program runs in the team's image on the VM, its log here, its weights come home."""

from __future__ import annotations

from functools import partial

from glgpu.errors import ErrorClass, Failure, gravest
from glgpu.interfaces import Instance
from glgpu.settings import read_secret
from glgpu.steps.annotate import begin_annotations
from glgpu.steps.audience import Audience, insist_on_audience
from glgpu.steps.before_buying import check_before_buying
from glgpu.steps.bring_up import standing
from glgpu.steps.checkout import check_out
from glgpu.steps.collect import COLLECT_SECONDS, Home, collect
from glgpu.steps.container import Container, Ended, Workload
from glgpu.steps.context import Run, hard_end_of, vanished
from glgpu.steps.deadline import Deadline, end_of
from glgpu.steps.detach import hand_over, leaves_it
from glgpu.steps.door import Guest, Way, log_in, open_door
from glgpu.steps.follow import LOG_FILE, follow
from glgpu.steps.move_out import move_out
from glgpu.steps.persist import Attempts
from glgpu.steps.preemption import BROKEN, Tries
from glgpu.steps.ready import claim
from glgpu.steps.release import release
from glgpu.steps.report import reported
from glgpu.steps.rescue import rescue
from glgpu.steps.tear_down import tear_down
from glgpu.steps.watch import watching


def train(run: Run, *, ends_own_vm: bool = True) -> None:
    """Train on the run's VM; bring one up, and see to its end, where there is none.

    Args:
        run: The run.
        ends_own_vm: Whether a VM that is brought up here is ended here too; False where the caller does that.

    Raises:
        Failure: TRAINING_FAILED, OOM, NO_WEIGHTS, PREEMPTED, DISK_FULL, ...
    """
    with reported(run):
        _train(run, ends_own_vm=ends_own_vm)


def _train(run: Run, *, ends_own_vm: bool) -> None:
    check_before_buying(run, trains=True)
    begin_annotations(run)
    with run.console.section("vm", f"The VM of {run.name}"):
        found = standing(run)
        if found is not None:
            run.console.say(f"the VM {found.name} of this run is there, in {found.zone}")
    if not ends_own_vm or (found is not None and not _is_nobodys(run)):
        _train_on(run, found)
        return
    attempts = Attempts(run)
    handed_over = None
    try:
        handed_over = attempts.get(partial(_train_on, run, found))
    finally:
        # A job has no time for it after a signal: its after_script ends the VM.
        hurry = run.job.in_ci and any(one.klass is ErrorClass.INTERRUPTED for one in attempts.failures)
        if not (handed_over or hurry):
            _see_to_the_end(run, attempts, brought=found is None)
    worst = gravest(attempts.failures)
    if worst is not None:
        raise worst


def _is_nobodys(run: Run) -> bool:
    """Whether no destroy job will come for the VM that is there.

    Then an earlier try of this job, itself one after the pipeline's end, brought it up and died.
    """
    try:
        return run.forge.destroy_is_over(run.job.run)
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        run.console.say(f"GitLab cannot be asked whether a destroy job will come: {failure.cause}")
        return False


def _train_on(run: Run, found: Instance | None) -> bool:
    """Train on a VM; whether the training was left to it."""
    tries = Tries(run)
    if found is None:
        found = tries.first_vm()
    while True:
        try:
            # Once the weights are home nothing may fail that has the job tried again, and all of it trained again.
            with open_door(run, found, insist=False) as way:
                return _train_at(run, found, way, tries)
        except Failure as failure:
            found = tries.next_vm(found, failure)


def _train_at(run: Run, instance: Instance, way: Way, tries: Tries) -> bool:
    try:
        return _train_behind(run, instance, way, tries)
    except Failure as failure:
        # A VM that somebody has ended is no connection that broke: a retry would buy another one.
        gone = vanished(run, instance) if failure.klass in BROKEN else None
        if gone is None:
            raise
        raise gone from failure


def _train_behind(run: Run, instance: Instance, way: Way, tries: Tries) -> bool:
    work = _workload(run)
    with run.console.section("code", "Code and container"):
        guest = log_in(run, instance, way)
        claim(run, instance, guest)
        container = Container(run, guest.machine, instance, way)
        checkpoints = tries.checkpoints(guest)
        taken_up = container.state() is not None
        if not taken_up:
            check_out(run, guest.machine, hard_end_of(instance))
        leaves = leaves_it(run, instance, guest)
        if not taken_up:
            tries.begin(instance, checkpoints)
            container.start(work, guest.home)
        else:
            run.console.say("the training was started by an earlier job: attaching to it")
            run.record.add("training-taken-up")
        tries.runs = True
        if leaves:
            hand_over(run, instance, guest)
            return True
    deadline = Deadline(run, container, end_of(run, instance))
    training = run.console.section("training", f"{work.image}: training")
    with training, watching(run, guest.machine, instance) as watch, checkpoints:
        deadline.announce()
        ended = follow(
            run,
            container,
            [Audience(run), deadline, watch, checkpoints],
            [watch, tries.steps],
            taken_up=taken_up,
            told=tries.told,
        )
        tries.ended(instance, guest, checkpoints, ended, min(COLLECT_SECONDS, deadline.seconds_left))
    with run.console.section("weights", "Weights come home"):
        home = _bring_home(run, guest, work, deadline)
        insist_on_audience(run)
        # Before the VM goes: it is what a retry or the destroy job begins again with.
        move_out(run, last_copy=False)
        insist_on_audience(run)  # moving may have taken long
        release(run, instance, guest)
    _judge(ended, home, work, told=deadline.told)
    return False


def _bring_home(run: Run, guest: Guest, work: Workload, deadline: Deadline) -> Home:
    seconds = min(COLLECT_SECONDS, deadline.seconds_left)
    home = collect(run, guest.machine, guest.home, work.collect, seconds=seconds)
    run.console.say(f"{home.files} files, {home.size} bytes, checked against the VM's checksums, are in outputs/")
    return home


def _judge(ended: Ended, home: Home, work: Workload, *, told: bool) -> None:
    if ended.out_of_memory:
        raise Failure(
            ErrorClass.OOM,
            f"the VM ran out of memory: the container was killed (its exit code: {ended.code})",
            "use a machine.type with more memory, or train with less",
        )
    if told and ended.code != 0:
        raise Failure(
            ErrorClass.OUT_OF_TIME,
            f"the training was told to end before its time was over, and ended with exit code {ended.code}",
            "raise machine.max_hours and the jobs' timeouts, or train for less; what it had saved is in outputs/",
        )
    if ended.code != 0:
        raise Failure(
            ErrorClass.TRAINING_FAILED,
            f"the training failed, its exit code is {ended.code}",
            f"read its last lines above; all of them are in outputs/{LOG_FILE}",
        )
    if home.files == 0:
        raise Failure(
            ErrorClass.NO_WEIGHTS,
            f"the training ended well but left nothing in {', '.join(work.collect)}",
            "let it write there, or name what it writes in train.outputs",
        )


def _workload(run: Run) -> Workload:
    train = run.settings.train
    assert train.image is not None  # check_before_buying refuses it
    return Workload(
        image=train.image,
        argv=train.command,
        environment=train.env,
        secrets={name: read_secret(name, run.job.variables) for name in train.secrets},
        collect=train.outputs,
        base=run.base,
        gpu="none" not in run.settings.machine.gpu,
        shm_gb=train.shm_gb,
    )


def _see_to_the_end(run: Run, attempts: Attempts, *, brought: bool) -> None:
    """No destroy job may come any more, and if one comes, it finds nothing."""
    why = "This job brought the VM up, so it ends it" if brought else "The destroy job is over, so this job ends the VM"
    with run.console.section("teardown", why):
        attempts.get(partial(rescue, run))
        attempts.get(partial(tear_down, run))
