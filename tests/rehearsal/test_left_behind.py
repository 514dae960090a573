"""However a rehearsal or a job of it ends: nothing of it lives on."""

from __future__ import annotations

import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rehearsing import rehearse, remains, repository, started

LONG_TRAINING = """\
import pathlib, time
pathlib.Path("weights").mkdir()
pathlib.Path("weights/w.bin").write_bytes(b"half")
print("half way", flush=True)
time.sleep(600)
"""


def until(process: subprocess.Popen[str], words: str) -> str:
    """What a rehearsal prints up to and with a line that holds these words."""
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"it ended with {process.wait()} before it said {words!r}: {said}")


def marks(folder: Path, said: str) -> list[str]:
    """The names that everything of a rehearsal bears: its folder, and its run's name."""
    return [f"{folder}/tmp/", *re.findall(r"glgpu-[0-9a-f]{6}-\d+-\d+-train", said)[:1]]


def assert_clean(folder: Path, names: list[str]) -> None:
    assert remains(names) == []
    assert list((folder / "tmp").iterdir()) == []
    assert list((folder / "cache").glob("glgpu/rehearsals/*")) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        pytest.param(signal.SIGTERM, "half way", id="SIGTERM in train"),
        pytest.param(signal.SIGINT, "runs in europe-west4-a", id="SIGINT in provision"),
        pytest.param(signal.SIGINT, "half way", id="SIGINT in train", marks=pytest.mark.every_fault),
        pytest.param(signal.SIGTERM, "terraform: ", id="SIGTERM in terraform", marks=pytest.mark.every_fault),
        pytest.param(signal.SIGTERM, "containers: ", id="SIGTERM at the start"),
    ],
)
def test_after_a_signal_everything_is_gone(number: signal.Signals, words: str, tmp_path: Path) -> None:
    own = repository(tmp_path / "repository", {"train.py": LONG_TRAINING})
    with started(tmp_path, own) as process:
        said = until(process, words)
        process.send_signal(number)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 19, said + rest
    assert f"glgpu: INTERRUPTED (exit code 19): interrupted by {number.name}" in rest
    assert "Traceback" not in rest
    assert_clean(tmp_path, marks(tmp_path, said))


def suspend_jobs(folder: Path) -> None:
    """Keep the processes of jobs from ending by themselves: they would, with the stand-ins gone."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("HOME", "").startswith(f"{folder}/tmp/"):
                process.suspend()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("runs in europe-west4-a", id="provision", marks=pytest.mark.every_fault),
        pytest.param("half way", id="train"),
        pytest.param("$ glgpu destroy", id="destroy", marks=pytest.mark.every_fault),
    ],
)
def test_what_a_killed_rehearsal_leaves_is_reaped(words: str, tmp_path: Path) -> None:
    files = {} if words == "$ glgpu destroy" else {"train.py": LONG_TRAINING}
    own = repository(tmp_path / "repository", files)
    with started(tmp_path, own) as process:
        said = until(process, words)
        process.kill()
        suspend_jobs(tmp_path)
    names = marks(tmp_path, said)
    assert remains(names), "a job of it should still be there"
    cleaned = rehearse(tmp_path, "--clean")
    assert cleaned.code == 0, cleaned.text
    assert "1 rehearsals reaped" in cleaned.text
    assert_clean(tmp_path, names)
    assert "0 rehearsals reaped" in rehearse(tmp_path, "--clean").text


def test_a_rehearsal_that_still_runs_is_not_reaped(tmp_path: Path) -> None:
    with started(tmp_path, "--serve") as process:
        until(process, "compute_endpoint")
        cleaned = rehearse(tmp_path, "--clean")
        assert "still runs; left alone" in cleaned.text
        assert "0 rehearsals reaped" in cleaned.text
        assert process.poll() is None
        process.kill()
    assert "1 rehearsals reaped" in rehearse(tmp_path, "--clean").text
    assert_clean(tmp_path, marks(tmp_path, ""))


def test_a_rehearsal_that_ends_while_others_are_reaped_is_passed_over(tmp_path: Path) -> None:
    notes = tmp_path / "cache/glgpu/rehearsals"
    notes.mkdir(parents=True)
    # Listed, and gone when it is opened.
    (notes / "glgpu-00000000").symlink_to(notes / "gone")
    cleaned = rehearse(tmp_path, "--clean")
    assert cleaned.code == 0, cleaned.text
    assert "0 rehearsals reaped" in cleaned.text
