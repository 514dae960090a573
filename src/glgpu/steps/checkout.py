"""Bring the code of exactly one commit onto the VM: by a deploy key made there, or from the job's own checkout."""

from __future__ import annotations

import math

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Machine
from glgpu.steps.context import Run
from glgpu.steps.gitlab_ssh import known_hosts, ssh_address
from glgpu.steps.guest import ask, command

REACH_SECONDS = 15
KEY_SECONDS = 24 * 3600.0
"""How long a deploy key lives where the VM's hard end is not known."""
KEY_MARGIN_SECONDS = 3600.0

GITLABS_OWN = (
    ErrorClass.CODE,
    ErrorClass.GITLAB_AUTH,
    ErrorClass.GITLAB,
    ErrorClass.NETWORK,
    ErrorClass.TRANSIENT,
)
"""What may keep a deploy key from working while the job's own checkout, which asks GitLab nothing, does."""


def check_out(run: Run, machine: Machine, hard_end: float) -> None:
    """Have the run's commit in the VM's ``~/glgpu/code``.

    Raises:
        Failure: CODE, GITLAB_AUTH, NETWORK, ...
    """
    if run.settings.code == "auto":
        way = _first_that_works(run, machine, hard_end)
    else:
        way = run.settings.code
        run.console.say(f"code: {way}")
        if way == "deploy-key":
            _by_deploy_key(run, machine, _answering_keys(run, machine), hard_end)
        else:
            _by_job(run, machine)
    run.record.add("code-checked-out", way=way, commit=run.job.sha)


def _first_that_works(run: Run, machine: Machine, hard_end: float) -> str:
    why = "no GLGPU_GITLAB_TOKEN that could register a deploy key"
    if run.forge.may_administer:
        keys = _answering_keys(run, machine)
        why = f"the VM does not reach GitLab's SSH port within {REACH_SECONDS} s"
        if keys:
            try:
                _by_deploy_key(run, machine, keys, hard_end)
                run.console.say("code: deploy-key (the VM reaches GitLab and the token can register a key)")
                return "deploy-key"
            except Failure as failure:
                # Whatever else went wrong would go wrong for the other way too.
                if failure.klass not in GITLABS_OWN:
                    raise
                why = f"a deploy key does not do: {failure.cause}"
    run.console.say(f"code: job ({why})")
    _by_job(run, machine)
    return "job"


def _by_deploy_key(run: Run, machine: Machine, keys: str, hard_end: float) -> None:
    known = known_hosts(run, keys)
    public = ask(run, machine, "keygen", doing="making the deploy key on the VM").text.strip()
    expires = hard_end if math.isfinite(hard_end) else run.clock.now() + KEY_SECONDS
    run.forge.add_deploy_key(str(run.name), public, expires + KEY_MARGIN_SECONDS)
    run.record.add("deploy-key-registered", title=str(run.name))
    ask(
        run,
        machine,
        "clone",
        ssh_address(run.job),
        run.job.sha,
        stdin=known.encode(),
        timeout=900,
        klass=ErrorClass.CODE,
        doing=f"cloning commit {run.job.sha[:12]} on the VM",
    )


def _by_job(run: Run, machine: Machine) -> None:
    commit = run.repository.head()
    if not commit:
        raise Failure(
            ErrorClass.CODE,
            f"{run.job.project_dir} is no git checkout, so there is no code to bring to the VM",
            "run this where the repository is checked out, or set `code: deploy-key`",
        )
    if run.job.sha and commit != run.job.sha:
        raise Failure(
            ErrorClass.CODE,
            f"the checkout is at {commit[:12]}, the pipeline is for {run.job.sha[:12]}",
            "check GIT_STRATEGY and GIT_CHECKOUT of the job",
        )
    changed = run.repository.changed()
    if changed and not run.job.in_ci:
        run.console.say(f"{len(changed)} files differ from commit {commit[:12]}; they go to the VM as they are here")
    for verb, words, write in (
        ("unpack", (commit,), lambda to: run.repository.write_pack(commit, to)),
        ("overlay", (), run.repository.write_tar),
    ):
        with machine.stream(command(run, verb, *words)) as stream:
            try:
                write(stream.stdin)
                stream.stdin.close()
            except BrokenPipeError:
                pass  # the exit code and its reason tell more
            code = stream.wait(900)
            if code != 0:
                raise Failure(
                    ErrorClass.SSH if code == 255 else ErrorClass.CODE,
                    f"the code could not be brought to the VM: {stream.complaint}",
                    "retry the job",
                    stream.complaint,
                )


def _answering_keys(run: Run, machine: Machine) -> str:
    """The SSH host keys that the VM sees at GitLab's SSH port; empty where it does not get there in time."""
    done = machine.run(
        command(run, "reach", run.job.ssh_host, str(run.job.ssh_port), str(REACH_SECONDS)),
        timeout=REACH_SECONDS + 15,
    )
    return done.text if done.code == 0 else ""
