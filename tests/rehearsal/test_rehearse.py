"""`glgpu rehearse`: what it plays, prints and leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glgpu.gpu_samples import read_samples
from glgpu.losses import read_losses
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.gitlab_model import Variable
from rehearsing import GLGPU, Played, Rehearsed, docker, rehearse, remains, repository, started, world

DEAD = "http://127.0.0.1:9"
"""Nobody listens on the discard port."""
AWKWARD = {
    "LANG": "C", "LC_ALL": "C", "HTTP_PROXY": DEAD, "HTTPS_PROXY": DEAD, "http_proxy": DEAD, "https_proxy": DEAD,
}  # fmt: skip


@pytest.fixture(scope="module")
def green(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsed]:
    """The example, played in a folder with a blank in its name, without a language, behind a dead proxy."""
    folder = tmp_path_factory.mktemp("green") / "a b"
    played = rehearse(folder, "--keep", environment=AWKWARD, umask=0o077)
    yield played
    shutil.rmtree(folder / "tmp")


def calls(played: Rehearsed) -> list[dict[str, Any]]:
    kept = Path(played.line("kept: "))
    return [json.loads(line) for line in (kept / "calls.jsonl").read_text(encoding="utf-8").splitlines()]


OWN = (
    "run.json", "train.log", "SHA256SUMS", "gpu.csv", "loss.csv", "report.html", "annotations.json"
)  # fmt: skip
"""What is glgpu's own among the outputs."""
CHECKPOINT = "outputs/checkpoints/latest.npz"
"""Comes home while it trains, if there is time for it; it is none of the training's outputs."""


def test_the_example_trains_and_leaves_its_results(green: Rehearsed) -> None:
    assert green.code == 0, green.text
    assert [name for name, _ in green.jobs] == ["provision", "train", "destroy"]
    left = {str(path.relative_to(green.folder)) for path in green.folder.rglob("*") if path.is_file()}
    assert left - {CHECKPOINT} == {
        *(f"outputs/glgpu/{name}" for name in OWN), "outputs/metrics.json",
        "outputs/weights/lstm.npz", "outputs/weights/vocabulary.json",
        *(f"outputs/samples/epoch-{n}.txt" for n in (1, 2, 3)),
    }  # fmt: skip
    learned = json.loads((green.folder / "outputs/metrics.json").read_text(encoding="utf-8"))
    assert learned["held_out_loss_nats_per_character"] < learned["unigram_entropy_nats_per_character"]
    assert "epoch 3 of 3" in (green.folder / "outputs/glgpu/train.log").read_text(encoding="utf-8")


def test_the_checksums_that_came_along_hold(green: Rehearsed) -> None:
    outputs = green.folder / "outputs"
    checked = subprocess.run(
        ["sha256sum", "--strict", "-c", "glgpu/SHA256SUMS"], cwd=outputs, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    outside = {green.folder / CHECKPOINT, *(outputs / "glgpu" / name for name in OWN)}
    assert checked.stdout.count(": OK") == len([p for p in outputs.rglob("*") if p.is_file() and p not in outside])


def test_the_report_is_complete_with_loss_gpu_use_and_proof(green: Rehearsed) -> None:
    own = green.folder / "outputs/glgpu"
    report = (own / "report.html").read_text(encoding="utf-8")
    for said in ("The training ended well", "nothing of it is left", "Loss over time", "GPU use over time"):
        assert said in report
    losses = read_losses((own / "loss.csv").read_text())
    assert sorted(one.series for one in losses) == ["training"] * 3 + ["validation"] * 3
    samples = read_samples((own / "gpu.csv").read_text())
    assert samples
    assert {one.memory_mib for one in samples} == {23034}
    # The program computes: most of the time on its GPU.
    assert max(one.use or 0 for one in samples) > 3


def test_the_record_tells_the_whole_life_and_ends_with_the_proof(green: Rehearsed) -> None:
    record = json.loads((green.folder / "outputs/glgpu/run.json").read_text(encoding="utf-8"))
    kinds = [event["what"] for event in record["events"]]
    for earlier, later in zip(
        ["candidate-tried", "instance-running", "container-started", "training-ended"],
        ["instance-running", "container-started", "training-ended", "proof"],
        strict=True,
    ):
        assert kinds.index(earlier) < kinds.index(later)
    assert record["events"][kinds.index("proof")]["facts"]["left"] == []


def test_the_output_has_a_section_with_a_time_for_each_thing_and_no_noise(green: Rehearsed) -> None:
    headers = re.findall(r"^== .*$", green.text, re.MULTILINE)
    assert [header.split()[1].rstrip(":") for header in headers] == [
        "Stand-ins", "Pipeline", "Job", "Job", "Job", "Jobs", "Results", "Left", str(int(headers[-1].split()[1])),
    ]  # fmt: skip
    sections = re.findall(r"^-- (.*)$", green.text, re.MULTILINE)
    assert len(sections) >= 7
    for section in sections:
        assert re.search(rf"^   {re.escape(section)}: \d+\.\d s$", green.text, re.MULTILINE)
    for job in ("provision", "train", "destroy"):
        assert re.search(rf"^{job} +success +0 +\d+\.\d s$", green.text, re.MULTILINE)
    assert re.search(r"^== \d+ s in all; exit code 0: done$", green.text, re.MULTILINE)
    for noise in ("Traceback", "Warning", "\x1b", "\r", "section_"):
        assert noise not in green.text


def test_nothing_is_left_of_it(green: Rehearsed) -> None:
    green.assert_nothing_is_left()
    name = re.findall(r"glgpu-[0-9a-f]{6}-\d+-\d+-train", green.text)[0]
    assert remains([name, green.line("kept: ")]) == []
    assert [str(path) for path in (green.folder.parent / "tmp").iterdir()] == [green.line("kept: ")]
    assert list((green.folder.parent / "cache/glgpu/rehearsals").iterdir()) == []


def test_each_insert_came_from_a_child_of_terraform(green: Rehearsed) -> None:
    inserts = [call for call in calls(green) if call["verb"] == "POST" and call["target"].endswith("/instances")]
    assert [call["status"] for call in inserts] == [200]
    (insert,) = inserts
    callers = [Path(command.split()[0]).name for command in insert["caller"]]
    assert "terraform" in callers[1:], callers


FOREIGN = """\
machine: {gpu: [nvidia-tesla-t4], zones: [europe-west1-b]}
train:
  image: ghcr.io/somebody/trainer:2
  command: [python, train.py, "--name", "a b; echo 'no'"]
  outputs: [out/weights]
  secrets: [API_KEY, OTHER_KEY]
"""
FOREIGN_TRAINING = """\
import hashlib, os, pathlib, sys
import numpy, sayhello
print(sayhello.WORD, sys.argv[1:], numpy.arange(3).sum())
print("sees the files of", os.readlink("/proc/self/ns/mnt"))
folder = pathlib.Path("out/weights")
folder.mkdir(parents=True)
for name in ("API_KEY", "OTHER_KEY"):
    (folder / name).write_text(hashlib.sha256(os.environ[name].encode()).hexdigest())
print("the key is", os.environ["API_KEY"], "and", os.environ["OTHER_KEY"])
"""


def wheel(folder: Path) -> str:
    """A package that pip can install without a network."""
    name = "sayhello-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("sayhello.py", "WORD = 'hello from a requirement'\n")
        archive.writestr("sayhello-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: sayhello\nVersion: 1.0\n")
        archive.writestr(
            "sayhello-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("sayhello-1.0.dist-info/RECORD", "")
    return name


def test_a_repository_that_was_not_written_for_it_trains_with_its_own_requirements_and_secrets(tmp_path: Path) -> None:
    own = repository(tmp_path / "work", {"glgpu.yml": FOREIGN, "train.py": FOREIGN_TRAINING})
    # A text of its own: a layer is kept by it, in the engine too.
    (own / "requirements.txt").write_text(f"# {uuid.uuid4()}\n./{wheel(own)}\n", encoding="utf-8")
    before = {path.name for path in own.iterdir()}
    secret = "correct-horse battery"
    played = rehearse(tmp_path, ".", environment={"API_KEY": secret})
    assert played.code == 0, played.text
    assert "installing requirements.txt into a cached layer (once)" in played.text
    assert "rehearsal: ghcr.io/somebody/trainer:2 is not pulled; glgpu-rehearsal-base" in played.text
    assert "hello from a requirement ['--name', \"a b; echo 'no'\"] 3" in played.log("train")
    # Where an engine runs, the training ran in a real container of it.
    engine = played.line("containers: ").startswith("Docker ")
    assert engine or not docker("image", "inspect", "glgpu-rehearsal-base")
    own_files = f"sees the files of {os.readlink('/proc/self/ns/mnt')}\n"
    assert (own_files in played.log("train")) != engine
    assert "the key is [MASKED] and [MASKED]" in played.log("train")
    assert secret not in played.text
    assert {path.name for path in own.iterdir()} == before | {"outputs"}
    weights = own / "outputs/out/weights"
    assert (weights / "API_KEY").read_text() == hashlib.sha256(secret.encode()).hexdigest()
    assert (weights / "OTHER_KEY").read_text() == hashlib.sha256(b"made-up-value-of-other_key").hexdigest()

    again = rehearse(tmp_path, ".", "--image", "alpine:3", "--fault", "image-pull-denied")
    assert again.code == 17
    assert "installing" not in again.text
    assert "pulling alpine:3" in again.text

    (own / "requirements.txt").write_text("./not-there-1.0-py3-none-any.whl\n", encoding="utf-8")
    refused = rehearse(tmp_path, ".")
    assert refused.code == 17
    assert "glgpu: IMAGE_PULL (exit code 17): requirements.txt cannot be installed: " in refused.text
    assert "not-there-1.0" in refused.text
    assert "== Job" not in refused.text
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_folder_without_glgpu_yml_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    played = rehearse(tmp_path, tmp_path / "empty")
    assert played.code == 2
    assert "glgpu.yml" in played.text
    assert "glgpu: remedy: " in played.text
    assert list((tmp_path / "tmp").iterdir()) == []


def test_two_at_once_do_not_meet_though_one_of_them_belongs_to_a_user_who_is_not_root(tmp_path: Path) -> None:
    own = repository(tmp_path / "repository")
    shutil.copytree(own, tmp_path / "other/repository")
    with started(tmp_path, own) as first:
        second = subprocess.run(
            [*as_nobody(tmp_path / "other"), GLGPU, "rehearse", tmp_path / "other/repository"],
            cwd=tmp_path / "other", capture_output=True, text=True, check=False,
            env=os.environ | {"TMPDIR": str(tmp_path / "other"), "XDG_CACHE_HOME": str(tmp_path / "other/cache")},
        )  # fmt: skip
        text, _ = first.communicate()
    for code, said, folder in (
        (first.returncode, text, tmp_path / "work"),
        (second.returncode, second.stdout + second.stderr, tmp_path / "other"),
    ):
        assert code == 0, said
        assert (folder / "outputs/weights/w.bin").read_bytes() == bytes(100)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert {path.name for path in (tmp_path / "other").iterdir()} == {"repository", "outputs", "cache"}


def as_nobody(folder: Path) -> list[str]:
    """The command that runs another one as somebody who is not root, who owns this folder and may read all others."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv: not on PATH (util-linux), nothing was played as a user who is not root")
    for path in [folder, *folder.rglob("*")]:
        shutil.chown(path, 65534, 65534)
    for path in folder.parents:
        if path.owner() == "root" and not path.stat().st_mode & 1 and path.is_relative_to("/tmp"):
            path.chmod(path.stat().st_mode | 1)
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    # The interpreter may lie in root's home: to read it is all that is left of root's rights.
    return [*drop, "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    played = rehearse(tmp_path, environment={"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert played.code == 40
    assert f"cannot write to {tmp_path}/file" in played.text
    assert "XDG_CACHE_HOME" in played.line("glgpu: remedy: ")


def test_a_terraform_that_does_nothing_makes_no_vm_and_provision_fails(tmp_path: Path) -> None:
    own = repository(tmp_path / "repository")
    with world() as made:
        played = Played(made, made.adopt(own, variables=[Variable("GLGPU_TERRAFORM", "/bin/true")]))
        outcomes = played.play()
        assert outcomes["provision"].exit_code == 11, played.logs["provision"]
        assert "knows no VM" in played.logs["provision"]
        inserts = [
            call for call in made.calls.lines() if call["verb"] == "POST" and call["target"].endswith("/instances")
        ]
        assert inserts == []
        assert played.left() == {}
        played.close()


def test_what_terraform_says_is_what_the_cloud_answered_it(tmp_path: Path) -> None:
    own = repository(tmp_path / "repository")
    with world(Rule("compute.instances.state", "address", argument="198.51.100.7")) as made:
        played = Played(made, made.adopt(own))
        outcomes = played.play()
        assert outcomes["provision"].exit_code == 11, played.logs["provision"]
        assert "Terraform says the VM's address is '198.51.100.7'" in played.logs["provision"]
        assert played.left() == {}
        played.close()
