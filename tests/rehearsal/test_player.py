"""The player of jobs: real processes, as GitLab and its Runner were measured to treat them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from glgpu.rehearsal.ci_yaml import Job, PipelineError
from glgpu.rehearsal.gitlab_model import Project, Role, Variable
from glgpu.rehearsal.gitlab_state import GitLabState
from glgpu.rehearsal.job_artifacts import UploadRefused, check_annotations, parse_dotenv
from glgpu.rehearsal.job_log import LOG_LIMIT, JobLog, Masker
from glgpu.rehearsal.job_run import Executor, PlayedRunner
from glgpu.rehearsal.occasion import Event, Occasion, Server, environment_slug, slug
from glgpu.rehearsal.player import Player, composite_status
from glgpu.rehearsal.world_clock import WorldClock

PATH = os.environ["PATH"]
ROOT = Path(__file__).parents[2]
SERVER = Server("http://127.0.0.1:8929", ssh_port=2222, registry="127.0.0.1:5000")
QUICK = 0.05
"""Time scale of most tests: a grace period of 6 s takes 0.3 s."""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Dev", "-c", "user.email=dev@example.com", "-c", "protocol.file.allow=always"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class World:
    """A GitLab with one project, and a player for each pipeline text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = GitLabState(folder / "gitlab", WorldClock())
        self.user = self.state.create_user("dev")
        self.source = folder / "source"
        self.source.mkdir()
        git(self.source, "init", "--quiet", "--initial-branch=main")
        (self.source / "train.py").write_text("print('training')\n")
        (self.source / "program.py").write_text(PROGRAM)
        git(self.source, "add", "-A")
        git(self.source, "commit", "--quiet", "-m", "first")
        self.project: Project = self.state.create_project("team/model", self.source, owner=self.user)
        # Scripts reach the test's folder by this variable, whatever its name.
        self.project.variables.append(Variable("FOLDER", str(folder)))
        self.players: list[Player] = []
        self.printed: dict[str, bytes] = {}
        self.waiting: list[tuple[str, bytes, asyncio.Event]] = []

    def player(
        self,
        yaml: str,
        *,
        branch: str = "main",
        event: dict[str, Any] | None = None,
        message: str = "Work on it\n\nwith a body",
        **options: Any,
    ) -> Player:
        (self.source / ".gitlab-ci.yml").write_text(yaml)
        git(self.source, "checkout", "--quiet", "-B", branch)
        git(self.source, "add", "-A")
        git(self.source, "commit", "--quiet", "--allow-empty", "-m", message)
        sha = self.state.push(self.project, self.source, branch, branch)
        occasion = Occasion(self.state, SERVER, self.project, self.user, Event(branch, sha, **(event or {})))
        number = len(self.players)
        options = {"folder": self.folder / f"p{number}", "path": PATH, "time_scale": QUICK} | options
        player = Player(occasion.compile(), occasion, on_output=self._hear, **options)
        self.players.append(player)
        return player

    def _hear(self, job: Job, data: bytes) -> None:
        self.printed[job.name] = self.printed.get(job.name, b"") + data
        for name, words, event in self.waiting:
            if name == job.name and words in self.printed[name]:
                event.set()

    async def output(self, name: str, words: str) -> None:
        """Wait until a job has printed something."""
        event = asyncio.Event()
        self.waiting.append((name, words.encode(), event))
        if words.encode() in self.printed.get(name, b""):
            event.set()
        await asyncio.wait_for(event.wait(), 60)

    def run(self, story: Callable[[], Awaitable[None]]) -> None:
        """Play a story and end every player; nothing of a job may be left."""

        async def whole() -> None:
            try:
                await asyncio.wait_for(story(), 120)
            finally:
                for player in self.players:
                    await player.close()

        asyncio.run(whole())
        marks = [str(player.folder) for player in self.players]
        for process in psutil.process_iter():
            try:
                home = process.environ().get("HOME", "")
            except psutil.Error:
                continue
            assert not any(home.startswith(mark) for mark in marks), f"{process} is left"

    def play(self, yaml: str, **options: Any) -> Player:
        """Play a pipeline to its end."""
        player = self.player(yaml, **options)

        async def story() -> None:
            await player.play()

        self.run(story)
        return player


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def statuses(player: Player) -> dict[str, str]:
    return {name: outcome.status for name, outcome in player.outcomes.items()}


def log_of(player: Player, name: str) -> str:
    return player.outcomes[name].last.log.read_text(errors="replace")


def packed(player: Player, name: str) -> dict[str, bytes]:
    archive = player.outcomes[name].last.artifacts
    assert archive is not None
    with zipfile.ZipFile(archive) as entries:
        return {entry.filename: entries.read(entry) for entry in entries.infolist() if not entry.is_dir()}


# What runs when


def test_stages_run_one_after_the_other_and_a_failure_skips_what_follows(world: World) -> None:
    player = world.play("""
stages: [one, two, three, four]
a: {stage: one, script: [exit 3]}
b: {stage: two, script: [echo b]}
c: {stage: three, when: on_failure, script: [echo c]}
d: {stage: four, when: always, script: [echo d]}
""")
    assert statuses(player) == {"a": "failed", "b": "skipped", "c": "success", "d": "success"}
    assert (player.outcomes["a"].failure_reason, player.outcomes["a"].exit_code) == ("script_failure", 3)
    assert player.entry.status == "failed"
    assert "ERROR: Job failed: exit code 3" in log_of(player, "a")


def test_an_executor_that_takes_its_time_to_get_ready_delays_every_job(world: World) -> None:
    runner = PlayedRunner(world.folder / "slow", PATH, prepare_seconds=0.5)
    player = world.play("a: {script: date +%s.%N}", runner=runner)
    begun = player.outcomes["a"].last.entry.started_at
    ran = float(re.search(rb"^[0-9.]+$", world.printed["a"], re.MULTILINE)[0])
    assert begun is not None
    assert ran - begun >= 0.5


def test_an_allowed_failure_is_a_warning_also_by_exit_code(world: World) -> None:
    player = world.play("""
stages: [one, two]
a: {stage: one, script: [exit 1], allow_failure: true}
b: {stage: one, script: [exit 7], allow_failure: {exit_codes: [7]}}
c: {stage: two, script: [echo c]}
""")
    assert statuses(player) == {"a": "failed", "b": "failed", "c": "success"}
    assert player.entry.status == "success"


def test_needs_start_a_job_before_its_stage(world: World) -> None:
    player = world.player(
        """
stages: [one, two]
slow: {stage: one, script: ['until [ -e "$FOLDER/gate" ]; do sleep 0.02; done']}
quick: {stage: one, script: [echo q]}
late: {stage: two, needs: [quick], script: ['touch "$FOLDER/gate"']}
"""
    )

    async def story() -> None:
        await player.play()

    world.run(story)
    assert set(statuses(player).values()) == {"success"}


def test_a_need_that_was_skipped_skips_the_job_unless_it_always_runs(world: World) -> None:
    player = world.play("""
stages: [one, two, three]
a: {stage: one, script: [exit 1]}
b: {stage: two, script: [echo b]}
c: {stage: three, needs: [b], script: [echo c]}
d: {stage: three, needs: [b], when: always, script: [echo d]}
""")
    assert statuses(player) == {"a": "failed", "b": "skipped", "c": "skipped", "d": "success"}


def test_a_manual_job_waits_and_is_played_by_a_person(world: World) -> None:
    player = world.player("""
stages: [one, two]
ask: {stage: one, script: [echo "$CI_JOB_MANUAL"], rules: [{when: manual}]}
then: {stage: two, script: [echo then]}
""")

    async def story() -> None:
        await player.play()
        assert statuses(player) == {"ask": "manual", "then": "created"}
        assert (await player.play_job("ask")).status == "success"

    world.run(story)
    assert statuses(player) == {"ask": "success", "then": "success"}
    assert "\ntrue\n" in log_of(player, "ask")


@pytest.mark.parametrize(
    ("retry", "attempts"),
    [
        ("2", 3),
        ("{max: 1, when: script_failure}", 2),
        ("{max: 2, when: runner_system_failure}", 1),
        ("{max: 2, exit_codes: [9]}", 3),
        ("{max: 2, exit_codes: [8]}", 1),
        ("{exit_codes: [9]}", 1),
    ],
)
def test_a_failed_job_is_retried_as_often_as_its_rule_says(world: World, retry: str, attempts: int) -> None:
    player = world.play(f"a: {{script: [exit 9], retry: {retry}}}")
    runs = player.outcomes["a"].attempts
    assert len(runs) == attempts
    assert len({run.entry.id for run in runs}) == attempts
    assert [run.entry.status for run in runs] == ["failed"] * attempts


def test_a_retry_after_the_end_runs_only_what_was_skipped(world: World) -> None:
    player = world.player(
        """
stages: [one, two, three]
train: {stage: one, script: ['test -e "$FOLDER/lucky"']}
collect: {stage: two, script: [echo collect]}
destroy: {stage: three, when: always, script: [echo destroy]}
"""
    )

    async def story() -> None:
        await player.play()
        assert statuses(player) == {"train": "failed", "collect": "skipped", "destroy": "success"}
        (world.folder / "lucky").touch()
        assert (await player.retry_job("train")).status == "success"

    world.run(story)
    assert statuses(player) == {"train": "success", "collect": "success", "destroy": "success"}
    assert len(player.outcomes["destroy"].attempts) == 1


def test_jobs_of_one_resource_group_never_overlap(world: World) -> None:
    player = world.play("""
.locked:
  resource_group: gpu/$CI_COMMIT_REF_SLUG
  script: ['mkdir "$FOLDER/lock" && sleep 0.2 && rmdir "$FOLDER/lock"']
a: {extends: .locked}
b: {extends: .locked}
""")
    assert statuses(player) == {"a": "success", "b": "success"}


def test_stopping_an_environment_plays_the_manual_job_of_its_latest_deployment(world: World) -> None:
    yaml = """
stages: [one, two]
up: {stage: one, script: [exit 1], environment: {name: gpu/$CI_COMMIT_REF_SLUG, on_stop: stop}}
stop:
  stage: two
  when: WHEN
  needs: []
  script: [echo "stopping $CI_ENVIRONMENT_NAME as $CI_ENVIRONMENT_ACTION", exit 1]
  environment: {name: gpu/$CI_COMMIT_REF_SLUG, action: stop}
"""
    found = world.player(yaml.replace("WHEN", "manual"))
    missed = world.player(yaml.replace("WHEN", "always"), branch="other")

    async def story() -> None:
        await found.play()
        outcome = await found.stop_environment("gpu/main")
        assert outcome is not None
        assert (outcome.job.name, outcome.status) == ("stop", "failed")
        await missed.play()
        assert await missed.stop_environment("gpu/other") is None
        assert len(missed.outcomes["stop"].attempts) == 1

    world.run(story)
    assert "stopping gpu/main as stop" in log_of(found, "stop")


# This repository's own pipeline

STUB = """\
#!/bin/sh
echo "called: $(basename "$0") $*, by $GITLAB_USER_LOGIN"
# Who writes a password to a program that is gone dies of SIGPIPE, and the job with it.
case "$*" in *--password-stdin*) cat >/dev/null ;; esac
[ "$(basename "$0")" = glgpu ] || exit 0
mkdir -p outputs/glgpu
echo '{}' >outputs/glgpu/annotations.json
echo "GLGPU_VM=x" >glgpu.env
"""
SET_UP = {"GLGPU_PROJECT": "my-dl", "GOOGLE_CREDENTIALS": "x"}
TRAINS = {"provision": "success", "train": "success", "destroy": "success", "stop": "manual"}
OFFERED = {"start notebook": "manual", "stop notebook": "manual"}
PATHS: dict[str, tuple[str, dict[str, str], dict[str, str], dict[str, str]]] = {
    "a push of a fresh copy": ("push", {}, {}, {"checks": "success"}),
    "a push": ("push", SET_UP, {}, {"job-image": "success", "checks": "success", **TRAINS, **OFFERED}),
    "a push with [skip gpu]": ("push", SET_UP, {}, {"job-image": "success", "checks": "success", **OFFERED}),
    "by hand": ("web", SET_UP, {}, {"checks": "success", **TRAINS, **OFFERED}),
    "a schedule that trains": ("schedule", SET_UP, {"GLGPU_TASK": "train"}, TRAINS),
    "a schedule that cleans up": ("schedule", SET_UP, {"GLGPU_TASK": "cleanup"}, {"cleanup": "success"}),
    "a schedule that makes the job image": ("schedule", SET_UP, {"GLGPU_TASK": "image"}, {"job-image": "success"}),
}
"""Who makes the pipeline, what is set up, what the pipeline is given, and which jobs come of it."""


def own_pipeline(
    world: World, source: str, known: Mapping[str, str], given: Mapping[str, str], **options: Any
) -> Player:
    """A player of this repository's own pipeline, in which every program of ours only says that it was called."""
    world.project.variables += [Variable(name, value) for name, value in known.items()]
    shutil.copytree(ROOT / "ci", world.source / "ci", ignore=shutil.ignore_patterns("tools"), dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", world.source)
    programs = world.folder / "bin"
    programs.mkdir()
    for path in (programs / "glgpu", programs / "docker", world.source / "ci/test"):
        path.write_text(STUB)
        path.chmod(0o755)
    event = {"source": source, "variables": dict(given)}
    text = (ROOT / ".gitlab-ci.yml").read_text(encoding="utf-8")
    return world.player(text, event=event, path=f"{programs}:{PATH}", **options)


@pytest.mark.parametrize("path", PATHS)
def test_each_path_of_our_own_pipeline_is_played_and_only_its_jobs_are_in_it(world: World, path: str) -> None:
    source, known, given, wanted = PATHS[path]
    player = own_pipeline(world, source, known, given, message=f"This is {path}")

    async def story() -> None:
        await player.play()

    world.run(story)
    assert statuses(player) == wanted, world.printed
    assert player.entry.status == "success"


async def stop_button(_: World, player: Player, name: str) -> None:
    await player.stop_environment(name)


async def auto_stop(world: World, player: Player, name: str) -> None:
    (environment,) = [one for one in world.project.environments.values() if one.name == name]
    assert environment.auto_stop_at is not None
    world.state.clock.advance(environment.auto_stop_at - world.state.clock.now())
    world.state.auto_stop()
    await player.rest()


async def branch_deletion(world: World, player: Player, _: str) -> None:
    world.state.delete_branch(world.project, "main", world.user)
    await player.rest()


@pytest.mark.parametrize(("way", "by"), [(stop_button, "dev"), (auto_stop, "ada"), (branch_deletion, "dev")])
def test_a_notebook_is_clicked_by_somebody_and_stopped_as_gitlab_finds_its_stop_job(
    world: World, way: Callable[[World, Player, str], Awaitable[None]], by: str
) -> None:
    player = own_pipeline(world, "push", SET_UP, {})
    other = world.state.create_user("ada")
    world.project.members[other.id] = Role.DEVELOPER

    async def story() -> None:
        await player.play()
        name = f"notebook/main/{player.entry.iid}"
        assert (await player.play_job("start notebook", other)).status == "success"
        assert player.outcomes["stop notebook"].status == "manual"
        await way(world, player, name)
        assert player.outcomes["stop notebook"].status == "success"
        states = {one.name: one.state for one in world.project.environments.values()}
        others = "stopped" if way is branch_deletion else "available"
        assert states == {"gpu/main": others, name: "stopped"}

    world.run(story)
    # The name was made before anybody clicked; who has clicked is known in the job.
    assert "called: glgpu notebook start, by ada" in log_of(player, "start notebook")
    assert f"called: glgpu notebook stop, by {by}" in log_of(player, "stop notebook")
    assert player.entry.iid != player.entry.id


# Cancelling and other ends


PROGRAM = """
import os, pathlib, signal, sys, time

def asked(*_):
    print("got SIGTERM", flush=True)
    if sys.argv[1:] != ["ignore"]:
        sys.exit(0)

signal.signal(signal.SIGTERM, asked)
pathlib.Path(os.environ["HOME"], "mine").touch()
print("ready", flush=True)
while True:
    time.sleep(60)
"""
TALKATIVE = """
train:
  stage: one
  script:
    - python3 program.py REACTION
  after_script:
    - echo "status $CI_JOB_STATUS token ${CI_JOB_TOKEN:+given}"
    - if [ -e "$HOME/mine" ]; then echo "same home"; else echo "fresh home"; fi
    - mkdir -p out && echo saved > out/file
  artifacts: {when: always, paths: [out/]}
after:
  stage: two
  when: always
  script: [echo after]
stages: [one, two]
"""


def interrupted(
    world: World, act: Callable[[Player], None], *, executor: Executor = "docker", reaction: str = "leave"
) -> Player:
    """Play TALKATIVE and do something to it once its program is up."""
    player = world.player(TALKATIVE.replace("REACTION", reaction), executor=executor)

    async def story() -> None:
        playing = asyncio.create_task(player.play())
        await world.output("train", "\nready")
        act(player)
        await playing

    world.run(story)
    return player


def test_a_cancel_ends_the_program_and_runs_after_script_in_a_new_container(world: World) -> None:
    token: list[bool] = []

    def act(player: Player) -> None:
        entry = player.outcomes["train"].last.entry
        player.cancel_job("train")
        assert entry.status == "canceling"
        token.append(world.state.find_running_job(entry.token or "") is None)

    player = interrupted(world, act)
    log = log_of(player, "train")
    assert "got SIGTERM" in log
    assert "status canceled token given" in log
    assert "\nfresh home\n" in log
    assert token == [True]
    assert packed(player, "train") == {"out/file": b"saved\n"}
    assert statuses(player) == {"train": "canceled", "after": "skipped"}, "when: always does not survive a cancel"


def test_the_shell_executor_runs_after_script_in_the_same_place(world: World) -> None:
    player = interrupted(world, lambda p: p.cancel_job("train"), executor="shell")
    log = log_of(player, "train")
    assert "got SIGTERM" in log
    assert "\nsame home\n" in log
    assert "status canceled" in log


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace_period(world: World) -> None:
    player = interrupted(world, lambda p: p.cancel_job("train"), reaction="ignore")
    assert "got SIGTERM" in log_of(player, "train")
    assert statuses(player)["train"] == "canceled"


def test_a_cancelled_pipeline_cancels_what_has_not_begun(world: World) -> None:
    player = interrupted(world, lambda p: p.cancel_pipeline())
    assert statuses(player) == {"train": "canceled", "after": "canceled"}
    assert "status canceled" in log_of(player, "train")


def test_a_forced_cancel_runs_no_after_script(world: World) -> None:
    player = interrupted(world, lambda p: p.cancel_job("train", force=True))
    assert "got SIGTERM" in log_of(player, "train")
    assert "status" not in log_of(player, "train")
    assert player.outcomes["train"].last.artifacts is None
    assert statuses(player)["train"] == "canceled"


def test_children_get_sigterm_before_the_program_that_started_them(world: World) -> None:
    (world.source / "order.sh").write_text("""
trap 'echo "$1 asked"; exit 0' TERM
if [ "$1" = parent ]; then bash order.sh child & fi
if [ "$1" = child ]; then echo "re""ady"; fi
while :; do sleep 0.01; done
""")
    player = world.player("train: {script: [bash order.sh parent]}", time_scale=0.2)

    async def story() -> None:
        playing = asyncio.create_task(player.play())
        await world.output("train", "\nready")
        player.cancel_job("train")
        await playing

    world.run(story)
    log = log_of(player, "train")
    assert log.index("child asked") < log.index("parent asked")


def test_the_job_timeout_runs_no_after_script_and_uploads_nothing(world: World) -> None:
    yaml = TALKATIVE.replace("REACTION", "leave")
    player = world.play(yaml.replace("train:\n  stage: one", "train:\n  stage: one\n  timeout: 40s"))
    assert "got SIGTERM" in log_of(player, "train")
    assert "status" not in log_of(player, "train")
    assert "ERROR: Job failed: execution took longer than 40s seconds" in log_of(player, "train")
    assert player.outcomes["train"].last.artifacts is None
    assert player.outcomes["train"].failure_reason == "job_execution_timeout"
    assert statuses(player) == {"train": "failed", "after": "success"}


def test_the_script_timeout_runs_after_script_with_timedout(world: World) -> None:
    yaml = TALKATIVE.replace("REACTION", "leave")
    timeout = "train:\n  stage: one\n  variables: {RUNNER_SCRIPT_TIMEOUT: 40s}"
    player = world.play(yaml.replace("train:\n  stage: one", timeout))
    log = log_of(player, "train")
    assert "status timedout" in log
    assert "\nfresh home\n" in log
    assert packed(player, "train") == {"out/file": b"saved\n"}
    assert player.outcomes["train"].failure_reason == "job_execution_timeout"


def test_after_an_ordinary_failure_after_script_runs_in_the_same_container(world: World) -> None:
    player = world.play("""
a:
  script: [touch "$HOME/mine", export MINE=1, exit 4]
  after_script: ['test -e "$HOME/mine" && echo "same home, $CI_JOB_STATUS, mine=${MINE:-unset}"', exit 9]
""")
    assert "same home, failed, mine=unset" in log_of(player, "a")
    assert (player.outcomes["a"].exit_code, player.outcomes["a"].failure_reason) == (4, "script_failure")


def test_after_script_has_a_limit_and_changes_nothing(world: World) -> None:
    player = world.play("""
a:
  variables: {RUNNER_AFTER_SCRIPT_TIMEOUT: 10s}
  script: [echo fine]
  after_script: [sleep 60]
""")
    assert statuses(player) == {"a": "success"}
    assert "after_script failed, but job will continue unaffected" in log_of(player, "a")


def test_a_stopped_runner_fails_the_job_without_after_script(world: World) -> None:
    player = interrupted(world, lambda p: p.stop_runner())
    assert "got SIGTERM" in log_of(player, "train")
    assert "status" not in log_of(player, "train")
    assert player.outcomes["train"].failure_reason == "runner_system_failure"


def test_a_killed_runner_leaves_the_program_alone_with_a_dead_pipe(world: World) -> None:
    player = world.player(
        """
a:
  script:
    - |
      trap '' PIPE
      echo "$BASHPID" > "$FOLDER/pid"
      echo ready
      until [ -e "$FOLDER/gate" ]; do sleep 0.02; done
      echo into the void 2>/dev/null || touch "$FOLDER/deaf"
  after_script: [echo never]
""",
        time_scale=0.001,
    )

    async def story() -> None:
        playing = asyncio.create_task(player.play())
        await world.output("a", "\nready")
        player.kill_runner()
        await playing
        assert player.outcomes["a"].failure_reason == "stuck_or_timeout_failure"
        assert "never" not in log_of(player, "a")
        assert psutil.pid_exists(int((world.folder / "pid").read_text()))
        (world.folder / "gate").touch()
        for _ in range(500):
            if (world.folder / "deaf").exists():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the program never met its dead pipe")

    world.run(story)


def test_nothing_outlives_its_container_and_nothing_the_player(world: World) -> None:
    player = world.player("""
stages: [one, two]
a: {stage: one, script: ["setsid sleep 300 >/dev/null 2>&1 & echo $! > pid"], artifacts: {paths: [pid]}}
b: {stage: two, script: ["if grep sleep /proc/$(cat pid)/cmdline; then exit 1; fi"]}
""")

    async def story() -> None:
        await player.play()

    world.run(story)
    assert statuses(player) == {"a": "success", "b": "success"}
    assert not list(player.folder.glob("c*"))


def test_closing_a_player_in_the_middle_ends_everything(world: World) -> None:
    player = world.player("a: {script: [echo ready, sleep 300]}")

    async def story() -> None:
        playing = asyncio.create_task(player.play())
        await world.output("a", "\nready")
        await player.close()
        await playing

    world.run(story)
    assert not list(player.folder.glob("c*"))


def test_gitlab_may_cancel_from_another_thread(world: World) -> None:
    def act(player: Player) -> None:
        thread = threading.Thread(target=world.state.cancel_job, args=[player.outcomes["train"].last.entry])
        thread.start()
        thread.join()

    assert statuses(interrupted(world, act))["train"] == "canceled"


# Sources and variables


def test_a_job_gets_the_commit_in_an_empty_folder(world: World) -> None:
    player = world.play("""
stages: [one, two, three, four]
a:
  stage: one
  script: [git rev-parse HEAD, git rev-list --count HEAD, ls -A, 'pwd', touch left-behind]
  variables: {GIT_DEPTH: "1"}
b: {stage: two, script: [test ! -e left-behind, touch left-behind]}
c: {stage: three, script: [test -e left-behind, test -e train.py], variables: {GIT_STRATEGY: none}}
d: {stage: four, script: ['test -z "$(ls -A)"'], variables: {GIT_STRATEGY: empty}}
""")
    assert statuses(player) == dict.fromkeys("abcd", "success")
    lines = log_of(player, "a").splitlines()
    assert player.occasion.event.sha in lines
    assert "1" in lines
    assert str(player.folder / "builds" / "0" / "team" / "model") in lines


def test_submodules_come_only_when_asked_for(world: World) -> None:
    library = world.folder / "library"
    library.mkdir()
    git(library, "init", "--quiet", "--initial-branch=main")
    (library / "lib.py").touch()
    git(library, "add", "-A")
    git(library, "commit", "--quiet", "-m", "library")
    other = world.state.create_project("team/library", library)
    other.job_token_allowlist.add(world.project.id)
    git(world.source, "submodule", "--quiet", "add", str(library), "lib")
    git(world.source, "config", "-f", ".gitmodules", "submodule.lib.url", "../library.git")
    player = world.play("""
a: {script: [test ! -e lib/lib.py]}
b: {script: [test -e lib/lib.py], variables: {GIT_SUBMODULE_STRATEGY: recursive}}
""")
    assert statuses(player) == {"a": "success", "b": "success"}


def test_nothing_of_the_callers_environment_reaches_a_job_but_path(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_LAPTOP", "x")
    player = world.play("a: {script: [env -0 > env], artifacts: {paths: [env]}}")
    environ = dict(line.split("=", 1) for line in packed(player, "a")["env"].decode().split("\0") if line)
    project, entry = world.project, player.outcomes["a"].last.entry
    own = {"FOLDER", "HOME", "TMPDIR", "PATH", "RUNNER_CONTAINER", "PWD", "OLDPWD", "SHLVL", "_"}
    assert all(name.startswith(("CI", "GITLAB_")) for name in environ.keys() - own), environ.keys() - own
    expected = {
        "CI": "true",
        "GITLAB_CI": "true",
        "PATH": PATH,
        "CI_SERVER_URL": "http://127.0.0.1:8929",
        "CI_API_V4_URL": "http://127.0.0.1:8929/api/v4",
        "CI_SERVER_HOST": "127.0.0.1",
        "CI_SERVER_PORT": "8929",
        "CI_SERVER_SHELL_SSH_PORT": "2222",
        "CI_PROJECT_ID": str(project.id),
        "CI_PROJECT_PATH": "team/model",
        "CI_PROJECT_DIR": str(player.folder / "builds" / "0" / "team" / "model"),
        "CI_PIPELINE_ID": str(player.entry.id),
        "CI_PIPELINE_SOURCE": "push",
        "CI_JOB_ID": str(entry.id),
        "CI_JOB_NAME": "a",
        "CI_JOB_STAGE": "test",
        "CI_JOB_TOKEN": entry.token,
        "CI_JOB_TIMEOUT": "3600",
        "CI_COMMIT_SHA": player.occasion.event.sha,
        "CI_COMMIT_BRANCH": "main",
        "CI_COMMIT_REF_SLUG": "main",
        "CI_COMMIT_REF_PROTECTED": "true",
        "CI_COMMIT_MESSAGE": "Work on it\n\nwith a body\n",
        "CI_COMMIT_TITLE": "Work on it",
        "CI_DEFAULT_BRANCH": "main",
        "CI_REGISTRY": "127.0.0.1:5000",
        "CI_REGISTRY_IMAGE": "127.0.0.1:5000/team/model",
        "CI_REGISTRY_PASSWORD": entry.token,
        "CI_REPOSITORY_URL": f"http://gitlab-ci-token:{entry.token}@127.0.0.1:8929/team/model.git",
        "GITLAB_USER_LOGIN": "dev",
    }
    assert {name: environ.get(name) for name in expected} == expected


def test_protected_variables_are_absent_on_an_unprotected_branch(world: World) -> None:
    world.project.variables += [
        Variable("TOKEN", "a secret of the project", protected=True, masked=True),
        Variable("PLAIN", "$CI_COMMIT_BRANCH"),
        Variable("RAW", "$PLAIN", raw=True),
        Variable("KEY", "line 1\nline 2\n", variable_type="file"),
        Variable("SCOPED", "yes", environment_scope="gpu/*"),
    ]
    yaml = """
variables: {PLAIN: from the YAML}
a:
  environment: gpu/x
  script:
    - echo "plain=$PLAIN raw=$RAW scoped=$SCOPED"
    - echo "token=${TOKEN:-absent}"
    - cat "$KEY"
    - echo "key=$KEY"
"""
    protected, other = world.play(yaml), world.play(yaml, branch="topic")
    log = log_of(protected, "a")
    assert "plain=main raw=$PLAIN scoped=yes" in log
    assert "token=[MASKED]" in log
    assert "a secret" not in log
    assert "line 1\nline 2\n" in log
    folder = protected.folder / "builds" / "0" / "team" / "model"
    assert f"key={folder}.tmp/KEY" in log
    assert not Path(f"{folder}.tmp").exists()
    assert "token=absent" in log_of(other, "a")


def test_id_tokens_are_jwts_with_gitlabs_claims(world: World) -> None:
    world.project.variables.append(Variable("AUDIENCE", "//iam.example.com"))
    player = world.play("""
a:
  timeout: 10m
  id_tokens: {T: {aud: 'https:$AUDIENCE'}}
  script: [echo "$T" > token, echo "<$T>"]
  artifacts: {paths: [token]}
""")
    header, claims, _ = packed(player, "a")["token"].decode().strip().split(".")
    read = json.loads(base64.urlsafe_b64decode(claims + "=="))
    assert json.loads(base64.urlsafe_b64decode(header + "=="))["alg"] == "RS256"
    assert read["iss"] == "http://127.0.0.1:8929"
    assert read["aud"] == "https://iam.example.com"
    assert read["sub"] == "project_path:team/model:ref_type:branch:ref:main"
    assert read["exp"] - read["iat"] == 600, "as long as the job's own timeout"
    assert "<[MASKED]>" in log_of(player, "a")


def test_an_id_token_lives_five_minutes_where_the_job_has_no_timeout(world: World) -> None:
    yaml = "a: {id_tokens: {T: {aud: x}}, script: [echo $T > token], artifacts: {paths: [token]}}"
    claims = packed(world.play(yaml), "a")["token"].split(b".")[1]
    read = json.loads(base64.urlsafe_b64decode(claims + b"=="))
    assert read["exp"] - read["iat"] == 300


def test_a_player_works_in_a_loop_of_another_thread(world: World) -> None:
    played: list[Player] = []
    thread = threading.Thread(target=lambda: played.append(world.play("a: {script: [echo hello]}")))
    thread.start()
    thread.join()
    assert statuses(played[0]) == {"a": "success"}


def test_variables_of_a_schedule_win_over_all_others(world: World) -> None:
    world.project.variables.append(Variable("GLGPU_TASK", "project"))
    player = world.play(
        "a: {script: ['echo task=$GLGPU_TASK'], rules: [{if: $GLGPU_TASK == 'cleanup'}]}",
        event={"source": "schedule", "variables": {"GLGPU_TASK": "cleanup"}},
    )
    assert "task=cleanup" in log_of(player, "a")


def test_an_include_of_another_project_is_read_as_the_pipelines_user(world: World) -> None:
    home = world.folder / "home"
    (home / "ci").mkdir(parents=True)
    git(home, "init", "--quiet", "--initial-branch=main")
    (home / "ci" / "train.yml").write_text("train: {script: [echo from home]}")
    git(home, "add", "-A")
    git(home, "commit", "--quiet", "-m", "home")
    project = world.state.create_project("group/glgpu", home)
    yaml = "include: [{project: group/glgpu, file: ci/train.yml}]"
    with pytest.raises(PipelineError, match="not found or access denied"):
        world.player(yaml)
    project.members[world.user.id] = Role.REPORTER
    assert "\nfrom home\n" in log_of(world.play(yaml), "train")
    with pytest.raises(PipelineError, match="reference `v9` does not exist!"):
        world.player(yaml.replace("file", "ref: v9, file"))


# Scripts and logs


def test_commands_are_shown_and_the_first_failure_ends_the_script(world: World) -> None:
    player = world.play("""
a:
  before_script: [export GREETING="it's fine"]
  script:
    - echo "$GREETING"
    - |
      echo several
      echo lines
    - false | cat
    - echo unreachable
""")
    log = log_of(player, "a")
    assert '$ echo "$GREETING"\x1b[0;m\nit\'s fine\n' in log
    assert "$ echo several # collapsed multi-line command\x1b[0;m\nseveral\nlines\n" in log
    assert "unreachable" not in log.replace("$ echo unreachable", "")
    assert player.outcomes["a"].exit_code == 1


def test_commands_have_no_standard_input(world: World) -> None:
    assert "\nread 0 bytes\n" in log_of(world.play("a: {script: ['echo read $(wc -c) bytes']}"), "a")


def test_a_program_killed_by_a_signal_has_its_shell_code(world: World) -> None:
    assert world.play("a: {script: ['bash -c \"kill -9 $$\"']}").outcomes["a"].exit_code == 137


def test_the_log_ends_at_its_limit_and_the_job_goes_on(world: World) -> None:
    player = world.play("""
a:
  script: ["head -c 4300000 /dev/zero | tr '\\\\0' 'x'", "echo late words"]
  after_script: [echo later words]
""")
    log = player.outcomes["a"].last.log.read_bytes()
    assert statuses(player) == {"a": "success"}
    kept, sentence = log[:LOG_LIMIT], log[LOG_LIMIT:]
    assert kept.endswith(b"x" * 1000)
    assert b"Job's log exceeded limit of 4194304 bytes." in sentence
    assert len(sentence) < 200
    assert player.outcomes["a"].last.entry.trace == log


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_a_secret_split_over_writes_is_masked(size: int) -> None:
    masker = Masker(["aba", "hunter2hunter2", "hunter"])
    text = b"xaba hunter2hunter2! hunter hunter2hunter aba"
    shown = b"".join(masker.feed(text[i : i + size]) for i in range(0, len(text), size)) + masker.flush()
    assert shown == b"x[MASKED] [MASKED]! [MASKED] [MASKED]2[MASKED] [MASKED]"


def test_what_cannot_be_a_secret_is_shown_at_once() -> None:
    shown: list[bytes] = []
    log = JobLog(["secret"], shown.append)
    log.output(b"progress 10 %")
    assert b"".join(shown) == b"progress 10 %"


# Artifacts


def test_artifacts_pass_only_as_the_yaml_declares(world: World) -> None:
    player = world.play("""
stages: [one, two, three]
make:
  stage: one
  script:
    - mkdir -p outputs/deep/er "outputs/with space" && cd outputs
    - echo w > deep/er/weights && chmod 750 deep/er/weights && ln -s deep/er/weights link
    - echo t > tmp.log && echo n > "with space/näme" && echo o > ../other
  artifacts: {paths: [outputs/, /etc/passwd, missing], exclude: [outputs/*.log]}
use:
  stage: two
  script:
    - test "$(cat outputs/link)" = w && test -L outputs/link && test -x outputs/deep/er/weights
    - test -e "outputs/with space/näme" && test ! -e outputs/tmp.log && test ! -e other
without:
  stage: two
  dependencies: []
  script: [test ! -e outputs]
needing:
  stage: three
  needs: [{job: make, artifacts: false}, {job: use}]
  script: [test ! -e outputs]
""")
    assert statuses(player) == dict.fromkeys(["make", "use", "without", "needing"], "success")
    log = log_of(player, "make")
    assert "/etc/passwd: artifact path is not a subpath of project directory" in log
    assert "missing: no matching files" in log
    assert not any("passwd" in name for name in packed(player, "make"))


@pytest.mark.parametrize(("when", "code", "kept"), [
    ("on_success", 0, True), ("on_success", 1, False), ("on_failure", 0, False), ("on_failure", 1, True),
    ("always", 1, True),
])  # fmt: skip
def test_artifacts_when_decides_whether_they_are_kept(world: World, when: str, code: int, kept: bool) -> None:
    player = world.play(
        f"a: {{script: [touch f, exit {code}], artifacts: {{when: {when}, paths: [f], reports: {{dotenv: f}}}}}}"
    )
    attempt = player.outcomes["a"].last
    assert (attempt.artifacts is not None) is kept
    assert "dotenv" in attempt.reports, "reports are uploaded whatever `when` says"


def test_dotenv_variables_reach_the_jobs_that_depend_on_it(world: World) -> None:
    player = world.play("""
stages: [one, two]
a:
  stage: one
  variables: {ADDRESS: from the YAML}
  script: ["printf 'ADDRESS=203.0.113.7\\\\nURL=https://$ADDRESS/\\\\n' > glgpu.env"]
  artifacts: {reports: {dotenv: glgpu.env}}
  environment: {name: gpu, url: $URL}
b: {stage: two, script: ['echo "to $URL"'], variables: {ADDRESS: weaker}}
c: {stage: two, dependencies: [], script: ['echo "to ${URL:-nowhere}"']}
""")
    assert "to https://203.0.113.7/" in log_of(player, "b")
    assert "to nowhere" in log_of(player, "c")
    (environment,) = world.project.environments.values()
    assert environment.external_url == "https://203.0.113.7/"


@pytest.mark.parametrize(
    "text", ["A", "A=1\n\nB=2", "# no comment", "A-B=1", "A=" + "x" * 5118, "\n".join(f"V{n}=" for n in range(21))]
)
def test_a_dotenv_report_that_gitlab_refuses_is_refused(text: str) -> None:
    with pytest.raises(UploadRefused, match="400 Bad Request"):
        parse_dotenv(text.encode())


def test_a_dotenv_report_is_read_with_gitlabs_rules() -> None:
    assert parse_dotenv("\ufeff A = 1 \nB=x=y\nC=\n".encode()) == {"A": "1", "B": "x=y", "C": ""}


def test_a_refused_report_fails_the_job(world: World) -> None:
    player = world.play('a: {script: [echo "no dotenv" > f], artifacts: {reports: {dotenv: f}}}')
    assert (player.outcomes["a"].failure_reason, player.outcomes["a"].exit_code) == ("script_failure", 1)


def test_an_archive_over_the_limit_is_refused_and_fails_the_job(world: World) -> None:
    yaml = "a: {script: [head -c 1200000 /dev/urandom > f], artifacts: {paths: [f]}}"
    world.state.artifact_limit_mb = 1
    player = world.play(yaml)
    assert statuses(player) == {"a": "failed"}
    assert "413 Request Entity Too Large" in log_of(player, "a")
    world.state.artifact_limit_mb = 2
    assert statuses(world.play(yaml)) == {"a": "success"}


def test_a_script_that_fails_keeps_its_exit_code_though_its_archive_is_refused(world: World) -> None:
    world.state.artifact_limit_mb = 1
    yaml = "a: {script: [head -c 1200000 /dev/urandom > f, exit 23], artifacts: {paths: [f], when: always}}"
    player = world.play(yaml)
    assert "FATAL: too large" in log_of(player, "a")
    assert (player.outcomes["a"].failure_reason, player.outcomes["a"].exit_code) == ("script_failure", 23)


@pytest.mark.parametrize(
    "text",
    [
        "no json", "[]", '{"glgpu": {}}', '{"": []}', '{"glgpu": [{"link": {}}]}',
        '{"glgpu": [{"external_link": {"label": "x"}}]}', '{"glgpu": [{"external_link": {"label": "x", "url": 3}}]}',
        '{"glgpu": ["' + "x" * (80 << 10) + '"]}', str({f"l{n}": [] for n in range(21)}).replace("'", '"'),
    ],
)  # fmt: skip
def test_an_annotations_report_that_gitlab_refuses_is_refused(text: str) -> None:
    with pytest.raises(UploadRefused, match="400 Bad Request"):
        check_annotations(text.encode())


@pytest.mark.parametrize("text", ["{}", '{"glgpu": [{"external_link": {"label": "x", "url": "https://example.com"}}]}'])
def test_links_on_a_job_s_page_are_taken(text: str) -> None:
    check_annotations(text.encode())


def test_erased_artifacts_stop_a_job_that_depends_on_them(world: World) -> None:
    player = world.player("""
stages: [one, two]
a: {stage: one, script: [touch f], artifacts: {paths: [f]}}
b: {stage: two, script: [echo b], when: manual, retry: 2}
""")

    async def story() -> None:
        await player.play()
        player.erase_artifacts("a")
        await player.play_job("b")

    world.run(story)
    assert player.outcomes["b"].failure_reason == "missing_dependency_failure"
    assert len(player.outcomes["b"].attempts) == 1


# Small parts


@pytest.mark.parametrize(
    ("jobs", "dag", "status"),
    [
        ([], False, "success"),
        ([("success", False), ("skipped", False)], False, "success"),
        ([("skipped", False)], False, "skipped"),
        ([("failed", True)], False, "success"),
        ([("failed", False), ("canceled", False)], False, "failed"),
        ([("canceled", False), ("success", False)], False, "canceled"),
        ([("canceled", True)], False, "success"),
        ([("canceling", False), ("success", False)], False, "canceling"),
        ([("manual", True)], False, "skipped"),
        ([("manual", False), ("success", False)], False, "manual"),
        ([("running", False), ("failed", False)], False, "running"),
        ([("created", False), ("failed", False)], False, "running"),
        ([("success", False), ("skipped", False)], True, "skipped"),
        ([("success", False), ("running", False)], True, "pending"),
        ([("failed", False), ("success", False)], True, "failed"),
    ],
)
def test_statuses_are_composed_as_gitlab_composes_them(jobs: list[tuple[str, bool]], dag: bool, status: str) -> None:
    assert composite_status(jobs, dag=dag) == status


def test_slugs_are_gitlabs() -> None:
    assert slug("Feature/Ünder_score-") == "feature--nder-score"
    assert slug("x" * 80) == "x" * 63
    assert environment_slug("production") == "production"
    assert environment_slug("gpu/main").startswith("gpu-main-")
    assert len(environment_slug("gpu/" + "x" * 60)) <= 24
