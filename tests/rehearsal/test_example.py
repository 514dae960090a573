"""The text generation example as a process: it learns honestly, and can be stopped anywhere."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "text-generation"
TINY = {"STEPS": "20", "HIDDEN": "16", "BATCH": "8"}


def start(folder: Path, **settings: str) -> subprocess.Popen[str]:
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **settings}
    return subprocess.Popen(
        [sys.executable, str(EXAMPLE / "train.py")], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(folder: Path, **settings: str) -> str:
    process = start(folder, **settings)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def metrics(folder: Path) -> dict[str, float]:
    loaded: dict[str, float] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(folder)
    return folder


def test_it_learns_more_than_how_often_each_character_occurs(trained: Path) -> None:
    learned = metrics(trained)
    assert learned["held_out_loss_nats_per_character"] < learned["unigram_entropy_nats_per_character"]


def test_it_learns_nothing_at_a_learning_rate_of_zero(tmp_path: Path) -> None:
    run(tmp_path, LEARNING_RATE="0", EPOCHS="1", STEPS="20")
    learned = metrics(tmp_path)
    assert learned["held_out_loss_nats_per_character"] > learned["unigram_entropy_nats_per_character"]


def test_it_leaves_weights_a_sample_per_epoch_and_metrics(trained: Path) -> None:
    left = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert left == {
        "weights/lstm.npz", "weights/vocabulary.json", "metrics.json", "checkpoints/latest.npz",
        "samples/epoch-1.txt", "samples/epoch-2.txt", "samples/epoch-3.txt",
    }  # fmt: skip
    with np.load(trained / "weights" / "lstm.npz") as weights:
        vocabulary = json.loads((trained / "weights" / "vocabulary.json").read_text(encoding="utf-8"))
        assert weights["output"].shape[1] == len(vocabulary)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_training_goes_on_to_the_same_weights(number: signal.Signals, tmp_path: Path) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    stopped.mkdir()
    whole.mkdir()
    process = start(stopped, **TINY, EPOCHS="100000")
    assert process.stdout
    for line in process.stdout:
        if line.startswith("epoch 2 "):
            break
    process.send_signal(number)
    rest, _ = process.communicate()
    if number is signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert "the checkpoint is saved" in rest
    epochs = str(metrics(stopped)["steps"] // 20 + 2)
    assert "resumed after step" in run(stopped, **TINY, EPOCHS=epochs)
    run(whole, **TINY, EPOCHS=epochs)
    assert (stopped / "weights" / "lstm.npz").read_bytes() == (whole / "weights" / "lstm.npz").read_bytes()
    assert {**metrics(stopped), "seconds": 0} == {**metrics(whole), "seconds": 0}


def test_the_notebook_reads_the_weights_and_writes(trained: Path) -> None:
    cells = json.loads((EXAMPLE / "explore.ipynb").read_text(encoding="utf-8"))["cells"]
    script = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(EXAMPLE), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=trained, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "unigram entropy" in done.stdout
    assert done.stdout.count("-" * 80) == 3
