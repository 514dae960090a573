"""``glgpu init`` in a fresh repository, as its owner runs it, and then the schedule that it has made."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from glgpu.rehearsal import world as worlds
from glgpu.rehearsal.ci_yaml import Job
from glgpu.rehearsal.occasion import Event, Occasion, Server
from glgpu.rehearsal.player import Player
from glgpu.rehearsal.world import Adopted, World
from rehearsing import GLGPU, repository, world

OWN = """\
stages: [lint]
lint:
  stage: lint
  script: [test -f train.py]
"""
ADVICE = """\
  rules:
    - if: $CI_PIPELINE_SOURCE == "schedule" && $GLGPU_TASK == "cleanup"
      when: never
    - if: $CI_COMMIT_BRANCH || $CI_COMMIT_TAG
"""
ANSWERS = ("--home", worlds.HOME_PROJECT, "--google-project", worlds.GOOGLE_PROJECT)


def init(folder: Path, token: str, *more: str) -> str:
    """Run it where no job is, and nobody to be asked."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("CI_", "GLGPU_"))}
    done = subprocess.run(
        [GLGPU, "init", *ANSWERS, *more, "--folder", folder],
        env=own | ({"GLGPU_GITLAB_TOKEN": token} if token else {}),
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert token not in done.stdout or not token
    return done.stdout


def fresh(made: World, folder: Path) -> tuple[Path, Adopted]:
    """A repository that knows nothing of glgpu, cloned from the stand-in GitLab."""
    own = repository(folder / "repository", {".gitlab-ci.yml": OWN})
    adopted = made.adopt(own, keep_pipeline=True)
    made.gitlab.projects[adopted.project.id].pipelines.clear()
    subprocess.run(["git", "init", "-q", own], check=True)
    remote = server(made).repository_url(adopted.project)
    subprocess.run(["git", "-C", own, "remote", "add", "origin", remote], check=True)
    return own, adopted


def server(made: World) -> Server:
    return Server(made.gitlab.url, made.gitlab.ssh_host, made.gitlab.ssh_port)


def push(made: World, adopted: Adopted, own: Path) -> str:
    worlds.commit(own, "main")
    return made.gitlab.push(adopted.project, own, "HEAD", "main")


def play_schedule(made: World, adopted: Adopted, sha: str) -> dict[str, tuple[str, str]]:
    """The pipeline of the one schedule there is, with its owner's rights: each job's status and log."""
    (schedule,) = adopted.project.schedules.values()
    given = {one.key: one.value for one in schedule.variables}
    event = Event(schedule.ref, sha, "schedule", variables=given)
    where = Occasion(made.gitlab, server(made), adopted.project, schedule.owner, event)
    logs: dict[str, str] = {}

    def hear(job: Job, data: bytes) -> None:
        logs[job.name] = logs.get(job.name, "") + data.decode("utf-8", "replace")

    player = Player(where.compile(), where, folder=made.folder / "scheduled", path=made.job_path(), on_output=hear)
    try:
        outcomes = made.call(player.play())
    finally:
        made.call(player.close())
    return {name: (outcome.status, logs.get(name, "")) for name, outcome in outcomes.items()}


def test_a_fresh_repository_gets_a_schedule_that_runs_the_cleanup_and_nothing_else(tmp_path: Path) -> None:
    with world() as made:
        own, adopted = fresh(made, tmp_path)
        said = init(own, adopted.token.value)
        assert "The cleanup schedule would also run these jobs of yours every hour: lint\n" in said
        assert 'made: the schedule "glgpu cleanup" on main, every hour' in said
        (schedule,) = adopted.project.schedules.values()
        assert schedule.active
        # As it told.
        text = (
            (own / ".gitlab-ci.yml")
            .read_text()
            .replace("  script: [test -f train.py]\n", f"  script: [test -f train.py]\n{ADVICE}")
        )
        (own / ".gitlab-ci.yml").write_text(text)
        played = play_schedule(made, adopted, push(made, adopted, own))
        assert {name: status for name, (status, _) in played.items()} == {"cleanup": "success"}, played
        again = init(own, adopted.token.value)
        assert [line.partition(":")[0] for line in again.splitlines()] == ["kept as it was"] * 3
        assert list(adopted.project.schedules.values()) == [schedule]


def test_without_a_token_it_is_made_later_by_the_same_command(tmp_path: Path) -> None:
    with world() as made:
        own, adopted = fresh(made, tmp_path)
        said = init(own, "")
        assert "not made: the schedule that cleans up: GLGPU_GITLAB_TOKEN is not set" in said
        assert "or by hand, on GitLab, Build > Pipeline schedules > New schedule" in said
        assert adopted.project.schedules == {}
        init(own, adopted.token.value)
        assert len(adopted.project.schedules) == 1
