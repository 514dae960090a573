"""The command line: exit codes, no traceback for what a user can cause, no scratch left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from fakes import Stage, refusal
from glgpu import wiring
from glgpu.cli import cli
from glgpu.errors import EXIT_CODES, ErrorClass

COMMANDS = [
    "init", "doctor", "gpus", "provision", "authorize", "train", "notebook", "destroy", "cleanup", "collect",
    "status", "logs", "ssh", "fetch", "run", "explain", "rehearse",
]  # fmt: skip
NOTEBOOK_COMMANDS = ["start", "open", "stop", "status", "extend"]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A command takes over the signals of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def play(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Play a command whose stage does what is given."""

    def played(command: str, does: Callable[[Any], None], *words: str, **options: Any) -> Result:
        def make_run(console: object, *_: object, **__: object) -> Any:
            stage.use(console=console)
            stage.run.job.scratch.mkdir(exist_ok=True)
            (stage.run.job.scratch / "login").write_text("key")
            return stage.run

        monkeypatch.setattr(wiring, "make_run", make_run)
        target = "glgpu.life_cycle.whole_life" if command == "run" else f"glgpu.stages.{command}.{command}"
        monkeypatch.setattr(target, lambda run, *_: does(run))
        return CliRunner().invoke(cli, [command, *words], **options)

    return played


def raises(error: BaseException) -> Callable[[Any], None]:
    def stage(_: Any) -> None:
        raise error

    return stage


def nothing(_: Any) -> None:
    pass


def test_the_commands_stand_in_the_order_of_a_runs_life() -> None:
    assert list(cli.commands) == COMMANDS
    notebook = cli.commands["notebook"]
    assert isinstance(notebook, click.Group)
    assert set(NOTEBOOK_COMMANDS) <= set(notebook.commands)


@pytest.mark.parametrize("command", ["", *COMMANDS, *(f"notebook {name}" for name in NOTEBOOK_COMMANDS)])
def test_every_help_shows_an_example(command: str) -> None:
    told = CliRunner().invoke(cli, [*command.split(), "--help"])
    assert told.exit_code == 0
    assert "Example:" in told.output


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-command"],
        ["train", "--no-such-option"],
        ["train", "surplus"],
        ["train", "--config"],
        ["rehearse", "/no/such/folder"],
        ["destroy", "--cloud-only", "--branch"],
    ],
)
def test_wrong_usage_is_2_and_no_bug(words: list[str]) -> None:
    told = CliRunner().invoke(cli, words)
    assert told.exit_code == 2
    assert "Traceback" not in told.output
    assert "bug" not in told.output


@pytest.mark.parametrize("klass", list(ErrorClass))
def test_a_failure_is_its_exit_code_one_cause_and_one_remedy(play: Callable[..., Result], klass: ErrorClass) -> None:
    told = play("train", raises(refusal(klass, "what happened")))
    assert told.exit_code == EXIT_CODES[klass]
    *_, cause, remedy = told.output.splitlines()
    assert cause == f"glgpu: {klass} (exit code {EXIT_CODES[klass]}): what happened"
    assert remedy == "glgpu: remedy: none"
    assert "Traceback" not in told.output


def test_a_bug_prints_one_traceback_and_is_1(play: Callable[..., Result]) -> None:
    told = play("train", raises(ZeroDivisionError("a mistake")))
    assert told.exit_code == 1
    assert told.output.count("Traceback") == 1
    assert "a bug in glgpu: ZeroDivisionError: a mistake" in told.output


def test_an_abort_at_a_prompt_is_19(play: Callable[..., Result]) -> None:
    assert play("train", raises(click.Abort())).exit_code == 19


def test_the_end_of_input_at_a_question_of_init_is_19(tmp_path: Path) -> None:
    told = CliRunner().invoke(cli, ["init", "--folder", str(tmp_path)], input="")
    assert told.exit_code == 19
    assert "Traceback" not in told.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_19(play: Callable[..., Result], number: signal.Signals) -> None:
    told = play("train", lambda _: os.kill(os.getpid(), number))
    assert told.exit_code == 19
    assert f"interrupted by {number.name}" in told.output


def test_a_signal_does_not_disturb_the_last_word(play: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    from glgpu.console import Console

    said = Console.failure

    def interrupted(console: Console, failure: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        said(console, failure)

    monkeypatch.setattr(Console, "failure", interrupted)
    told = play("train", raises(refusal(ErrorClass.TRAINING_FAILED, "what happened")))
    assert told.exit_code == 20
    assert "what happened" in told.output


@pytest.mark.parametrize("command", ["provision", "authorize", "train", "destroy", "cleanup", "run"])
@pytest.mark.parametrize("error", [None, refusal(ErrorClass.SSH), RuntimeError("a mistake"), click.Abort()])
def test_the_scratch_folder_is_gone_after_every_command(
    play: Callable[..., Result], stage: Stage, command: str, error: BaseException | None
) -> None:
    play(command, raises(error) if error else nothing)
    assert not stage.run.job.scratch.exists()


def test_after_a_signal_to_a_job_the_scratch_folder_stays_for_after_script(
    play: Callable[..., Result], stage: Stage
) -> None:
    play("train", raises(refusal(ErrorClass.INTERRUPTED)))
    assert (stage.run.job.scratch / "login").exists()


def test_after_a_signal_on_a_laptop_it_goes(play: Callable[..., Result], stage: Stage) -> None:
    stage.job(job_id="")
    play("run", raises(refusal(ErrorClass.INTERRUPTED)))
    assert not stage.run.job.scratch.exists()


def test_a_failure_is_in_the_record(play: Callable[..., Result], stage: Stage) -> None:
    play("train", raises(refusal(ErrorClass.OOM)))
    event = stage.run.record.find("failed")
    assert event is not None
    assert event.facts == {"failure": "OOM", "cause": "refused", "exit_code": 20}


def test_cloud_only_plays_the_cancelled_jobs_teardown(
    play: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[object] = []
    monkeypatch.setattr("glgpu.stages.destroy.destroy_cloud_only", played.append)
    assert play("destroy", raises(AssertionError()), "--cloud-only").exit_code == 0
    assert len(played) == 1


def wired(folder: Path, **variables: str) -> Result:
    """`destroy` through the real wiring, ended before it talks to anybody."""
    environment = {
        "CI_PROJECT_DIR": str(folder), "CI_PIPELINE_ID": "1", "CI_JOB_ID": "2", "GLGPU_PROJECT": "my-dl",
        "CI_PROJECT_ID": "42", "CI_SERVER_URL": "", **variables,
    }  # fmt: skip
    return CliRunner().invoke(cli, ["destroy", "--cloud-only"], env=environment)


@pytest.mark.parametrize("text", ["nonsense: true\n", "", "a: &a [*a]\n", "\x00", "train: 3\n"])
def test_a_teardown_is_not_stopped_by_a_wrong_glgpu_yml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "glgpu.yml").write_text(text)
    played: list[object] = []
    monkeypatch.setattr("glgpu.stages.destroy.destroy_cloud_only", played.append)
    told = wired(tmp_path)
    assert told.exit_code == 0, told.output
    assert len(played) == 1
    assert "going on without" in told.output


@pytest.mark.parametrize(
    "variables",
    [
        {"CI_PROJECT_ID": "x"},
        {"CI_PIPELINE_ID": "../.."},
        {"GLGPU_PROJECT": ""},
        {"GLGPU_COMPUTE_ENDPOINT": "localhost"},
        {"DOCKER_AUTH_CONFIG": "{"},
        {"GLGPU_JOB_TIMEOUT": "soon"},
    ],
)
def test_a_variable_that_cannot_be_understood_is_2(tmp_path: Path, variables: dict[str, str]) -> None:
    told = wired(tmp_path, **variables)
    assert told.exit_code == 2, told.output
    assert "Traceback" not in told.output


def test_a_project_folder_that_cannot_be_written_is_40(tmp_path: Path) -> None:
    (tmp_path / ".glgpu").write_text("a file in the way")
    told = wired(tmp_path)
    assert told.exit_code == 40
    assert "Traceback" not in told.output


def test_fetch_on_a_laptop_says_which_token_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("CI_", "GLGPU_"))]:
        monkeypatch.delenv(name)
    where = ["--gitlab", "https://gitlab.example.com", "--project", "team/model", "--to", str(tmp_path)]
    told = CliRunner().invoke(cli, ["fetch", "1234", *where])
    assert told.exit_code == 12, told.output
    assert "the scope read_api will do" in told.output
