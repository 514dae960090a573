"""The schedule that cleans up: made once, told about before, finished where it was left half made."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from fakes import FakeScheduler, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import ForgeProject, ForgeSchedule, ForgeVariable
from glgpu.steps.cleanup_schedule import (
    DESCRIPTION,
    Repository,
    by_hand,
    cleans_up,
    make_cleanup_schedule,
    rhythm,
)

HOURLY = rhythm("https://gitlab.example.com", "group/project")
OURS = frozenset(["provision", "train", "destroy", "stop", "cleanup"])
QUIET = {"rules": [{"if": '$GLGPU_TASK == "cleanup"', "when": "never"}, {"when": "always"}]}


class Bench:
    """A GitLab, and what is said about it."""

    def __init__(self, **jobs: Any) -> None:
        self.forge = FakeScheduler()
        self.said: list[str] = []
        self.agrees = True
        self.asked = 0
        self.jobs: dict[str, Any] = {"cleanup": {"script": "glgpu cleanup"}, **jobs}

    def make(self) -> tuple[str, ...]:
        def agree() -> bool:
            self.asked += 1
            return self.agrees

        repository = Repository(yaml.safe_dump(self.jobs), OURS, "group/glgpu")
        return make_cleanup_schedule(
            self.forge,
            repository,
            HOURLY,
            parse=lambda text: dict(yaml.safe_load(text)),
            agree=agree,
            say=self.said.append,
        )


def schedule(**changes: Any) -> ForgeSchedule:
    known = ForgeSchedule("by hand", "main", True, "ada", "active", {"GLGPU_TASK": "cleanup"}, "success", 5.0, 7)
    return replace(known, **changes)


def test_it_is_made_with_its_variable_on_the_default_branch_and_then_activated() -> None:
    bench = Bench()
    assert bench.make() == ()
    (made,) = bench.forge.made
    assert (made.description, made.ref, made.active) == (DESCRIPTION, "main", True)
    assert cleans_up(made)
    assert bench.forge.verbs()[-2:] == ["add_schedule", "finish_schedule"]
    assert bench.forge.calls[-2][-1] == HOURLY.cron
    assert bench.said == [
        f'made: the schedule "{DESCRIPTION}" on main, every hour ({HOURLY.cron}), with GLGPU_TASK=cleanup'
    ]


def test_a_second_time_it_is_found_and_left_alone() -> None:
    bench = Bench()
    bench.make()
    before = list(bench.forge.made)
    assert bench.make() == ()
    assert bench.forge.made == before
    assert bench.said[-1] == f'kept as it was: the schedule "{DESCRIPTION}" on main'


@pytest.mark.parametrize(
    "there",
    [
        schedule(),
        schedule(ref="other", active=True, description="whatever"),
        schedule(variables=None, description=DESCRIPTION),  # somebody else's: GitLab hides its variables
    ],
)
def test_one_that_is_there_already_is_recognised(there: ForgeSchedule) -> None:
    bench = Bench()
    bench.forge.made = [there]
    assert bench.make() == ()
    assert bench.forge.made == [there]


@pytest.mark.parametrize(
    "there",
    [
        schedule(variables={}),
        schedule(variables={"GLGPU_TASK": "train"}),
        schedule(variables=None),
        # Begun by somebody whose schedules this token may not finish.
        schedule(variables=None, description=DESCRIPTION, active=False, last_time=None),
    ],
)
def test_other_schedules_are_not_taken_for_it(there: ForgeSchedule) -> None:
    bench = Bench()
    bench.forge.made = [there]
    bench.make()
    assert len(bench.forge.made) == 2


def test_one_that_somebody_switched_off_stays_off_and_remains_to_be_done() -> None:
    bench = Bench()
    bench.forge.made = [schedule(active=False)]
    (remaining,) = bench.make()
    assert remaining.startswith('Activate the schedule "by hand"')
    assert bench.forge.made == [schedule(active=False)]


@pytest.mark.parametrize("verb", ["add_schedule", "finish_schedule"])
def test_a_death_half_way_leaves_nothing_that_runs_and_the_next_call_finishes_it(verb: str) -> None:
    bench = Bench()
    bench.forge.refuse[verb] = refusal(ErrorClass.NETWORK)
    with pytest.raises(Failure):
        bench.make()
    assert not any(one.active for one in bench.forge.made)
    bench.forge.refuse.clear()
    bench.make()
    (made,) = bench.forge.made
    assert made.active
    assert cleans_up(made)


def test_a_death_before_the_activation_is_mended_without_a_second_variable() -> None:
    bench = Bench()
    bench.forge.made = [schedule(description=DESCRIPTION, active=False, last_time=None, number=1)]
    bench.make()
    assert bench.forge.calls[-1] == ("finish_schedule", 1, {})


def test_jobs_that_would_run_too_are_named_with_the_way_out_before_anything_is_made() -> None:
    bench = Bench(build={"script": "make"}, deploy=QUIET | {"script": "a"}, train={"script": "glgpu train"})
    bench.forge.before["add_schedule"] = lambda: bench.said.append("now")
    assert bench.make() == ()
    assert bench.said[0] == "The cleanup schedule would also run these jobs of yours every hour: build"
    told = bench.said[2 : bench.said.index("now")]
    assert yaml.safe_load("\n".join(told)) == {
        "rules": [
            {"if": '$CI_PIPELINE_SOURCE == "schedule" && $GLGPU_TASK == "cleanup"', "when": "never"},
            {"if": "$CI_COMMIT_BRANCH || $CI_COMMIT_TAG"},
        ]
    }
    assert bench.asked == 1


def test_the_advice_keeps_a_job_off() -> None:
    bench = Bench(build={"script": "make"})
    bench.make()
    start = bench.said.index("    rules:")
    advice = yaml.safe_load("\n".join(bench.said[start : start + 4]))
    again = Bench(build={"script": "make"} | advice)
    again.make()
    assert again.asked == 0


def test_who_does_not_agree_gets_no_schedule() -> None:
    bench = Bench(build={"script": "make"})
    bench.agrees = False
    (remaining,) = bench.make()
    assert bench.forge.made == []
    assert by_hand(HOURLY, "main") in remaining


def test_nobody_is_asked_where_nothing_else_runs() -> None:
    bench = Bench(deploy=QUIET | {"script": "a"})
    bench.make()
    assert bench.asked == 0


def test_a_job_that_depends_on_a_variable_of_the_project_is_named_to_be_sure() -> None:
    bench = Bench(build={"script": "make", "rules": [{"if": "$NIGHTLY"}]})
    bench.make()
    assert bench.asked == 0
    bench.forge.made.clear()
    bench.forge.set = [ForgeVariable("NIGHTLY", False, False)]
    bench.make()
    assert bench.asked == 1


def test_a_token_that_may_not_see_the_variables_is_no_obstacle() -> None:
    bench = Bench(build={"script": "make"})
    bench.forge.refuse["variables"] = refusal(ErrorClass.GITLAB_AUTH)
    bench.make()
    assert bench.forge.made[0].active
    assert bench.asked == 1


def test_a_home_that_the_tokens_user_may_not_read_is_told_with_both_ways_out() -> None:
    bench = Bench()
    bench.forge.errors = ("Project `group/glgpu` not found or access denied! Make sure any includes are correct.",)
    (remaining,) = bench.make()
    assert "Take ownership" in remaining
    assert "group/glgpu internal" in remaining
    assert bench.forge.made[0].active


def test_what_gitlab_finds_wrong_with_the_file_is_told() -> None:
    bench = Bench()
    bench.forge.errors = ("train job: chosen stage does not exist",)
    assert bench.make() == (
        "The schedule's pipelines fail until .gitlab-ci.yml is mended: train job: chosen stage does not exist",
    )


def test_workflow_rules_that_keep_schedules_out_are_told() -> None:
    bench = Bench(workflow={"rules": [{"if": '$CI_PIPELINE_SOURCE == "push"'}]}, build={"script": "make"})
    (remaining,) = bench.make()
    assert "workflow:rules" in remaining
    assert bench.asked == 0


def test_a_project_without_a_branch_has_to_be_pushed_to_first() -> None:
    bench = Bench()
    bench.forge.known = ForgeProject("", 40)
    with pytest.raises(Failure, match="no branch yet"):
        bench.make()
    assert bench.forge.made == []


@pytest.mark.parametrize("verb", ["project", "schedules", "judge", "variables", "add_schedule"])
def test_a_gitlab_that_goes_away_is_told_and_leaves_nothing(verb: str) -> None:
    bench = Bench()
    bench.forge.refuse[verb] = refusal(ErrorClass.NETWORK, "gone")
    with pytest.raises(Failure, match="gone"):
        bench.make()
    assert bench.forge.made == []


@pytest.mark.parametrize(
    ("server", "cron", "every"),
    [
        ("https://gitlab.example.com", r"[0-5]?\d \* \* \* \*", "every hour"),
        ("https://gitlab.com", r"[0-5]?\d \*/4 \* \* \*", "every 4 hours"),
        ("", r"[0-5]?\d \* \* \* \*", "every hour"),
    ],
)
def test_it_runs_hourly_and_on_gitlab_com_every_four_hours(server: str, cron: str, every: str) -> None:
    found = rhythm(server, "group/project")
    assert re.fullmatch(cron, found.cron)
    assert found.every == every
    assert rhythm(server, "group/project") == found
    assert len({rhythm(server, f"group/{number}").cron for number in range(50)}) > 20
