"""notebook start: a private JupyterLab on the run's VM, which its VM sees to from then on."""

from __future__ import annotations

from functools import partial

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.lifetime import spoken
from glgpu.run_names import label_value
from glgpu.steps.annotate import begin_annotations
from glgpu.steps.bring_up import standing
from glgpu.steps.checkout import check_out
from glgpu.steps.container import Container
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.detach import is_detached, prove
from glgpu.steps.door import Way, log_in, open_door
from glgpu.steps.guest import ask
from glgpu.steps.notebook import check_notebook, leave_notebook, prepare, state_of, take_up, wait_for_answer
from glgpu.steps.persist import Attempts
from glgpu.steps.push_work import allow_push
from glgpu.steps.ready import claim, new_vm
from glgpu.steps.tear_down import tear_down


def start(run: Run, *, fresh: bool = False) -> None:
    """Start the pipeline's notebook, and leave it to its VM as soon as it answers.

    Args:
        run: The run.
        fresh: Whether to begin without what this user has saved on this branch.

    Raises:
        Failure: USAGE, when somebody else's notebook runs in this pipeline; CONFIG, before anything is bought; else
            what stood in the way.
    """
    check_notebook(run)
    begin_annotations(run)
    with run.console.section("vm", f"The VM of {run.name}"):
        found = standing(run)
    allow_push(run, found)
    if found is not None:
        _insist_on_owner(run, found)
    attempts = Attempts(run)
    attempts.get(partial(_start_on, run, found, fresh=fresh))
    if not attempts.failures:
        return
    failure = attempts.failures[0]
    # A notebook that was left to its VM is nobody's to end here, and after a signal the job's after_script ends it.
    left = run.record.find("handed-over") or (found is not None and is_detached(found))
    if failure.klass is not ErrorClass.INTERRUPTED and not left:
        with run.console.section("teardown", "No notebook came of it, so its VM goes"):
            attempts.get(partial(tear_down, run))
    raise failure


def _insist_on_owner(run: Run, instance: Instance) -> None:
    owner = instance.labels.get("glgpu-user", "")
    if owner != label_value(run.job.user):
        raise Failure(
            ErrorClass.USAGE,
            f"the notebook of this pipeline is {owner}'s",
            "start a pipeline of your own for one of your own: Build > Pipelines > New pipeline, with the same branch",
        )


def _start_on(run: Run, found: Instance | None, *, fresh: bool) -> None:
    if found is None:
        found = new_vm(run)
    with open_door(run, found) as way:
        _start_behind(run, found, way, fresh=fresh)


def _start_behind(run: Run, instance: Instance, way: Way, *, fresh: bool) -> None:
    guest = log_in(run, instance, way)
    container = Container(run, guest.machine, instance, way)
    if is_detached(instance):
        state = state_of(run, guest)
        if state is not None and state.answers:
            run.console.say("your notebook runs already")
            _tell(run, instance, state.soft_end)
            return
    home = check_notebook(run)
    prove(run, home, instance, guest)
    if container.state() is None:
        claim(run, instance, guest)
        with run.console.section("code", "Code and container"):
            check_out(run, guest.machine, hard_end_of(instance))
            ask(run, guest.machine, "notebook-mark", doing="noting what is nobody's work yet")
            if not fresh:
                take_up(run, guest, home)
            container.start(prepare(run, guest, container.pull(run.settings.train.image or "")), guest.home)
    else:
        run.console.say("the notebook was started by an earlier job: waiting for its answer")
    wait_for_answer(run, guest, container)
    run.record.add("notebook-answers")
    _tell(run, instance, leave_notebook(run, instance, guest, home))


def _tell(run: Run, instance: Instance, soft_end: float) -> None:
    now = run.clock.now()
    run.console.say(f"`glgpu notebook open --run {run.name.run}` on your own machine opens it in a browser")
    run.console.say(
        f"it goes on for {spoken(soft_end - now)}, or until nothing has been at work for "
        f"{run.settings.notebook.idle_minutes:g} min; `glgpu notebook extend` gives it more time, up to "
        f"{spoken(hard_end_of(instance) - now)} from now. Its files are saved every few minutes and in the end"
    )
