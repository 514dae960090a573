"""What a step may expect of Terraform: one suite over the fake and over the real program against the stand-in."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from fakes import FakeStack, make_stage
from glgpu.clients.terraform_stack import TerraformStack
from glgpu.clock import SystemClock, poll
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Cloud, Instance, Stack
from glgpu.machines import Candidate, candidates
from glgpu.processes import find_tool
from glgpu.rehearsal.faults import Rule
from glgpu.steps import bring_up as bringing_up
from glgpu.steps.bring_up import bring_up, plan_lifetime, terraform_variables
from glgpu.steps.context import Run
from glgpu.steps.tear_down import tear_down
from glgpu.wiring import clear_scratch
from lab import SETTINGS, ZONE, Lab, end_vm, lab


@dataclass
class Bench:
    """A Terraform that is about to make one VM.

    Attributes:
        stack: The Terraform.
        cloud: Where the VM appears.
        name: Its name.
        variables: What it was told.
    """

    stack: Stack
    cloud: Cloud
    name: str
    variables: Mapping[str, object]

    def find(self) -> list[Instance]:
        return self.cloud.find(self.name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if not (find_tool("terraform") or find_tool("tofu")):
        pytest.skip("terraform: neither it nor tofu is on PATH")
    with lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture
def run(world: Lab, tmp_path: Path) -> Iterator[Run]:
    (tmp_path / "glgpu.yml").write_text(SETTINGS)
    run = world.run(tmp_path)
    yield run
    tear_down(run)


def candidate(run: Run) -> Candidate:
    """The first way to get a VM."""
    return candidates(run.settings.machine, run.settings.machine.zones)[0]


@pytest.fixture(params=["fake", "real"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    run: Run = make_stage(tmp_path).run if request.param == "fake" else request.getfixturevalue("run")
    variables = terraform_variables(run, candidate(run), plan_lifetime(run))
    return Bench(run.stack_for(variables, None), run.cloud, str(run.name), variables)


def test_an_apply_makes_the_vm_and_tells_its_address(bench: Bench) -> None:
    bench.stack.prepare()
    with bench.stack.start_apply() as apply:
        apply.result()
        assert apply.ended()
    [vm] = bench.find()
    assert bench.stack.outputs()["address"] == vm.address


def test_what_was_applied_can_be_destroyed(bench: Bench) -> None:
    bench.stack.prepare()
    with bench.stack.start_apply() as apply:
        apply.result()
    bench.stack.destroy(60)
    if not isinstance(bench.stack, FakeStack):
        assert bench.find() == []


def test_leaving_the_context_ends_the_apply(bench: Bench) -> None:
    bench.stack.prepare()
    with bench.stack.start_apply() as apply:
        pass
    assert apply.ended()


def test_a_prepared_stack_takes_other_variables(bench: Bench) -> None:
    bench.stack.prepare()
    bench.stack.change({**bench.variables, "zone": "europe-west4-b"})
    with bench.stack.start_apply() as apply:
        apply.result()
    assert [vm.zone for vm in bench.find()] == ["europe-west4-b"]


# What only the real Terraform can show.


def test_a_terraform_that_ends_when_it_is_told_to_needs_no_killing(world: Lab, run: Run) -> None:
    stack = run.stack_for(terraform_variables(run, candidate(run), plan_lifetime(run)), None)
    stack.prepare()
    world.world.faults.rules.append(Rule("compute.instances.insert", "late", argument="60"))
    try:
        with stack.start_apply() as apply:
            poll(SystemClock(), lambda: run.cloud.inserts(str(run.name), ZONE) or None, seconds=30, every=0.05)
            assert apply.stop()
            assert apply.ended()
    finally:
        world.world.faults.lift("compute.instances.insert")
    end_vm(run.cloud, str(run.name), ZONE)


def brought_up(run: Run) -> Instance:
    with bring_up(run, plan_lifetime(run)) as instance:
        return instance


def failing(run: Run) -> Failure:
    with pytest.raises(Failure) as caught:
        brought_up(run)
    return caught.value


def with_terraform(run: Run, world: Lab, text: str) -> Run:
    """The same run with another program in Terraform's place."""
    program = run.job.project_dir / "other-terraform"
    program.write_text(text)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return world.run(run.job.project_dir, GLGPU_TERRAFORM=str(program))


def test_bin_true_in_terraforms_place_makes_no_vm_and_is_found_out(world: Lab, run: Run) -> None:
    other = world.run(run.job.project_dir, GLGPU_TERRAFORM="/bin/true")
    assert failing(other).klass is ErrorClass.TERRAFORM
    assert other.cloud.find(str(other.name)) == []


def test_a_terraform_that_is_missing_is_40(world: Lab, run: Run) -> None:
    other = world.run(run.job.project_dir, GLGPU_TERRAFORM="/no/such/terraform")
    assert failing(other).exit_code == 40


@pytest.mark.parametrize("version", ["1.4.9", "0.15.0"])
def test_a_terraform_that_is_too_old_is_40(world: Lab, run: Run, version: str) -> None:
    other = with_terraform(run, world, f'#!/bin/sh\necho \'{{"terraform_version": "{version}"}}\'\n')
    failure = failing(other)
    assert failure.exit_code == 40
    assert version in failure.cause


def test_a_terraform_that_is_killed_is_11(world: Lab, run: Run) -> None:
    real = find_tool("terraform") or find_tool("tofu")
    other = with_terraform(run, world, f'#!/bin/sh\n[ "$1" != apply ] || kill -9 $$\nexec {real} "$@"\n')
    failure = failing(other)
    assert (failure.exit_code, failure.klass) == (11, ErrorClass.TERRAFORM)
    assert "signal 9" in failure.cause


def test_a_terraform_that_is_told_to_end_is_a_signal_of_ours(world: Lab, run: Run) -> None:
    real = find_tool("terraform") or find_tool("tofu")
    other = with_terraform(run, world, f'#!/bin/sh\n[ "$1" != apply ] || kill -15 $$\nexec {real} "$@"\n')
    assert failing(other).klass is ErrorClass.INTERRUPTED


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (Rule("compute.instances.insert", "stockout"), 10),
        (Rule("compute.instances.insert", "quota"), 14),
        (Rule("compute.instances.insert", "permission-denied"), 15),
    ],
)
def test_what_google_refuses_is_told_in_our_words(world: Lab, run: Run, rule: Rule, code: int) -> None:
    world.world.faults.rules.append(rule)
    try:
        assert failing(run).exit_code == code
    finally:
        world.world.faults.lift(rule.point)
    assert run.cloud.find(str(run.name)) == []


def test_a_changed_address_in_googles_answer_changes_the_outputs(world: Lab, run: Run) -> None:
    variables = terraform_variables(run, candidate(run), plan_lifetime(run))
    stack = run.stack_for(variables, None)
    stack.prepare()
    world.world.faults.rules.append(Rule("compute.instances.state", "address", argument="198.51.100.200"))
    try:
        with stack.start_apply() as apply:
            apply.result()
        assert stack.outputs()["address"] == "198.51.100.200"
    finally:
        world.world.faults.lift("compute.instances.state")


def test_no_secret_is_in_variables_or_state(world: Lab, run: Run) -> None:
    secrets = {"WANDB_API_KEY": "wandb-0123456789", "GLGPU_REGISTRY_PASSWORD": "registry-0123456789"}
    other = world.run(run.job.project_dir, GLGPU_REGISTRY_USER="u", GLGPU_TRAIN_SECRETS="WANDB_API_KEY", **secrets)
    brought_up(other)
    kept = b"".join(path.read_bytes() for path in other.job.scratch.rglob("*") if path.is_file())
    state = world.world.gitlab.projects[world.adopted.project.id].states[str(other.name)].versions[-1][1]
    tear_down(other)
    assert str(other.name).encode() in kept
    assert str(other.name).encode() in state
    for secret in (*secrets.values(), other.job.gitlab_token, other.job.google_token):
        assert secret.encode() not in kept
        assert secret.encode() not in state


def test_two_terraforms_of_one_run_have_folders_of_their_own(run: Run) -> None:
    variables = {"name": "x"}
    stacks = [run.stack_for(variables, None) for _ in range(2)]
    for stack in stacks:
        stack.prepare()
    assert len(list(run.job.scratch.glob("terraform-*"))) == 2


def test_the_scratch_folder_goes_while_terraform_runs_and_that_is_no_traceback(run: Run) -> None:
    stack = run.stack_for({}, None)
    stack.prepare()
    clear_scratch(run)
    with pytest.raises(Failure):
        stack.destroy(30)


def test_a_folder_that_cannot_be_written_is_40(run: Run) -> None:
    blocked = run.job.project_dir / "blocked"
    blocked.write_text("a file")
    with pytest.raises(Failure) as caught:
        TerraformStack("rehearsal-vm", blocked, {}, state=None, credentials={}).prepare()
    assert caught.value.exit_code == 40


def test_a_terraform_that_hangs_is_ended_in_time(world: Lab, run: Run) -> None:
    other = with_terraform(run, world, '#!/bin/sh\n[ "$1" != destroy ] || exec sleep 60\nexit 0\n')
    stack = other.stack_for({}, None)
    stack.prepare()
    with pytest.raises(Failure, match="did not end within"):
        stack.destroy(1)


def test_a_terraform_whose_state_gets_no_answer_is_not_waited_for_without_end(
    world: Lab, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing_up, "LAST_WORD_SECONDS", 0.5)
    world.world.faults.rules.append(Rule("gitlab.state.save", "silence"))
    try:
        failure = failing(run)
    finally:
        world.world.faults.lift("gitlab.state.save")
    assert failure.klass is ErrorClass.NETWORK
    assert "the place of its state does not answer" in failure.cause
