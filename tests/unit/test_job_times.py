"""What the times of a job and of a VM leave for training, and which cannot work together."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glgpu.errors import ErrorClass
from glgpu.job import HOSTED_SECONDS, Job, read_job
from glgpu.job_times import CLOSING_SECONDS, STOP_GRACE_SECONDS, ending_seconds, misfits, script_seconds
from glgpu.settings import Settings

HOUR = 3600.0
TIMES = {
    "CI_JOB_ID": "5",
    "GLGPU_JOB_TIMEOUT": "2h55m",
    "RUNNER_SCRIPT_TIMEOUT": "2h35m",
    "RUNNER_AFTER_SCRIPT_TIMEOUT": "15m",
}


def job(**variables: str) -> Job:
    return read_job({**TIMES, **variables}, Path("/"), 0.0)


def having(rescue_minutes: int = 10, max_hours: float | None = None, follow: bool | str = True) -> Settings:
    raw = {"limits": {"rescue_minutes": rescue_minutes}, "machine": {"max_hours": max_hours}}
    return Settings.model_validate({**raw, "train": {"follow": follow}})


def causes(settings: Settings, job: Job | None, **options: Any) -> list[str]:
    found = list(misfits(settings, job, **options))
    assert all(one.klass is ErrorClass.CONFIG for one in found)
    return [one.cause for one in found]


def test_an_ending_is_the_grace_the_way_home_and_the_last_words() -> None:
    assert ending_seconds(having(10)) == STOP_GRACE_SECONDS + 600 + CLOSING_SECONDS


@pytest.mark.parametrize(
    ("variables", "own", "seconds"),
    [
        ({}, False, 2 * HOUR + 35 * 60),
        ({"GLGPU_SCRIPT_TIMEOUT": "1h"}, False, HOUR),
        # The upload has to be over by the job's own end, and takes as long as the way home.
        ({"RUNNER_SCRIPT_TIMEOUT": ""}, False, 2 * HOUR + 45 * 60),
        ({"CI_JOB_TIMEOUT": "3600"}, False, 2 * HOUR + 35 * 60),
        ({"CI_JOB_TIMEOUT": "3600"}, True, 50 * 60),
        ({"GLGPU_JOB_TIMEOUT": "6h", "RUNNER_SCRIPT_TIMEOUT": "5h30m"}, True, 5 * HOUR + 30 * 60),
        (
            {
                "GLGPU_JOB_TIMEOUT": "6h",
                "RUNNER_SCRIPT_TIMEOUT": "5h30m",
                "CI_RUNNER_TAGS": '["saas-linux-small-amd64"]',
            },
            False,
            HOSTED_SECONDS - 600,
        ),
        ({"GLGPU_JOB_TIMEOUT": "", "RUNNER_SCRIPT_TIMEOUT": ""}, True, math.inf),
        ({"CI_JOB_TIMEOUT": "40"}, True, 0),
    ],
)
def test_a_script_has_to_be_over_before_anything_ends_its_job(
    variables: dict[str, str], own: bool, seconds: float
) -> None:
    assert script_seconds(job(**variables), having(), own=own) == seconds


@pytest.mark.parametrize(
    ("settings", "variables", "told"),
    [
        (having(), {}, None),
        (having(max_hours=2.5), {}, None),
        (having(max_hours=0.2), {}, None),
        (having(max_hours=0.18), {}, "machine.max_hours is 0.18, but 11 min of it"),
        (having(0, max_hours=0.02), {}, None),
        (having(max_hours=2.7, follow="auto"), {}, None),
        (having(max_hours=2.7), {}, "the train job ends its script after 2 h 35 min"),
        (having(max_hours=3), {"RUNNER_SCRIPT_TIMEOUT": ""}, "the train job ends its script after 2 h 55 min"),
        (having(), {"RUNNER_SCRIPT_TIMEOUT": "11m"}, "has to be over after 11 min, but 11 min of it"),
        (having(), {"RUNNER_SCRIPT_TIMEOUT": "12m"}, None),
        (
            having(),
            {"RUNNER_SCRIPT_TIMEOUT": "2h40m"},
            "script and after_script may take 2 h 55 min, the job 2 h 55 min",
        ),
        (having(), {"RUNNER_AFTER_SCRIPT_TIMEOUT": "20m"}, "script and after_script may take"),
        (having(), {"RUNNER_SCRIPT_TIMEOUT": "2h50m", "RUNNER_AFTER_SCRIPT_TIMEOUT": ""}, "script and after_script"),
        (having(120), {}, "has to be over after 55 min, but 2 h 1 min of it"),
    ],
)
def test_times_that_cannot_work_are_named(settings: Settings, variables: dict[str, str], told: str | None) -> None:
    found = causes(settings, job(**variables))
    assert len(found) == (told is not None), found
    assert told is None or told in found[0]


def test_what_its_runner_grants_counts_for_the_train_job_alone() -> None:
    short = job(CI_JOB_TIMEOUT="15m")
    assert causes(having(), short) == []
    assert causes(having(), short, own=True) == [
        "the train job's script has to be over after 5 min, but 11 min of it go into ending the training and bringing "
        "its outputs home"
    ]


def test_on_a_laptop_only_the_vms_own_end_counts() -> None:
    assert causes(having(max_hours=48), None) == []
    assert len(causes(having(max_hours=0.1), None)) == 1


@given(
    job_timeout=st.one_of(st.none(), st.floats(1, 1e6)),
    script=st.one_of(st.none(), st.floats(1, 1e6)),
    own=st.one_of(st.none(), st.floats(1, 1e6)),
    hosted=st.booleans(),
    minutes=st.integers(0, 120),
)
def test_whatever_is_not_refused_leaves_time_to_train_to_end_and_to_upload(
    job_timeout: float | None, script: float | None, own: float | None, hosted: bool, minutes: int
) -> None:
    one = replace(job(), job_timeout=job_timeout, script_timeout=script, own_timeout=own, hosted=hosted)
    settings = having(minutes)
    if causes(settings, one, own=True):
        return
    seconds = script_seconds(one, settings, own=True)
    assert seconds > ending_seconds(settings)
    assert script is None or seconds <= script
    for end in (job_timeout, own, HOSTED_SECONDS if hosted else None):
        assert end is None or seconds + minutes * 60 <= end
