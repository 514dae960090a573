"""Which jobs a schedule would start: what rules, policies and variables decide, and what nobody can tell beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from glgpu.rehearsal.ci_yaml import NoJobs, compile_pipeline
from glgpu.scheduled_jobs import Scheduled, jobs_of_schedule

CLEANUP = {
    "CI_PIPELINE_SOURCE": "schedule", "CI_COMMIT_BRANCH": "main", "CI_COMMIT_REF_NAME": "main",
    "CI_DEFAULT_BRANCH": "main", "GLGPU_TASK": "cleanup",
}  # fmt: skip
JOBS: dict[str, tuple[str, bool]] = {
    "without rules": ("{}", True),
    "kept off": ("rules: [{if: '$CI_PIPELINE_SOURCE == \"schedule\"', when: never}, {when: on_success}]", False),
    "kept off by the task": ("rules: [{if: '$GLGPU_TASK == \"cleanup\"', when: never}, {when: always}]", False),
    "for pushes": ("rules: [{if: '$CI_PIPELINE_SOURCE == \"push\"'}]", False),
    "for schedules": ("rules: [{if: '$CI_PIPELINE_SOURCE == \"schedule\"'}]", True),
    "for another task": ("rules: [{if: '$GLGPU_TASK == \"train\"'}]", False),
    "for the default branch": ("rules: [{if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH}]", True),
    "for tags": ("rules: [{if: $CI_COMMIT_TAG}]", False),
    "no rule at all": ("rules: []", False),
    "nested rules": ("rules: [[{if: $CI_COMMIT_TAG}], [[{when: always}]]]", True),
    "by hand": ("when: manual", False),
    "by hand by rule": ("rules: [{if: $CI_COMMIT_BRANCH, when: manual}]", False),
    "by hand elsewhere": ("{when: manual, rules: [{if: $CI_COMMIT_BRANCH, when: always}]}", True),
    "own variable": ("{variables: {NIGHTLY: 'yes'}, rules: [{if: '$NIGHTLY == \"yes\"'}]}", True),
    "own variable that is a number": ("{variables: {NIGHTLY: 1}, rules: [{if: '$NIGHTLY == \"1\"'}]}", True),
    "variable for all": ("rules: [{if: '$ALL == \"true\"'}]", True),
    "variable that nobody knows": ("rules: [{if: $NOBODY}]", False),
    "variable of the project": ("rules: [{if: '$SECRET == \"x\"'}]", True),
    "kept off by a variable of the project": ("rules: [{if: $SECRET, when: never}, {when: always}]", True),
    "changes": ("rules: [{changes: [a]}]", True),
    "compared changes": ("rules: [{changes: {paths: [a], compare_to: main}}]", True),
    "exists": ("rules: [{exists: [a]}]", True),
    "kept off if something exists": ("rules: [{exists: [a], when: never}, {if: $CI_COMMIT_TAG}]", False),
    "only schedules": ("only: [schedules]", True),
    "only pushes": ("only: [pushes]", False),
    "only a name": ("only: [main]", True),
    "only a pattern": ("only: [/^release/]", False),
    "only a variable": ("only: {variables: ['$GLGPU_TASK == \"train\"']}", False),
    "only changes": ("only: {changes: [a]}", True),
    "except schedules": ("except: [schedules]", False),
    "except a task": ("except: {variables: ['$GLGPU_TASK == \"cleanup\"']}", False),
    "except with an unknown": ("except: {variables: [$SECRET]}", True),
    "only merge requests": ("only: [merge_requests]", False),
    "a condition that is none": ("rules: [{if: '$A =='}]", True),
}


def config(text: str, **others: Any) -> dict[str, Any]:
    return {
        "variables": {"ALL": True},
        **others,
        ".hidden": {"script": "a"},
        "job": {"script": "a", **yaml.safe_load(text)},
    }


@pytest.mark.parametrize("case", JOBS)
def test_a_job_is_found_where_it_cannot_be_ruled_out(case: str) -> None:
    text, starts = JOBS[case]
    assert jobs_of_schedule(config(text), CLEANUP, ["SECRET"]) == Scheduled(False, ("job",) if starts else ())


@pytest.mark.parametrize(
    ("rules", "kept_out"),
    [
        ("[{if: '$CI_PIPELINE_SOURCE == \"push\"'}]", True),
        ("[{if: '$CI_PIPELINE_SOURCE == \"schedule\"', when: never}, {when: always}]", True),
        ("[{if: $CI_COMMIT_BRANCH}]", False),
        ("[{if: $SECRET}]", False),
    ],
)
def test_workflow_rules_may_keep_schedules_out(rules: str, kept_out: bool) -> None:
    workflow = {"rules": yaml.safe_load(rules)}
    assert jobs_of_schedule(config("{}", workflow=workflow), CLEANUP, ["SECRET"]).kept_out is kept_out


def test_with_workflow_rules_a_job_has_no_policy_unless_it_says_so() -> None:
    workflow = {"rules": [{"when": "always"}]}
    for ref in ("main", "merge"):
        known = CLEANUP | {"CI_COMMIT_BRANCH": "", "CI_COMMIT_REF_NAME": ref}
        assert jobs_of_schedule(config("{}", workflow=workflow), known, []).jobs == ("job",)
        assert jobs_of_schedule(config("{}"), known, []).jobs == ()


CONDITIONS = [
    '$CI_PIPELINE_SOURCE == "schedule"', '$CI_PIPELINE_SOURCE == "push"', "$CI_COMMIT_TAG", "$CI_COMMIT_BRANCH",
    '$GLGPU_TASK == "cleanup"', '$GLGPU_TASK =~ /^tr/', "$ALL", '$OWN == "1"',
]  # fmt: skip
RULES = st.lists(
    st.builds(
        lambda condition, when: {"if": condition, **({"when": when} if when else {})},
        st.sampled_from(CONDITIONS),
        st.sampled_from(["", "never", "always", "on_success", "delayed"]),
    ),
    min_size=1,
    max_size=4,
)
POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "only": st.lists(st.sampled_from(["schedules", "pushes", "main", "branches", "/^m/"]), min_size=1),
        "except": st.lists(st.sampled_from(["schedules", "pushes", "other", "tags"]), min_size=1),
    },
)


@given(
    jobs=st.lists(st.one_of(RULES.map(lambda rules: {"rules": rules}), POLICIES), min_size=1, max_size=4),
    workflow=st.one_of(
        st.none(), RULES.map(lambda rules: [{**one, "when": one.get("when", "always")} for one in rules])
    ),
)
def test_where_all_is_known_it_agrees_with_what_makes_pipelines(jobs: list[dict[str, Any]], workflow: Any) -> None:
    """The compiler of rehearsals judges the same rules, in code of its own."""
    made: dict[str, Any] = {
        f"job{number}": {"script": ["a"], "variables": {"OWN": "1"}, **job} for number, job in enumerate(jobs)
    }
    for job in made.values():
        for rule in job.get("rules", []):
            if rule.get("when") == "delayed":
                rule["start_in"] = "1 minute"
    if workflow:
        kept = [rule for rule in workflow if rule["when"] in ("always", "never")]
        made |= {"workflow": {"rules": kept}} if kept else {}
    text = yaml.safe_dump(made)
    try:
        pipeline = compile_pipeline(
            text,
            read_local=lambda _: None,
            read_project=lambda *_: None,
            variables={"GLGPU_TASK": "cleanup"},
            predefined={name: value for name, value in CLEANUP.items() if name.startswith("CI_")},
        )
        expected = {job.name for job in pipeline.jobs}
    except NoJobs:
        expected = set()
    assert set(jobs_of_schedule(yaml.safe_load(text), CLEANUP, []).jobs) == expected
