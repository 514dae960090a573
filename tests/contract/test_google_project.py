"""What Google lets us do: the client against the stand-in for Google's APIs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glgpu.clients.google_project import GoogleProject
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Policy
from glgpu.job import read_job
from glgpu.permissions import LOOK, RUN, TUNNEL
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.world import GOOGLE_PROJECT, World
from rehearsing import world as running


@pytest.fixture
def world() -> Iterator[World]:
    with running() as made:
        yield made


def client(world: World, token: str = "") -> GoogleProject:
    variables = {
        "GLGPU_GOOGLE_ENDPOINT": world.google.endpoint,
        "GOOGLE_OAUTH_ACCESS_TOKEN": token or world.google_token,
    }
    return GoogleProject(read_job(variables, Path("/nowhere"), 0.0), GOOGLE_PROJECT)


def test_a_healthy_project_lacks_nothing(world: World) -> None:
    project = client(world)
    project.log_in()
    assert project.state() == "ACTIVE"
    assert project.billing_enabled()
    assert project.disabled_services(["compute.googleapis.com", "sts.googleapis.com"]) == []
    assert project.missing_permissions([*RUN, *LOOK, *TUNNEL]) == []
    assert project.policy("compute.vmExternalIpAccess") == Policy()
    assert abs(project.server_time() - time.time()) < 5


def test_what_is_missing_is_named(world: World) -> None:
    google, project = world.google.project, client(world)
    google.services.discard("sts.googleapis.com")
    google.access.denied |= {"compute.instances.create", "compute.disks.create"}
    google.billing = False
    google.state = "DELETE_REQUESTED"
    assert project.disabled_services(["compute.googleapis.com", "sts.googleapis.com"]) == ["sts.googleapis.com"]
    assert project.missing_permissions(RUN) == ["compute.disks.create", "compute.instances.create"]
    assert not project.billing_enabled()
    assert project.state() == "DELETE_REQUESTED"


def test_a_service_account_is_asked_by_its_own_policy(world: World) -> None:
    # The stand-in's jobs are this account and have no role on it.
    assert client(world).missing_on_account(world.google.account, ["iam.serviceAccounts.actAs"]) == [
        "iam.serviceAccounts.actAs"
    ]


def test_a_bucket_that_is_not_there_is_none(world: World) -> None:
    assert client(world).missing_on_bucket("no-such-bucket", ["storage.objects.get"]) is None


@pytest.mark.parametrize(
    ("rules", "policy"),
    [
        ([{"enforce": True}], Policy(enforced=True)),
        ([{"denyAll": True}], Policy(deny_all=True)),
        ([{"values": {"allowedValues": ["a"], "deniedValues": ["b"]}}], Policy(allowed=("a",), denied=("b",))),
        ([{"enforce": True, "condition": {"expression": "resource.matchTag('1/a', 'b')"}}], Policy()),
    ],
)
def test_policies_are_read_without_their_conditional_rules(
    world: World, rules: list[dict[str, object]], policy: Policy
) -> None:
    world.google.project.policies["compute.requireOsLogin"] = rules
    assert client(world).policy("compute.requireOsLogin") == policy


def test_a_dead_token_is_an_auth_failure_and_a_missing_right_a_permission_failure(world: World) -> None:
    with pytest.raises(Failure) as caught:
        client(world, "ya29.dead").state()
    assert caught.value.klass is ErrorClass.AUTH
    world.google.project.access.denied.add("resourcemanager.projects.get")
    with pytest.raises(Failure) as caught:
        client(world).state()
    assert caught.value.klass is ErrorClass.PERMISSION


def test_an_api_that_is_off_says_so(world: World) -> None:
    world.google.project.services.discard("orgpolicy.googleapis.com")
    with pytest.raises(Failure) as caught:
        client(world).policy("compute.requireOsLogin")
    assert caught.value.klass is ErrorClass.API_DISABLED


def test_a_lost_connection_is_a_network_failure(world: World) -> None:
    world.faults.rules.append(Rule("cloudbilling.projects.getBillingInfo", "reset"))
    with pytest.raises(Failure) as caught:
        client(world).billing_enabled()
    assert caught.value.klass is ErrorClass.NETWORK


def test_many_threads_may_ask_at_once(world: World) -> None:
    project = client(world)
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: project.state(), range(64))) == {"ACTIVE"}
