"""What a step may expect of a place for big outputs: one suite over fake, GitLab's package registry and bucket."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fakes import FakeBucket
from glgpu.clients.cloud_storage import CloudStorage
from glgpu.clients.gitlab_project import GitlabProject
from glgpu.elsewhere import Part
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Depot
from glgpu.job import read_job
from glgpu.rehearsal.command import job_by_hand
from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.google_access import service_account
from glgpu.run_names import RunName
from google_stand_ins import Google, all_of_google
from lab import Lab, lab

BUCKET = "my-dl-glgpu"
DATA = os.urandom(3_000_000)
NUMBERS = itertools.count(7001)


@dataclass
class Bench:
    """A depot, and a run that it keeps nothing of yet."""

    depot: Depot
    run: RunName


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Google]:
    with all_of_google(tmp_path_factory.mktemp("google")) as made:
        made.apis.make_bucket(BUCKET)
        yield made


def run_of(world: Lab | None) -> RunName:
    return RunName("https://gitlab.example.com", world.adopted.project.id if world else 42, str(next(NUMBERS)))


def registry(world: Lab, folder: Path, **own: str) -> GitlabProject:
    """As a job has it, whose user is a Maintainer."""
    variables = job_by_hand(world.world, world.adopted)
    return GitlabProject(read_job({**variables, **own}, folder, 0.0))


def bucket(google: Google, folder: Path, name: str = BUCKET, token: str = "") -> CloudStorage:
    variables = {"GLGPU_GOOGLE_ENDPOINT": google.endpoint, "GOOGLE_OAUTH_ACCESS_TOKEN": token or google.token}
    return CloudStorage(read_job(variables, folder, 0.0), name)


@pytest.fixture(params=["fake", "registry", "registry, job token", "registry, object storage", "bucket"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "fake":
        yield Bench(FakeBucket("the bucket"), run_of(None))
    elif request.param == "bucket":
        yield Bench(bucket(request.getfixturevalue("google"), tmp_path), run_of(None))
    else:
        world: Lab = request.getfixturevalue("world")
        world.world.gitlab.direct_download = "storage" in request.param
        own = {"GLGPU_GITLAB_TOKEN": ""} if "job" in request.param else {}
        yield Bench(registry(world, tmp_path, **own), run_of(world))
        world.world.gitlab.direct_download = False


def part(name: str, data: bytes) -> Part:
    return Part(name, len(data), hashlib.sha256(data).hexdigest())


def got(bench: Bench, name: str, begin: int = 0) -> bytes:
    pieces: list[bytes] = []
    bench.depot.get_part(bench.run, name, begin, pieces.append)
    return b"".join(pieces)


def test_of_a_new_run_nothing_is_kept(bench: Bench) -> None:
    assert bench.depot.parts(bench.run) == {}


@pytest.mark.parametrize("data", [DATA, os.urandom(9 << 20), b"x"], ids=["3 MB", "9 MiB", "1 byte"])
def test_what_was_put_there_is_there_as_it_was(bench: Bench, data: bytes) -> None:
    mine = part("0123456789abcdef-w.bin.0001", data)
    bench.depot.put_part(bench.run, mine, io.BytesIO(data))
    assert bench.depot.parts(bench.run) == {mine.name: mine}
    assert got(bench, mine.name) == data


def test_it_can_be_had_from_any_byte_on(bench: Bench) -> None:
    mine = part("w", DATA)
    bench.depot.put_part(bench.run, mine, io.BytesIO(DATA))
    for begin in (1, 1_500_000, len(DATA) - 1):
        assert got(bench, "w", begin) == DATA[begin:]
    assert got(bench, "w", len(DATA)) == b""


def test_runs_are_kept_apart(bench: Bench) -> None:
    bench.depot.put_part(bench.run, part("w", b"1"), io.BytesIO(b"1"))
    other = RunName(bench.run.server_url, bench.run.project_id, f"{bench.run.run}-1", bench.run.kind)
    assert bench.depot.parts(other) == {}
    bench.depot.put_part(other, part("w", b"2"), io.BytesIO(b"2"))
    assert got(bench, "w") == b"1"


def test_more_parts_than_a_page_of_a_list_holds_are_all_seen(bench: Bench) -> None:
    for number in range(120):
        bench.depot.put_part(bench.run, part(f"{number:03}", b"x"), io.BytesIO(b"x"))
    assert len(bench.depot.parts(bench.run)) == 120


def test_there_is_a_page_to_look_at(bench: Bench) -> None:
    bench.depot.put_part(bench.run, part("w", b"1"), io.BytesIO(b"1"))
    assert bench.depot.page(bench.run).startswith("http")


def test_what_is_not_there_is_said_to_be_missing(bench: Bench) -> None:
    with pytest.raises(Failure) as caught:
        got(bench, "nothing")
    assert caught.value.klass in (ErrorClass.GITLAB, ErrorClass.NOT_FOUND)


def test_the_page_is_that_of_the_run_s_package(world: Lab, tmp_path: Path) -> None:
    depot, run = registry(world, tmp_path), run_of(world)
    depot.put_part(run, part("w", b"1"), io.BytesIO(b"1"))
    (package,) = [one for one in world.adopted.project.packages.values() if one.version == run.run]
    assert package.name == "glgpu-train"
    assert depot.page(run) == f"{world.world.gitlab.url}/{world.adopted.project.path}/-/packages/{package.id}"


def test_the_object_storage_never_sees_the_token(world: Lab, tmp_path: Path) -> None:
    world.world.gitlab.direct_download = True
    try:
        depot, run = registry(world, tmp_path), run_of(world)
        depot.put_part(run, part("w", DATA), io.BytesIO(DATA))
        assert got(Bench(depot, run), "w", 5) == DATA[5:]
    finally:
        world.world.gitlab.direct_download = False
    calls = [call for call in world.world.calls.lines() if call["to"] == "object storage"]
    assert calls
    for call in calls:
        assert not {name.lower() for name in call["headers"]} & {"private-token", "job-token", "authorization"}
    assert any("range" in {name.lower() for name in call["headers"]} for call in calls)


@pytest.mark.parametrize(
    ("rule", "klass", "said"),
    [
        (Rule("gitlab.packages.upload", "forbidden"), ErrorClass.GITLAB_AUTH, "storage.bucket"),
        (Rule("gitlab.packages.upload", "not-found"), ErrorClass.GITLAB, "turn it on"),
        (Rule("gitlab.packages.upload", "unavailable", argument="503"), ErrorClass.TRANSIENT, "wait a minute"),
        (Rule("gitlab.packages.upload", "down"), ErrorClass.NETWORK, "check the network"),
    ],
)
def test_a_refusal_says_what_to_do(world: Lab, tmp_path: Path, rule: Rule, klass: ErrorClass, said: str) -> None:
    depot, run = registry(world, tmp_path), run_of(world)
    world.world.faults.rules.append(rule)
    try:
        with pytest.raises(Failure) as caught:
            depot.put_part(run, part("w", DATA), io.BytesIO(DATA))
    finally:
        world.world.faults.end()
    assert caught.value.klass is klass
    assert said in caught.value.remedy


def test_a_dead_job_token_says_that_it_is_the_job_s(world: Lab, tmp_path: Path) -> None:
    depot = registry(world, tmp_path, GLGPU_GITLAB_TOKEN="", CI_JOB_TOKEN="glcbt-64_dead-and-gone")
    with pytest.raises(Failure) as caught:
        depot.put_part(run_of(world), part("w", b"1"), io.BytesIO(b"1"))
    assert caught.value.klass is ErrorClass.GITLAB_AUTH
    assert "dead once the job is cancelled" in caught.value.cause


def test_a_registry_that_takes_no_file_of_that_size_says_so(world: Lab, tmp_path: Path) -> None:
    world.world.gitlab.package_limit = 1000
    try:
        with pytest.raises(Failure) as caught:
            registry(world, tmp_path).put_part(run_of(world), part("w", DATA), io.BytesIO(DATA))
    finally:
        world.world.gitlab.package_limit = 5 << 30
    assert caught.value.klass in (ErrorClass.GITLAB, ErrorClass.NETWORK)


def test_too_many_requests_is_no_empty_upload(world: Lab, tmp_path: Path) -> None:
    depot, run = registry(world, tmp_path), run_of(world)
    world.world.faults.rules.append(Rule("gitlab.packages.upload", "unavailable", 1, argument="429"))
    world.world.faults.visits.clear()
    try:
        with pytest.raises(Failure) as caught:
            depot.put_part(run, part("w", DATA), io.BytesIO(DATA))
    finally:
        world.world.faults.end()
    assert caught.value.klass is ErrorClass.TRANSIENT
    assert depot.parts(run) == {}


def test_gitlab_tells_its_limit_for_artifacts(world: Lab, tmp_path: Path) -> None:
    forge = registry(world, tmp_path)
    assert forge.artifact_limit() == 100 << 20
    world.world.gitlab.artifact_limit_mb = 1024
    assert forge.artifact_limit() == 1 << 30
    world.world.gitlab.artifact_limit_mb = 100


def test_a_gitlab_that_cannot_be_asked_for_its_limit_tells_none(tmp_path: Path) -> None:
    job = read_job({"CI_SERVER_URL": "http://127.0.0.1:9", "CI_PROJECT_ID": "1"}, tmp_path, 0.0)
    assert GitlabProject(job).artifact_limit() is None


@pytest.mark.parametrize(("without", "klass"), [("bucket", ErrorClass.NOT_FOUND), ("rights", ErrorClass.PERMISSION)])
def test_without_bucket_or_rights_google_says_so(
    google: Google, tmp_path: Path, without: str, klass: ErrorClass
) -> None:
    if without == "bucket":
        depot = bucket(google, tmp_path, name="not-made")
    else:
        stranger = google.apis.project.tokens.issue(service_account("stranger@my-dl.iam.gserviceaccount.com"))
        depot = bucket(google, tmp_path, token=stranger)
    with pytest.raises(Failure) as caught:
        depot.put_part(run_of(None), part("w", DATA), io.BytesIO(DATA))
    assert caught.value.klass is klass


MEMORY = """
import hashlib, resource, sys
from pathlib import Path
from glgpu.clients.{module} import {kind} as Client
from glgpu.elsewhere import Part
from glgpu.job import read_job
from glgpu.run_names import RunName
from glgpu.settings import process_environment
from glgpu.steps.strand import Strand

path = Path(sys.argv[1])
client = Client(read_job(process_environment(), path.parent, 0.0), *sys.argv[3:])
run = RunName("https://gitlab.example.com", 42, sys.argv[2])

def move(size):
    with Strand([(path, size)], 0, size) as data:
        digest = hashlib.sha256()
        while piece := data.read(1 << 20):
            digest.update(piece)
    with Strand([(path, size)], 0, size) as data:
        client.put_part(run, Part(f"part-{{size}}", size, digest.hexdigest()), data)
    back = hashlib.sha256()
    client.get_part(run, f"part-{{size}}", 0, back.update)
    assert back.digest() == digest.digest()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

move(20 << 20)
before = peak()
move(300 << 20)
print(before, peak())
"""


@pytest.mark.parametrize("where", ["registry", "bucket"])
def test_memory_stays_flat_while_hundreds_of_megabytes_pass(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(300 << 20)
    if where == "registry":
        world: Lab = request.getfixturevalue("world")
        environment, words = job_by_hand(world.world, world.adopted), []
        script = MEMORY.format(module="gitlab_project", kind="GitlabProject")
    else:
        google: Google = request.getfixturevalue("google")
        environment = {"GLGPU_GOOGLE_ENDPOINT": google.endpoint, "GOOGLE_OAUTH_ACCESS_TOKEN": google.token}
        words, script = [BUCKET], MEMORY.format(module="cloud_storage", kind="CloudStorage")
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), "8000", *words],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after - before < 32, done.stdout
