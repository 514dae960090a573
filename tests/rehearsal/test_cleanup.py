"""A scheduled pipeline with ci/cleanup.yml, in stand-ins where runs have left all that a run can leave."""

from __future__ import annotations

import json
import urllib.request
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from glgpu.rehearsal.faults import Rule
from glgpu.rehearsal.gitlab_model import DeployKey, State, User
from glgpu.rehearsal.world import GOOGLE_PROJECT
from rehearsing import WITH_CLEANUP, Played, clean, repository, world

ZONE = "us-central1-a"
IMAGE = "projects/debian-cloud/global/images/family/debian-12"
LONG_TRAINING = """\
import pathlib, time
pathlib.Path("weights").mkdir()
pathlib.Path("weights/w.bin").write_bytes(b"half")
print("half way", flush=True)
time.sleep(600)
"""


def owner(played: Played) -> str:
    """A token of somebody who may do more than jobs may."""
    played.world.google.project.tokens.add("ya29.owner", played.world.google.owner())
    return "ya29.owner"


def ask(played: Played, verb: str, path: str, body: object = None) -> dict[str, Any]:
    """A request to Compute Engine that none of glgpu's clients makes."""
    url = f"{played.world.compute.endpoint}/compute/v1/projects/{GOOGLE_PROJECT}/{path}"
    headers = {"Authorization": f"Bearer {owner(played)}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=verb), timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def done(played: Played, verb: str, path: str, body: object = None) -> None:
    begun = ask(played, verb, path, body)
    ask(played, "POST", begun["selfLink"].partition(f"/projects/{GOOGLE_PROJECT}/")[2] + "/wait")


def insert(played: Played, name: str, labels: dict[str, str], *, disk_stays: bool = False) -> None:
    """A VM as somebody has left it."""
    order = {
        "name": name,
        "machineType": f"zones/{ZONE}/machineTypes/e2-small",
        "labels": labels,
        "disks": [{"boot": True, "autoDelete": not disk_stays, "initializeParams": {"sourceImage": IMAGE}}],
        "networkInterfaces": [{"network": "global/networks/default"}],
    }
    done(played, "POST", f"zones/{ZONE}/instances", order)


def rule(played: Played, name: str) -> None:
    body = {"name": name, "sourceRanges": ["192.0.2.1/32"], "denied": [{"IPProtocol": "tcp"}], "targetTags": [name]}
    done(played, "POST", "global/firewalls", body)


def labels(name: str, until: str, expires: float) -> dict[str, str]:
    _, server, project, run, kind = name.split("-")
    own = {"glgpu-server": server, "glgpu-project": project, "glgpu-run": run, "glgpu-kind": kind}
    return {"glgpu": "managed", **own, "glgpu-until": until, "glgpu-expires": f"{expires:.0f}"}


@pytest.fixture(scope="module")
def forsaken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Played, str]]:
    """A pipeline whose train job was cancelled by force, so that no after_script ran and no destroy job follows.

    Played once for all tests: only the last one lets the VM go.
    """
    own = repository(
        tmp_path_factory.mktemp("forsaken") / "repository", {"train.py": LONG_TRAINING, ".gitlab-ci.yml": WITH_CLEANUP}
    )

    async def cancel(played: Played) -> None:
        await played.printed("train", "half way\n")
        played.player.cancel_job("train", force=True)

    with world() as made:
        played = Played(made, made.adopt(own, keep_pipeline=True))
        outcomes = played.play(cancel)
        assert (outcomes["train"].status, outcomes["destroy"].status) == ("canceled", "skipped")
        (name,) = [one.partition(" ")[0] for one in played.left()["instances"]]
        yield played, name
        played.close()


def add_key(played: Played, title: str, user: User) -> None:
    gitlab = played.world.gitlab
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + f"{len(gitlab.deploy_keys):043}"
    number = gitlab.number()
    gitlab.deploy_keys[number] = DeployKey(number, title, key, 0.0, user, {played.rehearsal.adopted.project.id: False})


@pytest.mark.parametrize("how", ["no token", "404"])
def test_a_gitlab_that_does_not_tell_leaves_the_vm_until_its_end(forsaken: tuple[Played, str], how: str) -> None:
    played, name = forsaken
    variables = played.rehearsal.adopted.project.variables
    kept = list(variables)
    if how == "no token":
        variables[:] = [one for one in variables if one.key != "GLGPU_GITLAB_TOKEN"]
    else:
        played.world.faults.rules.append(Rule("gitlab.request", "not-found"))
    try:
        outcome, log = clean(played)
    finally:
        variables[:] = kept
        played.world.faults.lift("gitlab.request")
    assert outcome.status == "success", log
    assert [one.partition(" ")[0] for one in played.left()["instances"]] == [name]
    line = "GLGPU_GITLAB_TOKEN is not set: GitLab cannot be asked" if how == "no token" else "GitLab shows"
    assert line in log
    assert "stays: GitLab does not tell of its pipeline; ends in" in log


def test_what_cannot_be_removed_ends_with_31_and_a_command(forsaken: tuple[Played, str]) -> None:
    played, name = forsaken
    before = played.left()
    played.world.faults.rules.append(Rule("compute.instances.delete", "permission-denied"))
    try:
        outcome, log = clean(played)
    finally:
        played.world.faults.lift("compute.instances.delete")
    assert (outcome.status, outcome.exit_code) == ("failed", 31), log
    assert "glgpu: LEFT_BEHIND (exit code 31)" in log
    assert f"gcloud compute instances delete {name}" in log
    left = played.left()
    # The environment has been stopped: that is no longer to be seen as left.
    assert {kind: left[kind] for kind in before} == before


def test_a_schedule_removes_exactly_what_is_over_and_saves_what_was_not_home(forsaken: tuple[Played, str]) -> None:
    played, name = forsaken
    gitlab, adopted = played.world.gitlab, played.rehearsal.adopted
    now = played.world.clock.now()
    project = adopted.project
    _, server, _, run, _ = name.split("-")
    over = gitlab.create_pipeline(project, "main", adopted.sha, "push", adopted.user)
    gitlab.create_job(over, "train", "train").status = "failed"
    runs = gitlab.create_pipeline(project, "main", adopted.sha, "push", adopted.user)
    gitlab.create_job(runs, "train", "train").status = "running"
    stopped = f"glgpu-{server}-{project.id}-{over.id}-train"
    diskless = f"glgpu-{server}-{project.id}-{over.id}-notebook"
    busy = f"glgpu-{server}-{project.id}-{runs.id}-train"
    twin = f"glgpu-000000-{project.id}-{run}-train"
    insert(played, stopped, labels(stopped, "pipeline", now + 9000))
    done(played, "POST", f"zones/{ZONE}/instances/{stopped}/stop")
    insert(played, diskless, labels(diskless, "deadline", now + 9000), disk_stays=True)
    done(played, "DELETE", f"zones/{ZONE}/instances/{diskless}")
    insert(played, busy, labels(busy, "pipeline", now + 9000))
    insert(played, twin, labels(twin, "pipeline", now - 9000))
    other = gitlab.create_project("rehearsal/other", None)
    elsewhere = gitlab.create_pipeline(other, "main", "0" * 40, "push", adopted.user)
    gitlab.create_job(elsewhere, "train", "train").status = "success"
    another = f"glgpu-{server}-{other.id}-{elsewhere.id}-train"
    insert(played, another, labels(another, "pipeline", now + 9000))
    for one in (stopped, busy, twin):
        rule(played, f"{one}-closed")
    for one in (stopped, busy):
        project.states[one] = State(one, now, now, lock_id="held", locked_by=adopted.user, locked_at=now)
        add_key(played, one, adopted.user)
    outcome, log = clean(played)
    assert outcome.status == "success", log
    assert "2 things of other GitLab servers: never touched" in log
    left = played.left()
    assert sorted(one.partition(" ")[0] for one in left.pop("instances")) == sorted([another, busy, twin])
    assert sorted(one.partition(" ")[0] for one in left.pop("disks")) == sorted([another, busy, twin])
    assert left == {
        "firewall rules": sorted([f"{busy}-closed", f"{twin}-closed"]),
        "deploy keys": [busy], "states": [busy], "locks": [busy],
    }  # fmt: skip
    assert outcome.last.artifacts is not None, log
    with zipfile.ZipFile(outcome.last.artifacts) as archive:
        assert archive.read(f"outputs/glgpu/{name}/weights/w.bin") == b"half"
    # GitLab makes a notebook's with the pipeline that offers it; nobody has clicked.
    states = {one.name: one.state for one in project.environments.values()}
    assert states == {"gpu/main": "available", "notebook/main/1": "available"}
    # The token of a whole group lets one cleanup do for all of its projects.
    assert f"GitLab shows GLGPU_GITLAB_TOKEN no project {other.id}" in log
    other.members[adopted.token.user.id] = project.members[adopted.token.user.id]
    outcome, log = clean(played)
    assert outcome.status == "success", log
    assert sorted(one.partition(" ")[0] for one in played.left()["instances"]) == sorted([busy, twin])
    assert "1 of 1 that were to go are gone" in log
