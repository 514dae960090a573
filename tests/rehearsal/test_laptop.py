"""`glgpu run` from a laptop: no GitLab job around it, one command for the whole life, Ctrl-C included."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rehearsing import GLGPU
from serving import Served, stand_ins

ROOT = Path(__file__).parents[2]


@pytest.fixture
def served() -> Iterator[Served]:
    with stand_ins(GLGPU, ROOT / "examples/text-generation") as world:
        yield world


def laptop(served: Served, **own: str) -> dict[str, str]:
    """What a person has set: where the cloud is and how to log in there, and nothing of GitLab's."""
    ours = {k: v for k, v in served.environment.items() if k.startswith(("GLGPU_", "GOOGLE_")) and "TOKEN" not in k}
    token = {"GOOGLE_OAUTH_ACCESS_TOKEN": served.told["google_access_token"]}
    around = {k: v for k, v in os.environ.items() if not k.startswith(("CI", "GITLAB_", "GLGPU_"))}
    return {**around, **ours, **token, **own}


def checkout(folder: Path) -> Path:
    work = folder / "work"
    shutil.copytree(ROOT / "examples/text-generation", work, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(work), "-c", "user.name=A", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "1"]):
        subprocess.run([*git, *words], check=True)
    return work


def glgpu_run(work: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [GLGPU, "run"],
        cwd=work,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_one_command_trains_and_leaves_weights_and_nothing_else(served: Served, tmp_path: Path) -> None:
    work = checkout(tmp_path)
    before = {path.name for path in work.iterdir()}
    with (work / "README.md").open("a") as file:
        file.write("changed here\n")
    process = glgpu_run(work, laptop(served, GLGPU_TRAIN_ENV="EPOCHS=1,STEPS=20"))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "1 files differ from commit" in said
    assert {path.name for path in work.iterdir()} == {*before, "outputs"}
    assert (work / "outputs/weights/lstm.npz").stat().st_size > 0
    assert served.left() == {}


def look_in(work: Path, environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GLGPU, *words], cwd=work, env=dict(environment), capture_output=True, text=True, timeout=60,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def test_a_training_is_looked_in_on_and_ctrl_c_tears_everything_down(served: Served, tmp_path: Path) -> None:
    work = checkout(tmp_path)
    process = glgpu_run(work, laptop(served, GLGPU_TRAIN_ENV="EPOCHS=1000"))
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "nats/character, " in line:
            # From the same folder, and behind the same address: neither key nor door of the run may suffer.
            log = look_in(work, laptop(served), "logs", "-n", "1")
            assert (log.returncode, "nats/character" in log.stdout) == (0, True), log.stderr
            assert "the training runs" in log.stderr
            there = look_in(work, laptop(served), "ssh", "--", "nvidia-smi -L; exit 7")
            assert (there.returncode, there.stdout[:16]) == (7, "GPU 0: NVIDIA L4"), there.stderr
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=120)
    text = "".join(said) + rest
    assert process.returncode == 19, text
    assert "INTERRUPTED" in text
    # What the training had saved by then is home.
    assert (work / "outputs/checkpoints/latest.npz").exists(), text
    assert served.left() == {}
