"""Exit codes are a contract: one meaning each."""

from __future__ import annotations

import ast
from pathlib import Path

import gitlab
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import Stage
from glgpu.clients.gitlab_project import GitlabProject
from glgpu.errors import EXIT_CODES, EXIT_MEANINGS, ErrorClass, Failure, gravest, one_line, unwrapped

SOURCE = Path(__file__).resolve().parents[2] / "src/glgpu"

FAMILIES = {
    1: "BUG",
    2: "USAGE CONFIG NOT_AVAILABLE",
    10: "STOCKOUT",
    11: "TERRAFORM CONFLICT NOT_FOUND UNKNOWN",
    12: "GITLAB GITLAB_AUTH STATE_LOCK STATE_ACCESS",
    13: "SSH",
    14: "QUOTA_GLOBAL QUOTA_REGION LIVE_VMS",
    15: "PERMISSION AUTH ORG_POLICY API_DISABLED BILLING",
    16: "DRIVER",
    17: "IMAGE IMAGE_PULL CODE",
    18: "NETWORK RATE_LIMIT TRANSIENT",
    19: "INTERRUPTED",
    20: "TRAINING_FAILED OOM",
    21: "NO_WEIGHTS",
    22: "OUT_OF_TIME",
    23: "PREEMPTED",
    30: "STILL_ALIVE",
    31: "LEFT_BEHIND",
    40: "DISK_FULL TOOL_MISSING",
}
"""The contract, written out a second time: a code that moves would break somebody's retry rules."""


def failure(klass: ErrorClass) -> Failure:
    return Failure(klass, "cause", "remedy")


def test_every_class_has_the_exit_code_of_the_contract() -> None:
    assert {klass: code for code, names in FAMILIES.items() for klass in names.split()} == EXIT_CODES
    assert set(EXIT_CODES) == set(ErrorClass)


def test_every_exit_code_has_one_meaning_and_no_meaning_two() -> None:
    assert set(EXIT_CODES.values()) <= set(EXIT_MEANINGS)
    assert len(set(EXIT_MEANINGS.values())) == len(EXIT_MEANINGS)
    assert 0 not in EXIT_CODES.values()
    assert all(0 <= code < 126 for code in EXIT_MEANINGS), "from 126 on a shell has meanings of its own"


def test_the_codes_stand_in_one_place() -> None:
    def returned(path: Path) -> set[int]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        ends = [call for call in calls if ast.unparse(call.func) in ("sys.exit", "exit", "SystemExit")]
        return {arg.value for call in ends for arg in call.args if isinstance(arg, ast.Constant)}

    product = [path for path in SOURCE.rglob("*.py") if "rehearsal" not in path.parts]
    assert set().union(*map(returned, product)) <= set(EXIT_MEANINGS)


@pytest.mark.parametrize("klass", ErrorClass)
def test_a_failure_knows_its_exit_code(klass: ErrorClass) -> None:
    assert failure(klass).exit_code == EXIT_CODES[klass]


@given(text=st.text())
def test_cause_and_remedy_are_one_line_each(text: str) -> None:
    made = Failure(ErrorClass.SSH, text, text, evidence=text)
    assert len(f"{made.cause}|{made.remedy}".splitlines()) <= 1
    assert str(made) == made.cause == one_line(text)
    assert made.evidence == text


def test_a_living_vm_is_graver_than_whatever_came_first() -> None:
    first, second, alive = map(failure, (ErrorClass.OOM, ErrorClass.NETWORK, ErrorClass.STILL_ALIVE))
    assert gravest([first, second, alive]) is alive
    assert gravest([first, second]) is first
    assert gravest([]) is None


def parsing(failure: Failure) -> None:
    """A library's parser, in which a signal strikes."""
    try:
        raise failure
    except Exception as error:
        raise ValueError(f"Failed to parse JSON: {error}") from error


def test_a_signal_within_a_library_is_not_taken_for_its_error() -> None:
    signal = Failure(ErrorClass.INTERRUPTED, "interrupted by SIGTERM", "run it again")
    with pytest.raises(Failure) as caught, unwrapped():
        parsing(signal)
    assert caught.value is signal


@pytest.mark.parametrize("ask", ["parts", "deploy_tokens"])
def test_a_signal_while_gitlabs_answer_is_read_is_no_answer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    def http_list(*_: object, **__: object) -> None:
        try:
            raise Failure(ErrorClass.INTERRUPTED, "interrupted by SIGTERM", "run it again")
        except Exception as error:
            raise gitlab.GitlabParsingError("Failed to parse the server message") from error

    monkeypatch.setattr(gitlab.Gitlab, "http_list", http_list)
    forge = GitlabProject(stage.run.job)
    with pytest.raises(Failure) as caught:
        forge.parts(stage.run.name) if ask == "parts" else forge.deploy_tokens()
    assert caught.value.klass is ErrorClass.INTERRUPTED


def test_a_failure_that_is_being_dealt_with_is_not_taken_for_a_later_one() -> None:
    def deal_with_it() -> None:
        try:
            raise Failure(ErrorClass.SSH, "lost", "retry")
        except Failure:
            with unwrapped():
                int("another thing")

    with pytest.raises(ValueError, match="another thing"):
        deal_with_it()


def test_a_librarys_own_error_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="bad input"), unwrapped():
        raise ValueError("bad input")
