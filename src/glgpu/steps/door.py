"""Access: who may reach the run's VM, and how a job gets in.

Two firewall rules a run, made through the API: one keeps everybody out, above whatever the network lets in by default;
one lets the listed callers in. Jobs and laptops come from different addresses, so each opens the door for itself and
closes it again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address

from glgpu.clock import poll
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Endpoint, FirewallRule, Instance, Machine
from glgpu.lifetime import SKEW_SECONDS
from glgpu.resources import resource_text
from glgpu.steps.context import Run, hard_end_of, vanished
from glgpu.steps.serial_console import WHOLE, ignores_keys, never_answered, printed_host_key
from glgpu.steps.start_up import StartUp

NOBODY = "192.0.2.1/32"
"""A documentation address (RFC 5737): a rule without sources would let everybody in."""
ALLOW_PRIORITY, DENY_PRIORITY = 800, 900
"""Of a run's two rules: lower goes first, and both go before a network's own, which are 1000 and above as a rule."""
IAP_RANGE = "35.235.240.0/20"
"""Where Identity-Aware Proxy connects from (https://cloud.google.com/iap/docs/using-tcp-forwarding)."""
USER = "glgpu"
KEY_SECONDS = 24 * 3600.0
"""How long a login key counts where the VM's hard end is not known."""
CHANGES = 5
AGENT_SECONDS = 60.0
"""How long the guest agent has alone to publish the host key: cloud-init may print one that the agent replaces."""
HOST_KEY_ITEM = "glgpu-host-key"
SSH_PORT_ITEM = "glgpu-ssh-port"
HANDSHAKE = "mkdir -p glgpu && cat >glgpu/.helper.$$ && mv glgpu/.helper.$$ glgpu/helper && sh glgpu/helper hello {run}"
"""Hands the helper over. Moved into place, because another job's shell may be reading the one that is there."""
_HOST_KEY = re.compile(r"[A-Za-z0-9+/]{40,200}={0,2}")


class Way:
    """The way to one VM for one caller; `again` finds it anew after the caller's own address has changed.

    Args:
        run: The run.
        instance: Its VM.
        visits: Whether this caller only looks in: then what is listed already, or may be others' too, stays listed.
    """

    def __init__(self, run: Run, instance: Instance, *, visits: bool = False) -> None:
        self._run = run
        self._instance = instance
        self._visits = visits
        self._sources: list[str] = []
        self._others: set[str] = set()
        self._machines: list[Machine] = []

    def open(self) -> None:
        """Make both rules if they are missing and add this caller to the one that lets in.

        Raises:
            Failure: what Compute Engine says.
        """
        run, name = self._run, self._run.name
        network = run.settings.network.name
        deny = FirewallRule(name.closed_rule, "deny", ("0.0.0.0/0",), str(name), DENY_PRIORITY, network)
        allow = FirewallRule(
            str(name),
            "allow",
            (NOBODY,),
            str(name),
            ALLOW_PRIORITY,
            network,
            (ssh_port_of(self._instance),),
            True,
        )
        for rule in (deny, allow):
            found = run.cloud.rule(rule.name)
            if found is not None and found.ports != rule.ports:
                # Made for an earlier VM of this run, whose SSH server had another port.
                run.cloud.delete_rule(rule.name)
                found = None
            if found is None:
                run.cloud.create_rule(rule)
        self._sources = _sources(run)
        if self._visits:
            # A job in the same building has the same address, and loses its way home with it.
            listed = found.sources if found is not None else ()
            shared = run.settings.network.access == "iap" or run.settings.network.allow != "auto"
            self._others = {*listed, *(self._sources if shared else ())}
        self._change(add=self._sources)
        run.record.add("door-opened", sources=self._sources)

    def again(self) -> None:
        """Open the door for the address that this caller has now, if another caller has not left it open."""
        now = _sources(self._run)
        if now != self._sources:
            self._run.console.say(f"this job's own address is now {', '.join(now)}: opening the door for it")
        gone, self._sources = [one for one in self._sources if one not in now], now
        self._change(add=now, remove=gone)

    def close(self) -> None:
        """Take this caller off the list; the last one out leaves a rule that lets nobody in."""
        self._change(remove=[one for one in self._sources if one not in self._others])

    def connect(self, endpoint: Endpoint, host_key: str) -> Machine:
        """The VM by this way, for as long as it lasts."""
        machine = self._run.connect(endpoint, self._run.job.scratch, host_key)
        self._machines.append(machine)
        return machine

    def hang_up(self) -> None:
        """End the connections of those who came this way."""
        for machine in self._machines:
            machine.hang_up()

    def _change(self, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Change the list until it says what it should.

        Firewall rules have no fingerprint, so a caller who changes the list at the same moment can overwrite ours:
        look again after each change. What is lost after that look, `again` mends when the connection breaks.
        """
        run = self._run
        for _ in range(CHANGES):
            rule = run.cloud.rule(str(run.name))
            if rule is None:
                return  # destroy has removed it: nobody is let in any more
            listed = [source for source in rule.sources if source != NOBODY]
            wanted = list(dict.fromkeys([*(one for one in listed if one not in remove), *add]))
            if wanted == listed and rule.disabled != bool(wanted):
                return
            run.cloud.change_rule(str(run.name), wanted or [NOBODY], disabled=not wanted)


@contextmanager
def open_door(run: Run, instance: Instance, *, insist: bool = True) -> Iterator[Way]:
    """Let this caller in for the length of a block.

    After a signal the door stays open: after_script of a cancelled job comes from the same machine and has seconds.

    Args:
        run: The run.
        instance: Its VM.
        insist: Whether a door that cannot be closed is a failure, of a block that went well.
    """
    way = Way(run, instance)
    way.open()
    try:
        yield way
    except Failure as failure:
        if failure.klass is not ErrorClass.INTERRUPTED:
            _close_quietly(run, way)
        raise
    except BaseException:
        _close_quietly(run, way)
        raise
    else:
        if insist:
            way.close()
        else:
            _close_quietly(run, way)
    finally:
        way.hang_up()


@contextmanager
def visit_door(run: Run, instance: Instance, *, stays: bool = False) -> Iterator[Way]:
    """Let a caller in who only looks in; the door is closed after a signal too, for nobody comes after.

    Args:
        run: The run.
        instance: Its VM.
        stays: Whether to leave it open for this caller's address instead.
    """
    way = Way(run, instance, visits=True)
    way.open()
    try:
        yield way
    finally:
        way.hang_up()
        if not stays:
            _close_quietly(run, way)


@dataclass(frozen=True)
class Guest:
    """A VM that lets us in.

    Attributes:
        machine: The way to run commands there.
        home: glgpu's folder there.
    """

    machine: Machine
    home: str


def log_in(run: Run, instance: Instance, way: Way, *, seconds: float | None = None, helper: bool = True) -> Guest:
    """Bring a login key in, pin the host key, wait until the VM lets us in, and hand it the helper.

    A key counts only from the guest agent's next poll, so a refused key is no failure at first.

    Args:
        run: The run.
        instance: Its VM.
        way: The open way to it.
        seconds: How long to try; by default what ``limits.boot_minutes`` says.
        helper: Whether to hand it over; without it the guest has no home.

    Raises:
        Failure: SSH, with the end of the serial console; PREEMPTED when the VM has vanished.
    """
    end = run.clock.now() + (seconds if seconds is not None else run.settings.limits.boot_minutes * 60)
    start_up = StartUp(run, instance)
    host_key = _host_key(run, instance, end, start_up)
    _bring_key(run, instance, host_key)
    current = run.cloud.get(instance.name, instance.zone) or instance
    machine = way.connect(_endpoint(run, current), host_key)
    said = ""

    def greet() -> str | None:
        nonlocal said
        script, stdin = (HANDSHAKE.format(run=run.name), resource_text("vm/helper.sh")) if helper else ("true", b"")
        done = machine.run(script, stdin=stdin, timeout=30)
        said = done.complaint or f"exit code {done.code}"
        if done.code == 255 and (gone := vanished(run, current)):
            raise gone
        if "Permission denied" in said and (now := run.cloud.get(current.name, current.zone)) and now.os_login:
            raise ignores_keys(current)
        if "timed out" in said:
            way.again()  # silence is how a firewall refuses
        if done.code != 0:
            start_up.look()
        return done.text.strip() if done.code == 0 else None

    home = poll(run.clock, greet, seconds=end - run.clock.now(), every=1.0)
    if home is None:
        raise never_answered(run, current, f"does not let us in: {said}")
    return Guest(machine, home)


def _endpoint(run: Run, instance: Instance) -> Endpoint:
    iap = run.settings.network.access == "iap"
    address = instance.internal_address if iap else instance.address or instance.internal_address
    return Endpoint(instance.name, instance.zone, address, int(ssh_port_of(instance)), iap)


def _bring_key(run: Run, instance: Instance, host_key: str) -> None:
    """Put this caller's key, and the VM's own, into the instance's metadata; other people's keys stay.

    The form that expires: https://cloud.google.com/compute/docs/connect/add-ssh-keys#metadata. It counts as long as
    the VM can live, since a long training is logged in to again at its end; and it is the VM's own clock that the agent
    goes by, not the one of the job that counted its hours.
    """
    key = run.make_login_key(run.job.scratch, str(run.name))
    hard_end = hard_end_of(instance)
    until = hard_end if math.isfinite(hard_end) else run.clock.now() + KEY_SECONDS
    expires = datetime.fromtimestamp(until + SKEW_SECONDS, UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")
    entry = f"{USER}:{key} google-ssh {json.dumps({'userName': USER, 'expireOn': expires}, separators=(',', ':'))}"

    def with_key(items: dict[str, str]) -> dict[str, str]:
        others = [line for line in items.get("ssh-keys", "").splitlines() if line and key not in line]
        return {**items, "ssh-keys": "\n".join([*others, entry]), HOST_KEY_ITEM: host_key}

    try:
        run.cloud.edit_metadata(instance.name, instance.zone, with_key)
    except Failure as failure:
        if failure.klass is ErrorClass.NOT_FOUND and (gone := vanished(run, instance)):
            raise gone from None
        raise


def ssh_port_of(instance: Instance) -> str:
    """The port of the VM's SSH server."""
    return instance.metadata.get(SSH_PORT_ITEM, "22")


def _host_key(run: Run, instance: Instance, end: float, start_up: StartUp) -> str:
    """The VM's host key: read once, right after boot, and kept in the instance's metadata.

    It comes from guest attributes, which any process on the VM can overwrite later; metadata it cannot. Where a policy
    forbids to read them, or nothing is published, the copy on the serial console counts, where only root writes.
    """
    current = run.cloud.get(instance.name, instance.zone)
    kept = current.metadata.get(HOST_KEY_ITEM, "") if current else ""
    if kept:
        return kept
    begun, refused = run.clock.now(), ""

    def published() -> str | None:
        nonlocal refused
        key = ""
        if not refused:
            try:
                key = run.cloud.guest_attributes(instance.name, instance.zone, "hostkeys").get("ssh-ed25519", "")
            except Failure as failure:
                if failure.klass not in (ErrorClass.ORG_POLICY, ErrorClass.PERMISSION):
                    raise
                refused = failure.cause
                run.console.say(f"the VM's host key is read from its serial console: {refused}")
        if not key and (refused or run.clock.now() - begun >= AGENT_SECONDS):
            key = printed_host_key(run.cloud.serial_output(instance.name, instance.zone, last=WHOLE))
        if not key:
            if gone := vanished(run, instance):
                raise gone
            if not refused:
                start_up.look()
        return key.strip() or None

    found = poll(run.clock, published, seconds=end - begun, every=1.0)
    if found is None or not _HOST_KEY.fullmatch(found):
        why = f", and guest attributes cannot be read: {refused}" if refused else ""
        raise never_answered(run, instance, f"published no host key in time{why}")
    return f"ssh-ed25519 {found}"


def _sources(run: Run) -> list[str]:
    network = run.settings.network
    if network.access == "iap":
        return [IAP_RANGE]
    if network.allow != "auto":
        return list(network.allow)
    address = run.caller_address(run.settings, run.job)
    try:
        return [f"{IPv4Address(address)}/32"]
    except ValueError:
        raise Failure(
            ErrorClass.CONFIG,
            f"this machine's own public address is said to be {address!r}, which is no IPv4 address",
            "set network.allow to the ranges your runners use, or network.echo to another service",
        ) from None


def _close_quietly(run: Run, way: Way) -> None:
    try:
        way.close()
    except Failure as failure:
        run.console.say(f"the door could not be closed: {failure}; destroy removes its rules")
