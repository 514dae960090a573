"""A notebook's saved work as a commit on a branch of its user's, where the team allows it; the VM has no part in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance, WorkBranch, WorkCommit
from glgpu.notebook import WORKSPACE, branch_of
from glgpu.steps.annotate import annotate
from glgpu.steps.context import Run, starter_of
from glgpu.steps.gitlab_ssh import known_hosts, ssh_address
from glgpu.steps.sums import read_sums

ALLOWED = "work-may-be-pushed"
"""Event in the record of the job that started the notebook. A VM can write neither that nor its own metadata, but could
write whatever it leaves elsewhere."""
KEY_SECONDS = 900.0
"""How long the key is good for at most: whoever dies before removing it leaves no more than that."""
PUSH_SECONDS = 300.0
PUSH_SHARE = 0.1
"""Of the time that a job has in all: how much pushing may take."""
FIRST_SECONDS = 30.0
"""How long GitLab may take to say what a branch is at."""
TRIES = 4
PAUSE_SECONDS = 3.0
"""Before a second try, and twice as long before each further one: some GitLabs know a new key only a moment later."""
NAMED = 5
"""Files that a line of the log names."""


@dataclass(frozen=True)
class Worker:
    """Whose work it is.

    Attributes:
        user: Their login.
        ref: The branch on which they started the notebook.
        commit: What it began with.
    """

    user: str
    ref: str
    commit: str


def allow_push(run: Run, instance: Instance | None) -> None:
    """Note in the run's record, for whoever brings the work home after the VM's end, whose it is if it may be pushed.

    The record of the job that was clicked last is the one that is looked at, whoever clicked.

    Args:
        run: The notebook's run.
        instance: Its VM, if there is one already.
    """
    if instance is not None:
        worker = _on_vm(run, instance)
    elif run.settings.notebook.can_push:
        worker = Worker(run.job.user, run.job.ref, run.job.sha)
    else:
        worker = None
    if worker is not None:
        run.record.add(ALLOWED, user=worker.user, ref=worker.ref, commit=worker.commit)


def push_work(run: Run, instance: Instance | None) -> None:
    """Push what has come home of a notebook, if its team allows that; what stands in the way is said, and no failure.

    The files are in the job's artifacts, and the user's next notebook takes them up; a job that is tried again would
    find no VM any more, and nothing to push.

    Args:
        run: The notebook's run.
        instance: Its VM, as it is or was just now; None where it was gone before.

    Raises:
        Failure: INTERRUPTED.
    """
    worker = _allowed(run, instance)
    if worker is None:
        return
    names = _names(run)
    if not names:
        return
    branch = branch_of(worker.user, worker.ref)
    with run.console.section(f"push-{run.name.run}", f"The work goes to the branch {branch}"):
        try:
            _push(run, worker, branch, names)
        except Failure as failure:
            if failure.klass is ErrorClass.INTERRUPTED:
                raise
            run.console.say(f"not pushed: {failure.klass}: {failure.cause}")
            run.console.say(f"remedy: {failure.remedy}")
            run.console.say(
                f"nothing is lost: it is among the artifacts, and {worker.user}'s next notebook takes it up"
            )
            run.record.add("work-not-pushed", branch=branch, failure=failure.klass, cause=failure.cause)
            if run.job.in_ci:
                page = f"{_project_page(run)}/-/jobs/{run.job.job_id}"
                annotate(run, f"run {run.name.run}: not pushed to {branch}, see this job's log", page)


def _allowed(run: Run, instance: Instance | None) -> Worker | None:
    """Whose work is to be pushed; None: nobody's."""
    if instance is not None:
        return _on_vm(run, instance)
    event = run.record.find(ALLOWED)
    return None if event is None else _worker(event.facts)


def _on_vm(run: Run, instance: Instance) -> Worker | None:
    """Whose work on a VM is to be pushed, as whoever brought it up has noted there."""
    allowed = run.knowing(instance).settings.notebook.can_push
    return _worker(starter_of(instance)) if allowed else None


def _worker(told: Mapping[str, object]) -> Worker | None:
    worker = Worker(*(str(told.get(key) or "") for key in ("user", "ref", "commit")))
    return worker if worker.user and worker.ref and worker.commit else None


def _push(run: Run, worker: Worker, branch: str, names: Sequence[str]) -> None:
    if not run.forge.may_administer:
        raise Failure(
            ErrorClass.GITLAB_AUTH,
            "this job has no GLGPU_GITLAB_TOKEN to register a deploy key with",
            "set the CI variable GLGPU_GITLAB_TOKEN (Maintainer, scope api), or notebook.can_push: false",
        )
    there = run.branch_at(ssh_address(run.job), run.job.scratch / "push")
    title = run.name.push_title
    try:
        public = there.make_key(title)
        known = _host_keys(run, there)
        try:
            # By GitLab's clock, which is the one that counts.
            expires = run.forge.server_time() + KEY_SECONDS
            run.forge.add_deploy_key(title, public, expires, can_push=True)
            run.record.add("push-key-registered", title=title)
            there.open(known)
            made = _bring(run, worker, there, branch, names)
        finally:
            _take_key_away(run, title)
    finally:
        there.close()
    _tell(run, branch, made)


def _host_keys(run: Run, there: WorkBranch) -> str:
    answering = there.answering_keys()
    if not answering:
        raise Failure(
            ErrorClass.NETWORK,
            f"GitLab does not answer at its SSH port, {run.job.ssh_host}:{run.job.ssh_port}",
            "see that runners reach GitLab's SSH port, or set notebook.can_push: false",
        )
    return known_hosts(run, answering)


def _bring(run: Run, worker: Worker, there: WorkBranch, branch: str, names: Sequence[str]) -> WorkCommit:
    """Have the work on the branch, whoever else pushes there meanwhile."""
    message = _message(run, worker)
    end = run.clock.now() + min(PUSH_SECONDS, run.job.seconds * PUSH_SHARE)
    for number in range(TRIES):
        if number:
            run.clock.sleep(PAUSE_SECONDS * 2 ** (number - 1))
        left = max(end - run.clock.now(), 1.0)
        try:
            tip = there.tip(branch, min(left, FIRST_SECONDS))
            made = there.commit(worker.commit, tip, run.outputs / WORKSPACE, names, worker.user, message, left)
            if not made.sha or there.push(made.sha, branch, left):
                return made
        except Failure as failure:
            new = "Permission denied (publickey" in failure.evidence
            if not (failure.retry or new) or number == TRIES - 1 or failure.klass is ErrorClass.INTERRUPTED:
                raise
            run.console.say(f"{failure.cause}: once more")
        else:
            run.console.say(f"{branch} has moved meanwhile: once more")
    raise Failure(
        ErrorClass.CONFLICT,
        f"{branch} has moved {TRIES} times while this was being pushed",
        "let nothing else push to that branch so often: the next notebook's end pushes this work too",
    )


def _names(run: Run) -> list[str]:
    """What has come home of the workspace and is here: what was too big for artifacts is elsewhere."""
    within = f"{WORKSPACE}/"
    home = sorted(name.removeprefix(within) for name in read_sums(run.outputs) if name.startswith(within))
    folder = run.outputs / WORKSPACE
    here = [name for name in home if (folder / name).is_file() and not (folder / name).is_symlink()]
    _name_some(run, "not pushed, being too big for artifacts and kept elsewhere", sorted(set(home) - set(here)))
    return here


def _message(run: Run, worker: Worker) -> str:
    pipeline = f"{_project_page(run)}/-/pipelines/{run.name.run.partition('-')[0]}"
    return f"Work of {worker.user} in a notebook on {worker.ref}\n\nSaved by {run.name}, of {pipeline}"


def _take_key_away(run: Run, title: str) -> None:
    """Remove the key; where GitLab does not do it a cleanup asks again, and the key expires by itself."""
    try:
        count = run.forge.remove_deploy_keys(title)
        if count:
            run.record.add("push-key-removed", count=count)
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        run.console.say(f"{failure.cause}; `glgpu cleanup` removes the deploy key {title}, which expires soon")


def _tell(run: Run, branch: str, made: WorkCommit) -> None:
    for why, names in made.left_out.items():
        _name_some(run, f"among the artifacts alone, {why}", names)
    page = f"{_project_page(run)}/-/tree/{quote(branch, safe='/')}"
    if not made.sha:
        run.console.say(f"nothing to push: {branch} would not be changed by it")
        return
    run.console.say(f"{made.files} files are on {branch}, commit {made.sha[:12]}: {page}")
    run.record.add("work-pushed", branch=branch, commit=made.sha, files=made.files, page=page)
    annotate(run, f"run {run.name.run}: the work, on {branch}", page)


def _name_some(run: Run, why: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        run.console.say(f"{why}: {', '.join(map(repr, names[:NAMED]))}{more}")


def _project_page(run: Run) -> str:
    return f"{run.job.server_url}/{run.job.project_path}"
