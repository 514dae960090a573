"""The code of exactly one commit on the VM, by the first way that works."""

from __future__ import annotations

import base64
import hashlib
import math

import pytest

from fakes import SHA, FakeRepository, Stage, done, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.steps.checkout import check_out

KEY = base64.b64encode(b"gitlab's host key").decode()
ANSWER = f"gitlab.example.com ssh-ed25519 {KEY}\n"
FINGERPRINT = "SHA256:" + base64.b64encode(hashlib.sha256(b"gitlab's host key").digest()).decode().rstrip("=")


@pytest.fixture
def vouched(stage: Stage) -> Stage:
    """A GitLab that the VM reaches and whose page has its key."""
    stage.machine.answering = ANSWER
    stage.forge.fingerprints = {FINGERPRINT}
    return stage


def checked_out(stage: Stage, hard_end: float | None = None) -> None:
    check_out(stage.run, stage.machine, stage.clock.now() + 3600 if hard_end is None else hard_end)


def clone(stage: Stage) -> tuple[str, ...]:
    return next(call[1:] for call in stage.machine.calls if call[0] == "clone")


def test_auto_takes_a_deploy_key_where_that_works_and_says_so(vouched: Stage) -> None:
    checked_out(vouched)
    assert clone(vouched) == ("ssh://git@gitlab.example.com:22/team/model.git", SHA)
    assert vouched.machine.stdin["clone"].decode() == f"gitlab.example.com ssh-ed25519 {KEY}\n"
    assert "code: deploy-key" in vouched.log
    event = vouched.run.record.find("code-checked-out")
    assert event is not None
    assert event.facts == {"way": "deploy-key", "commit": SHA}


def test_the_deploy_key_is_made_on_the_vm_named_after_the_run_and_expires(vouched: Stage) -> None:
    checked_out(vouched)
    assert vouched.forge.keys == [(vouched.name, "ssh-ed25519 DEPLOYKEY", vouched.clock.now() + 7200)]


def test_a_vm_without_a_known_end_gets_a_key_that_expires_too(vouched: Stage) -> None:
    checked_out(vouched, math.inf)
    assert math.isfinite(vouched.forge.keys[0][2])


def test_another_port_stands_in_the_known_hosts(vouched: Stage) -> None:
    vouched.job(ssh_port=2222)
    checked_out(vouched)
    assert vouched.machine.stdin["clone"].startswith(b"[gitlab.example.com]:2222 ssh-ed25519 ")


def test_gitlab_com_is_known_without_asking(stage: Stage) -> None:
    stage.machine.answering = ANSWER
    stage.job(ssh_host="gitlab.com")
    checked_out(stage)
    assert b"gitlab.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAfu" in stage.machine.stdin["clone"]
    assert "host_key_fingerprints" not in stage.forge.verbs()


def test_gitlab_com_is_known_at_its_other_port_too(stage: Stage) -> None:
    stage.machine.answering = ANSWER
    stage.job(ssh_host="altssh.gitlab.com", ssh_port=443)
    checked_out(stage)
    assert stage.machine.stdin["clone"].startswith(b"[altssh.gitlab.com]:443 ssh-ed25519 AAAA")


def test_keys_from_a_setting_go_before_all_others(vouched: Stage) -> None:
    vouched.job(gitlab_host_keys="gitlab.example.com ssh-ed25519 OURS")
    checked_out(vouched)
    assert vouched.machine.stdin["clone"] == b"gitlab.example.com ssh-ed25519 OURS\n"


def test_auto_gives_the_vm_15_seconds_and_then_brings_the_jobs_checkout(stage: Stage) -> None:
    checked_out(stage)
    assert ("reach", "gitlab.example.com", "22", "15") in stage.machine.calls
    assert "code: job (the VM does not reach GitLab's SSH port within 15 s)" in stage.log
    assert stage.machine.stdin["unpack"] == b"PACK " + SHA.encode()
    assert stage.machine.stdin["overlay"] == b"TAR"


def test_auto_without_a_token_brings_the_jobs_checkout(vouched: Stage) -> None:
    vouched.forge.may_administer = False
    checked_out(vouched)
    assert "code: job (no GLGPU_GITLAB_TOKEN" in vouched.log


def test_auto_does_without_a_key_that_nobody_vouches_for(stage: Stage) -> None:
    stage.machine.answering = ANSWER
    checked_out(stage)
    assert "nobody vouches" in stage.log
    assert "overlay" in stage.machine.stdin
    assert stage.forge.keys == []


@pytest.mark.parametrize("klass", [ErrorClass.GITLAB_AUTH, ErrorClass.NETWORK, ErrorClass.TRANSIENT])
def test_auto_does_without_a_gitlab_that_refuses_or_is_away(vouched: Stage, klass: ErrorClass) -> None:
    vouched.forge.refuse["add_deploy_key"] = refusal(klass)
    checked_out(vouched)
    assert "overlay" in vouched.machine.stdin


def test_auto_does_without_a_key_that_cannot_see_the_commit(vouched: Stage) -> None:
    vouched.machine.said["clone"] = done("", 128, "fatal: remote error: upload-pack: not our ref")
    checked_out(vouched)
    assert "overlay" in vouched.machine.stdin


def test_auto_does_not_hide_a_broken_connection(vouched: Stage) -> None:
    vouched.machine.said["clone"] = done("", 255, "Connection closed")
    with pytest.raises(Failure) as caught:
        checked_out(vouched)
    assert caught.value.exit_code == 13


@pytest.mark.parametrize(
    "said",
    [
        "fatal: remote error: upload-pack: not our ref",
        "Host key verification failed.\nfatal: Could not read from remote repository.",
        "fatal: something that nobody has seen before",
    ],
)
def test_a_clone_that_fails_is_a_repository_that_cannot_be_had(vouched: Stage, said: str) -> None:
    vouched.set(code="deploy-key")
    vouched.machine.said["clone"] = done("", 128, said)
    with pytest.raises(Failure) as caught:
        checked_out(vouched)
    assert caught.value.exit_code == 17


def test_deploy_key_insists_on_somebody_who_vouches(stage: Stage) -> None:
    stage.set(code="deploy-key")
    stage.machine.answering = ANSWER
    with pytest.raises(Failure, match="nobody vouches") as caught:
        checked_out(stage)
    assert caught.value.exit_code == 17


def test_a_full_disk_on_the_vm_is_not_this_machines(vouched: Stage) -> None:
    vouched.set(code="deploy-key")
    vouched.machine.said["clone"] = done("", 128, "error: unable to write file: No space left on device")
    with pytest.raises(Failure) as caught:
        checked_out(vouched)
    assert caught.value.exit_code == 20


def job_failure(stage: Stage) -> Failure:
    stage.set(code="job")
    with pytest.raises(Failure) as caught:
        checked_out(stage)
    return caught.value


def test_a_job_without_checkout_has_no_code_to_bring(stage: Stage) -> None:
    stage.use(repository=FakeRepository(""))
    assert job_failure(stage).exit_code == 17


def test_a_checkout_of_another_commit_is_refused(stage: Stage) -> None:
    stage.use(repository=FakeRepository("f" * 40))
    assert "is for 012345678901" in job_failure(stage).cause


@pytest.mark.parametrize("verb", ["unpack", "overlay"])
@pytest.mark.parametrize(("said", "code"), [(1, 17), (255, 13)])
def test_code_that_does_not_arrive_is_a_failure_and_of_the_way_where_that_broke(
    stage: Stage, verb: str, said: int, code: int
) -> None:
    stage.machine.said[verb] = done("", said)
    assert job_failure(stage).exit_code == code


def test_a_laptop_says_which_files_differ_from_the_commit(stage: Stage) -> None:
    stage.job(job_id="", sha="")
    repository = FakeRepository(SHA)
    repository.differs = ["train.py"]
    stage.use(repository=repository)
    stage.set(code="job")
    checked_out(stage)
    assert "1 files differ" in stage.log
