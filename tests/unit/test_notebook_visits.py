"""From a laptop: a notebook is opened, told of, and given more time."""

from __future__ import annotations

import io
import json
import stat
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from fakes import ZONE, Stage, done, refusal
from glgpu.console import Console
from glgpu.errors import ErrorClass, Failure
from glgpu.masking import Masker
from glgpu.notebook import KIND, SAVE_SECONDS, socket_of
from glgpu.run_names import RunName
from glgpu.stages.destroy import destroy_cloud_only, end_notebook
from glgpu.stages.notebook_extend import extend
from glgpu.stages.notebook_open import open_notebook
from glgpu.stages.notebook_status import notebook_status
from glgpu.stages.ssh import ssh, write_host
from glgpu.steps.context import SETTINGS_ITEM, Run
from glgpu.steps.visit import Visitor

SERVER = "https://gitlab.example.com"
TOKEN = "0123456789abcdef-the-token"
NAME = RunName(SERVER, 42, "1001", KIND)


def visitor(stage: Stage, asked: str = "") -> Visitor:
    def named(name: RunName) -> Run:
        return replace(stage.run, name=name)

    return Visitor(stage.run, asked, named)


def state(stage: Stage, **facts: object) -> None:
    told = {
        "answers": True,
        "busy": False,
        "idle_seconds": 720,
        "soft_end": int(stage.clock.now()) + 3600,
        "saved": None,
    }
    stage.machine.said["notebook-state"] = done(json.dumps(told | facts) + "\n")


def alive(stage: Stage, run: str = "1001", *, hours: float = 12.0, **labels: str) -> None:
    name = RunName(SERVER, 42, run, KIND)
    left = json.dumps({"base": "", "ref": "main", "hard_end": int(stage.clock.now() + hours * 3600), "settings": {}})
    stage.cloud.insert(
        replace(
            stage.vm(),
            name=str(name),
            labels={**name.own_labels, "glgpu-user": "ada", "glgpu-until": "deadline", **labels},
            metadata={SETTINGS_ITEM: left},
        )
    )


@pytest.fixture
def notebook(stage: Stage) -> Stage:
    """A notebook that answers, with nobody at it for twelve minutes."""
    alive(stage)
    state(stage)
    stage.run.job.scratch.mkdir()
    stage.machine.said["notebook-token"] = done(f"{TOKEN}\n")
    return stage


def interrupted() -> None:
    raise refusal(ErrorClass.INTERRUPTED)


def door_is_closed(stage: Stage) -> bool:
    rule = stage.cloud.rule(str(NAME))
    return rule is not None and rule.disabled


class Browser:
    """What a browser was sent to, and what it read there."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.pages: list[str] = []
        self.modes: list[int] = []

    def __call__(self, address: str) -> bool:
        path = Path(unquote(urlsplit(address).path))
        self.addresses.append(address)
        self.pages.append(path.read_text())
        self.modes.append(stat.S_IMODE(path.stat().st_mode))
        return True


def test_ctrl_c_closes_the_door_and_is_no_failure(notebook: Stage) -> None:
    notebook.machine.tunnels = [interrupted]
    browser = Browser()
    open_notebook(visitor(notebook), browser)
    assert ("forward", socket_of(NAME), 0) in notebook.machine.calls
    assert "http://127.0.0.1:40123/lab" in notebook.log
    assert "the notebook runs on" in notebook.log
    assert door_is_closed(notebook)


def test_the_token_is_in_a_file_for_this_user_s_eyes_and_nowhere_else(notebook: Stage) -> None:
    notebook.machine.tunnels = [interrupted]
    browser = Browser()
    open_notebook(visitor(notebook), browser)
    assert f"http://127.0.0.1:40123/lab?token={TOKEN}" in browser.pages[0]
    assert browser.modes == [0o600]
    assert TOKEN not in browser.addresses[0]
    assert TOKEN not in notebook.log
    assert all(TOKEN not in str(call) for call in notebook.machine.calls)


def test_without_a_browser_the_file_that_logs_in_is_named(notebook: Stage) -> None:
    for browse in (None, lambda _: False):
        notebook.machine.tunnels = [interrupted]
        open_notebook(visitor(notebook), browse)
        assert "notebook.html in a browser: that file logs you in" in notebook.log
        assert TOKEN not in notebook.log


def test_a_dropped_network_comes_back_at_the_same_address_and_in_one_browser(notebook: Stage) -> None:
    notebook.machine.tunnels = [lambda: None, None, None, interrupted]
    browser = Browser()
    open_notebook(visitor(notebook), browser)
    ports = [facts[1] for verb, *facts in notebook.machine.calls if verb == "forward"]
    assert ports == [0, 40123, 40123, 40123]
    assert len(browser.addresses) == 1
    assert notebook.log.count("connecting again until Ctrl-C") == 1
    assert notebook.log.count("connected again, at the same address") == 1


def test_a_cloud_that_cannot_be_asked_while_the_network_is_down_ends_nothing(notebook: Stage) -> None:
    def dropped() -> None:
        notebook.cloud.refuse["get"] = refusal(ErrorClass.NETWORK)

    notebook.machine.tunnels = [dropped, interrupted]
    open_notebook(visitor(notebook), Browser())
    assert "connected again" in notebook.log


def test_a_notebook_that_has_ended_is_the_end(notebook: Stage) -> None:
    notebook.machine.tunnels = [lambda: notebook.cloud.change(str(NAME), ZONE, status="TERMINATED")]
    open_notebook(visitor(notebook), Browser())
    assert "the notebook has ended. Its saved work comes home" in notebook.log
    assert door_is_closed(notebook)


def test_a_way_that_never_opens_is_13(notebook: Stage) -> None:
    notebook.machine.tunnels = [None] * 5
    with pytest.raises(Failure) as caught:
        open_notebook(visitor(notebook), Browser())
    assert caught.value.exit_code == 13


@pytest.mark.parametrize("said", ["", '{"answers":false,"busy":false,"idle_seconds":0,"soft_end":1,"saved":null}'])
def test_one_that_does_not_answer_yet_is_told_so(notebook: Stage, said: str) -> None:
    notebook.machine.said["notebook-state"] = done(said)
    with pytest.raises(Failure) as caught:
        open_notebook(visitor(notebook), Browser())
    assert caught.value.klass is ErrorClass.NOT_FOUND
    assert "start notebook" in caught.value.remedy
    assert door_is_closed(notebook)


def test_whoever_lacks_the_right_gets_15_and_the_role_s_name(notebook: Stage) -> None:
    notebook.cloud.refuse["edit_metadata"] = refusal(ErrorClass.PERMISSION)
    notebook.run = replace(notebook.run, job=replace(notebook.run.job, job_id=""))
    with pytest.raises(Failure) as caught:
        open_notebook(visitor(notebook), Browser())
    assert caught.value.exit_code == 15
    assert "glgpu_users" in caught.value.remedy


def test_a_training_is_no_notebook(stage: Stage) -> None:
    stage.cloud.insert(replace(stage.vm(), labels={**stage.run.name.own_labels}))
    with pytest.raises(Failure) as caught:
        open_notebook(visitor(stage), Browser())
    assert "no notebook of this project" in caught.value.cause


def test_of_two_on_one_branch_one_s_own_is_meant(notebook: Stage) -> None:
    alive(notebook, "1002", **{"glgpu-user": "someone-else"})
    notebook.run = replace(notebook.run, job=replace(notebook.run.job, user="Ada"))
    notebook.machine.tunnels = [interrupted]
    open_notebook(visitor(notebook), Browser())
    assert ("forward", socket_of(NAME), 0) in notebook.machine.calls


def told(stage: Stage) -> list[dict[str, object]]:
    to = io.BytesIO()
    notebook_status(visitor(stage), stage.clock.now, json_to=Console(Masker(), stream=to))
    found: list[dict[str, object]] = json.loads(to.getvalue())["notebooks"]
    return found


def test_the_status_tells_whose_it_is_how_idle_and_both_ends(notebook: Stage) -> None:
    (one,) = told(notebook)
    now = int(notebook.clock.now())
    assert (one["user"], one["ref"], one["run"]) == ("ada", "main", "1001")
    assert (one["idle_seconds"], one["soft_end"], one["busy"]) == (720, now + 3600, False)
    assert isinstance(one["hard_end"], int)
    notebook_status(visitor(notebook), notebook.clock.now)
    assert "12 min" in notebook.log
    assert "not yet" in notebook.log
    assert door_is_closed(notebook)


def test_a_vm_that_tells_nothing_is_listed_all_the_same(notebook: Stage) -> None:
    notebook.machine.said["notebook-state"] = done("", 1, "no such verb")
    (one,) = told(notebook)
    assert (one["idle_seconds"], one["user"]) == (None, "ada")
    assert "tells nothing" in notebook.log


def test_no_notebook_is_no_failure(stage: Stage) -> None:
    notebook_status(visitor(stage), stage.clock.now)
    assert "no notebook of this project is alive" in stage.log


def test_more_time_moves_the_label_and_tells_the_vm(notebook: Stage) -> None:
    end = int(notebook.clock.now()) + 3600 + 7200
    extend(visitor(notebook), 7200)
    (vm,) = notebook.cloud.find(str(NAME))
    assert vm.labels["glgpu-expires"] == str(end)
    assert ("notebook-until", str(end)) in notebook.machine.calls


def test_more_time_after_a_failure_is_not_given_twice(notebook: Stage) -> None:
    notebook.machine.said["notebook-until"] = done("", 255, "gone")
    with pytest.raises(Failure):
        extend(visitor(notebook), 7200)
    del notebook.machine.said["notebook-until"]
    extend(visitor(notebook), 7200)
    (vm,) = notebook.cloud.find(str(NAME))
    assert vm.labels["glgpu-expires"] == str(int(notebook.clock.now()) + 3600 + 7200)


def test_the_hard_end_is_not_moved(notebook: Stage) -> None:
    room = 11 * 3600 - SAVE_SECONDS
    with pytest.raises(Failure) as caught:
        extend(visitor(notebook), room + 60)
    assert caught.value.exit_code == 2
    (vm,) = notebook.cloud.find(str(NAME))
    assert "glgpu-expires" not in vm.labels
    extend(visitor(notebook), room - 60)


def test_a_host_entry_is_a_file_of_its_own_and_leaves_the_door_open(notebook: Stage, tmp_path: Path) -> None:
    write_host(visitor(notebook), tmp_path, KIND)
    entry = (tmp_path / f"{NAME}.conf").read_text()
    assert entry.splitlines()[0] == f"Host {NAME}"
    assert "    HostName 203.0.113.5" in entry
    assert f"Include {tmp_path}/*.conf" in notebook.log
    assert not door_is_closed(notebook)


def test_of_a_training_and_a_notebook_of_one_pipeline_the_kind_decides(notebook: Stage) -> None:
    train = RunName(SERVER, 42, "1001")
    notebook.cloud.insert(replace(notebook.vm(), name=str(train), labels=train.own_labels))
    with pytest.raises(Failure):
        ssh(visitor(notebook, "1001"), ["true"])
    assert ssh(visitor(notebook, "1001"), ["true"], KIND) == 0


def as_notebook(stage: Stage) -> Run:
    return replace(stage.run, name=NAME)


def test_a_click_that_failed_leaves_a_notebook_alone_that_answers(notebook: Stage) -> None:
    destroy_cloud_only(as_notebook(notebook))
    assert notebook.cloud.find(str(NAME))
    assert "`stop notebook` ends it" in notebook.log


def test_a_click_that_failed_ends_what_is_no_notebook_yet(stage: Stage) -> None:
    alive(stage, **{"glgpu-until": "pipeline"})
    destroy_cloud_only(as_notebook(stage))
    assert not stage.cloud.find(str(NAME))


def test_stopping_a_notebook_that_is_gone_is_a_success(stage: Stage) -> None:
    end_notebook(as_notebook(stage))
    assert "nothing of this run is left" in stage.log


def test_stopping_first_cancels_a_start_that_waits(stage: Stage) -> None:
    run = as_notebook(stage)
    stage.forge.jobs[42, int(run.job.run)] = {"start notebook": "pending"}
    end_notebook(run)
    assert stage.forge.jobs[42, int(run.job.run)]["start notebook"] == "canceled"
    assert stage.forge.verbs()[0] == "hold_back_notebook"
    assert "cancelled: start notebook of pipeline" in stage.log


def test_a_gitlab_that_is_away_keeps_nobody_from_ending_a_notebook(notebook: Stage) -> None:
    notebook.forge.refuse["hold_back_notebook"] = refusal(ErrorClass.NETWORK)
    with pytest.raises(Failure) as caught:
        end_notebook(as_notebook(notebook))
    assert caught.value.exit_code == 18
    assert not notebook.cloud.find(str(NAME))


def test_stopping_ends_a_notebook_that_was_left_to_its_vm(notebook: Stage) -> None:
    end_notebook(as_notebook(notebook))
    assert not notebook.cloud.find(str(NAME))
    assert "nothing of this run is left" in notebook.log
