"""`glgpu explain`: a pasted text in, an answer out, and no secret with it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from glgpu.cli import cli
from glgpu.console import Console
from glgpu.errors import ErrorClass, Failure
from glgpu.masking import MASK
from glgpu.stages.explain import LONGEST_INPUT, explain, read_tail
from glgpu.wiring import make_console

STOCKOUT = (
    "Error: Error waiting for instance to create: The zone 'projects/my-dl/zones/us-central1-a' does not have enough "
    "resources available to fulfill the request.  '(resource type:compute)'.\n\nConsider trying your request in the "
    "us-central1-c zone(s), which currently has capacity to accommodate your request.\n"
)
TOKENS = [
    "glpat-A1b2C3d4E5f6G7h8I9j0",
    "glcbt-64_A1b2C3d4E5f6G7h8",
    "ya29.a0AfB_byC1d2E3f4G5h6I7j8",
    "AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2",
    "ghp_A1b2C3d4E5f6G7h8I9j0K1l2M3n4",
    "hf_A1b2C3d4E5f6G7h8I9j0K1l2",
    "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJwcm9qZWN0In0.c2lnbmF0dXJl",
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----",
]


def said(text: bytes, environment: dict[str, str] | None = None, *, as_json: bool = False) -> str:
    out = io.BytesIO()
    explain(Console(make_console({}).masker, stream=out), io.BytesIO(text), environment or {}, as_json=as_json)
    return out.getvalue().decode()


def test_the_answer_is_class_cause_remedy_exit_code_and_retry() -> None:
    lines = said(STOCKOUT.encode()).splitlines()
    assert [line.split(":")[0] for line in lines] == ["class", "cause", "remedy", "exit code", "retry"]
    assert lines[0].endswith("STOCKOUT")
    assert "us-central1-c has capacity" in lines[2]
    assert "10 (no capacity in any candidate)" in lines[3]
    assert "can help" in lines[4]


def test_the_json_has_exactly_the_agreed_keys() -> None:
    answer = json.loads(said(STOCKOUT.encode(), as_json=True))
    assert list(answer) == ["class", "cause", "remedy", "exit_code", "retry"]
    assert (answer["class"], answer["exit_code"], answer["retry"]) == ("STOCKOUT", 10, True)


def test_an_unknown_text_is_an_answer_too() -> None:
    answer = json.loads(said(b"Segmentation fault (core dumped)", as_json=True))
    assert (answer["class"], answer["exit_code"], answer["retry"]) == ("UNKNOWN", 11, False)
    assert answer["cause"] == "Segmentation fault (core dumped)"


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("frame", ["{}", "fatal: {} went wrong", "https://oauth2:{}@gitlab.example.com/x", "Bearer {}"])
def test_what_looks_like_a_secret_is_masked(token: str, frame: str) -> None:
    for as_json in (False, True):
        shown = said(frame.format(token).encode(), as_json=as_json)
        assert MASK in shown
        assert token not in shown
        assert token.splitlines()[-1][:20] not in shown or token.splitlines()[-1].startswith("-----END")


def test_a_password_in_an_address_is_masked() -> None:
    shown = said(b"unclear: https://me:hunter2secret@example.com/x")
    assert "hunter2secret" not in shown
    assert "example.com" in shown


def test_what_this_process_knows_as_a_secret_is_masked() -> None:
    environment = {"TEAM_API_TOKEN": "plain-words-as-a-token", "LANG": "en_GB.UTF-8", "MODE_KEY": "on"}
    shown = said(b"odd: plain-words-as-a-token en_GB.UTF-8 on", environment)
    assert "plain-words-as-a-token" not in shown
    assert "en_GB.UTF-8 on" in shown


@pytest.mark.parametrize("text", [b"", b" \n\t\n"])
def test_nothing_to_explain_is_refused(text: bytes) -> None:
    with pytest.raises(Failure) as raised:
        said(text)
    assert raised.value.klass is ErrorClass.USAGE


def test_of_an_endless_text_the_end_is_kept() -> None:
    text = b"x" * (3 * LONGEST_INPUT) + b"the end"
    kept = read_tail(io.BytesIO(text))
    assert len(kept) == LONGEST_INPUT
    assert kept.endswith(b"the end")


def test_bytes_that_are_no_text_are_no_reason_to_fail() -> None:
    assert "DISK_FULL" in said(b"\xff\xfe no space left on device \x80")


def test_the_command_reads_a_file_or_standard_input(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    path.write_text(STOCKOUT)
    results = [
        CliRunner().invoke(cli, ["explain", str(path)]),
        CliRunner().invoke(cli, ["explain", "-"], input=STOCKOUT),
        CliRunner().invoke(cli, ["explain"], input=STOCKOUT),
    ]
    assert [result.exit_code for result in results] == [0, 0, 0]
    assert len({result.output for result in results}) == 1
    assert CliRunner().invoke(cli, ["explain"], input=" ").exit_code == 2
    assert CliRunner().invoke(cli, ["explain", str(tmp_path / "none")]).exit_code == 2
