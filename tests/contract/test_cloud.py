"""What a step may expect of Compute Engine: one suite over the fake and over the real client against the stand-in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import requests

from fakes import FakeClock, FakeCloud
from glgpu.classify import zones_with_capacity
from glgpu.clock import SystemClock, poll
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Cloud, FirewallRule, Instance
from glgpu.rehearsal import compute_lists
from glgpu.rehearsal.faults import Rule
from glgpu.settings import Machine
from glgpu.steps.survey import unix_time
from lab import SETTINGS, Lab, end_vm, lab, vm_of

ZONE = "europe-west4-a"
LABELS = {"glgpu": "managed", "glgpu-run": "77"}


@dataclass
class Bench:
    """A cloud with a VM in it.

    Attributes:
        cloud: The cloud.
        vm: Its VM.
        again: Asks for a VM of that name again, and has it fail.
    """

    cloud: Cloud
    vm: Instance
    again: Callable[[str], None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture(params=["fake", "real"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "fake":
        yield fake_bench()
    else:
        made = real_bench(request.getfixturevalue("world"), tmp_path)
        yield made
        end_vm(made.cloud, made.vm.name, ZONE)


def fake_bench() -> Bench:
    cloud = FakeCloud(FakeClock())
    name = "glgpu-000000-1-77-train"
    vm = Instance(name, ZONE, "RUNNING", "198.51.100.7", "10.0.0.7", LABELS, {"a": "1"}, id="1001")
    cloud.insert(vm)

    def again(how: str) -> None:
        klass = ErrorClass.PREEMPTED if how == "preempted" else ErrorClass.STOCKOUT
        cloud.insert(vm, Failure(klass, "refused", "wait", "zonesAvailable: europe-west4-b,europe-west4-c"))

    return Bench(cloud, vm, again)


def real_bench(world: Lab, folder: Path) -> Bench:
    # A state of its own each time: the stand-in's module does not notice that a VM of its state is gone.
    run = world.run(folder_with_settings(folder), GLGPU_STATE="local")
    vm = vm_of(run)

    def again(how: str) -> None:
        action, _, form = how.partition(" ")
        gpu = {"gpu": ["nvidia-l4"], "type": None, "spot": "only"}
        asked = replace(run, settings=run.settings.model_copy(update={"machine": Machine(zones=[ZONE], **gpu)}))
        world.world.faults.rules.append(Rule("compute.instances.insert", action, argument=form))
        try:
            with pytest.raises(Failure):
                vm_of(asked)
        finally:
            world.world.faults.lift("compute.instances.insert")

    return Bench(run.cloud, vm, again)


def folder_with_settings(folder: Path) -> Path:
    (folder / "glgpu.yml").write_text(SETTINGS)
    return folder


def rule_for(bench: Bench) -> FirewallRule:
    name = bench.vm.name
    return FirewallRule(name, "allow", ("192.0.2.1/32",), name, 800, "default", ("22",), True)


def test_a_vm_is_found_by_name_and_by_label(bench: Bench) -> None:
    name = bench.vm.name
    assert [(one.name, one.zone, one.status) for one in bench.cloud.find(name)] == [(name, ZONE, "RUNNING")]
    labels = {key: bench.vm.labels[key] for key in ("glgpu", "glgpu-run")}
    assert [one.name for one in bench.cloud.labelled(labels)] == [name]
    got = bench.cloud.get(name, ZONE)
    assert got is not None
    assert got.address == bench.vm.address
    assert got.address
    assert got.internal_address


def test_another_name_label_or_zone_finds_nothing(bench: Bench) -> None:
    assert bench.cloud.find(bench.vm.name + "x") == []
    assert bench.cloud.find(bench.vm.name[:-1]) == []
    assert bench.cloud.labelled({"glgpu": "managed", "glgpu-run": "1"}) == []
    assert bench.cloud.get(bench.vm.name, "europe-west4-b") is None


def test_one_list_finds_a_run_by_its_name_or_by_its_label(bench: Bench) -> None:
    name, run = bench.vm.name, bench.vm.labels["glgpu-run"]
    for asked in ((name, "1"), ("nothing", run), (name, run)):
        assert [(one.name, one.zone) for one in bench.cloud.of_run(*asked)] == [(name, ZONE)]
    assert bench.cloud.of_run("nothing", "1") == []


def test_labels_are_set_and_the_others_stay(bench: Bench) -> None:
    bench.cloud.edit_labels(bench.vm.name, ZONE, {"glgpu-expires": "5"})
    got = bench.cloud.get(bench.vm.name, ZONE)
    assert got is not None
    assert got.labels["glgpu-expires"] == "5"
    assert got.labels["glgpu"] == "managed"


def test_metadata_is_set_and_what_others_set_meanwhile_stays(bench: Bench) -> None:
    rounds: list[int] = []

    def edit(items: dict[str, str]) -> dict[str, str]:
        if not rounds:
            rounds.append(1)
            bench.cloud.edit_metadata(bench.vm.name, ZONE, lambda now: {**now, "theirs": "kept"})
        return {**items, "ours": "new"}

    bench.cloud.edit_metadata(bench.vm.name, ZONE, edit)
    got = bench.cloud.get(bench.vm.name, ZONE)
    assert got is not None
    assert (got.metadata["theirs"], got.metadata["ours"]) == ("kept", "new")


def test_os_login_is_off_where_the_metadata_turn_it_off(bench: Bench) -> None:
    got = bench.cloud.get(bench.vm.name, ZONE)
    assert got is not None
    assert not got.os_login


def test_os_login_is_seen_by_what_is_in_force(world: Lab, tmp_path: Path) -> None:
    world.world.faults.rules.append(Rule("compute.os-login-forced", "on"))
    run = world.run(folder_with_settings(tmp_path), GLGPU_STATE="local")
    try:
        vm = vm_of(run)
        assert vm.metadata["enable-oslogin"] == "FALSE"
        assert vm.os_login
    finally:
        world.world.faults.lift("compute.os-login-forced")
        end_vm(run.cloud, str(run.name), ZONE)


def test_of_the_serial_console_as_much_is_read_as_was_asked_for(world: Lab, tmp_path: Path) -> None:
    bench = real_bench(world, tmp_path)
    try:
        whole = bench.cloud.serial_output(bench.vm.name, ZONE, last=1 << 20)
        assert whole.startswith("SeaBIOS")
        assert bench.cloud.serial_output(bench.vm.name, ZONE, last=7) in whole
        assert len(bench.cloud.serial_output(bench.vm.name, ZONE, last=7)) == 7
    finally:
        end_vm(bench.cloud, bench.vm.name, ZONE)


def test_editing_what_is_not_there_is_not_found(bench: Bench) -> None:
    with pytest.raises(Failure) as caught:
        bench.cloud.edit_metadata("nothing", ZONE, lambda items: {**items, "a": "b"})
    assert caught.value.klass is ErrorClass.NOT_FOUND
    with pytest.raises(Failure) as caught:
        bench.cloud.edit_labels("nothing", ZONE, {"a": "b"})
    assert caught.value.klass is ErrorClass.NOT_FOUND


def test_an_insert_that_succeeds_is_done_and_has_no_failure(bench: Bench) -> None:
    (insert,) = bench.cloud.inserts(bench.vm.name, ZONE)
    got = bench.cloud.get(bench.vm.name, ZONE)
    assert got is not None
    assert (insert.done, insert.failure, insert.instance_id) == (True, None, got.id)
    assert got.id


def test_what_is_done_to_a_vm_is_seen_in_whatever_zone(bench: Bench) -> None:
    assert [(one.kind, one.zone, one.done) for one in bench.cloud.operations(bench.vm.name)][:1] == [
        ("insert", ZONE, True)
    ]
    assert bench.cloud.operations(bench.vm.name[:-1]) == []


def test_an_insert_under_way_is_seen_before_its_vm(world: Lab, tmp_path: Path) -> None:
    bench = real_bench(world, tmp_path)
    end_vm(bench.cloud, bench.vm.name, ZONE)
    name, number = bench.vm.name, bench.vm.labels["glgpu-run"]
    before = {one.operation for one in bench.cloud.operations(name)}
    world.world.faults.rules.append(Rule("compute.instances.insert", "late-unseen", argument="2"))
    try:
        order_again(world)
    finally:
        world.world.faults.lift("compute.instances.insert")
    assert bench.cloud.of_run(name, number) == []
    (insert,) = [one for one in bench.cloud.operations(name) if one.operation not in before]
    assert (insert.kind, insert.zone, insert.done) == ("insert", ZONE, False)
    found = poll(SystemClock(), lambda: bench.cloud.of_run(name, number) or None, seconds=10, every=0.05)
    assert found is not None
    assert found[0].id == insert.instance_id
    end_vm(bench.cloud, name, ZONE)


def order_again(world: Lab) -> None:
    """Send the last insert once more, as a Terraform does that nobody waits for."""
    calls = [one for one in world.world.calls.lines() if one["to"] == "compute" and one["verb"] == "POST"]
    last = [one for one in calls if one["target"].partition("?")[0].endswith("/instances")][-1]
    answer = requests.post(
        world.world.compute.endpoint + last["target"],
        data=last["body"],
        headers={"Authorization": f"Bearer {world.world.google_token}"},
        timeout=30,
    )
    assert answer.ok, answer.text


def test_a_delete_that_is_accepted_and_then_fails_says_why(world: Lab, tmp_path: Path) -> None:
    bench = real_bench(world, tmp_path)
    world.world.faults.rules.append(Rule("compute.instances.delete", "operation-error", argument="INTERNAL_ERROR"))
    try:
        bench.cloud.delete_instance(bench.vm.name, ZONE)
        (delete,) = [one for one in bench.cloud.operations(bench.vm.name) if one.kind == "delete"]
        assert delete.failure is not None
        assert delete.failure.cause.startswith(f"deleting the VM {bench.vm.name}")
    finally:
        world.world.faults.lift("compute.instances.delete")
        end_vm(bench.cloud, bench.vm.name, ZONE)


def test_an_insert_belongs_to_one_name_and_one_zone(bench: Bench) -> None:
    assert bench.cloud.inserts(bench.vm.name[:-1], ZONE) == []
    assert bench.cloud.inserts(bench.vm.name, "europe-west4-b") == []


@pytest.mark.parametrize("form", ["", "sentence", "metadata"])
def test_a_failed_insert_says_why_and_which_zones_have_capacity(bench: Bench, form: str) -> None:
    end_vm(bench.cloud, bench.vm.name, ZONE)
    before = {one.operation for one in bench.cloud.inserts(bench.vm.name, ZONE)}
    bench.again(f"stockout {form}")
    (insert,) = [one for one in bench.cloud.inserts(bench.vm.name, ZONE) if one.operation not in before]
    assert insert.done
    assert insert.failure is not None
    assert insert.failure.klass is ErrorClass.STOCKOUT
    assert zones_with_capacity(insert.failure.evidence) == ("europe-west4-b", "europe-west4-c")
    assert bench.cloud.get(bench.vm.name, ZONE) is None


def test_an_insert_that_fails_for_preemption_is_told_so(bench: Bench) -> None:
    end_vm(bench.cloud, bench.vm.name, ZONE)
    before = {one.operation for one in bench.cloud.inserts(bench.vm.name, ZONE)}
    bench.again("preempted")
    (insert,) = [one for one in bench.cloud.inserts(bench.vm.name, ZONE) if one.operation not in before]
    assert insert.failure is not None
    assert insert.failure.klass is ErrorClass.PREEMPTED


def test_a_delete_takes_vm_and_disk_and_a_second_one_is_success(bench: Bench) -> None:
    assert bench.cloud.disks(bench.vm.name) == [(bench.vm.name, ZONE)]
    for _ in range(2):
        end_vm(bench.cloud, bench.vm.name, ZONE)
        bench.cloud.delete_disk(bench.vm.name, ZONE)
    assert bench.cloud.find(bench.vm.name) == []
    assert bench.cloud.disks(bench.vm.name) == []


def test_whatever_bears_a_name_of_ours_is_found_in_one_list_each(bench: Bench) -> None:
    rule = rule_for(bench)
    bench.cloud.create_rule(rule)
    bench.cloud.create_rule(replace(rule, name=f"{rule.name}-closed"))
    try:
        found = bench.cloud.instances_named("glgpu-")
        assert (bench.vm.name, ZONE) in {(one.name, one.zone) for one in found}
        disks = bench.cloud.disks_named("glgpu-")
        assert (bench.vm.name, ZONE) in {(one.name, one.zone) for one in disks}
        assert {rule.name, f"{rule.name}-closed"} <= {one.name for one in bench.cloud.rules_named("glgpu-")}
        assert "default-allow-ssh" not in {one.name for one in bench.cloud.rules_named("glgpu-")}
        for prefix in ("lgpu-", f"{bench.vm.name}-x"):
            assert bench.cloud.instances_named(prefix) == []
            assert bench.cloud.disks_named(prefix) == []
            assert bench.cloud.rules_named(prefix) == []
    finally:
        bench.cloud.delete_rule(rule.name)
        bench.cloud.delete_rule(f"{rule.name}-closed")


def test_google_tells_when_it_deletes_a_vm_by_itself(world: Lab, tmp_path: Path) -> None:
    bench = real_bench(world, tmp_path)
    try:
        (found,) = bench.cloud.instances_named(bench.vm.name)
        assert found.max_run_seconds > 3600
        assert unix_time(found.created) is not None
        (disk,) = bench.cloud.disks_named(bench.vm.name)
        assert unix_time(disk.created) is not None
    finally:
        end_vm(bench.cloud, bench.vm.name, ZONE)


def test_more_rules_than_fit_on_a_page_are_all_found_and_several_threads_may_call(
    world: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_lists, "PAGE_SIZE", 7)
    cloud = world.run(folder_with_settings(tmp_path)).cloud
    rule = FirewallRule("glgpu-000000-1-1-train", "allow", ("192.0.2.1/32",), "x", 800, "default", ("22",), True)
    names = {f"glgpu-000000-1-{number}-train" for number in range(1, 41)}
    with ThreadPoolExecutor(16) as several:
        list(several.map(lambda name: cloud.create_rule(replace(rule, name=name)), names))
        assert {one.name for one in cloud.rules_named("glgpu-000000-1-")} == names
        world.world.faults.rules.append(Rule("compute.firewalls.delete", "rate-limit", None, argument="429"))
        lifting = threading.Timer(1.0, lambda: world.world.faults.lift("compute.firewalls.delete"))
        lifting.start()
        before = world.said.getvalue().count(b"too many requests")
        list(several.map(cloud.delete_rule, names))
        lifting.join()
    assert cloud.rules_named("glgpu-000000-1-") == []
    assert world.said.getvalue().count(b"too many requests") == before + 1, "said once, however many threads wait"


def test_what_is_being_deleted_may_be_deleted_again(bench: Bench) -> None:
    bench.cloud.delete_instance(bench.vm.name, ZONE)
    end_vm(bench.cloud, bench.vm.name, ZONE)
    assert bench.cloud.find(bench.vm.name) == []


def test_a_rule_is_made_once_changed_and_deleted(bench: Bench) -> None:
    rule = rule_for(bench)
    assert bench.cloud.rule(rule.name) is None
    bench.cloud.create_rule(rule)
    bench.cloud.change_rule(rule.name, ["203.0.113.5/32", "203.0.113.6/32"], disabled=False)
    bench.cloud.create_rule(rule)  # exists already: left as it is
    got = bench.cloud.rule(rule.name)
    assert got is not None
    assert (got.sources, got.disabled) == (("203.0.113.5/32", "203.0.113.6/32"), False)
    assert (got.action, got.priority, got.target_tag, got.ports) == ("allow", 800, bench.vm.name, ("22",))
    for _ in range(2):
        bench.cloud.delete_rule(rule.name)
    assert bench.cloud.rule(rule.name) is None


def test_a_disabled_rule_stays_what_it_is(bench: Bench) -> None:
    rule = rule_for(bench)
    bench.cloud.create_rule(rule)
    got = bench.cloud.rule(rule.name)
    assert got is not None
    assert got.disabled
    bench.cloud.change_rule(rule.name, ["203.0.113.5/32"], disabled=False)
    bench.cloud.change_rule(rule.name, ["192.0.2.1/32"], disabled=True)
    got = bench.cloud.rule(rule.name)
    assert got is not None
    assert (got.sources, got.disabled) == (("192.0.2.1/32",), True)


def test_the_zones_of_a_region_belong_to_it(bench: Bench) -> None:
    zones = bench.cloud.zones("europe-west4")
    assert zones
    assert all(zone.startswith("europe-west4-") for zone in zones)


def test_a_namespace_without_attributes_is_empty(bench: Bench) -> None:
    assert bench.cloud.guest_attributes(bench.vm.name, ZONE, "nothing") == {}
    assert bench.cloud.guest_attributes("nothing", ZONE, "hostkeys") == {}


def test_a_cloud_that_is_away_is_18_and_soon(world: Lab, tmp_path: Path) -> None:
    run = world.run(folder_with_settings(tmp_path), GLGPU_COMPUTE_ENDPOINT="http://127.0.0.1:9")
    with pytest.raises(Failure) as caught:
        run.cloud.find("x")
    assert caught.value.exit_code == 18


@pytest.mark.parametrize("status", ["403", "429"])
def test_a_cloud_that_wants_to_be_asked_less_often_is_asked_again(world: Lab, tmp_path: Path, status: str) -> None:
    run = world.run(folder_with_settings(tmp_path))
    name = f"{run.name}-x"
    rule = FirewallRule(name, "allow", ("192.0.2.1/32",), name, 800, "default", ("22",), True)
    points = ["compute.firewalls.get", "compute.firewalls.insert", "compute.firewalls.delete"]
    world.world.faults.rules += [Rule(point, "rate-limit", None, argument=status) for point in points]
    lifting = threading.Timer(1.0, lambda: [world.world.faults.lift(point) for point in points])
    lifting.start()
    try:
        run.cloud.create_rule(rule)
        got = run.cloud.rule(name)
        assert got is not None
        run.cloud.delete_rule(name)
        assert run.cloud.rule(name) is None
    finally:
        lifting.join()
    assert "Google: too many requests; asking again" in world.said.getvalue().decode()


@pytest.mark.parametrize(("action", "code"), [("api-disabled", 15), ("permission-denied", 15), ("unauthenticated", 15)])
def test_a_cloud_that_refuses_is_told_in_our_words(world: Lab, tmp_path: Path, action: str, code: int) -> None:
    run = world.run(folder_with_settings(tmp_path))
    world.world.faults.rules.append(Rule("compute.request", action))
    try:
        with pytest.raises(Failure) as caught:
            run.cloud.find("x")
    finally:
        world.world.faults.lift("compute.request")
    assert caught.value.exit_code == code


def test_a_wrong_token_is_15(world: Lab, tmp_path: Path) -> None:
    run = world.run(folder_with_settings(tmp_path), GOOGLE_OAUTH_ACCESS_TOKEN="ya29.wrong")
    with pytest.raises(Failure) as caught:
        run.cloud.find("x")
    assert (caught.value.exit_code, caught.value.klass) == (15, ErrorClass.AUTH)
