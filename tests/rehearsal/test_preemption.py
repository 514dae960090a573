"""Spot VMs that Google takes away in a whole pipeline: the weights are those of an undisturbed one."""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from glgpu.rehearsal.fault_catalogue import LASTING_TRAINING, OUTPUTS
from glgpu.rehearsal.gitlab_model import Variable
from glgpu.rehearsal.job_turn import Outcome
from glgpu.resources import resource
from rehearsing import Played, repository, world

SECONDS = 600.0
SAVING_TRAINING = LASTING_TRAINING.replace("41):", "81):").replace(
    "    print('step', n)\n",
    "    print('step', n)\n    if n % 20 == 0:\n        os.makedirs('checkpoints', exist_ok=True)\n"
    "        open(kept + '.new', 'w').write(str(n))\n        os.replace(kept + '.new', kept)\n",
)
"""The same, saving every twentieth step beside its place."""


def trained(
    folder: Path, strikes: Sequence[tuple[str, bool]] = (), variables: Mapping[str, str] = {}
) -> tuple[dict[str, bytes], str]:
    """What the train job uploads, and its log.

    Args:
        folder: The repository.
        strikes: A piece of the train job's log at which Google takes the VM away, each for the VM after the last one's;
            and whether the VM hears of it.
        variables: CI variables of the project.
    """
    with world() as made:
        adopted = made.adopt(folder, variables=[Variable(name, value) for name, value in variables.items()])
        here = Played(made, adopted)
        instances = made.compute.instances

        async def story() -> Mapping[str, Outcome]:
            playing = asyncio.ensure_future(here.player.play())
            for line, notice in strikes:
                await here.printed("train", line)
                for instance in instances.spot_running():
                    instances.preempt(instance, notice=notice)
            return await playing

        try:
            train = made.call(asyncio.wait_for(story(), SECONDS))["train"]
            assert train.status == "success", here.logs["train"]
            assert here.left() == {}
            assert train.last.artifacts is not None
            with zipfile.ZipFile(train.last.artifacts) as archive:
                files = {one.filename: archive.read(one) for one in archive.infolist() if not one.is_dir()}
            return files, here.logs["train"]
        finally:
            here.close()


def happened(files: Mapping[str, bytes], what: str) -> list[dict[str, object]]:
    """The facts of the run record's events of a kind."""
    return [one["facts"] for one in json.loads(files["outputs/glgpu/run.json"])["events"] if one["what"] == what]


@pytest.mark.every_fault
@pytest.mark.timeout(1200)
def test_an_example_that_is_preempted_twice_ends_with_the_weights_of_an_undisturbed_one_to_the_last_bit(
    tmp_path: Path,
) -> None:
    source = resource("examples") / "text-generation"
    files = {path.name: path.read_text() for path in source.iterdir() if path.suffix in (".py", ".yml")}
    longer = files["glgpu.yml"].replace("  env:\n", '  env:\n    STEPS: "700"\n')
    assert longer != files["glgpu.yml"]
    folder = repository(tmp_path / "example", files | {"glgpu.yml": longer})
    undisturbed, _ = trained(folder)
    preempted, log = trained(folder, [("epoch 1 of 3", True), ("epoch 2 of 3", True)])
    assert log.count("resumed after step ") == 2
    assert [one["noticed"] for one in happened(preempted, "preempted")] == [True, True]
    assert len({one["zone"] for one in happened(preempted, "preempted")}) == 2
    kept = {name for name in undisturbed if name.startswith(("outputs/weights/", "outputs/samples/"))}
    assert len(kept) == 5
    assert {name: preempted[name] for name in kept} == {name: undisturbed[name] for name in kept}


@pytest.mark.every_fault
@pytest.mark.timeout(700)
@pytest.mark.parametrize(
    ("strikes", "home"),
    [
        pytest.param([("code: ", False)], [0], id="before there is a training"),
        pytest.param([("step 9", False)], [0], id="without notice, before anything was home"),
        pytest.param([("step 75", False)], [1], id="without notice"),
        pytest.param([("step 30", True), ("going on from", True)], [1, 1], id="and the next one before it trains"),
        pytest.param([("Weights come home", False)], [1], id="while weights come home"),
    ],
)
def test_whenever_the_vm_is_taken_away_another_one_goes_on(
    tmp_path: Path, strikes: list[tuple[str, bool]], home: list[int]
) -> None:
    variables = {"GLGPU_TRAIN_COMMAND": SAVING_TRAINING, "GLGPU_MACHINE_SPOT": "only", **OUTPUTS}
    files, log = trained(repository(tmp_path / "tiny"), strikes, variables)
    assert files["outputs/weights/w"] == b"w"
    assert len(happened(files, "preempted")) == len(strikes)
    assert [one["files"] for one in happened(files, "training-resumed")] == home, log


@pytest.mark.every_fault
@pytest.mark.timeout(700)
def test_a_program_that_ends_with_0_when_it_is_told_to_end_goes_on_like_any_other(tmp_path: Path) -> None:
    polite = LASTING_TRAINING.replace("sys.exit(143)", "sys.exit(0)")
    assert polite != LASTING_TRAINING
    variables = {"GLGPU_TRAIN_COMMAND": polite, "GLGPU_MACHINE_SPOT": "only", **OUTPUTS}
    files, log = trained(repository(tmp_path / "tiny"), [("step 5", True)], variables)
    assert files["outputs/weights/w"] == b"w"
    assert log.count("step 40") == 1
    assert len(happened(files, "preempted")) == 1


@pytest.mark.every_fault
@pytest.mark.timeout(700)
@pytest.mark.parametrize("line", ["Google takes the VM", "Another VM goes on with the training", "asking for"])
def test_when_stop_is_pressed_while_the_run_has_no_vm_it_gets_no_other_one(tmp_path: Path, line: str) -> None:
    with world() as made:
        variables = {"GLGPU_TRAIN_COMMAND": LASTING_TRAINING, "GLGPU_MACHINE_SPOT": "only", **OUTPUTS}
        given = [Variable(name, value) for name, value in variables.items()]
        adopted = made.adopt(repository(tmp_path / "tiny"), variables=given)
        here = Played(made, adopted)

        async def story() -> Mapping[str, Outcome]:
            playing = asyncio.ensure_future(here.player.play())
            await here.printed("train", "step 5")
            for instance in made.compute.instances.spot_running():
                made.compute.instances.preempt(instance, notice=True)
            await here.printed("train", line)
            (environment,) = adopted.project.environments.values()
            made.gitlab.stop_environment(adopted.project, environment, adopted.user)
            return await playing

        try:
            played = made.call(asyncio.wait_for(story(), SECONDS))
            assert played["stop"].status == "success", here.logs["stop"]
            assert (played["train"].status, played["train"].exit_code) == ("failed", 23), here.logs["train"]
            assert here.left() == {}
        finally:
            here.close()
