"""The stand-in GitLab as a runner sees it: what the real one was seen to call, and how it has to be answered."""

from __future__ import annotations

import asyncio
import gzip
import io
import subprocess
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from glgpu.rehearsal.call_log import CallLog
from glgpu.rehearsal.faults import Faults
from glgpu.rehearsal.gitlab import GitLab
from glgpu.rehearsal.gitlab_model import Variable
from glgpu.rehearsal.job_run import Executor
from glgpu.rehearsal.job_turn import Turn
from glgpu.rehearsal.occasion import Event, Occasion, Server
from glgpu.rehearsal.player import Player
from glgpu.rehearsal.seams import Network
from glgpu.rehearsal.world_clock import WorldClock

PIPELINE = """
stages: [one, two]
make:
  stage: one
  image: registry.example.com/image:1
  timeout: 30m
  variables: {NAMED: $CI_COMMIT_BRANCH, LATER: $CI_PROJECT_DIR/x, TWICE: a$$b, GIT_DEPTH: "1"}
  before_script: [echo before]
  script: [echo script]
  after_script: [echo after]
  artifacts: {when: always, paths: [out/], exclude: [out/*.tmp], expire_in: 1 day, reports: {dotenv: made.env}}
use: {stage: two, script: ["echo $ADDRESS"]}
"""


class Offering:
    """Whoever asks runs the jobs."""

    executor: Executor = "docker"

    def __init__(self, gitlab: GitLab) -> None:
        self.gitlab = gitlab

    async def run(self, turn: Turn, _slot: int, /) -> None:
        await self.gitlab.runners.offer(turn)
        await turn.over.wait()

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    async def close(self) -> None: ...


class Runner:
    """A client of the API, as the Runner is one."""

    def __init__(self, gitlab: GitLab, session: aiohttp.ClientSession, player: Player) -> None:
        self.gitlab, self.session, self.player = gitlab, session, player
        self.token = gitlab.runners.register()

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any, Any]:
        """Status, headers and body of an answer."""
        async with self.session.request(method, f"{self.gitlab.url}/api/v4{path}", **more) as answer:
            body = await (answer.json() if answer.content_type == "application/json" else answer.read())
            return answer.status, answer.headers, body

    async def take(self) -> dict[str, Any]:
        status, _, job = await self.ask("POST", "/jobs/request", json={"token": self.token, "info": {}})
        assert status == 201
        taken: dict[str, Any] = job
        return taken

    async def trace(self, job: dict[str, Any], data: bytes, begin: int = 0) -> tuple[int, Any, Any]:
        headers = {"Job-Token": job["token"], "Content-Range": f"{begin}-{begin + len(data) - 1}"}
        return await self.ask("PATCH", f"/jobs/{job['id']}/trace?debug_trace=false", data=data, headers=headers)

    async def end(self, job: dict[str, Any], state: str, **more: Any) -> tuple[int, Any, Any]:
        return await self.ask("PUT", f"/jobs/{job['id']}", json={"token": job["token"], "state": state, **more})

    async def upload(self, job: dict[str, Any], kind: str, packing: str, data: bytes) -> tuple[int, Any, Any]:
        form = aiohttp.FormData()
        form.add_field("file", io.BytesIO(data), filename="a")
        query = f"artifact_format={packing}&artifact_type={kind}"
        headers = {"Job-Token": job["token"]}
        return await self.ask("POST", f"/jobs/{job['id']}/artifacts?{query}", data=form, headers=headers)


Story = Callable[[Runner], Awaitable[None]]


@pytest.fixture
def tell(tmp_path: Path) -> Callable[[Story], Player]:
    """Plays the pipeline while a story is told of its runner."""

    async def whole(story: Story) -> Player:
        clock, calls = WorldClock(), CallLog(tmp_path / "calls.jsonl")
        gitlab = GitLab(tmp_path / "gitlab", clock, Faults(), calls, Network())
        await gitlab.start()
        source = tmp_path / "source"
        source.mkdir()
        (source / ".gitlab-ci.yml").write_text(PIPELINE)
        for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "First"]):
            identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
            subprocess.run(["git", *identity, *words], cwd=source, check=True)
        user = gitlab.create_user("ada")
        project = gitlab.create_project("team/model", source, owner=user)
        project.variables += [
            Variable("SECRET", "hunter2hunter2", masked=True),
            Variable("KEY", "line\n", variable_type="file"),
            Variable("RAW", "$NAMED", raw=True),
        ]
        sha = gitlab.git(project, "rev-parse", "main").text.strip()
        occasion = Occasion(gitlab, Server(gitlab.url), project, user, Event("main", sha))
        player = Player(
            occasion.compile(), occasion, folder=tmp_path / "player", path="", runner=Offering(gitlab),
        )  # fmt: skip
        gitlab.artifact_limit_mb = 1
        async with aiohttp.ClientSession() as session:
            playing = asyncio.ensure_future(player.play())
            try:
                await asyncio.wait_for(story(Runner(gitlab, session, player)), 60)
            finally:
                await player.close()
                await asyncio.wait([playing])
                await gitlab.stop()
        return player

    return lambda story: asyncio.run(whole(story))


def test_a_job_is_told_as_gitlab_tells_it(tell: Callable[[Story], Player]) -> None:
    async def story(runner: Runner) -> None:
        job = await runner.take()
        pipeline = runner.player.entry.id
        assert job["git_info"]["refspecs"] == [
            f"+refs/pipelines/{pipeline}:refs/pipelines/{pipeline}", "+refs/heads/main:refs/remotes/origin/main",
        ]  # fmt: skip
        assert job["git_info"]["depth"] == 1
        assert job["git_info"]["repo_url"].startswith(f"http://gitlab-ci-token:{job['token']}@127.0.0.1")
        assert job["runner_info"]["timeout"] == 1800
        assert job["image"]["name"] == "registry.example.com/image:1"
        assert [(step["name"], step["script"], step["when"]) for step in job["steps"]] == [
            ("script", ["echo before", "echo script"], "on_success"), ("after_script", ["echo after"], "always"),
        ]  # fmt: skip
        archive, report = job["artifacts"]
        assert (archive["artifact_format"], archive["paths"], archive["exclude"]) == ("zip", ["out/"], ["out/*.tmp"])
        assert (report["artifact_type"], report["artifact_format"], report["when"]) == ("dotenv", "gzip", "always")
        given = {one["key"]: one for one in job["variables"]}
        assert given["NAMED"]["value"] == "main"
        assert given["LATER"]["value"] == "$CI_PROJECT_DIR/x", "only the runner knows that folder"
        assert given["TWICE"]["value"] == "a$$b", "the runner makes one of the two"
        assert given["SECRET"] == {"key": "SECRET", "value": "hunter2hunter2", "public": False, "masked": True}
        assert (given["KEY"]["file"], given["KEY"]["value"]) == (True, "line\n")
        assert (given["RAW"]["raw"], given["RAW"]["value"]) == (True, "$NAMED")
        assert given["CI_JOB_TOKEN"]["masked"]

    tell(story)


def test_log_artifacts_and_last_word_come_and_the_next_job_gets_them(tell: Callable[[Story], Player]) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("out/w", "weights")

    async def story(runner: Runner) -> None:
        job = await runner.take()
        status, headers, _ = await runner.trace(job, b"hello ")
        assert status == 202, "any other success counts as a failure to the Runner"
        assert (headers["Job-Status"], headers["Range"]) == ("running", "0-6")
        assert headers["X-GitLab-Trace-Update-Interval"] == "3"
        status, headers, _ = await runner.trace(job, b"lost", begin=99)
        assert (status, headers["Range"]) == (416, "0-6")
        assert (await runner.trace(job, b"world", begin=6))[0] == 202
        assert (await runner.upload(job, "archive", "zip", packed.getvalue()))[0] == 201
        assert (await runner.upload(job, "dotenv", "gzip", gzip.compress(b"ADDRESS=there\n")))[0] == 201
        assert (await runner.end(job, "success"))[0] == 200
        assert (await runner.end(job, "success"))[0] == 403, "it is over"
        following = await runner.take()
        (needed,) = following["dependencies"]
        assert (needed["id"], needed["artifacts_file"]["filename"]) == (job["id"], "artifacts.zip")
        assert {"key": "ADDRESS", "value": "there", "public": True, "masked": False} in following["variables"]
        path = f"/jobs/{needed['id']}/artifacts?direct_download=false"
        status, _, body = await runner.ask("GET", path, headers={"Job-Token": needed["token"]})
        assert (status, body) == (200, packed.getvalue())
        assert (await runner.end(following, "failed", failure_reason="script_failure", exit_code=23))[0] == 200

    player = tell(story)
    assert {name: outcome.status for name, outcome in player.outcomes.items()} == {"make": "success", "use": "failed"}
    assert (player.outcomes["use"].failure_reason, player.outcomes["use"].exit_code) == ("script_failure", 23)
    assert player.outcomes["make"].last.entry.trace == b"hello world"


def test_what_cannot_be_taken_is_refused(tell: Callable[[Story], Player]) -> None:
    async def story(runner: Runner) -> None:
        status, _, _ = await runner.ask("POST", "/jobs/request", json={"token": "glrt-of-nobody"})
        assert status == 403
        job = await runner.take()
        assert (await runner.upload(job, "archive", "zip", bytes(1 << 21)))[0] == 413
        status, _, body = await runner.upload(job, "dotenv", "gzip", gzip.compress(b"no dotenv"))
        assert (status, body) == (400, {"message": "400 Bad Request: Invalid Format"})
        status, _, _ = await runner.trace(job | {"token": "glcbt-of-nobody"}, b"x")
        assert status == 403

    tell(story)


@pytest.mark.parametrize("force", [False, True])
def test_a_runner_hears_of_a_cancel_by_the_answer_to_its_log(tell: Callable[[Story], Player], force: bool) -> None:
    async def story(runner: Runner) -> None:
        job = await runner.take()
        runner.player.cancel_job("make", force=force)
        status, headers, _ = await runner.trace(job, b"x")
        assert (status, headers["Job-Status"]) == ((403, "canceled") if force else (202, "canceling"))
        status, _, _ = await runner.end(job, "failed", failure_reason="job_canceled")
        assert status == (403 if force else 200)

    player = tell(story)
    assert {name: outcome.status for name, outcome in player.outcomes.items()} == {"make": "canceled", "use": "skipped"}


def test_a_request_for_a_job_is_held_until_the_runner_is_no_more(tell: Callable[[Story], Player]) -> None:
    async def story(runner: Runner) -> None:
        await runner.take()
        asked = asyncio.ensure_future(runner.ask("POST", "/jobs/request", json={"token": runner.token}))
        done, _ = await asyncio.wait([asked], timeout=0.3)
        assert not done
        await runner.gitlab.runners.unregister(runner.token)
        assert (await asked)[0] == 403

    tell(story)
