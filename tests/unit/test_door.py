"""The door: who may reach the run's VM, and how a job gets in."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime

import pytest

from fakes import HOST_KEY, ZONE, Stage, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import FirewallRule, Instance
from glgpu.lifetime import SKEW_SECONDS
from glgpu.steps.door import NOBODY, Guest, Way, log_in, open_door


@pytest.fixture
def vm(stage: Stage) -> Instance:
    stage.cloud.insert(stage.vm())
    return stage.vm()


def logged_in(stage: Stage, vm: Instance, **options: float) -> Guest:
    with open_door(stage.run, vm) as way:
        return log_in(stage.run, vm, way, **options)


def allow(stage: Stage) -> FirewallRule:
    return stage.cloud.rules[stage.name]


def test_there_are_two_rules_and_the_one_that_keeps_out_is_weaker(stage: Stage, vm: Instance) -> None:
    with open_door(stage.run, vm):
        deny = stage.cloud.rules[f"{stage.name}-closed"]
        assert (deny.action, deny.sources, deny.ports, deny.disabled) == ("deny", ("0.0.0.0/0",), (), False)
        assert (allow(stage).action, allow(stage).sources, allow(stage).ports) == (
            "allow",
            ("203.0.113.10/32",),
            ("22",),
        )
        assert deny.target_tag == allow(stage).target_tag == stage.name
        assert allow(stage).priority < deny.priority < 65534


def test_the_rule_that_lets_in_is_born_disabled_and_for_nobody(stage: Stage, vm: Instance) -> None:
    Way(stage.run, vm).open()
    born = next(call[1] for call in stage.cloud.calls if call[0] == "create_rule" and call[1].action == "allow")
    assert (born.sources, born.disabled) == ((NOBODY,), True)


def test_the_rule_that_keeps_out_is_there_first(stage: Stage, vm: Instance) -> None:
    Way(stage.run, vm).open()
    created = [call[1].action for call in stage.cloud.calls if call[0] == "create_rule"]
    assert created == ["deny", "allow"]


def test_a_rule_that_was_made_for_an_earlier_vm_lets_in_at_this_one_s_port(stage: Stage, vm: Instance) -> None:
    Way(stage.run, vm).open()
    another = replace(vm, metadata={**vm.metadata, "glgpu-ssh-port": "2222"})
    with open_door(stage.run, another):
        assert (allow(stage).ports, allow(stage).sources) == (("2222",), ("203.0.113.10/32",))


def test_the_last_one_out_lets_nobody_in_and_disables_the_rule(stage: Stage, vm: Instance) -> None:
    with open_door(stage.run, vm):
        pass
    assert (allow(stage).sources, allow(stage).disabled) == ((NOBODY,), True)


def test_the_rule_is_never_without_sources(stage: Stage, vm: Instance) -> None:
    with open_door(stage.run, vm):
        pass
    for verb, *facts in stage.cloud.calls:
        if verb == "change_rule":
            assert facts[1]
        elif verb == "create_rule":
            assert facts[0].sources


def test_one_who_leaves_does_not_shut_another_out(stage: Stage, vm: Instance) -> None:
    with open_door(stage.run, vm):
        stage.address = "203.0.113.20"
        with open_door(stage.run, vm):
            assert set(allow(stage).sources) == {"203.0.113.10/32", "203.0.113.20/32"}
        assert (allow(stage).sources, allow(stage).disabled) == (("203.0.113.10/32",), False)


def test_two_callers_at_once_keep_both(stage: Stage, vm: Instance) -> None:
    first, second = Way(stage.run, vm), Way(stage.run, vm)
    first.open()
    stage.address = "203.0.113.20"
    # The second one has looked; before it writes, the first one's entry is overwritten by a third.
    stage.cloud.before["change_rule"] = lambda: stage.cloud.change_rule(stage.name, ["203.0.113.30/32"], disabled=False)
    second.open()
    stage.address = "203.0.113.10"
    first.again()
    assert {"203.0.113.10/32", "203.0.113.20/32"} <= set(allow(stage).sources)


def test_an_entry_that_somebody_overwrites_at_once_is_written_again(stage: Stage, vm: Instance) -> None:
    stage.cloud.overwrites.append(("203.0.113.20/32",))
    Way(stage.run, vm).open()
    assert set(allow(stage).sources) == {"203.0.113.10/32", "203.0.113.20/32"}


def test_after_a_signal_the_door_stays_open(stage: Stage, vm: Instance) -> None:
    with pytest.raises(Failure), open_door(stage.run, vm):
        raise refusal(ErrorClass.INTERRUPTED)
    assert (allow(stage).sources, allow(stage).disabled) == (("203.0.113.10/32",), False)


@pytest.mark.parametrize("error", [None, refusal(ErrorClass.SSH), refusal(ErrorClass.INTERRUPTED)])
def test_no_connection_outlasts_the_way_that_it_came(stage: Stage, vm: Instance, error: Exception | None) -> None:
    with nullcontext() if error is None else pytest.raises(type(error)), open_door(stage.run, vm) as way:
        log_in(stage.run, vm, way)
        assert "hang-up" not in stage.machine.verbs()
        if error is not None:
            raise error
    assert stage.machine.verbs()[-1] == "hang-up"


@pytest.mark.parametrize("error", [refusal(ErrorClass.SSH), RuntimeError("a mistake")])
def test_after_any_other_end_the_door_is_closed(stage: Stage, vm: Instance, error: Exception) -> None:
    with pytest.raises(type(error)), open_door(stage.run, vm):
        raise error
    assert (allow(stage).sources, allow(stage).disabled) == ((NOBODY,), True)


def test_a_door_that_cannot_be_closed_does_not_hide_what_went_wrong(stage: Stage, vm: Instance) -> None:
    def fails() -> None:
        stage.cloud.refuse["change_rule"] = refusal(ErrorClass.PERMISSION)
        raise refusal(ErrorClass.OOM)

    with pytest.raises(Failure) as caught, open_door(stage.run, vm):
        fails()
    assert caught.value.klass is ErrorClass.OOM


def test_a_new_address_opens_the_door_again_and_the_old_one_goes(stage: Stage, vm: Instance) -> None:
    with open_door(stage.run, vm) as way:
        stage.address = "203.0.113.99"
        way.again()
        assert allow(stage).sources == ("203.0.113.99/32",)
    assert allow(stage).sources == (NOBODY,)


def test_closing_after_destroy_makes_no_rule_again(stage: Stage, vm: Instance) -> None:
    with open_door(stage.run, vm):
        stage.cloud.rules.clear()
    assert stage.cloud.rules == {}


def test_settings_can_name_who_is_let_in(stage: Stage, vm: Instance) -> None:
    stage.set(network={"allow": ["192.0.2.0/24", "198.51.100.0/24"]})
    with open_door(stage.run, vm):
        assert allow(stage).sources == ("192.0.2.0/24", "198.51.100.0/24")


@pytest.mark.parametrize("address", ["", "2001:db8::1", "<html>", "0.0.0.0/0"])
def test_an_address_that_is_none_opens_no_door(stage: Stage, vm: Instance, address: str) -> None:
    stage.address = address
    with pytest.raises(Failure) as caught, open_door(stage.run, vm):
        pass
    assert caught.value.exit_code == 2
    assert allow(stage).disabled


def test_the_login_key_has_the_form_that_expires_once_the_vm_is_gone_by_any_clock(stage: Stage, vm: Instance) -> None:
    logged_in(stage, vm)
    line = stage.cloud.vms[stage.name, ZONE].metadata["ssh-keys"]
    login, kind, form = line.rpartition(" google-ssh ")
    assert (login, kind) == ("glgpu:ssh-ed25519 LOGINKEY", " google-ssh ")
    told = json.loads(form)
    assert told["userName"] == "glgpu"
    assert (
        datetime.strptime(told["expireOn"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
        == stage.clock.time // 1 + 3600 + SKEW_SECONDS
    )


def test_other_peoples_keys_are_kept_also_when_they_come_meanwhile(stage: Stage, vm: Instance) -> None:
    stage.cloud.change(stage.name, ZONE, metadata={**vm.metadata, "ssh-keys": "eve:ssh-rsa EVE eve@example.com"})

    def somebody_else() -> None:
        items = stage.cloud.vms[stage.name, ZONE].metadata
        stage.cloud.change(
            stage.name, ZONE, metadata={**items, "ssh-keys": items["ssh-keys"] + "\nbob:ssh-rsa BOB b@b"}
        )

    stage.cloud.overtaken.append(somebody_else)
    logged_in(stage, vm)
    lines = stage.cloud.vms[stage.name, ZONE].metadata["ssh-keys"].splitlines()
    assert lines[:2] == ["eve:ssh-rsa EVE eve@example.com", "bob:ssh-rsa BOB b@b"]
    assert lines[2].startswith("glgpu:")
    logged_in(stage, vm)
    assert len(stage.cloud.vms[stage.name, ZONE].metadata["ssh-keys"].splitlines()) == 3


def test_the_host_key_is_read_once_and_kept(stage: Stage, vm: Instance) -> None:
    logged_in(stage, vm)
    stage.cloud.guest["ssh-ed25519"] = "B" * 68
    logged_in(stage, vm)
    assert [key for _, key in stage.connected] == [f"ssh-ed25519 {HOST_KEY}"] * 2


def test_a_host_key_that_comes_late_is_waited_for(stage: Stage, vm: Instance) -> None:
    stage.cloud.guest.clear()
    stage.clock.at(5, lambda: stage.cloud.guest.update({"ssh-ed25519": HOST_KEY}))
    logged_in(stage, vm)
    assert stage.connected


@pytest.mark.parametrize("published", ["", 'x"\nssh-ed25519 AAAA', "A" * 10])
def test_without_a_host_key_nobody_connects(stage: Stage, vm: Instance, published: str) -> None:
    stage.cloud.guest["ssh-ed25519"] = published
    with pytest.raises(Failure) as caught:
        logged_in(stage, vm)
    assert caught.value.klass is ErrorClass.SSH
    assert "last line of the serial console" in stage.log
    assert stage.connected == []


def printed(key: str) -> str:
    """The start-up script's line as Google's agent passes it on."""
    runner = "Nov 23 20:00:07 vm google_metadata_script_runner[733]: startup-script"
    return f"[    0.000000] Linux version 6.8\r\n{runner}: glgpu: host key: ssh-ed25519 {key}\r\n"


@pytest.mark.parametrize("klass", [ErrorClass.ORG_POLICY, ErrorClass.PERMISSION])
def test_where_guest_attributes_are_forbidden_the_serial_consoles_host_key_counts(
    stage: Stage, vm: Instance, klass: ErrorClass
) -> None:
    stage.cloud.refuse["guest_attributes"] = refusal(klass, "the policy forbids it")
    stage.clock.at(4, lambda: setattr(stage.cloud, "console", printed("B" * 68)))
    logged_in(stage, vm)
    assert [key for _, key in stage.connected] == [f"ssh-ed25519 {'B' * 68}"]
    assert stage.log.count("read from its serial console: the policy forbids it") == 1
    assert stage.cloud.vms[stage.name, ZONE].metadata["glgpu-host-key"] == f"ssh-ed25519 {'B' * 68}"


def test_without_any_copy_of_the_host_key_it_ends_with_13(stage: Stage, vm: Instance) -> None:
    stage.cloud.refuse["guest_attributes"] = refusal(ErrorClass.ORG_POLICY, "the policy forbids it")
    with pytest.raises(Failure, match="guest attributes cannot be read: the policy forbids it") as caught:
        logged_in(stage, vm)
    assert caught.value.exit_code == 13
    assert stage.connected == []


def test_other_trouble_with_guest_attributes_is_no_reason_to_look_elsewhere(stage: Stage, vm: Instance) -> None:
    stage.cloud.console = printed("B" * 68)
    stage.cloud.refuse["guest_attributes"] = refusal(ErrorClass.AUTH)
    with pytest.raises(Failure) as caught:
        logged_in(stage, vm)
    assert caught.value.klass is ErrorClass.AUTH


def test_the_agent_has_a_minute_before_the_serial_consoles_host_key_counts(stage: Stage, vm: Instance) -> None:
    stage.cloud.guest.clear()
    stage.cloud.console = printed("B" * 68)
    logged_in(stage, vm)
    assert 59 <= sum(stage.clock.slept) <= 62


def test_a_vm_under_os_login_is_not_knocked_at_for_long(stage: Stage, vm: Instance) -> None:
    stage.machine.reachable = False
    stage.clock.at(3, lambda: stage.cloud.change(stage.name, ZONE, os_login=True))
    with pytest.raises(Failure, match="OS Login is on there") as caught:
        logged_in(stage, vm)
    assert caught.value.exit_code == 15
    assert sum(stage.clock.slept) < 10


def test_an_agent_that_says_that_it_enables_os_login_is_believed(stage: Stage, vm: Instance) -> None:
    stage.machine.reachable = False
    stage.cloud.console = "Nov 23 20:00:07 vm google_guest_agent[612]: Enabling OS Login\n"
    with pytest.raises(Failure) as caught:
        logged_in(stage, vm)
    assert caught.value.klass is ErrorClass.ORG_POLICY


def test_what_the_start_up_script_could_not_do_is_said_before_the_vm_lets_us_in(stage: Stage, vm: Instance) -> None:
    stage.machine.reachable = False
    stage.cloud.start_up["state"] = "working docker installing Docker"
    stage.clock.at(30, lambda: stage.cloud.start_up.update(state="failed docker there is no apt-get"))
    with pytest.raises(Failure, match="there is no apt-get") as caught:
        logged_in(stage, vm)
    assert caught.value.exit_code == 17
    assert stage.log.count("the VM: installing Docker") == 1
    assert sum(stage.clock.slept) < 60


def test_a_vm_that_restarts_over_and_over_is_given_up_early(stage: Stage, vm: Instance) -> None:
    stage.machine.reachable = False
    stage.cloud.console = "SeaBIOS (version 1.8.2-google)\n[    0.000000] Linux version 6.8\n" * 5
    with pytest.raises(Failure, match=r"booted 5 times .* over and over") as caught:
        logged_in(stage, vm)
    assert caught.value.exit_code == 13
    assert sum(stage.clock.slept) < 60


def test_a_refused_key_is_no_failure_at_first(stage: Stage, vm: Instance) -> None:
    stage.machine.reachable = False
    stage.clock.at(20, lambda: setattr(stage.machine, "reachable", True))
    assert logged_in(stage, vm).home == "/home/glgpu/glgpu"


def test_a_vm_that_never_lets_us_in_shows_its_console(stage: Stage, vm: Instance) -> None:
    stage.machine.reachable = False
    with pytest.raises(Failure) as caught:
        logged_in(stage, vm)
    assert caught.value.exit_code == 13
    assert "last line of the serial console" in stage.log
    assert 299 <= sum(stage.clock.slept) <= 310


def test_silence_opens_the_door_again(stage: Stage, vm: Instance) -> None:
    stage.machine.reachable, stage.machine.silent = False, True

    def moved() -> None:
        stage.address, stage.machine.reachable = "203.0.113.77", True

    with open_door(stage.run, vm) as way:
        stage.clock.at(3, lambda: setattr(stage, "address", "203.0.113.77"))
        stage.clock.at(6, moved)
        log_in(stage.run, vm, way)
        assert allow(stage).sources == ("203.0.113.77/32",)


def test_a_vm_that_vanishes_while_we_knock_is_preempted(stage: Stage, vm: Instance) -> None:
    stage.machine.reachable = False
    stage.clock.at(5, stage.cloud.vms.clear)
    with pytest.raises(Failure) as caught:
        logged_in(stage, vm)
    assert caught.value.klass is ErrorClass.PREEMPTED


def test_a_vm_that_vanishes_before_its_key_comes_is_preempted(stage: Stage, vm: Instance) -> None:
    stage.cloud.before["edit_metadata"] = stage.cloud.vms.clear
    with pytest.raises(Failure) as caught:
        logged_in(stage, vm)
    assert caught.value.klass is ErrorClass.PREEMPTED


def test_a_vm_at_its_hard_end_is_out_of_time(stage: Stage, vm: Instance) -> None:
    stage.machine.reachable = False
    stage.clock.time += 3600
    stage.clock.at(1, stage.cloud.vms.clear)
    with pytest.raises(Failure) as caught:
        logged_in(stage, vm)
    assert caught.value.exit_code == 22


def test_the_helper_is_moved_into_place(stage: Stage, vm: Instance) -> None:
    logged_in(stage, vm)
    assert stage.machine.stdin["hello"].startswith(b"#!/bin/sh")
