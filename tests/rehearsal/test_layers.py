"""The five layers of the teardown, each alone: the other four are off in the pipeline's own YAML, or do not act.

Each has a twin in which that layer is off as well: there the read-back has to find the VM, else the first one proves
nothing. The claim's power-off is no layer: a VM that is powered off counts as alive.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from glgpu.rehearsal.ci_yaml import Job, NoJobs, deep_merge
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.occasion import Event, Occasion, Server
from glgpu.rehearsal.player import Player
from rehearsing import Played, repository, world

HOUR = 3600.0
NEVER = {"rules": [{"when": "never"}]}
OFF: Mapping[str, Mapping[str, object]] = {
    "destroy": {"destroy": NEVER},
    "after_script": {"provision": {"after_script": []}, "train": {"after_script": []}},
    "stop": {"stop": NEVER},
    "cleanup": {"cleanup": NEVER},
}
"""How each layer is taken out of the pipeline. The hard end is not in there: it acts once the world's clock says so."""
LONG_TRAINING = """\
import pathlib, time
pathlib.Path("weights").mkdir()
pathlib.Path("weights/w.bin").write_bytes(b"half")
print("half way", flush=True)
time.sleep(600)
"""
UNCLAIMED = {
    "train": NEVER,
    "variables": {"GLGPU_LIMITS_CLAIM_MINUTES": str(24 * 60), "GLGPU_MACHINE_MAX_HOURS": "2"},
}
"""No job ever uses the VM, nor does it power itself off before its hard end: what is off has no hard end any more."""


def pipeline(*on: str, **own: object) -> str:
    """A .gitlab-ci.yml in which only these layers are on, with what else stands in it."""
    text: dict[str, object] = {
        "stages": ["provision", "train", "destroy"],
        "include": [
            {"project": "rehearsal/glgpu", "ref": "main", "file": f"ci/{name}.yml", "inputs": {"image": "not-pulled"}}
            for name in ("train", "cleanup")
        ],
    }
    for layer, jobs in OFF.items():
        if layer not in on:
            text = deep_merge(text, dict(jobs))
    return yaml.safe_dump(deep_merge(text, own), sort_keys=False)


@contextmanager
def played(
    folder: Path,
    text: str,
    *rules: Rule,
    branch: str = "main",
    meanwhile: Callable[[Played], Awaitable[None]] | None = None,
) -> Iterator[Played]:
    """A push of a repository with this pipeline, played to its end."""
    own = repository(folder / "repository", {".gitlab-ci.yml": text, "train.py": LONG_TRAINING})
    with world(*rules) as made:
        found = Played(made, made.adopt(own, keep_pipeline=True, branch=branch))
        found.play(meanwhile)
        assert found.player.outcomes["provision"].status == "success", found.logs["provision"]
        yield found
        found.close()


async def lose_the_runner(it: Played) -> None:
    """The machine of the runner is shut down while a training runs: the job fails, and has no after_script."""
    await it.printed("train", "half way\n")
    it.player.stop_runner()


@contextmanager
def abandoned(
    folder: Path, claimed: bool, *on: str, rules: tuple[Rule, ...] = (), branch: str = "main", **own: object
) -> Iterator[Played]:
    """A pipeline whose VM nobody ends but the layers that are on: with a training on it, or never used at all."""
    if claimed:
        text = pipeline(*on, **deep_merge({"train": {"retry": 0}}, own))
        with played(folder, text, *rules, branch=branch, meanwhile=lose_the_runner) as it:
            assert it.player.outcomes["train"].failure_reason == "runner_system_failure"
            yield it
    else:
        with played(folder, pipeline(*on, **deep_merge(UNCLAIMED, own)), *rules, branch=branch) as it:
            yield it


either_way = pytest.mark.parametrize(
    "claimed",
    [pytest.param(False, id="never used"), pytest.param(True, id="in training", marks=pytest.mark.every_fault)],
)


def alive(it: Played) -> list[str]:
    """The VMs that the read-back finds, in whatever status."""
    return it.left().get("instances", [])


def assert_leak(it: Played) -> None:
    """The VM is there, and runs."""
    (found,) = alive(it)
    assert found.endswith("-train (RUNNING)"), found


def assert_nothing_that_costs(it: Played) -> None:
    assert not {"instances", "disks"} & set(it.left()), it.left()


def hard_end(it: Played) -> None:
    """Later than the VM may live, and earlier than it would power itself off unclaimed."""
    it.world.soon(lambda: it.world.clock.advance(12 * HOUR))


# 1. max_run_duration, with DELETE


@either_way
def test_the_hard_end_alone_ends_a_vm(claimed: bool, tmp_path: Path) -> None:
    with abandoned(tmp_path, claimed) as it:
        assert_leak(it)
        for _ in range(2):
            hard_end(it)
            it.world.call(it.rehearsal.until_gone())
            assert_nothing_that_costs(it)


@either_way
def test_without_the_hard_end_the_vm_is_found(claimed: bool, tmp_path: Path) -> None:
    with abandoned(tmp_path, claimed, rules=(Rule("compute.hard-end", "forgotten"),)) as it:
        assert_leak(it)
        hard_end(it)
        # A claimed one powers itself off a quarter of an hour later, which ends neither it nor the costs of its disk.
        assert len(alive(it)) == 1


# 2. The destroy stage


@either_way
def test_destroy_alone_ends_a_run_and_does_so_again(claimed: bool, tmp_path: Path) -> None:
    with abandoned(tmp_path, claimed, "destroy") as it:
        assert it.player.outcomes["destroy"].status == "success", it.logs["destroy"]
        assert it.left() == {}
        again = it.world.call(it.player.retry_job("destroy"))
        assert again.status == "success", it.logs["destroy"]
        assert it.left() == {}


@either_way
def test_without_destroy_the_vm_is_found(claimed: bool, tmp_path: Path) -> None:
    with abandoned(tmp_path, claimed) as it:
        assert "destroy" not in it.player.outcomes
        assert_leak(it)


# 3. after_script of a cancelled job


async def cancel(it: Played) -> None:
    await it.printed("train", "half way\n")
    it.player.cancel_job("train")


def test_after_script_alone_ends_the_vm_of_a_cancelled_job_and_may_do_so_twice(tmp_path: Path) -> None:
    twice = 'if [ "$CI_JOB_STATUS" = canceled ]; then glgpu destroy --cloud-only && glgpu destroy --cloud-only && '
    text = pipeline("after_script", train={"after_script": [twice + "printf 'both %s\\n' 'went well'; fi"]})
    with played(tmp_path, text, meanwhile=cancel) as it:
        assert it.player.outcomes["train"].status == "canceled"
        assert "both went well\n" in it.logs["train"], it.logs["train"]
        it.world.call(it.rehearsal.until_gone())
        assert_nothing_that_costs(it)


def test_without_after_script_the_vm_of_a_cancelled_job_is_found(tmp_path: Path) -> None:
    # With its destroy job in the pipeline too: after a cancel GitLab skips it.
    with played(tmp_path, pipeline("destroy"), meanwhile=cancel) as it:
        assert it.player.outcomes["train"].status == "canceled"
        assert it.player.outcomes["destroy"].status == "skipped"
        assert_leak(it)


# 4. The stop job, by the environment's Stop button, by auto_stop_in, and by the deletion of the branch

BRANCH = "wip/layers"
SOON = {"environment": {"auto_stop_in": "1 hour"}}


async def stop_button(it: Played) -> None:
    await it.player.stop_environment("gpu/wip-layers")


async def auto_stop(it: Played) -> None:
    it.world.clock.advance(HOUR + 1)
    it.world.gitlab.auto_stop()
    await it.player.rest()


async def branch_deletion(it: Played) -> None:
    it.world.gitlab.delete_branch(it.rehearsal.adopted.project, BRANCH, it.rehearsal.adopted.user)
    await it.player.rest()


WAYS_TO_STOP = [
    pytest.param(stop_button, id="stop button"),
    pytest.param(auto_stop, id="auto_stop_in", marks=pytest.mark.every_fault),
    pytest.param(branch_deletion, id="branch deletion", marks=pytest.mark.every_fault),
]


@either_way
@pytest.mark.parametrize("way", WAYS_TO_STOP)
def test_the_stop_job_alone_ends_every_run_of_its_branch_and_does_so_again(
    way: Callable[[Played], Awaitable[None]], claimed: bool, tmp_path: Path
) -> None:
    with abandoned(tmp_path, claimed, "stop", branch=BRANCH, provision=SOON) as it:
        assert_leak(it)
        it.world.call(way(it))
        assert it.player.outcomes["stop"].status == "success", it.logs["stop"]
        assert it.left() == {}
        again = it.world.call(it.player.play_job("stop"))
        assert again.status == "success", it.logs["stop"]
        assert it.left() == {}


@pytest.mark.parametrize("way", WAYS_TO_STOP)
def test_without_the_stop_job_the_vm_is_found(way: Callable[[Played], Awaitable[None]], tmp_path: Path) -> None:
    with abandoned(tmp_path, False, branch=BRANCH, provision=SOON) as it:
        it.world.call(way(it))
        (environment,) = it.rehearsal.adopted.project.environments.values()
        assert environment.state == "stopped"
        assert_leak(it)


# 5. The schedule that cleans up


def scheduled(it: Played, number: int) -> Player:
    """The pipeline that the schedule makes.

    Raises:
        NoJobs: It makes none.
    """
    made, adopted = it.world, it.rehearsal.adopted
    server = Server(made.gitlab.url, made.gitlab.ssh_host, made.gitlab.ssh_port)
    event = Event(adopted.branch, adopted.sha, "schedule", variables={"GLGPU_TASK": "cleanup"})
    where = Occasion(made.gitlab, server, adopted.project, adopted.user, event)

    def hear(_job: Job, data: bytes) -> None:
        it.logs["cleanup"] = it.logs.get("cleanup", "") + data.decode("utf-8", "replace")

    return Player(where.compile(), where, folder=made.folder / f"s{number}", path=made.job_path(), on_output=hear)


def clean_up(it: Played, number: int) -> None:
    player = scheduled(it, number)
    try:
        outcomes = it.world.call(player.play())
        assert [(name, one.status) for name, one in outcomes.items()] == [("cleanup", "success")], it.logs["cleanup"]
    finally:
        it.world.call(player.close())


@either_way
def test_the_cleanup_alone_ends_what_a_pipeline_has_left_and_does_so_again(claimed: bool, tmp_path: Path) -> None:
    with abandoned(tmp_path, claimed, "cleanup") as it:
        assert_leak(it)
        clean_up(it, 1)
        assert it.left() == {}
        clean_up(it, 2)
        assert it.left() == {}


def test_without_the_cleanup_the_vm_is_found(tmp_path: Path) -> None:
    with abandoned(tmp_path, False) as it:
        with pytest.raises(NoJobs):
            scheduled(it, 1)
        assert_leak(it)
