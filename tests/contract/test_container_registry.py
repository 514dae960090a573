"""The registry's client against a registry that speaks its protocol, tokens included."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from glgpu.clients.container_registry import ContainerRegistry, split
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import ImageManifest
from glgpu.job import read_job
from glgpu.rehearsal.container_registry import Repository, full_name
from glgpu.rehearsal.world import World
from rehearsing import world as running

IMAGE = "registry.example.com/team/train:1"
LOGIN = ("ada", "correct:horse")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with running() as made:
        yield made


@pytest.fixture(autouse=True)
def _one_image(world: World) -> None:
    world.registry.images.clear()
    world.registry.images[IMAGE] = Repository(layer_bytes=3_000_000_000)
    world.registry.down = False


def client(world: World, **variables: str) -> ContainerRegistry:
    return ContainerRegistry(
        read_job({"GLGPU_REGISTRY_ENDPOINT": world.registry.endpoint, **variables}, Path("/nowhere"), 0.0)
    )


def refused(registry: ContainerRegistry, image: str) -> Failure:
    with pytest.raises(Failure) as caught:
        registry.manifest(image)
    return caught.value


def test_a_public_image_is_found_with_its_platform_and_its_weight(world: World) -> None:
    assert client(world).manifest(IMAGE) == ImageManifest(("linux/amd64",), 3.0)


def test_an_image_for_several_platforms_weighs_what_ours_weighs(world: World) -> None:
    world.registry.images[IMAGE] = Repository(("linux/arm64", "linux/amd64"), layer_bytes=1_500_000_000)
    assert client(world).manifest(IMAGE) == ImageManifest(("linux/arm64", "linux/amd64"), 1.5)


def test_an_image_for_another_platform_alone_says_so(world: World) -> None:
    world.registry.images[IMAGE] = Repository(("linux/arm64",))
    assert client(world).manifest(IMAGE).platforms == ("linux/arm64",)


def test_names_without_a_host_mean_docker_hub(world: World) -> None:
    world.registry.images[full_name("python:3.12")] = Repository()
    assert client(world).manifest("python:3.12").platforms == ("linux/amd64",)


def test_an_image_that_is_not_there_is_no_network_failure(world: World) -> None:
    failure = refused(client(world), "registry.example.com/team/train:2")
    assert failure.klass is ErrorClass.IMAGE_PULL
    assert "is not in its registry" in failure.cause


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"GLGPU_REGISTRY_USER": "ada", "GLGPU_REGISTRY_PASSWORD": "wrong"},
        {"CI_REGISTRY": "registry.example.org", "CI_REGISTRY_USER": LOGIN[0], "CI_REGISTRY_PASSWORD": LOGIN[1]},
    ],
    ids=["no login", "a wrong login", "another registry's login"],
)
def test_a_private_image_is_refused_without_its_own_login(world: World, variables: dict[str, str]) -> None:
    world.registry.images[IMAGE] = Repository(login=LOGIN)
    failure = refused(client(world, **variables), IMAGE)
    assert failure.klass is ErrorClass.IMAGE_PULL
    assert LOGIN[1] not in failure.cause + failure.remedy + failure.evidence
    assert ("no login for it is set" in failure.cause) is ("GLGPU_REGISTRY_USER" not in variables)


@pytest.mark.parametrize(
    "variables",
    [
        {"GLGPU_REGISTRY_USER": LOGIN[0], "GLGPU_REGISTRY_PASSWORD": LOGIN[1]},
        {"CI_REGISTRY": "registry.example.com", "CI_REGISTRY_USER": LOGIN[0], "CI_REGISTRY_PASSWORD": LOGIN[1]},
        {
            "DOCKER_AUTH_CONFIG": json.dumps(
                {"auths": {"registry.example.com": {"auth": base64.b64encode(":".join(LOGIN).encode()).decode()}}}
            )
        },
    ],
    ids=["our own pair", "GitLab's registry", "DOCKER_AUTH_CONFIG"],
)
def test_a_private_image_is_found_with_the_job_s_logins(world: World, variables: dict[str, str]) -> None:
    world.registry.images[IMAGE] = Repository(login=LOGIN)
    assert client(world, **variables).manifest(IMAGE).platforms == ("linux/amd64",)


def test_a_login_of_netrc_is_not_used(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {LOGIN[0]} password {LOGIN[1]}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    # It would go before the token.
    assert client(world).manifest(IMAGE).platforms == ("linux/amd64",)
    world.registry.images[IMAGE] = Repository(login=LOGIN)
    assert refused(client(world), IMAGE).klass is ErrorClass.IMAGE_PULL


def test_a_registry_that_does_not_answer_is_a_network_failure(world: World) -> None:
    world.registry.down = True
    assert refused(client(world), IMAGE).klass is ErrorClass.NETWORK


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("python", ("docker.io", "library/python", "latest")),
        ("cupy/cupy:v13", ("docker.io", "cupy/cupy", "v13")),
        ("localhost/x", ("localhost", "x", "latest")),
        ("registry.example.com:5050/a/b/c:1", ("registry.example.com:5050", "a/b/c", "1")),
        ("registry.example.com:5050/a", ("registry.example.com:5050", "a", "latest")),
        ("ghcr.io/a/b@sha256:12", ("ghcr.io", "a/b", "sha256:12")),
        ("ghcr.io/a/b:3@sha256:12", ("ghcr.io", "a/b", "sha256:12")),
    ],
)
def test_an_image_s_name_is_read_as_docker_reads_it(image: str, parts: tuple[str, str, str]) -> None:
    assert split(image) == parts
