"""The pipeline files that adopters include: which jobs they make, when, and what the jobs call."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import gitlab_ci_local
from glgpu import __version__
from glgpu.rehearsal.ci_yaml import (
    ROOT_KEYS,
    NoJobs,
    Pipeline,
    PipelineError,
    Variable,
    compile_pipeline,
    expand,
    expand_all,
    parse_duration,
)
from glgpu.stages.init import Answers, write_files

ROOT: Path = gitlab_ci_local.ROOT
TRAIN_FILE: dict[str, Any] = list(yaml.safe_load_all((ROOT / "ci/train.yml").read_text(encoding="utf-8")))[-1]
INCLUDED = ("train.yml", "notebook.yml", "cleanup.yml", "image.yml", "checks.yml")
GPU_JOBS = {"provision": "on_success", "train": "on_success", "destroy": "always", "stop": "manual"}
NOTEBOOK_JOBS = {"start notebook": "manual", "stop notebook": "manual"}
SET_UP = {
    "GLGPU_PROJECT": "my-dl",
    "GLGPU_WIF_PROVIDER": "projects/1/locations/global/workloadIdentityPools/a/providers/b",
}
PUSH = {
    "CI_PIPELINE_SOURCE": "push",
    "CI_COMMIT_BRANCH": "main",
    "CI_COMMIT_REF_NAME": "main",
    "CI_DEFAULT_BRANCH": "main",
    "CI_COMMIT_MESSAGE": "Train longer",
    "CI_REGISTRY_IMAGE": "registry.example.com/group/glgpu",
}


def readme_pipeline() -> str:
    """The README's snippet: a whole .gitlab-ci.yml."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if "ci/train.yml" in block]
    return str(found)


def with_init(folder: Path) -> str:
    """A repository with jobs and stages of its own, after `glgpu init`."""
    folder.mkdir(parents=True)
    pipeline = folder / ".gitlab-ci.yml"
    pipeline.write_text(
        "default:\n  before_script: [exit 1]\n  tags: [ours]\nstages: [lint, train]\n"
        "lint:\n  stage: lint\n  script: make lint\ntrain:\n  stage: train\n  script: make train\n"
    )
    answers = Answers("group/glgpu", google_project="", train_image="img:1", command="x", outputs="out")
    write_files(folder, answers, lambda _question, default: default)
    return pipeline.read_text()


def compiled(text: str, variables: Mapping[str, str], **predefined: str) -> Pipeline:
    def read_local(name: str) -> str | None:
        path = ROOT / name
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def read_project(project: str, ref: str, name: str) -> str | None:
        return read_local(name) if (project, ref) == ("group/glgpu", "main") else None

    return compile_pipeline(
        text, read_local=read_local, read_project=read_project, variables=variables, predefined=PUSH | predefined
    )


def jobs_of(text: str, variables: Mapping[str, str], predefined: Mapping[str, str]) -> dict[str, str]:
    try:
        return {job.name: job.when for job in compiled(text, variables, **predefined).jobs}
    except NoJobs:
        return {}


CREDENTIALS = [
    "GLGPU_WIF_PROVIDER",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_CREDENTIALS",
    "GOOGLE_OAUTH_ACCESS_TOKEN",
]
MATRIX: dict[str, tuple[dict[str, str], dict[str, str], bool]] = {
    "push": (SET_UP, {}, True),
    "push of another branch": (SET_UP, {"CI_COMMIT_BRANCH": "wip/x"}, True),
    "push of a notebook's work": (SET_UP, {"CI_COMMIT_BRANCH": "glgpu-notebook/ada/main"}, False),
    "push of a tag": (SET_UP, {"CI_COMMIT_BRANCH": "", "CI_COMMIT_TAG": "v1"}, False),
    "push with [skip gpu]": (SET_UP, {"CI_COMMIT_MESSAGE": "Docs\n\n[Skip GPU]"}, False),
    "by hand in spite of [skip gpu]": (
        SET_UP,
        {"CI_PIPELINE_SOURCE": "web", "CI_COMMIT_MESSAGE": "[skip gpu]"},
        True,
    ),
    "by hand": (SET_UP, {"CI_PIPELINE_SOURCE": "web"}, True),
    "by hand for another task": (SET_UP | {"GLGPU_TASK": "image"}, {"CI_PIPELINE_SOURCE": "web"}, False),
    "by trigger": (SET_UP, {"CI_PIPELINE_SOURCE": "trigger"}, True),
    "schedule for training": (SET_UP | {"GLGPU_TASK": "train"}, {"CI_PIPELINE_SOURCE": "schedule"}, True),
    "schedule for cleanup": (SET_UP | {"GLGPU_TASK": "cleanup"}, {"CI_PIPELINE_SOURCE": "schedule"}, False),
    "schedule for nothing": (SET_UP, {"CI_PIPELINE_SOURCE": "schedule"}, False),
    "merge request": (SET_UP, {"CI_PIPELINE_SOURCE": "merge_request_event", "CI_COMMIT_BRANCH": ""}, False),
    "nothing set up": ({}, {}, False),
    "no credentials": ({"GLGPU_PROJECT": "my-dl"}, {}, False),
    "no project": ({"GLGPU_WIF_PROVIDER": "x"}, {}, False),
    "empty variables": ({"GLGPU_PROJECT": "", "GOOGLE_CREDENTIALS": ""}, {}, False),
} | {f"credentials by {name}": ({"GLGPU_PROJECT": "my-dl", name: "x"}, {}, True) for name in CREDENTIALS}


WITHOUT_TRAINING = ("push with [skip gpu]", "push of a notebook's work")
"""Branches that do not train, and offer a notebook all the same."""
WITHOUT_NOTEBOOK = ("schedule for training",)


def expected_jobs(case: str, wanted: bool) -> dict[str, str]:
    offered = case in WITHOUT_TRAINING or (wanted and case not in WITHOUT_NOTEBOOK)
    return (
        (GPU_JOBS if wanted else {})
        | (NOTEBOOK_JOBS if offered else {})
        | ({"cleanup": "on_success"} if case == "schedule for cleanup" else {})
    )


@pytest.mark.parametrize("case", MATRIX)
def test_the_gpu_jobs_run_when_they_should_and_only_then(case: str) -> None:
    variables, predefined, wanted = MATRIX[case]
    assert jobs_of(readme_pipeline(), variables, predefined) == expected_jobs(case, wanted)


@pytest.mark.parametrize("case", MATRIX)
def test_gitlab_ci_local_judges_the_rules_alike(case: str, tmp_path: Path) -> None:
    gitlab_ci_local.require()
    variables, predefined, wanted = MATRIX[case]
    folder = gitlab_ci_local.repository(
        tmp_path, {".gitlab-ci.yml": readme_pipeline() + "\nother:\n  script: [echo]\n"}
    )
    gitlab_ci_local.provide_home(folder)
    found = gitlab_ci_local.jobs(folder, PUSH | predefined | variables)
    assert found == expected_jobs(case, wanted) | {"other": "on_success"}


def test_a_fresh_copy_of_this_repository_runs_its_checks_and_nothing_else() -> None:
    text = (ROOT / ".gitlab-ci.yml").read_text(encoding="utf-8")
    assert jobs_of(text, {}, {}) == {"checks": "on_success"}
    assert jobs_of(text, SET_UP, {}) == {"job-image": "on_success", "checks": "on_success"} | GPU_JOBS | NOTEBOOK_JOBS
    assert jobs_of(text, {"GLGPU_TASK": "image"}, {"CI_PIPELINE_SOURCE": "schedule"}) == {"job-image": "on_success"}
    assert jobs_of(text, {"GLGPU_TASK": "cleanup"}, {"CI_PIPELINE_SOURCE": "schedule"}) == {"cleanup": "on_success"}


def test_gitlab_ci_local_finds_this_repository_valid(tmp_path: Path) -> None:
    gitlab_ci_local.require()
    files = {name: ROOT / name for name in (".gitlab-ci.yml", *(f"ci/{name}" for name in INCLUDED))}
    folder = gitlab_ci_local.repository(tmp_path, files)
    assert gitlab_ci_local.jobs(folder, PUSH) == {"checks": "on_success"}
    assert set(gitlab_ci_local.jobs(folder, PUSH | SET_UP)) == {"job-image", "checks", *GPU_JOBS, *NOTEBOOK_JOBS}


def test_a_repository_with_the_same_names_keeps_its_own_jobs_after_init(tmp_path: Path) -> None:
    text = with_init(tmp_path / "a")
    assert jobs_of(text, {}, {}) == {"lint": "on_success", "train": "on_success"}
    pipeline = compiled(text, SET_UP)
    ours = [f"gpu-{name}" for name in (*GPU_JOBS, *NOTEBOOK_JOBS)]
    assert [job.name for job in pipeline.jobs] == ["lint", "train", *ours]
    gpu_train = pipeline.job("gpu-train")
    assert pipeline.job("train").script == ("make train",)
    assert gpu_train.before_script == ()
    assert gpu_train.tags == ("ours",)
    assert gpu_train.dependencies == ("gpu-provision",)
    environment = pipeline.job("gpu-provision").environment
    assert environment is not None
    assert environment.on_stop == "gpu-stop"
    notebook = pipeline.job("gpu-start notebook").environment
    assert notebook is not None
    assert notebook.on_stop == "gpu-stop notebook"


def test_gitlab_ci_local_finds_a_repository_after_init_valid(tmp_path: Path) -> None:
    gitlab_ci_local.require()
    folder = gitlab_ci_local.repository(tmp_path / "b", {".gitlab-ci.yml": with_init(tmp_path / "a")})
    gitlab_ci_local.provide_home(folder)
    assert set(gitlab_ci_local.jobs(folder, PUSH | SET_UP)) == {
        "lint", "train", *(f"gpu-{name}" for name in (*GPU_JOBS, *NOTEBOOK_JOBS))
    }  # fmt: skip


def snippet_with(**inputs: str) -> str:
    config = yaml.safe_load(readme_pipeline())
    config["include"] = config["include"][:1]
    config["include"][0]["inputs"] |= inputs
    return yaml.safe_dump(config)


def test_inputs_reach_the_jobs() -> None:
    text = snippet_with(
        google_project="from-input", config="sub/glgpu.yml", tag="gpu-runner", job_timeout="6h", script_timeout="5h30m"
    )
    pipeline = compiled(text, {"GOOGLE_CREDENTIALS": "x"})
    for job in pipeline.jobs:
        assert job.tags == ("gpu-runner",)
        assert job.timeout == 6 * 3600
        values = {name: variable.value for name, variable in job.variables.items()}
        assert values["GLGPU_PROJECT"] == "from-input"
        assert values["GLGPU_CONFIG"] == "sub/glgpu.yml"
        assert values["GLGPU_JOB_TIMEOUT"] == "6h"
        assert values["RUNNER_SCRIPT_TIMEOUT"] == "5h30m"


def test_a_branch_pattern_holds_back_other_branches() -> None:
    text = snippet_with(branches="/^(main|gpu-.*)$/")
    assert jobs_of(text, SET_UP, {"CI_COMMIT_BRANCH": "gpu-1"}) == GPU_JOBS
    assert jobs_of(text, SET_UP, {"CI_COMMIT_BRANCH": "maintenance"}) == {}
    by_hand = snippet_with(branches="/^$/")
    assert jobs_of(by_hand, SET_UP, {}) == {}
    assert jobs_of(by_hand, SET_UP, {"CI_PIPELINE_SOURCE": "web"}) == GPU_JOBS


@pytest.mark.parametrize("inputs", [{"branches": "main"}, {"job_timeout": "3 hours"}, {"surprise": "x"}])
def test_an_input_that_cannot_be_is_refused(inputs: dict[str, str]) -> None:
    with pytest.raises(PipelineError):
        compiled(snippet_with(**inputs), SET_UP)


def test_a_job_ends_in_time_for_its_after_script_and_for_hosted_runners() -> None:
    for job in compiled(snippet_with(), SET_UP).jobs:
        values = {name: variable.value for name, variable in job.variables.items()}
        script = parse_duration(values["RUNNER_SCRIPT_TIMEOUT"])
        after = parse_duration(values["RUNNER_AFTER_SCRIPT_TIMEOUT"])
        assert script is not None
        assert after is not None
        assert job.timeout is not None
        # The Runner wants the sum below the job's timeout; GitLab.com's hosted runners end every job at 3 hours.
        assert script + after < job.timeout < 3 * 3600
        assert parse_duration(values["GLGPU_JOB_TIMEOUT"]) == job.timeout


def test_no_push_cancels_a_job_that_holds_a_vm_and_every_job_shares_the_environment() -> None:
    pipeline = compiled(snippet_with(), SET_UP)
    # False is GitLab's default; it is written out, for a VM hangs on it.
    assert TRAIN_FILE[".glgpu"]["interruptible"] is False
    for job in pipeline.jobs:
        assert not job.interruptible
        assert job.environment is not None
        assert job.environment.name == "gpu/$CI_COMMIT_REF_SLUG"
        assert set(job.id_tokens) == {"GLGPU_GOOGLE_ID_TOKEN"}
    stop = pipeline.job("stop")
    assert stop.allow_failure
    assert stop.needs == ()
    assert stop.environment is not None
    assert stop.environment.action == "stop"


def test_each_job_is_tried_again_when_a_try_can_help() -> None:
    pipeline = compiled(readme_pipeline(), SET_UP)
    lost_runner = ("runner_system_failure", "stuck_or_timeout_failure")
    found = {name: pipeline.job(name).retry for name in GPU_JOBS}
    # GitLab retries when either of the two lists fits; without `max` it would not retry at all.
    assert (found["provision"].max, found["provision"].when, found["provision"].exit_codes) == (1, lost_runner, (18,))
    assert (found["train"].max, found["train"].when, found["train"].exit_codes) == (2, lost_runner, (13, 18, 19, 137))
    assert (found["destroy"].max, found["destroy"].when, found["destroy"].exit_codes) == (2, ("always",), ())
    assert found["stop"].max == 0
    for job in pipeline.jobs:
        assert job.variables["FF_USE_NEW_BASH_EVAL_STRATEGY"].value == "true"


def test_a_cancelled_job_ends_its_vm_with_what_the_image_has() -> None:
    pipeline = compiled(readme_pipeline(), SET_UP)
    cancelled = 'if [ "$CI_JOB_STATUS" {} ]; then glgpu destroy --cloud-only; fi'
    # A train job that is retried after the pipeline's end and runs out of time has no destroy job behind it.
    late = 'if [ "$CI_JOB_STATUS" = timedout ]; then glgpu destroy; fi'
    assert pipeline.job("provision").after_script == (cancelled.format("!= success"),)
    assert pipeline.job("train").after_script == (cancelled.format("= canceled"), late)
    # Nothing is installed on the way: the script's container is gone when after_script runs.
    assert all(pipeline.job(name).before_script == () for name in ("provision", "train"))
    assert TRAIN_FILE[".glgpu"]["inherit"] == {"default": ["tags"]}


@pytest.mark.parametrize("provider", ["", SET_UP["GLGPU_WIF_PROVIDER"]], ids=["no provider", "a provider"])
def test_the_audience_of_the_identity_token_is_never_empty(provider: str) -> None:
    variables = {"GLGPU_PROJECT": "my-dl", "GOOGLE_CREDENTIALS": "x", "GLGPU_WIF_PROVIDER": provider}
    job = compiled(readme_pipeline(), variables).job("provision")
    known = expand_all({name: Variable(value) for name, value in variables.items()} | job.variables)
    (audience,) = (expand(text, known) for text in job.id_tokens["GLGPU_GOOGLE_ID_TOKEN"])
    assert audience == f"https://iam.googleapis.com/{provider}"


def test_outputs_come_home_however_a_job_ends_and_glgpu_s_own_folder_does_not() -> None:
    pipeline = compiled(readme_pipeline(), SET_UP)
    for name in GPU_JOBS:
        artifacts = pipeline.job(name).artifacts
        assert artifacts is not None
        assert (artifacts.paths, artifacts.when) == (("outputs/",), "always")
        assert artifacts.exclude == (".glgpu/**/*",)
    for name in ("destroy", "stop"):
        assert pipeline.job(name).variables["GIT_STRATEGY"].value == "none"
    assert pipeline.job("destroy").dependencies == ("provision",)


@pytest.mark.parametrize("name", INCLUDED)
def test_an_included_file_sets_no_globals(name: str) -> None:
    header, jobs = yaml.safe_load_all((ROOT / "ci" / name).read_text(encoding="utf-8"))
    assert set(header) == {"spec"}
    assert not set(jobs) & ROOT_KEYS
    assert all(spec.get("description") for spec in header["spec"]["inputs"].values())
    if name in ("train.yml", "notebook.yml", "cleanup.yml"):
        # Hidden names of ours begin with our own; the others have a prefix that an adopter can set.
        assert all(key.startswith((".glgpu", "$[[ inputs.prefix ]]")) for key in jobs)
        assert [key for key, spec in header["spec"]["inputs"].items() if "default" not in spec] == ["image"]


def script_lines() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "ci").glob("*.yml")):
        for name, job in list(yaml.safe_load_all(path.read_text(encoding="utf-8")))[-1].items():
            for part in ("before_script", "script", "after_script"):
                lines: Any = (job or {}).get(part, [])
                for line in [lines] if isinstance(lines, str) else lines:
                    yield f"{path.name}:{name}", line


def test_every_job_calls_a_command_that_exists() -> None:
    cli = importlib.import_module("glgpu.cli")
    group = next(value for value in vars(cli).values() if isinstance(value, click.Group))
    calls = [
        (where, shlex.split(call))
        for where, line in script_lines()
        for call in re.findall(r"(?:^|[;&|] *|then )glgpu ([^;&|]*)", line)
    ]
    assert {words[0] for _, words in calls} == {"provision", "train", "destroy", "notebook", "cleanup"}
    for where, (name, *options) in calls:
        command = group.get_command(click.Context(group), name)
        assert command is not None, f"{where} calls `glgpu {name}`"
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), options.pop(0))
            assert command is not None, f"{where} calls `glgpu {name}`"
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(options) <= known, f"{where} calls `glgpu {name} {' '.join(options)}`"


def test_every_gpu_job_is_one_line_and_every_script_of_the_home_exists() -> None:
    for where, line in script_lines():
        for called in re.findall(r"(?:^|\s)\./(\S+)", line):
            assert (ROOT / called).is_file(), f"{where} calls ./{called}"
    scripts = {job.name: job.script for job in compiled(readme_pipeline(), SET_UP).jobs}
    assert scripts == {
        "provision": ("glgpu provision",),
        "train": ("glgpu train",),
        "destroy": ("glgpu destroy",),
        "stop": ("glgpu destroy --branch",),
        "start notebook": ("glgpu notebook start",),
        "stop notebook": ("glgpu notebook stop",),
    }


CLEANUP_PIPELINE = """\
stages: [lint, provision, train, destroy]
include:
  - project: group/glgpu
    ref: main
    file: [ci/train.yml, ci/notebook.yml, ci/cleanup.yml]
    inputs: {image: "img:1"}
lint:
  stage: lint
  script: make lint
  rules: [{if: $CI_PIPELINE_SOURCE == "push"}]
"""
CLEANUP = {"GLGPU_TASK": "cleanup"}
CLEANUP_MATRIX: dict[str, tuple[dict[str, str], str, bool]] = {
    "its schedule": (SET_UP | CLEANUP, "schedule", True),
    "by hand": (SET_UP | CLEANUP, "web", True),
    "by the API": (SET_UP | CLEANUP, "api", True),
    "by trigger": (SET_UP | CLEANUP, "trigger", True),
    "another schedule": (SET_UP, "schedule", False),
    "a schedule for training": (SET_UP | {"GLGPU_TASK": "train"}, "schedule", False),
    "a push with the variable for all": (SET_UP | CLEANUP, "push", False),
    "a merge request": (SET_UP | CLEANUP, "merge_request_event", False),
    "its schedule with nothing set up, which is to be red and not silent": (CLEANUP, "schedule", True),
}


def cleanup_pipeline(**inputs: str) -> str:
    config = yaml.safe_load(CLEANUP_PIPELINE)
    both = config["include"][0]
    config["include"] = [
        *({**both, "file": f"ci/{name}.yml"} for name in ("train", "notebook")),
        {**both, "file": "ci/cleanup.yml", "inputs": both["inputs"] | inputs},
    ]
    return yaml.safe_dump(config)


@pytest.mark.parametrize("case", CLEANUP_MATRIX)
def test_the_cleanup_job_runs_for_its_task_and_for_nothing_else(case: str) -> None:
    variables, source, wanted = CLEANUP_MATRIX[case]
    jobs = jobs_of(cleanup_pipeline(), variables, {"CI_PIPELINE_SOURCE": source})
    assert ("cleanup" in jobs) is wanted
    if wanted:
        assert jobs == {"cleanup": "on_success"}


@pytest.mark.parametrize("case", CLEANUP_MATRIX)
def test_gitlab_ci_local_judges_the_cleanup_s_rules_alike(case: str, tmp_path: Path) -> None:
    gitlab_ci_local.require()
    variables, source, wanted = CLEANUP_MATRIX[case]
    text = cleanup_pipeline() + "\nother:\n  stage: lint\n  script: [echo]\n"
    folder = gitlab_ci_local.repository(tmp_path, {".gitlab-ci.yml": text})
    gitlab_ci_local.provide_home(folder)
    found = gitlab_ci_local.jobs(folder, PUSH | {"CI_PIPELINE_SOURCE": source} | variables)
    assert ("cleanup" in found) is wanted


def test_a_cleanup_needs_no_code_and_no_job_before_it_and_brings_home_what_it_saves() -> None:
    text = cleanup_pipeline(prefix="gpu-", stage="train", tag="cheap", google_project="from-input")
    (job,) = compiled(text, CLEANUP | {"GOOGLE_CREDENTIALS": "x"}, CI_PIPELINE_SOURCE="schedule").jobs
    values = {name: variable.value for name, variable in job.variables.items()}
    assert (job.name, job.stage, job.tags, job.needs) == ("gpu-cleanup", "train", ("cheap",), ())
    assert job.script == ("glgpu cleanup",)
    assert (values["GIT_STRATEGY"], values["GLGPU_PROJECT"]) == ("none", "from-input")
    assert values["FF_USE_NEW_BASH_EVAL_STRATEGY"] == "true"
    assert not job.interruptible
    assert set(job.id_tokens) == {"GLGPU_GOOGLE_ID_TOKEN"}
    assert job.artifacts is not None
    assert (job.artifacts.paths, job.artifacts.when) == (("outputs/",), "always")
    script, after = (parse_duration(values[f"RUNNER_{name}_TIMEOUT"]) for name in ("SCRIPT", "AFTER_SCRIPT"))
    assert script is not None
    assert after is not None
    assert job.timeout is not None
    # It has ended before the next hourly one begins.
    assert script + after < job.timeout < 3600
    assert (job.retry.max, job.retry.exit_codes) == (1, (18,))


def notebook_pipeline(**inputs: str) -> str:
    config = yaml.safe_load(readme_pipeline())
    config["include"] = config["include"][1:2]
    config["include"][0]["inputs"] |= inputs
    return yaml.safe_dump(config)


def test_a_notebook_waits_for_a_click_and_nothing_waits_for_it() -> None:
    pipeline = compiled(notebook_pipeline(), SET_UP)
    assert {job.name: job.when for job in pipeline.jobs} == NOTEBOOK_JOBS
    for job in pipeline.jobs:
        assert job.allow_failure
        assert job.needs == ()
        assert not job.interruptible
        assert job.stage == "destroy"
        assert set(job.id_tokens) == {"GLGPU_GOOGLE_ID_TOKEN"}
        assert job.variables["FF_USE_NEW_BASH_EVAL_STRATEGY"].value == "true"
        assert job.environment is not None
        # CI_PIPELINE_ID is empty when GitLab makes the name.
        assert job.environment.name == "notebook/$CI_COMMIT_REF_SLUG/$CI_PIPELINE_IID"
        assert job.artifacts is not None
        assert (job.artifacts.paths, job.artifacts.when) == (("outputs/",), "always")


def test_a_notebook_s_stop_job_is_one_that_gitlab_takes_for_its_environment() -> None:
    pipeline = compiled(notebook_pipeline(prefix="gpu-", auto_stop_in="9 hours"), SET_UP)
    start, stop = (pipeline.job(f"gpu-{name}") for name in NOTEBOOK_JOBS)
    assert start.environment is not None
    assert stop.environment is not None
    assert (start.environment.on_stop, start.environment.auto_stop_in) == ("gpu-stop notebook", "9 hours")
    assert (stop.environment.action, stop.when) == ("stop", "manual")
    assert stop.variables["GIT_STRATEGY"].value == "none"
    assert stop.after_script == ()
    assert start.after_script == ('if [ "$CI_JOB_STATUS" != success ]; then glgpu notebook stop --cloud-only; fi',)
    assert (start.retry.max, start.retry.exit_codes, stop.retry.max) == (1, (18,), 2)


def test_a_notebook_s_jobs_end_in_time_for_their_after_script_and_take_inputs() -> None:
    text = notebook_pipeline(google_project="from-input", config="sub/glgpu.yml", tag="gpu-runner", stage="test")
    for job in compiled(text, {"GOOGLE_CREDENTIALS": "x"}).jobs:
        values = {name: variable.value for name, variable in job.variables.items()}
        script, after = (parse_duration(values[f"RUNNER_{name}_TIMEOUT"]) for name in ("SCRIPT", "AFTER_SCRIPT"))
        assert script is not None
        assert after is not None
        assert job.timeout is not None
        assert script + after < job.timeout < 3 * 3600
        assert (job.stage, job.tags) == ("test", ("gpu-runner",))
        assert (values["GLGPU_PROJECT"], values["GLGPU_CONFIG"]) == ("from-input", "sub/glgpu.yml")


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == __version__
    own = yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text(encoding="utf-8"))
    images = [item["inputs"]["image"] for item in own["include"] if "image" in item.get("inputs", {})]
    assert set(images) == {f"$CI_REGISTRY_IMAGE/job:{__version__}"}
    assert f"$CI_REGISTRY/group/glgpu/job:{__version__}" in readme_pipeline()
