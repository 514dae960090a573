"""What a step may expect of a place where VMs leave outputs: one suite over fakes, package registry and bucket."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from fakes import FakeBucket, FakeForge
from glgpu.clients.cloud_storage import CloudStorage
from glgpu.clients.gitlab_project import GitlabProject
from glgpu.elsewhere import Part
from glgpu.interfaces import Admission, DropOff
from glgpu.job import read_job
from glgpu.rehearsal.command import job_by_hand
from glgpu.run_names import RunName
from glgpu.saved import HANDED_OVER
from google_stand_ins import Google, all_of_google
from lab import Lab, lab

BUCKET = "my-dl-glgpu"
SERVER = "https://gitlab.example.com"
UPLOADER = "glgpu-uploader@my-dl.iam.gserviceaccount.com"
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
SOON = 1_900_000_000.0
NUMBERS = itertools.count(9001)


@dataclass
class Bench:
    """A place.

    Attributes:
        home: The place.
        run: A run that has left nothing there yet.
        leave: What a VM that was admitted does: status of the answer, and its header fields.
    """

    home: DropOff
    run: RunName
    leave: Callable[[Admission, str, bytes], tuple[int, dict[str, str]]]

    def kept(self, name: str) -> bytes:
        data = bytearray()
        self.home.get_part(self.run, name, 0, data.extend)
        return bytes(data)

    def put(self, name: str, data: bytes = b"data") -> None:
        self.home.put_part(self.run, Part(name, len(data), hashlib.sha256(data).hexdigest()), io.BytesIO(data))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Google]:
    with all_of_google(tmp_path_factory.mktemp("google")) as made:
        made.apis.make_bucket(BUCKET)
        made.apis.make_uploader(UPLOADER, BUCKET)
        yield made


def bucket(google: Google, folder: Path, project: int = 42) -> CloudStorage:
    """As a job has it that was told no token of GitLab's."""
    variables = {
        "GLGPU_GOOGLE_ENDPOINT": google.endpoint, "GOOGLE_OAUTH_ACCESS_TOKEN": google.token, "CI_SERVER_URL": SERVER,
        "CI_PROJECT_ID": str(project),
    }  # fmt: skip
    return CloudStorage(read_job(variables, folder, 0.0), BUCKET)


def token_of_vm(google: Google) -> str:
    told = google.apis.token_of_vm(UPLOADER, [SCOPE])
    assert told is not None
    return told[0]


def ask(
    verb: str, url: str, headers: dict[str, str] | None = None, data: bytes | None = None
) -> tuple[int, dict[str, str]]:
    """Status of an answer, and its header fields."""
    request = urllib.request.Request(url, data, headers or {}, method=verb)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {}


def put(admission: Admission, name: str, data: bytes, *more: str) -> tuple[int, dict[str, str]]:
    """What curl makes of an admission."""
    headers = dict(line.split(": ", 1) for line in (*admission.headers, *more))
    return ask("PUT", admission.address + name, headers, data)


@pytest.fixture(params=["fake registry", "registry", "fake bucket", "bucket"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    number = str(next(NUMBERS))
    if request.param == "registry":
        world: Lab = request.getfixturevalue("world")
        forge = GitlabProject(read_job(job_by_hand(world.world, world.adopted), tmp_path, 0.0))
        run = RunName(world.world.gitlab.url, world.adopted.project.id, number)
        return Bench(forge, run, put)
    run = RunName(SERVER, 42, number)
    if request.param == "bucket":
        google: Google = request.getfixturevalue("google")

        def leave(admission: Admission, name: str, data: bytes) -> tuple[int, dict[str, str]]:
            return put(admission, name, data, f"Authorization: Bearer {token_of_vm(google)}")

        return Bench(bucket(google, tmp_path), run, leave)
    fake = FakeForge() if "registry" in request.param else FakeBucket(f"the bucket {BUCKET}")

    def keep(admission: Admission, name: str, data: bytes) -> tuple[int, dict[str, str]]:
        assert str(run) in admission.address
        fake.put_part(run, Part(name, len(data), hashlib.sha256(data).hexdigest()), io.BytesIO(data))
        return 200, {}

    return Bench(fake, run, keep)


def test_what_an_admitted_vm_leaves_is_there_as_it_was(bench: Bench) -> None:
    admission = bench.home.admit(bench.run, SOON)
    assert admission.own_account is not bool(admission.secret)
    assert all(admission.secret not in shown for shown in (repr(admission), admission.address) if admission.secret)
    status, _ = bench.leave(admission, "save-1-0-1-1", b"weights")
    assert status in (200, 201)
    assert bench.kept("save-1-0-1-1") == b"weights"
    assert bench.home.parts(bench.run)["save-1-0-1-1"].size == 7


def test_a_place_says_what_it_is(bench: Bench) -> None:
    assert (bench.home.store == "bucket") is bool(bench.home.bucket)
    assert (bench.home.bucket or "package registry") in bench.home.kept_in


def test_a_run_is_listed_while_its_vm_s_things_are_there_and_no_longer(bench: Bench) -> None:
    for name in ("save-1-0-1-1", HANDED_OVER):
        bench.put(name)
    assert bench.run in bench.home.runs_with_parts()
    bench.home.drop_parts(bench.run, ["save-1-0-1-1", "nothing"])
    assert list(bench.home.parts(bench.run)) == [HANDED_OVER]
    bench.home.drop_parts(bench.run, [HANDED_OVER])
    assert bench.run not in bench.home.runs_with_parts()
    bench.home.drop_parts(bench.run, [HANDED_OVER])


def test_who_was_dismissed_can_be_dismissed_again(bench: Bench) -> None:
    bench.home.admit(bench.run, SOON)
    first, again = bench.home.dismiss(bench.run), bench.home.dismiss(bench.run)
    assert (first, again) == (0 if bench.home.bucket else 1, 0)


def test_a_deploy_token_is_good_until_the_next_one_or_until_it_is_removed(world: Lab, tmp_path: Path) -> None:
    forge = GitlabProject(read_job(job_by_hand(world.world, world.adopted), tmp_path, 0.0))
    run = RunName(world.world.gitlab.url, world.adopted.project.id, str(next(NUMBERS)))
    first, second = forge.admit(run, SOON), forge.admit(run, SOON)
    assert (put(first, "one", b"1")[0], put(second, "one", b"1")[0]) == (401, 201)
    assert forge.dismiss(run) == 1
    assert put(second, "two", b"2")[0] == 401


def test_jobs_outputs_in_a_bucket_are_no_run_s_that_waits_to_be_collected(google: Google, tmp_path: Path) -> None:
    home, other = bucket(google, tmp_path), bucket(google, tmp_path, project=43)
    bench = Bench(home, RunName(SERVER, 42, str(next(NUMBERS))), put)
    bench.put("0123456789abcdef-weights.bin")
    bench.put("elsewhere-5.json")
    assert bench.run not in home.runs_with_parts()
    bench.put("save-1.manifest")
    assert bench.run in home.runs_with_parts()
    assert bench.run not in other.runs_with_parts()


def test_a_bucket_tells_a_vm_the_md5_of_what_has_come(google: Google, tmp_path: Path) -> None:
    home, run = bucket(google, tmp_path), RunName(SERVER, 42, str(next(NUMBERS)))
    status, headers = put(home.admit(run, SOON), "w", b"weights", f"Authorization: Bearer {token_of_vm(google)}")
    assert status == 200
    assert headers["x-goog-hash"].endswith("md5=Y/Tx6bclNw9FlyBXXNX5Uw==")


def test_a_vm_may_add_to_its_bucket_and_do_nothing_else_there(google: Google, tmp_path: Path) -> None:
    home, run = bucket(google, tmp_path), RunName(SERVER, 42, str(next(NUMBERS)))
    admission, token = home.admit(run, SOON), f"Bearer {token_of_vm(google)}"
    mine = {"Authorization": token}
    assert put(admission, "w", b"weights", f"Authorization: {token}")[0] == 200
    # Neither with our header, which says that nothing is to be replaced, nor without.
    assert put(admission, "w", b"other", f"Authorization: {token}")[0] == 412
    assert ask("PUT", f"{admission.address}w", mine, b"other")[0] == 403
    assert ask("GET", f"{admission.address}w", mine)[0] == 403
    api = f"{google.endpoint}/storage/v1/b/{BUCKET}"
    name = quote(f"glgpu/outputs/{run}/w", safe="")
    for verb, path in (("GET", f"/o/{name}"), ("GET", f"/o/{name}?alt=media"), ("DELETE", f"/o/{name}"), ("GET", "/o")):
        assert ask(verb, api + path, mine)[0] == 403
    assert put(admission, "w", b"other")[0] == 401
    assert (
        put(Admission(admission.address.replace(BUCKET, "not-made"), ()), "w", b"", f"Authorization: {token}")[0] == 404
    )
    # Not a state, which a job's Terraform would go by.
    state = f"{google.endpoint}/{BUCKET}/glgpu/states/{run}/default.tfstate"
    assert put(Admission(state, ()), "", b"{}", f"Authorization: {token}")[0] == 403
    data = bytearray()
    home.get_part(run, "w", 0, data.extend)
    assert data == b"weights"


def test_a_vm_s_token_opens_what_its_scopes_are_for_whatever_its_roles_say(google: Google, tmp_path: Path) -> None:
    home, run = bucket(google, tmp_path), RunName(SERVER, 42, str(next(NUMBERS)))
    for scope, status in (
        ("https://www.googleapis.com/auth/devstorage.read_only", 403),
        ("https://www.googleapis.com/auth/compute", 403),
        (SCOPE, 200),
        ("https://www.googleapis.com/auth/cloud-platform", 200),
    ):
        told = google.apis.token_of_vm(UPLOADER, [scope])
        assert told is not None
        answer = put(home.admit(run, SOON), f"w-{status}-{scope[-8:]}", b"1", f"Authorization: Bearer {told[0]}")
        assert answer[0] == status
    project = f"{google.endpoint}/v1/projects/my-dl:testIamPermissions"
    body = json.dumps({"permissions": ["compute.instances.create"]}).encode()
    headers = {"Authorization": f"Bearer {token_of_vm(google)}", "Content-Type": "application/json"}
    assert ask("POST", project, headers, body)[0] == 403
