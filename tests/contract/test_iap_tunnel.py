"""The way through Identity-Aware Proxy: the same suite over the real gcloud and the one that rehearsals bring along."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glgpu.clients.iap_tunnel import iap_proxy
from glgpu.errors import Failure
from glgpu.interfaces import Endpoint, Instance
from glgpu.processes import Done, environment, find_tool
from glgpu.processes import run as run_program
from glgpu.rehearsal.iap_relay import PERMISSION
from glgpu.rehearsal.world import write_program
from glgpu.steps.context import Run
from glgpu.steps.door import log_in, open_door, ssh_port_of
from lab import SETTINGS, ZONE, Lab, lab, vm_of

PRIVATE = f"{SETTINGS}network: {{access: iap, external_ip: false}}\n"


@dataclass
class Vm:
    """A VM without an external address.

    Attributes:
        lab: The world.
        run: Whose VM it is.
        instance: The VM.
    """

    lab: Lab
    run: Run
    instance: Instance


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    folder = tmp_path_factory.mktemp("lab")
    with lab(folder) as world:
        checkout = folder / "check out"
        checkout.mkdir()
        (checkout / "glgpu.yml").write_text(PRIVATE)
        run = world.run(checkout)
        yield Vm(world, run, vm_of(run))


@pytest.fixture(params=["real", "brought along"], autouse=True)
def _gcloud(request: pytest.FixtureRequest, vm: Vm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", str(vm.lab.world.iap.certificate))
    if request.param == "real":
        if find_tool("gcloud") is None:
            pytest.skip("gcloud: not on PATH, the tunnel is not held against it")
        return
    write_program(tmp_path / "gcloud", "from glgpu.rehearsal.gcloud import main\n\nmain()\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def tunnel(vm: Vm, name: str = "") -> Done:
    """What comes out of a tunnel into which nothing is said."""
    endpoint = Endpoint(name or vm.instance.name, ZONE, "", int(ssh_port_of(current(vm))), through_iap=True)
    proxy = iap_proxy(vm.run.job, vm.run.cloud.project, endpoint)
    return run_program(["/bin/sh", "-c", f"exec {proxy.command}"], env=environment(proxy.environment), timeout=60)


def current(vm: Vm) -> Instance:
    found = vm.run.cloud.get(vm.instance.name, ZONE)
    assert found is not None
    return found


def test_a_vm_without_an_external_address_is_reached_and_runs_commands(vm: Vm) -> None:
    assert current(vm).address == ""
    with open_door(vm.run, vm.instance) as way:
        guest = log_in(vm.run, vm.instance, way)
        done = guest.machine.run("cat; echo from the VM", stdin=b"through the tunnel, ")
    assert done.text == "through the tunnel, from the VM\n"


def test_a_closed_door_lets_no_tunnel_in(vm: Vm) -> None:
    done = tunnel(vm)
    assert "4003" in done.complaint
    assert "failed to connect to backend" in done.complaint.lower()


def test_whoever_lacks_the_role_is_not_let_through(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    access = vm.lab.world.google.project.access

    def without(role: dict[str, Any]) -> dict[str, Any]:
        kept = [one for one in role["includedPermissions"] if one != PERMISSION]
        return {**role, "includedPermissions": kept}

    monkeypatch.setattr(access, "roles", {name: without(role) for name, role in access.roles.items()})
    done = tunnel(vm)
    assert "4033" in done.complaint
    assert "not authorized" in done.complaint


def test_a_vm_that_is_not_there_cannot_be_reached(vm: Vm) -> None:
    done = tunnel(vm, "glgpu-000000-1-1-train")
    assert "4047" in done.complaint
    assert done.text == ""


def test_the_token_stands_on_no_command_line(vm: Vm) -> None:
    endpoint = Endpoint(vm.instance.name, ZONE, "", 22, through_iap=True)
    assert vm.run.job.google_token
    assert vm.run.job.google_token not in iap_proxy(vm.run.job, "p", endpoint).command


def test_without_gcloud_its_absence_is_said(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Failure, match="gcloud is not on PATH") as caught:
        iap_proxy(vm.run.job, "p", Endpoint("vm", ZONE, "", 22, through_iap=True))
    assert caught.value.exit_code == 40
