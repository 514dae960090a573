"""The command `glgpu gpus` against the stand-ins, as a job or a laptop calls it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glgpu.cli import cli
from glgpu.rehearsal.faults import Rule
from lab import SETTINGS, Lab, lab


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A command takes over the signals of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def call(world: Lab, folder: Path, *words: str, **variables: str) -> Result:
    environment = world.variables(CI_PROJECT_DIR=str(folder), **variables)
    return CliRunner().invoke(cli, ["gpus", *words], env=environment)


def test_zones_limits_and_todays_prices_are_joined(world: Lab, tmp_path: Path) -> None:
    told = call(world, tmp_path, "--gpu", "nvidia-l4", "--region", "europe-west4")
    assert told.exit_code == 0, told.output
    assert "from Google's price list" in told.output
    assert "16 in all regions together (GPUS_ALL_REGIONS)" in told.output
    rows = [line.split() for line in told.output.splitlines()]
    assert ["nvidia-l4", "24", "GB", "1", "g2-standard-4", "4", "16", "GB", "0.78", "0.31"] in rows
    assert ["nvidia-l4", "europe-west4", "a", "b", "c", "8", "8"] in rows
    assert not (tmp_path / ".glgpu").exists()


def test_the_key_of_a_run_that_is_under_way_is_left_alone(world: Lab, tmp_path: Path) -> None:
    (tmp_path / ".glgpu").mkdir()
    (tmp_path / ".glgpu/login").write_text("key")
    assert call(world, tmp_path, "--gpu", "nvidia-l4").exit_code == 0
    assert (tmp_path / ".glgpu/login").read_text() == "key"


def test_the_regions_of_glgpu_yml_count(world: Lab, tmp_path: Path) -> None:
    (tmp_path / "glgpu.yml").write_text(SETTINGS)
    told = call(world, tmp_path, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["region"] == "europe-west4"
    assert {place["region"] for gpu in found["gpus"] for place in gpu["regions"]} == {"europe-west4"}


def test_json_stays_json_beside_a_glgpu_yml_that_is_wrong(world: Lab, tmp_path: Path) -> None:
    (tmp_path / "glgpu.yml").write_text("machin: {}\n")
    told = call(world, tmp_path, "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["missing"] == []
    assert "going on without" in told.stderr


def test_without_a_project_nobody_is_asked(tmp_path: Path) -> None:
    told = CliRunner().invoke(cli, ["gpus"], env={"CI_PROJECT_DIR": str(tmp_path), "GLGPU_PROJECT": ""})
    assert told.exit_code == 0, told.output
    assert told.output.splitlines()[-1].startswith("no Google Cloud project is set")
    assert not (tmp_path / ".glgpu").exists()


def test_a_wrong_token_leaves_the_estimates(world: Lab, tmp_path: Path) -> None:
    told = call(world, tmp_path, GOOGLE_OAUTH_ACCESS_TOKEN="ya29.wrong")
    assert told.exit_code == 0, told.output
    assert told.output.splitlines()[-1].startswith("missing: zones, limits and prices. ")
    assert "price list" not in told.output


def test_a_price_list_that_is_switched_off_leaves_zones_and_limits(world: Lab, tmp_path: Path) -> None:
    world.world.faults.rules.append(Rule("cloudbilling.services.skus.list", "api-disabled"))
    try:
        told = call(world, tmp_path, "--gpu", "nvidia-l4", "--region", "us-central1")
    finally:
        world.world.faults.lift("cloudbilling.services.skus.list")
    assert told.exit_code == 0, told.output
    assert "~0.71" in told.output
    assert "us-central1" in told.output
    assert told.output.splitlines()[-1].startswith("missing: today's prices. ")


@pytest.mark.parametrize(
    ("name", "words"), [("l4", "did you mean nvidia-l4?"), ("nvidia-tesla-k80", "shut down"), ("x", "is not known")]
)
def test_a_name_that_is_no_gpu_is_2(world: Lab, tmp_path: Path, name: str, words: str) -> None:
    told = call(world, tmp_path, "--gpu", name)
    assert told.exit_code == 2
    assert words in told.output
