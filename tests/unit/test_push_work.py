"""A notebook's work is pushed: only where the team allows it, only with a key of the moment, and at no other cost."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from fakes import SHA, Entry, Stage, make_stage, refusal
from glgpu.elsewhere import Part
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Instance
from glgpu.notebook import KIND, WORKSPACE, branch_of
from glgpu.run_record import RunRecord
from glgpu.saved import ENDED, HANDED_OVER, collected_mark
from glgpu.stages.cleanup import cleanup
from glgpu.stages.destroy import destroy, destroy_cloud_only, end_notebook
from glgpu.steps.bring_back import bring_back
from glgpu.steps.context import SETTINGS_ITEM
from glgpu.steps.push_work import ALLOWED, TRIES, push_work
from glgpu.steps.sums import write_sums
from glgpu.steps.tear_down import tear_down

BRANCH = "glgpu-notebook/ada/main"
WHOSE = {"user": "ada", "ref": "main", "commit": SHA}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A stop job, clicked by somebody else than whose notebook it is; what that had is home."""
    made = make_stage(tmp_path)
    made.use(name=replace(made.run.name, kind=KIND))
    record = made.run.outputs / "glgpu/run.json"
    made.use(record=RunRecord(record, made.name, "5", made.clock, made.run.console.masker))
    made.job(gitlab_host_keys="gitlab.example.com ssh-ed25519 PINNED")
    home(made, {"a.ipynb": b"{}"})
    return made


def home(stage: Stage, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = stage.run.outputs / WORKSPACE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    write_sums(stage.run.outputs, {f"{WORKSPACE}/{name}": sha256(data).hexdigest() for name, data in files.items()})


def vm(stage: Stage, *, can_push: bool = True) -> Instance:
    """Ada's VM; what this job has been told besides says otherwise."""
    stage.set(notebook={"can_push": can_push})
    stage.job(user="ada", ref="main", sha=SHA)
    made = stage.vm()
    stage.set(notebook={"can_push": not can_push})
    stage.job(user="bob")
    return made


def push(stage: Stage, *, can_push: bool = True) -> None:
    one = vm(stage, can_push=can_push)
    push_work(stage.run, one)


def put(stage: Stage, name: str, data: bytes) -> None:
    part = Part(name, len(data), sha256(data).hexdigest())
    stage.forge.put_part(stage.run.name, part, io.BytesIO(data))


def put_save(stage: Stage, text: bytes, reason: str = "idle") -> None:
    """What a VM has saved of its workspace: one file, ``mine``."""
    put(stage, "save-1-0-1-1", text)
    digest = sha256(text).hexdigest()
    lines = ["glgpu-save 1", "what all", f"reason {reason}", "state null", "bundle"]
    lines += [f"file {len(text)} {digest}  ./{WORKSPACE}/mine", f"part save-1-0-1-1 {len(text)} {digest}", ""]
    put(stage, "save-1.manifest", "\n".join(lines).encode())


def pushed(stage: Stage) -> dict[str, bytes]:
    return stage.branches.trees[stage.branches.tips[BRANCH]]


def test_without_the_team_s_leave_nothing_is_pushed_and_no_key_is_ever_made(stage: Stage) -> None:
    push(stage, can_push=False)
    allowed = vm(stage)
    told = allowed.metadata[SETTINGS_ITEM].replace('"can_push":true', '"can_push":false')
    push_work(stage.run, replace(allowed, metadata={SETTINGS_ITEM: told}))
    push_work(stage.run, None)
    assert (stage.branches.calls, stage.forge.verbs(), stage.log) == ([], [], "")


def test_the_vm_s_own_settings_allow_it_and_name_whose_it_is(stage: Stage) -> None:
    push(stage)
    assert pushed(stage) == {"a.ipynb": b"{}"}
    assert stage.branches.opened == ["gitlab.example.com ssh-ed25519 PINNED\n"]
    assert (stage.forge.pushing, stage.forge.keys) == ([f"{stage.name}-push"], [])
    assert not stage.branches.open_now
    assert stage.events() == ["push-key-registered", "push-key-removed", "work-pushed"]
    links = json.loads((stage.run.artifacts / "glgpu/annotations.json").read_bytes())["glgpu"]
    assert links[0]["external_link"]["url"] == f"https://gitlab.example.com/team/model/-/tree/{BRANCH}"


def test_where_the_vm_is_gone_the_record_of_the_job_that_started_it_allows_it(stage: Stage) -> None:
    stage.run.record.add(ALLOWED, user="ada", ref="main", commit=SHA)
    push_work(stage.run, None)
    assert pushed(stage) == {"a.ipynb": b"{}"}


def test_what_a_record_leaves_open_is_not_guessed(stage: Stage) -> None:
    stage.run.record.add(ALLOWED, user="ada", ref="", commit=SHA)
    push_work(stage.run, None)
    assert stage.branches.calls == []


def test_the_key_goes_before_the_job_goes_on_whatever_happens(stage: Stage) -> None:
    stage.branches.refuse["push"] = refusal(ErrorClass.GITLAB, "You are not allowed to push")
    push(stage)
    assert stage.forge.keys == []
    assert not stage.branches.open_now
    assert "not pushed: GITLAB: You are not allowed to push\nremedy: none\nnothing is lost" in stage.log
    assert stage.events()[-1] == "work-not-pushed"
    assert (stage.run.outputs / WORKSPACE / "a.ipynb").read_bytes() == b"{}"


def test_a_signal_is_passed_on_with_the_key_gone(stage: Stage) -> None:
    stage.branches.refuse["tip"] = refusal(ErrorClass.INTERRUPTED)
    with pytest.raises(Failure) as caught:
        push(stage)
    assert caught.value.klass is ErrorClass.INTERRUPTED
    assert (stage.forge.keys, stage.branches.open_now) == ([], False)


def test_a_key_that_could_not_be_removed_is_removed_by_the_next_teardown(stage: Stage) -> None:
    stage.forge.refuse["remove_deploy_keys"] = refusal(ErrorClass.NETWORK, "GitLab is gone")
    push(stage)
    assert f"GitLab is gone; `glgpu cleanup` removes the deploy key {stage.name}-push, which expires soon" in stage.log
    assert [title for title, _, _ in stage.forge.keys] == [f"{stage.name}-push"]
    assert pushed(stage) == {"a.ipynb": b"{}"}
    del stage.forge.refuse["remove_deploy_keys"]
    tear_down(stage.run)
    assert stage.forge.keys == []


def test_a_key_of_a_job_that_died_is_removed_by_the_cleanup(stage: Stage) -> None:
    stage.forge.add_deploy_key(f"{stage.name}-push", "ssh-ed25519 K", 0.0, can_push=True)
    stage.forge.pipelines[42, 1001] = "running"
    cleanup(stage.run, stage.clock.now, lambda _: stage.run)
    assert len(stage.forge.keys) == 1
    stage.forge.pipelines[42, 1001] = "success"
    cleanup(stage.run, stage.clock.now, lambda _: stage.run)
    assert stage.forge.keys == []


def test_the_key_expires_by_gitlab_s_clock_within_a_quarter_of_an_hour(stage: Stage) -> None:
    stage.forge.time = lambda: 1000.0
    stage.branches.before["tip"] = lambda: expires.append(stage.forge.keys[0][2])
    expires = list[float]()
    push(stage)
    assert expires == [1900.0]


def test_whoever_is_faster_is_waited_out_for_a_while(stage: Stage) -> None:
    stage.branches.raced = TRIES - 1
    push(stage)
    assert stage.branches.verbs().count("push") == TRIES
    assert pushed(stage) == {"a.ipynb": b"{}"}
    home(stage, {"a.ipynb": b"more"})
    stage.branches.raced = TRIES
    push(stage)
    assert f"{BRANCH} has moved {TRIES} times" in stage.log
    assert pushed(stage) == {"a.ipynb": b"{}"}


@pytest.mark.parametrize(
    ("failure", "tries"),
    [
        (Failure(ErrorClass.CODE, "refused", "none", "git@gitlab: Permission denied (publickey)."), TRIES),
        (refusal(ErrorClass.NETWORK), TRIES),
        (refusal(ErrorClass.GITLAB), 1),
    ],
)
def test_a_key_that_gitlab_does_not_know_yet_is_tried_again_and_a_refusal_is_not(
    stage: Stage, failure: Failure, tries: int
) -> None:
    stage.branches.refuse["tip"] = failure
    push(stage)
    assert stage.branches.verbs().count("tip") == tries
    assert stage.forge.keys == []


def test_a_gitlab_that_answers_nobody_gets_no_key(stage: Stage) -> None:
    stage.branches.answering = ""
    push(stage)
    assert "does not answer at its SSH port, gitlab.example.com:22" in stage.log
    assert stage.forge.pushing == []


def test_without_a_token_it_is_said_what_is_missing(stage: Stage) -> None:
    stage.forge.may_administer = False
    push(stage)
    assert "no GLGPU_GITLAB_TOKEN" in stage.log
    assert stage.branches.calls == []


def test_what_is_elsewhere_and_what_git_ignores_is_named(stage: Stage) -> None:
    home(stage, {name: b"1" for name in ("a.ipynb", "big", *"wxyz", "v", "u")})
    (stage.run.outputs / WORKSPACE / "big").unlink()
    stage.branches.ignored = {*"uvwxyz"}
    push(stage)
    assert "too big for artifacts and kept elsewhere: 'big'\n" in stage.log
    assert "ignored by git: 'u', 'v', 'w', 'x', 'y' and 1 more\n" in stage.log


@pytest.fixture
def at_work(stage: Stage) -> Stage:
    """A notebook in which somebody has worked, and whose VM runs."""
    one = vm(stage)
    stage.cloud.insert(replace(one, labels={**one.labels, "glgpu-until": "deadline"}))
    put(stage, HANDED_OVER, b"{}")
    stage.machine.container = {"Running": True, "ExitCode": 0, "OOMKilled": False}
    stage.machine.files = {f"{WORKSPACE}/b.ipynb": Entry(b"[]")}
    return stage


def test_the_stop_job_pushes_what_it_brought_home_once_the_vm_is_gone(at_work: Stage) -> None:
    end_notebook(at_work.run)
    assert "saved 1 files of the workspace" in at_work.log
    assert pushed(at_work) == {"b.ipynb": b"[]"}
    assert at_work.log.index("nothing of this run is left") < at_work.log.index(f"The work goes to the branch {BRANCH}")


def test_where_the_vm_does_not_give_what_it_has_its_newest_save_comes_home(at_work: Stage) -> None:
    put_save(at_work, b"saved before", reason="going")
    at_work.machine.reachable = False
    end_notebook(at_work.run)
    assert (at_work.run.outputs / WORKSPACE / "mine").read_bytes() == b"saved before"
    assert f"{at_work.name} has not given what it had in the end: this it had saved before" in at_work.log
    assert "taken away" not in at_work.log
    assert pushed(at_work) == {"mine": b"saved before"}
    assert at_work.cloud.find(at_work.name) == []
    left = at_work.forge.parts(at_work.run.name).keys()
    assert (collected_mark("5") in left, "save-1.manifest" in left, ENDED in left) == (True, True, False)


@pytest.mark.parametrize(
    ("saved", "job", "mark"),
    [(True, "5", collected_mark("5")), (True, "", ENDED), (False, "5", ENDED)],
    ids=["in a job", "on a laptop", "nothing to bring home again"],
)
def test_who_has_brought_a_notebook_s_work_home_is_noted_as_long_as_it_may_have_to_be_done_again(
    at_work: Stage, saved: bool, job: str, mark: str
) -> None:
    if saved:
        put_save(at_work, b"saved before", reason="going")
    at_work.job(job_id=job)
    destroy(at_work.run, detached_too=True)
    left = at_work.forge.parts(at_work.run.name).keys()
    assert left & {ENDED, collected_mark("5")} == {mark}


def test_a_stop_job_that_is_cut_short_leaves_what_was_saved_to_the_next(at_work: Stage) -> None:
    put_save(at_work, b"saved before", reason="going")
    at_work.machine.refuse["see-home"] = refusal(ErrorClass.INTERRUPTED)
    with pytest.raises(Failure):
        end_notebook(at_work.run)
    assert at_work.cloud.find(at_work.name) == []
    assert not (at_work.run.outputs / WORKSPACE / "mine").exists()
    # Its artifacts are kept, whatever is in them.
    at_work.forge.job_ends["5"] = "kept"
    at_work.job(job_id="6")
    bring_back(at_work.run, at_work.clock.now, lambda _: at_work.run)
    assert (at_work.run.outputs / WORKSPACE / "mine").read_bytes() == b"saved before"


@pytest.mark.parametrize("collects", [False, True], ids=["the stop job", "a scheduled job"])
def test_whoever_is_cut_short_while_pushing_leaves_it_to_be_done_once_more(at_work: Stage, collects: bool) -> None:
    put_save(at_work, b"saved before", reason="ended")
    at_work.branches.refuse["tip"] = refusal(ErrorClass.INTERRUPTED)
    if collects:
        (one,) = at_work.cloud.find(at_work.name)
        at_work.cloud.change(one.name, one.zone, status="TERMINATED")
        assert bring_back(at_work.run, at_work.clock.now, lambda _: at_work.run)
    else:
        with pytest.raises(Failure):
            end_notebook(at_work.run)
    assert (at_work.cloud.find(at_work.name), at_work.branches.tips) == ([], {})
    del at_work.branches.refuse["tip"]
    at_work.run.record.add(ALLOWED, **WHOSE)
    at_work.forge.job_ends["5"] = "kept"
    at_work.job(job_id="6")
    assert bring_back(at_work.run, at_work.clock.now, lambda _: at_work.run) == []
    assert pushed(at_work)["mine"] == b"saved before"


def test_where_the_vm_gives_nothing_and_has_saved_nothing_that_is_said(at_work: Stage) -> None:
    at_work.machine.reachable = False
    end_notebook(at_work.run)
    assert f"{at_work.name} has saved nothing in the project's package registry" in at_work.log
    assert at_work.cloud.find(at_work.name) == []


def test_what_the_vm_gives_is_not_replaced_by_what_it_had_saved(at_work: Stage) -> None:
    put_save(at_work, b"saved before", reason="going")
    end_notebook(at_work.run)
    assert [path.name for path in (at_work.run.outputs / WORKSPACE).iterdir() if path.name != "a.ipynb"] == ["b.ipynb"]


def test_of_a_notebook_in_which_nobody_has_worked_nothing_is_pushed_and_no_key_is_made(at_work: Stage) -> None:
    at_work.machine.files = {}
    shutil.rmtree(at_work.run.outputs)
    end_notebook(at_work.run)
    assert (at_work.branches.calls, at_work.forge.pushing) == ([], [])


def test_an_after_script_has_no_time_to_push(at_work: Stage) -> None:
    at_work.job(status="failed")
    (one,) = at_work.cloud.find(at_work.name)
    at_work.cloud.change(one.name, one.zone, labels={**one.labels, "glgpu-until": "pipeline"})
    destroy_cloud_only(at_work.run)
    assert at_work.cloud.find(at_work.name) == []
    assert at_work.branches.tips == {}


@pytest.mark.parametrize("status", ["TERMINATED", ""])
def test_what_a_vm_has_left_that_ended_by_itself_is_pushed_by_whoever_collects_it(stage: Stage, status: str) -> None:
    one = vm(stage)
    one = replace(one, status=status, labels={**one.labels, "glgpu-until": "deadline"})
    if status:
        stage.cloud.insert(one)
    record = {"run": stage.name, "events": [{"at": 1.0, "what": ALLOWED, "facts": WHOSE}]}
    stage.forge.artifacts["1001", "start notebook", "outputs/glgpu/run.json"] = json.dumps(record)
    put(stage, HANDED_OVER, b"{}")
    put_save(stage, b"worked on")
    assert bring_back(stage.run, stage.clock.now, lambda _: stage.run) == []
    assert pushed(stage) == {"mine": b"worked on"}
    assert stage.cloud.find(stage.name) == []


def test_a_vm_that_its_stop_job_could_not_end_is_seen_to_though_the_work_is_home(stage: Stage) -> None:
    one = vm(stage)
    stage.cloud.insert(replace(one, status="TERMINATED", labels={**one.labels, "glgpu-until": "deadline"}))
    put(stage, HANDED_OVER, b"{}")
    put(stage, ENDED, b"by job 4\n")
    put_save(stage, b"worked on")
    assert bring_back(stage.run, stage.clock.now, lambda _: stage.run) == []
    assert stage.cloud.find(stage.name) == []


@pytest.mark.parametrize(
    ("user", "ref", "expected"),
    [
        ("ada", "main", "glgpu-notebook/ada/main"),
        ("ada.l", "feature/x", "glgpu-notebook/ada.l/feature/x"),
        ("ada", "glgpu-notebook/ada/main", "glgpu-notebook/ada/main"),
        ("bob", "glgpu-notebook/ada/main", "glgpu-notebook/bob/glgpu-notebook/ada/main"),
        ("a/b", "x", "glgpu-notebook/a%2Fb/x"),
        (".", "a//..b/c.lock", "glgpu-notebook/%2E/a/%/%2E.b/c%2Elock"),
        ("é", "~^:?*[\\ {}", "glgpu-notebook/%C3%A9/%7E%5E%3A%3F%2A%5B%5C%20%7B%7D"),
    ],
)
def test_a_branch_bears_the_names_of_its_user_and_of_the_notebook_s_branch(user: str, ref: str, expected: str) -> None:
    assert branch_of(user, ref) == expected


def test_no_two_users_have_a_branch_in_common_whatever_they_are_called() -> None:
    users = ["a", "A", "a/b", "a%2Fb", "a.", "a%2E", "", "%", "x" * 300, "x" * 301, "a.lock", "a%2Elock", "é", "%C3%A9"]
    assert len({branch_of(user, "main") for user in users}) == len(users)
    assert max(len(piece) for user in users for piece in branch_of(user, "main").split("/")) <= 120
