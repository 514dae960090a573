"""What a step may expect of a place for states: one suite over the fake and the bucket in the stand-in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from fakes import FakeStates
from glgpu.clients.cloud_storage import CloudStorage
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Backend, StateStore
from glgpu.job import read_job
from glgpu.processes import run
from glgpu.rehearsal.google_access import service_account
from google_stand_ins import Google, all_of_google

BUCKET = "my-dl-glgpu"


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Google]:
    with all_of_google(tmp_path_factory.mktemp("google")) as made:
        made.apis.make_bucket(BUCKET)
        yield made


def real(google: Google, folder: Path, bucket: str = BUCKET, token: str = "") -> CloudStorage:
    variables = {"GLGPU_GOOGLE_ENDPOINT": google.endpoint, "GOOGLE_OAUTH_ACCESS_TOKEN": token or google.token}
    return CloudStorage(read_job(variables, folder, 0.0), bucket)


@pytest.fixture(params=["fake", "real"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StateStore:
    if request.param == "fake":
        return FakeStates(f"the bucket {BUCKET}", "gcs")
    return real(request.getfixturevalue("google"), tmp_path)


def test_a_state_that_nobody_wrote_is_absent(store: StateStore) -> None:
    assert store.state("run-1") == "absent"
    store.delete_state("run-1")


def test_asking_for_the_right_to_write_leaves_nothing_behind_that_deleting_does_not_remove(store: StateStore) -> None:
    assert store.state_writable("run-2")
    assert store.state("run-2") in ("absent", "empty")
    store.delete_state("run-2")
    assert store.state("run-2") == "absent"


def test_its_backend_is_named_after_the_run(store: StateStore) -> None:
    backend = store.state_backend("run-3")
    assert backend.kind == "gcs"
    assert "run-3" in repr(backend)


def test_a_lock_that_a_dead_job_left_is_broken(google: Google, tmp_path: Path) -> None:
    store = real(google, tmp_path)
    make_state(google, store.state_backend("run-4"), tmp_path / "tf")
    write(google, "glgpu/states/run-4/default.tflock")
    assert "Error acquiring the state lock" in make_state(google, store.state_backend("run-4"), tmp_path / "tf")
    assert store.state_writable("run-4")
    assert "Apply complete" in make_state(google, store.state_backend("run-4"), tmp_path / "tf")


def test_a_lock_has_a_holder_until_it_is_broken_and_keeps_its_state(google: Google, tmp_path: Path) -> None:
    store = real(google, tmp_path)
    assert store.lock_holder("run-7") == ""
    write(google, "glgpu/states/run-7/default.tflock")
    assert store.lock_holder("run-7") == "somebody since 2026-11-23T20:00:00Z"
    with pytest.raises(Failure) as caught:
        store.delete_state("run-7")
    assert caught.value.klass is ErrorClass.STATE_LOCK
    for _ in range(2):
        store.break_lock("run-7")
    assert store.lock_holder("run-7") == ""
    store.delete_state("run-7")
    assert store.state("run-7") == "absent"


def test_what_terraform_wrote_is_held_until_it_is_deleted(google: Google, tmp_path: Path) -> None:
    store = real(google, tmp_path)
    make_state(google, store.state_backend("run-5"), tmp_path / "tf")
    assert store.state("run-5") == "held"
    store.delete_state("run-5")
    assert store.state("run-5") == "absent"
    assert [
        name for name in google.apis.storage.buckets[BUCKET].objects if live(google, name) and "run-5" in name
    ] == []


@pytest.mark.parametrize("without", ["bucket", "rights"])
def test_without_bucket_or_rights_there_is_no_writing(google: Google, tmp_path: Path, without: str) -> None:
    if without == "bucket":
        store = real(google, tmp_path, bucket="not-made")
    else:
        stranger = google.apis.project.tokens.issue(service_account("stranger@my-dl.iam.gserviceaccount.com"))
        store = real(google, tmp_path, token=stranger)
    assert not store.state_writable("run-6")


def live(google: Google, name: str) -> bool:
    return google.apis.storage.buckets[BUCKET].live(name) is not None


def write(google: Google, name: str) -> None:
    path = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(name, safe='')}"
    status, _ = google.ask("POST", path, {"ID": "1", "Who": "somebody", "Created": "2026-11-23T20:00:00Z"})
    assert status == 200


def make_state(google: Google, backend: Backend, folder: Path) -> str:
    program = shutil.which("terraform")
    if program is None:
        pytest.skip("terraform: no terraform on PATH, so nobody writes a state")
    folder.mkdir(exist_ok=True)
    (folder / "main.tf").write_text('resource "terraform_data" "x" {}\n')
    (folder / "backend.tf.json").write_text(json.dumps({"terraform": {"backend": {backend.kind: backend.settings}}}))
    own = {**os.environ, **backend.environment, "GOOGLE_OAUTH_ACCESS_TOKEN": google.token, "CHECKPOINT_DISABLE": "1"}
    said = ""
    for words in (["init"], ["apply", "-auto-approve"]):
        done = run([program, *words, "-no-color"], env=own, cwd=folder, timeout=120)
        said += done.text + done.complaint
    return said
