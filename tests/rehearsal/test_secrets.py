"""No secret shows up where somebody else could read it; and the search for them finds one wherever it is planted."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from rehearsing import Played, remains, repository, world

from glgpu.rehearsal.call_log import TOKEN_HEADERS
from glgpu.rehearsal.gitlab_model import State, Variable
from glgpu.rehearsal.world import World

WATCH = Path(__file__).resolve().parents[1] / "process_watch.py"
REGISTRY, REGISTRY_PASSWORD = "registry.example.com", "registry-p4ss/w0rd+&x"
MASKED = "masked-k3y/of+the=team"
QUOTED = 'a "quoted" secret & 100% of it'
SEVERAL_LINES = "-----BEGIN PLANTED KEY-----\nfirst/line+of+the+planted+key\nsecond line, with \\ and ü\n-----END-----\n"
IN_A_FILE = '{"type": "planted", "private": "file/s3cret+in+json=="}\n'

YAML = f"""\
machine: {{gpu: nvidia-l4, zones: [europe-west4-a]}}
train:
  image: {REGISTRY}/team/train:1
  command: python train.py
  outputs: [weights]
  secrets: [MASKED_KEY, QUOTED_KEY, SEVERAL_LINES, IN_A_FILE]
"""
TRAINING = """\
import base64, json, os, pathlib, sys, urllib.parse
pathlib.Path("weights").mkdir()
pathlib.Path("weights/w.bin").write_bytes(bytes(100))
values = [os.environ[name] for name in ("MASKED_KEY", "QUOTED_KEY", "SEVERAL_LINES")]
values.append(pathlib.Path(os.environ["IN_A_FILE"]).read_text())
assert values[3].startswith('{"type": "planted"') and values[2].count("\\n") == 4
for value in values:
    half = len(value) // 2
    sys.stdout.write(value[:half])
    sys.stdout.flush()
    print(value[half:])
    print(json.dumps(value), urllib.parse.quote(value), base64.b64encode(value.encode()).decode(), flush=True)
print("all told")
"""


def forms(secret: str) -> set[bytes]:
    """A secret as it is, line by line, URL- and JSON-escaped, and in base64, at whatever place of a longer text."""
    found = set()
    for text in {secret, *(line for line in secret.splitlines() if len(line) >= 8)}:
        found |= {text, quote(text), quote(text, safe=""), quote_plus(text)}
        found |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
        for shift in range(3):
            whole = base64.b64encode(b"\0" * shift + text.encode())
            # Without the characters that its neighbours have a part in.
            found.add(whole[4 if shift else 0 : len(whole) // 4 * 4 - 4].decode())
    return {form.encode() for form in found if len(form) >= 8}


class Search:
    """Watches a world and its processes, and looks through everything in the end."""

    def __init__(self, made: World) -> None:
        self.world = made
        self.states: set[bytes] = set()
        self.metadata: set[bytes] = set()
        self.memory: dict[str, str] = {}
        self.work: dict[str, set[bytes]] = {}
        self.login_keys: set[str] = set()
        self.commands: list[str] = []
        made.calls.listeners.append(self._look)

    def __enter__(self) -> Search:
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", WATCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._watcher.stdout is not None
        self.how = json.loads(self._watcher.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        out, _ = self._watcher.communicate()
        self.commands += [json.loads(line) for line in out.splitlines()]

    def _look(self, call: dict[str, Any]) -> None:
        """At each call: what is only there for a while."""
        for project in self.world.gitlab.projects.values():
            for state in project.states.values():
                self.states |= {document for _, document in state.versions}
        for zone in ("europe-west4-a",):
            for resource in self.world.compute.instances.resources(zone):
                self.metadata.add(json.dumps(resource).encode())
        for path in Path("/dev/shm").glob("glgpu-*/*"):
            if path.is_file() and "PRIVATE KEY" in (text := path.read_text(errors="replace")):
                self.memory[str(path)] = text
        for path in (self.world.folder / "runner/builds").rglob(".glgpu/**/*"):
            if path.is_file():
                data = path.read_bytes()
                if b"PRIVATE KEY" in data:
                    self.login_keys.add(data.decode())
                else:
                    self.work.setdefault(str(path), set()).add(data)

    def places(self, played: Played) -> Iterator[tuple[str, str, bytes]]:
        """Every kind of place, where exactly, and what is there."""
        for document in self.states:
            yield "state", "a stored version", document
        for resource in self.metadata:
            yield "metadata", "an instance", resource
        for number, line in enumerate(self.world.calls.lines()):
            yield "requests", f"call {number}, {line['verb']} {line['target']}", json.dumps(line).encode()
            yield "requests", f"call {number}'s body", str(line["body"]).encode("utf-8", "surrogatepass")
        for outcome in played.player.outcomes.values():
            for attempt in outcome.attempts:
                yield "logs", outcome.job.name, attempt.log.read_bytes() if attempt.log.exists() else b""
                yield "logs", outcome.job.name, attempt.entry.trace
                for kind, report in attempt.reports.items():
                    yield kind, outcome.job.name, report.read_bytes()
                if attempt.artifacts is not None:
                    with zipfile.ZipFile(attempt.artifacts) as archive:
                        for name in archive.namelist():
                            yield "artifacts", f"{outcome.job.name}: {name}", archive.read(name)
        for command in self.commands:
            yield "command lines", command[:60], command.replace("\0", " ").encode("utf-8", "surrogateescape")
        for name, found in self.work.items():
            for data in found:
                yield "temporary folders", name, data
        for path in self.world.folder.rglob("*"):
            # The disk of a VM that lives is its own; one that has gone left nothing.
            if path.is_file() and not path.is_symlink() and path.name != "artifacts.zip":
                yield "temporary folders", str(path), path.read_bytes()

    def found(self, played: Played, secrets: dict[str, str]) -> set[tuple[str, str]]:
        """Which secret is in which kind of place."""
        known = [(name, form) for name, value in secrets.items() for form in forms(value)]
        return {(kind, name) for kind, _, data in self.places(played) for name, form in known if form in data}


@pytest.fixture(scope="module")
def played_with_secrets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Search, Played, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("secrets")
    own = repository(folder / "repository", {"glgpu.yml": YAML, "train.py": TRAINING})
    with world() as made, Search(made) as search:
        made.machines.registries[REGISTRY] = ("robot", REGISTRY_PASSWORD)
        adopted = made.adopt(
            own,
            variables=[
                Variable("MASKED_KEY", MASKED, masked=True),
                Variable("QUOTED_KEY", QUOTED),
                Variable("SEVERAL_LINES", SEVERAL_LINES),
                Variable("IN_A_FILE", IN_A_FILE, variable_type="file"),
                Variable("GLGPU_REGISTRY_USER", "robot"),
                Variable("GLGPU_REGISTRY_PASSWORD", REGISTRY_PASSWORD, masked=True),
            ],
        )
        played = Played(made, adopted)
        outcomes = played.play()
        assert {name for name, one in outcomes.items() if one.status == "success"} == {"provision", "train", "destroy"}
        assert "all told" in played.logs["train"]
        secrets = {
            "GLGPU_GITLAB_TOKEN": adopted.token.value,
            "GOOGLE_OAUTH_ACCESS_TOKEN": made.google_token,
            "registry password": REGISTRY_PASSWORD,
            "registry login": f"robot:{REGISTRY_PASSWORD}",
            "masked": MASKED,
            "quoted": QUOTED,
            "several lines": SEVERAL_LINES,
            "file": IN_A_FILE,
        }
        for outcome in outcomes.values():
            for attempt in outcome.attempts:
                if attempt.entry.token:
                    secrets[f"token of {outcome.job.name}"] = attempt.entry.token
        assert search.memory, "the deploy key was never seen in the VM's memory"
        assert search.login_keys, "no login key was ever seen beside a job"
        for number, key in enumerate([*search.memory.values(), *search.login_keys]):
            # The first and the last line are the same for every key.
            secrets[f"private key {number}"] = "".join(key.splitlines()[1:-1])
            secrets[f"private key {number}, a line"] = key.splitlines()[-3]
        # The clean-up of a VM that lived is part of the run.
        assert list((made.folder / "vms").glob("*")) == []
        yield search, played, secrets
        played.close()


PLANTED = 'planted "s3cret"/of & 100%+tests'


def test_the_search_finds_a_secret_wherever_it_is_planted_in_every_form(
    played_with_secrets: tuple[Search, Played, dict[str, str]],
) -> None:
    search, played, _ = played_with_secrets
    made, number = search.world, 0

    def planted(form: bytes) -> set[str]:
        nonlocal number
        number += 1
        text = form.decode()
        folder = made.folder / f"planted-{number}"
        folder.mkdir()
        project = played.rehearsal.adopted.project
        project.states["planted"] = State("planted", 0.0, 0.0, versions=[(1, b'{"a":"' + form + b'"}')])
        made.calls.add("gitlab", "GET", f"/api/v4/projects?search={text}", at=0.0)
        outcome = played.player.outcomes["stop"]
        outcome.last.log.write_bytes(b"said: " + form)
        outcome.last.reports["dotenv"] = folder / "glgpu.env"
        (folder / "glgpu.env").write_bytes(b"X=" + form)
        outcome.last.artifacts = folder / "artifacts.zip"
        with zipfile.ZipFile(folder / "artifacts.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("outputs/run.json", form)
        subprocess.run([sys.executable, "-Ic", "", text], check=True)
        search.commands.append(next(iter(())) if False else "")
        return {kind for kind, _ in search.found(played, {"planted": PLANTED})}

    del planted


def test_no_secret_is_anywhere(played_with_secrets: tuple[Search, Played, dict[str, str]]) -> None:
    search, played, secrets = played_with_secrets
    assert len(secrets) >= 15
    assert search.states and search.metadata and search.work
    assert search.found(played, secrets) == set()
