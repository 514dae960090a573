"""A notebook's work on a branch: one suite over the fake and real git against the stand-in; then the whole step."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import pytest

from fakes import SHA, FakeWorkBranches
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import WorkBranch
from glgpu.notebook import WORKSPACE
from glgpu.rehearsal.faults import Rule
from glgpu.run_names import RunName, read_name
from glgpu.stages.cleanup import cleanup
from glgpu.steps.context import Run
from glgpu.steps.gitlab_ssh import known_hosts, ssh_address
from glgpu.steps.push_work import ALLOWED, push_work
from glgpu.steps.sums import write_sums
from glgpu.steps.tear_down import tear_down
from lab import FILES, Lab, lab

SECONDS = 60.0
BRANCH = "glgpu-notebook/ada/main"
MINE = {
    **FILES,
    ".gitignore": "weights/\n*.tmp\n",
    ".gitattributes": "*.bin filter=lfs\n*.txt text eol=lf\n",
    "run.sh": "true\n",
}


@dataclass
class Bench:
    """A project with one commit, and the way to its branches.

    Attributes:
        branch: The client.
        base: The commit.
        files: What a branch has: path -> bytes.
        parents: The parents of what a branch is at.
        elsewhere: Lets somebody else push to a branch.
    """

    branch: WorkBranch
    base: str
    files: Callable[[str], dict[str, bytes]]
    parents: Callable[[str], list[str]]
    elsewhere: Callable[[str], None]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path / "lab", files=MINE) as made:
        yield made


def git(world: Lab, *words: str) -> bytes:
    done = world.world.gitlab.git(world.adopted.project, *words)
    assert done.code == 0, done.complaint
    return done.stdout


def branches(world: Lab) -> list[str]:
    return git(world, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads").decode().split()


def files_of(world: Lab, branch: str) -> dict[str, bytes]:
    names = git(world, "ls-tree", "-r", "-z", "--name-only", branch).split(b"\0")
    return {name.decode(): git(world, "show", f"{branch}:{name.decode()}") for name in names if name}


def parents_of(world: Lab, branch: str) -> list[str]:
    return git(world, "show", "-s", "--format=%P", branch).decode().split()


def push_from_elsewhere(world: Lab, folder: Path, branch: str) -> None:
    """A commit of somebody's on top of a branch, or of main where there is none."""
    at = branch if branch in branches(world) else "main"
    repository = str(world.adopted.project.repository)
    subprocess.run(["git", "clone", "-q", "-b", at, repository, str(folder)], check=True)
    identity = ["-c", "user.name=Bob", "-c", "user.email=bob@example.com"]
    subprocess.run(["git", "-C", str(folder), *identity, "commit", "-q", "--allow-empty", "-m", "By hand"], check=True)
    world.world.gitlab.push(world.adopted.project, folder, "HEAD", branch)


@pytest.fixture(params=["fake", "real"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param == "fake":
        fake = FakeWorkBranches()
        fake.trees[SHA] = {name: text.encode() for name, text in MINE.items()}
        fake.ignored = {"a.tmp"}

        def elsewhere(branch: str) -> None:
            tip = fake.tips.get(branch, SHA)
            fake.trees["f" * 40], fake.parents["f" * 40] = fake.trees[tip], [tip]
            fake.tips[branch] = "f" * 40

        fake.make_key("x")
        fake.open("")
        return Bench(
            fake,
            SHA,
            lambda branch: fake.trees[fake.tips[branch]],
            lambda branch: fake.parents[fake.tips[branch]],
            elsewhere,
        )
    world: Lab = request.getfixturevalue("world")
    run = notebook_run(world, tmp_path)
    there = run.branch_at(ssh_address(run.job), tmp_path / "push")
    until = run.forge.server_time() + 600
    run.forge.add_deploy_key("somebody's", there.make_key("somebody's"), until, can_push=True)
    there.open(known_hosts(run, there.answering_keys()))
    return Bench(
        there,
        world.adopted.sha,
        lambda branch: files_of(world, branch),
        lambda branch: parents_of(world, branch),
        lambda branch: push_from_elsewhere(world, tmp_path / "by-hand", branch),
    )


def lie(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return list(files)


def commit(bench: Bench, folder: Path, files: Mapping[str, bytes], tip: str = "") -> str:
    names = lie(folder, files)
    return bench.branch.commit(bench.base, tip, folder, names, "ada", "Work", SECONDS).sha


def test_work_goes_onto_a_branch_of_its_own_and_then_on_top_of_it(bench: Bench, tmp_path: Path) -> None:
    assert bench.branch.tip(BRANCH, SECONDS) == ""
    made = commit(bench, tmp_path / "one", {"a.ipynb": b"{}\r\n", "train.py": b"print(2)\n"})
    assert bench.branch.push(made, BRANCH, SECONDS)
    files = {name: text.encode() for name, text in MINE.items()} | {"a.ipynb": b"{}\r\n", "train.py": b"print(2)\n"}
    files.pop(".gitlab-ci.yml", None)
    found = bench.files(BRANCH)
    found.pop(".gitlab-ci.yml", None)
    assert found == files
    assert bench.parents(BRANCH) == [bench.base]
    assert bench.branch.tip(BRANCH, SECONDS) == made
    more = commit(bench, tmp_path / "two", {"b.ipynb": b"\0\xff"}, made)
    assert bench.branch.push(more, BRANCH, SECONDS)
    assert bench.parents(BRANCH) == [made]
    assert (bench.files(BRANCH)["b.ipynb"], bench.files(BRANCH)["train.py"]) == (b"\0\xff", b"print('hello')\n")


def test_what_would_change_nothing_is_no_commit(bench: Bench, tmp_path: Path) -> None:
    assert commit(bench, tmp_path / "one", {"train.py": MINE["train.py"].encode()}) == ""
    made = commit(bench, tmp_path / "two", {"a": b"1"})
    assert bench.branch.push(made, BRANCH, SECONDS)
    assert commit(bench, tmp_path / "two", {"a": b"1"}, made) == ""


def test_what_git_ignores_is_left_out_and_named(bench: Bench, tmp_path: Path) -> None:
    names = lie(tmp_path / "one", {"a.tmp": b"1", "a": b"1"})
    made = bench.branch.commit(bench.base, "", tmp_path / "one", names, "ada", "Work", SECONDS)
    assert (made.files, made.left_out) == (1, {"ignored by git": ["a.tmp"]})


def test_whoever_is_faster_is_built_upon_and_nothing_of_theirs_is_lost(bench: Bench, tmp_path: Path) -> None:
    made = commit(bench, tmp_path / "one", {"a": b"1"})
    bench.elsewhere(BRANCH)
    assert not bench.branch.push(made, BRANCH, SECONDS)
    tip = bench.branch.tip(BRANCH, SECONDS)
    again = commit(bench, tmp_path / "one", {"a": b"1"}, tip)
    assert bench.branch.push(again, BRANCH, SECONDS)
    assert bench.parents(BRANCH)[0] == tip
    assert bench.files(BRANCH)["a"] == b"1"


# With real git alone


def notebook_run(world: Lab, folder: Path, **own: str) -> Run:
    checkout = folder / "checkout"
    lie(checkout, {"glgpu.yml": FILES["glgpu.yml"].encode()})
    return world.run(checkout, kind="notebook", GITLAB_USER_LOGIN="ada", **own)


def brought_home(run: Run, files: Mapping[str, bytes]) -> None:
    """What has come home of a notebook, as collecting it leaves it."""
    lie(run.outputs / WORKSPACE, files)
    write_sums(run.outputs, {f"{WORKSPACE}/{name}": sha256(data).hexdigest() for name, data in files.items()})


def pushed(world: Lab, run: Run, files: Mapping[str, bytes], user: str = "ada", ref: str = "main") -> str:
    """Push what has come home; what was said meanwhile."""
    brought_home(run, files)
    run.record.add(ALLOWED, user=user, ref=ref, commit=world.adopted.sha)
    before = len(world.said.getvalue())
    push_work(run, None)
    return world.said.getvalue()[before:].decode()


def keys(world: Lab) -> list[str]:
    return [key.title for key in world.world.gitlab.deploy_keys.values()]


def key_requests(world: Lab) -> list[str]:
    return [call["body"] for call in world.world.calls.lines() if call["to"] == "gitlab" and call["verb"] == "POST"]


def test_the_step_pushes_the_very_bytes_and_leaves_no_key(world: Lab, tmp_path: Path) -> None:
    run = notebook_run(world, tmp_path)
    files = {'a b\n"c\\.ipynb': b"\r\n\0", "run.sh": b"false\n", "notes.txt": b"one\r\ntwo\r\n", "deep/x/y.csv": b""}
    said = pushed(world, run, files)
    found = files_of(world, BRANCH)
    assert {name: found[name] for name in files} == files
    assert found["train.py"] == MINE["train.py"].encode()
    assert keys(world) == []
    assert not (run.job.scratch / "push").exists()
    event = run.record.find("work-pushed")
    assert event is not None
    assert event.facts["branch"] == BRANCH
    page = f"{run.job.server_url}/{run.job.project_path}/-/tree/{BRANCH}"
    assert page in (run.artifacts / "glgpu/annotations.json").read_text()
    assert page in said
    told = git(world, "show", "-s", "--format=%an%n%ae%n%cn%n%B", BRANCH).decode()
    assert told.startswith("ada\nglgpu-notebook@noreply.invalid\nada\nWork of ada in a notebook on main\n")
    assert str(run.name) in told
    assert pushed(world, run, files).count("nothing to push") == 1


def test_a_push_begins_no_pipeline_that_would_run(world: Lab, tmp_path: Path) -> None:
    before = set(world.adopted.project.pipelines)
    pushed(world, notebook_run(world, tmp_path), {"a": b"1"})
    (new,) = [one for number, one in world.adopted.project.pipelines.items() if number not in before]
    assert (new.ref, new.status, new.jobs) == (BRANCH, "skipped", [])


def test_modes_are_kept_and_what_belongs_elsewhere_is_left_out_and_named(world: Lab, tmp_path: Path) -> None:
    with_more = tmp_path / "more"
    subprocess.run(["git", "clone", "-q", str(world.adopted.project.repository), str(with_more)], check=True)
    (with_more / "run.sh").chmod(0o755)
    (with_more / "link").symlink_to("train.py")
    for words in (
        ["add", "."],
        ["update-index", "--add", "--cacheinfo", f"160000,{SHA},module"],
        ["-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-q", "-m", "More"],
    ):
        subprocess.run(["git", "-C", str(with_more), *words], check=True)
    sha = world.world.gitlab.push(world.adopted.project, with_more, "HEAD", "main")
    run = notebook_run(world, tmp_path)
    files = {"run.sh": b"false\n", "big.bin": b"1", "module/x": b"1", "link": b"1", "weights/w": b"1", "new.tmp": b"1"}
    brought_home(run, {**files, ".gitignore": b"weights/\n"})
    run.record.add(ALLOWED, user="ada", ref="main", commit=sha)
    push_work(run, None)
    said = world.said.getvalue().decode()
    for why, name in (("for Git LFS", "big.bin"), ("in a submodule", "module/x"), ("ignored by git", "weights/w")):
        assert f"among the artifacts alone, {why}: {name!r}\n" in said
    modes = {line.split("\t")[1]: line.split()[0] for line in git(world, "ls-tree", BRANCH).decode().splitlines()}
    assert (modes["run.sh"], modes["link"], modes["module"]) == ("100755", "100644", "160000")
    assert (modes["new.tmp"], "big.bin" in modes, "weights" in modes) == ("100644", False, False)


def test_two_users_have_two_branches_and_odd_names_are_no_obstacle(world: Lab, tmp_path: Path) -> None:
    run = notebook_run(world, tmp_path)
    pushed(world, run, {"a": b"1"}, "ada", "main")
    pushed(world, run, {"a": b"2"}, "bob", "main")
    pushed(world, run, {"a": b"3"}, "..lock.", "fix/~1..^:?*[\\ é.lock")
    assert files_of(world, BRANCH)["a"] == b"1"
    assert files_of(world, "glgpu-notebook/bob/main")["a"] == b"2"
    (odd,) = [one for one in branches(world) if one.startswith("glgpu-notebook/%2E")]
    assert files_of(world, odd)["a"] == b"3"


def test_a_second_notebook_on_a_newer_commit_has_both_for_parents(world: Lab, tmp_path: Path) -> None:
    run = notebook_run(world, tmp_path)
    pushed(world, run, {"a": b"1"})
    (first,) = git(world, "rev-parse", BRANCH).decode().split()
    push_from_elsewhere(world, tmp_path / "newer", "main")
    newer = git(world, "rev-parse", "main").decode().strip()
    brought_home(run, {"a": b"2"})
    run.record.add(ALLOWED, user="ada", ref="main", commit=newer)
    push_work(run, None)
    assert parents_of(world, BRANCH) == [first, newer]
    # Neither is in the tip's parents' way again.
    brought_home(run, {"a": b"3"})
    push_work(run, None)
    brought_home(run, {"a": b"4"})
    push_work(run, None)
    assert git(world, "log", "--first-parent", "--format=%P", "-2", BRANCH).decode().splitlines()[0].count(" ") == 0
    assert len(git(world, "log", "--format=%P", "-2", BRANCH).decode().splitlines()[1].split()) == 1


def test_a_notebook_on_a_branch_of_its_user_s_work_goes_on_there(world: Lab, tmp_path: Path) -> None:
    run = notebook_run(world, tmp_path)
    pushed(world, run, {"a": b"1"})
    tip = git(world, "rev-parse", BRANCH).decode().strip()
    brought_home(run, {"a": b"2"})
    run.record.add(ALLOWED, user="ada", ref=BRANCH, commit=tip)
    push_work(run, None)
    assert (parents_of(world, BRANCH), files_of(world, BRANCH)["a"]) == ([tip], b"2")


@pytest.mark.parametrize(
    ("stands_in_the_way", "cause"),
    [
        ("protected", "You are not allowed to create protected branches on this project."),
        ("silence", "does not answer"),
        ("no vouching", "nobody vouches for the SSH host keys"),
        ("no commit", "fetching the commit that the notebook had"),
    ],
)
def test_what_stands_in_the_way_is_said_and_costs_nothing_but_the_push(
    world: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stands_in_the_way: str, cause: str
) -> None:
    monkeypatch.setattr("glgpu.steps.push_work.FIRST_SECONDS", 1.0)
    monkeypatch.setattr("glgpu.steps.push_work.PAUSE_SECONDS", 0.01)
    if stands_in_the_way == "protected":
        world.adopted.project.protected_branches.append("glgpu-notebook/*")
    elif stands_in_the_way == "silence":
        world.world.faults.rules.append(Rule("git.connect", "silence", times=None))
    elif stands_in_the_way == "no vouching":
        world.world.gitlab.shows_host_keys = False
    else:
        world.adopted = replace(world.adopted, sha=SHA)
    run = notebook_run(world, tmp_path)
    said = pushed(world, run, {"a": b"1"})
    assert cause in said
    assert "remedy: " in said
    assert "nothing is lost" in said
    assert (keys(world), (run.job.scratch / "push").exists()) == ([], False)
    assert branches(world) == ["main"]
    assert run.record.find("work-not-pushed") is not None
    assert (run.outputs / WORKSPACE / "a").read_bytes() == b"1"
    assert "not pushed to glgpu-notebook" in (run.artifacts / "glgpu/annotations.json").read_text()


def test_the_key_is_on_no_command_line_in_no_log_and_short_lived(
    world: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()
    lines = list[str]()

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, argv: list[str], **more: object) -> None:
            lines.append(repr(argv))
            key = tmp_path / "checkout/.glgpu/push/key"
            if key.exists() and not seen:
                seen.extend(key.read_text().split("\n")[1:-2])
                lines.append(f"mode {key.stat().st_mode & 0o777:o}")
            # Handed on as it came: none of Popen's overloads takes a mapping of anything.
            super().__init__(argv, **more)  # type: ignore[call-overload]

    monkeypatch.setattr("subprocess.Popen", Watched)
    run = notebook_run(world, tmp_path)
    now = run.forge.server_time()
    said = pushed(world, run, {"a": b"1"})
    assert seen
    assert "mode 600" in lines
    for line in seen:
        assert line not in "\n".join(lines) + said + (run.outputs / "glgpu/run.json").read_text()
    assert not any("glpat-" in line for line in lines)
    (made,) = [one for one in key_requests(world) if "can_push" in one]
    assert '"can_push": true' in made
    assert run.name.push_title in made
    assert 0 < datetime.fromisoformat(json.loads(made)["expires_at"]).timestamp() - now <= 910


def test_a_job_that_dies_with_the_key_leaves_one_that_a_teardown_finds_by_name(world: Lab, tmp_path: Path) -> None:
    run = notebook_run(world, tmp_path)
    there = run.branch_at(ssh_address(run.job), run.job.scratch / "push")
    until = run.forge.server_time() + 900
    run.forge.add_deploy_key(run.name.push_title, there.make_key("x"), until, can_push=True)
    assert run.forge.deploy_keys()[0].name == f"{run.name}-push"
    tear_down(run)
    assert keys(world) == []


DYING = """\
import json, os, signal, sys
from pathlib import Path
from glgpu.clients.work_branch import WorkBranch
from glgpu.console import Console
from glgpu.masking import Masker
from glgpu.steps.push_work import push_work
from glgpu.wiring import make_run

WorkBranch.tip = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
run = make_run(Console(Masker()), json.load(sys.stdin), Path.cwd(), kind="notebook", needs_settings=False)
push_work(run, None)
"""


def test_a_job_that_is_killed_while_it_pushes_leaves_a_key_that_a_cleanup_removes(world: Lab, tmp_path: Path) -> None:
    gitlab, adopted = world.world.gitlab, world.adopted
    pipeline = gitlab.create_pipeline(adopted.project, "main", adopted.sha, "push", adopted.user)
    stop = gitlab.create_job(pipeline, "stop notebook", "destroy")
    gitlab.start_job(stop)
    run = notebook_run(world, tmp_path, CI_PIPELINE_ID=str(pipeline.id))
    brought_home(run, {"a": b"1"})
    run.record.add(ALLOWED, user="ada", ref="main", commit=adopted.sha)
    killed = subprocess.run(
        [sys.executable, "-c", DYING], input=json.dumps(dict(run.job.variables)), text=True, cwd=run.job.project_dir,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert keys(world) == [run.name.push_title]
    for status, left in (("running", [run.name.push_title]), ("failed", [])):
        if status == "failed":
            gitlab.finish_job(stop, status)
        cleanup(run, run.google_time, lambda _: run)
        assert keys(world) == left
    assert branches(world) == ["main"]


def test_a_vm_s_own_key_opens_nothing_for_writing(world: Lab, tmp_path: Path) -> None:
    run = notebook_run(world, tmp_path)
    there = run.branch_at(ssh_address(run.job), tmp_path / "push")
    run.forge.add_deploy_key(str(run.name), there.make_key("x"), run.forge.server_time() + 900)
    there.open(known_hosts(run, there.answering_keys()))
    lie(tmp_path / "one", {"a": b"1"})
    made = there.commit(world.adopted.sha, "", tmp_path / "one", ["a"], "ada", "Work", SECONDS)
    with pytest.raises(Failure, match="This deploy key does not have write access") as caught:
        there.push(made.sha, BRANCH, SECONDS)
    assert caught.value.klass is ErrorClass.GITLAB
    assert branches(world) == ["main"]


def test_names_are_read_of_the_key_s_title() -> None:
    name = RunName("https://gitlab.example.com", 42, "1001", "notebook")
    found = read_name(name.push_title)
    assert found is not None
    assert str(found) == str(name)
