"""No secret shows up where somebody else could read it; and the search for them finds one wherever it is planted."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import shutil
import subprocess
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from command_lines import Watch
from file_contents import contents, matching
from glgpu.console import Console
from glgpu.masking import Masker
from glgpu.rehearsal.gitlab_model import Package, PackageFile, State, Variable
from glgpu.rehearsal.notebook_visit import START, STOP, NotebookVisit
from glgpu.rehearsal.world import GOOGLE_PROJECT, World, commit
from rehearsing import Played, repository, world

ZONE = "europe-west4-a"
REGISTRY, REGISTRY_PASSWORD = "registry.example.com", "registry-p4ss/w0rd+&x"
MASKED = "masked-k3y/of+the=team"
QUOTED = 'a "quoted" secret & 100% of it'
SEVERAL_LINES = (
    "-----BEGIN PLANTED KEY-----\nfirst/line+of+the+planted+key\nsecond line, with \\ and ü\n-----END-----\n"
)
IN_A_FILE = '{"type": "planted", "private": "file/s3cret+in+json=="}\n'

YAML = f"""\
machine: {{gpu: [nvidia-l4], zones: [europe-west4-a]}}
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
    """Watches a world, and looks through everything in the end."""

    def __init__(self, made: World) -> None:
        self.world = made
        self.states: set[bytes] = set()
        self.metadata: set[bytes] = set()
        self.deploy_keys: set[str] = set()
        self.login_keys: set[str] = set()
        self.push_keys: set[str] = set()
        self.deploy_tokens: set[str] = set()
        self.notebook_tokens: set[str] = set()
        self.packages: dict[str, set[bytes]] = {}
        self.disks: dict[str, bytes] = {}
        self.work: dict[str, set[bytes]] = {}
        self.commands: list[str] = []
        self.said = io.BytesIO()
        made.calls.listeners.append(self._look)

    def _look(self, call: Mapping[str, Any]) -> None:
        """At each call: what is only there for a while."""
        for project in self.world.gitlab.projects.values():
            for state in project.states.values():
                self.states |= {document for _, document in state.versions}
            for package in project.packages.values():
                for file in package.files:
                    self.packages.setdefault(f"{package.name}: {file.name}", set()).add(file.path.read_bytes())
            self.deploy_tokens |= {token.value for token in project.deploy_tokens.values()}
        instances = self.world.compute.instances.resources(ZONE)
        self.metadata |= {json.dumps(one).encode() for one in instances}
        for instance in instances:
            for _, data in matching(f"/dev/shm/{instance['name']}/notebook/token"):
                self.notebook_tokens.add(data.decode().strip())
        if call["to"] == "vm" and " end-notebook " in call["target"]:
            self._look_at_disks()
        for _, data in matching(f"{self.world.folder}/vms/*/home/*/glgpu/deploy-key"):
            self.deploy_keys.add(data.decode())
        for path, data in contents(self.world.folder / "runner/builds"):
            if ".glgpu" in path.parts and b"PRIVATE KEY" in data:
                (self.push_keys if path.parent.name == "push" else self.login_keys).add(data.decode())
            elif ".glgpu" in path.parts:
                self.work.setdefault(str(path), set()).add(data)

    def _look_at_disks(self) -> None:
        """What a VM has that lives; /run is memory, and its root's alone."""
        for folder in (self.world.folder / "vms").iterdir():
            for path, data in contents(folder):
                if path.relative_to(folder).parts[0] != "run":
                    self.disks[str(path)] = data

    def places(self, played: Played) -> Iterator[tuple[str, str, bytes]]:
        """Every kind of place, where exactly, and what is there."""
        for document in self.states:
            yield "state", "a stored version", document
        for resource in self.metadata:
            yield "metadata", "an instance", resource
        for name, versions in self.packages.items():
            for data in versions:
                yield "packages", name, data
        for name, data in self.disks.items():
            yield "disks", name, data
        for project in self.world.gitlab.projects.values():
            told = self.world.gitlab.git(project, "log", "--all", "--patch", "--text")
            yield "branches", project.path, told.stdout
        yield "said", "on a laptop", self.said.getvalue()
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
            yield "command lines", command, command.replace("\0", " ").encode("utf-8", "surrogateescape")
        for name, found in self.work.items():
            for data in found:
                yield "temporary folders", name, data
        for path, data in contents(self.world.folder):
            # The disk of a VM that lives is its own; one that has gone left nothing.
            if path.name != "artifacts.zip":
                kind = "serial consoles" if path.name.startswith("serial-") else "temporary folders"
                yield kind, str(path), data

    def found(self, played: Played, secrets: dict[str, str]) -> dict[tuple[str, str], str]:
        """Which secret is in which kind of place; and one place of that kind."""
        known = [(name, form) for name, value in secrets.items() for form in forms(value)]
        return {
            (kind, name): where
            for kind, where, data in self.places(played)
            for name, form in known
            if form in data and not is_the_runners(kind, where)
        }


def is_the_runners(kind: str, where: str) -> bool:
    """Where GitLab's Runner itself keeps the job's token: the URL of the checkout's remote."""
    if kind == "command lines":
        return where.startswith("git\0-C\0") and "\0config\0remote.origin.url\0" in where
    return kind == "temporary folders" and where.endswith("/.git/config") and "/runner/builds/" in where


Everything = tuple[Search, Played, dict[str, str]]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everything]:
    """A whole run with secrets of every kind."""
    own = repository(tmp_path_factory.mktemp("secrets") / "own", {"glgpu.yml": YAML, "train.py": TRAINING})
    variables = [
        Variable("MASKED_KEY", MASKED, masked=True),
        Variable("QUOTED_KEY", QUOTED),
        Variable("SEVERAL_LINES", SEVERAL_LINES),
        Variable("IN_A_FILE", IN_A_FILE, variable_type="file"),
        Variable("GLGPU_REGISTRY_USER", "robot"),
        Variable("GLGPU_REGISTRY_PASSWORD", REGISTRY_PASSWORD, masked=True),
    ]
    with world() as made:
        search = Search(made)
        made.machines.registries[REGISTRY] = ("robot", REGISTRY_PASSWORD)
        adopted = made.adopt(own, variables=variables)
        played = Played(made, adopted)
        with Watch() as watch:
            outcomes = played.play()
        search.commands = watch.commands
        assert {name for name, one in outcomes.items() if one.status == "success"} == {"provision", "train", "destroy"}
        assert "all told" in played.logs["train"], played.logs["train"]
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
        for name in ("provision", "train", "destroy"):
            secrets[f"token of {name}"] = str(outcomes[name].last.entry.token)
        assert search.deploy_keys, "no deploy key was ever seen on a VM"
        assert search.login_keys, "no login key was ever seen beside a job"
        for number, key in enumerate(sorted(search.deploy_keys | search.login_keys)):
            # The first lines are much the same for every key.
            secrets[f"private key {number}"] = key.splitlines()[-3]
        assert list((made.folder / "vms").iterdir()) == [], "the VM's disk would be exempt, had it not gone"
        yield search, played, secrets
        played.close()


KINDS = {
    "state", "metadata", "requests", "logs", "dotenv", "annotations", "artifacts", "command lines",
    "temporary folders", "serial consoles", "packages", "disks", "branches", "said",
}  # fmt: skip
SOMETHING = 'planted "s3cret"/of & 100%+tests'


def test_the_search_finds_a_secret_wherever_it_is_planted_in_whatever_form(everything: Everything) -> None:
    search, played, _ = everything
    made = search.world
    disguises: dict[str, Callable[[str], str]] = {
        "raw": str,
        "base64": lambda text: base64.b64encode(text.encode()).decode(),
        "base64 within": lambda text: base64.b64encode(f"user:{text}, and more".encode()).decode(),
        "URL": lambda text: f"https://example.com/?key={quote(text, safe='')}",
        "form": quote_plus,
        "JSON": lambda text: json.dumps({"key": text}),
    }
    secrets = {name: f"{SOMETHING} {number}" for number, name in enumerate(disguises)}
    texts = [disguise(secrets[name]) for name, disguise in disguises.items()]
    text = "\n".join(texts)
    project = played.rehearsal.adopted.project
    project.states["planted"] = State("planted", 0.0, 0.0, versions=[(1, text.encode())])
    folder = made.folder / "runner/planted"
    folder.mkdir()
    stop = played.player.outcomes["stop"].last
    stop.log.write_text(text)
    for kind in ("dotenv", "annotations"):
        stop.reports[kind] = folder / kind
        stop.reports[kind].write_text(text)
    file = PackageFile(1, "planted", folder / "package", len(text), "", 0.0)
    file.path.write_text(text)
    project.packages[0] = Package(0, "planted", "1", 0.0, None, [file])
    disk = made.folder / "vms/planted/home/glgpu/work"
    disk.mkdir(parents=True)
    (disk / "file").write_text(text)
    (folder / "work").mkdir()
    (folder / "work/file").write_text(text)
    commit(folder / "work", "planted")
    made.gitlab.push(project, folder / "work", "HEAD", "planted")
    search.said.write(text.encode())
    stop.artifacts = folder / "artifacts.zip"
    with zipfile.ZipFile(stop.artifacts, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("outputs/run.json", text)
    try:
        with Watch() as watch:
            for one in texts:
                subprocess.run(["/bin/sleep", "0.01", one], check=False, stderr=subprocess.DEVNULL)
                subprocess.run(["sh", "-c", "sleep 0.02 # $0", one], check=True)
        search.commands = search.commands + watch.commands
        create_instance(made, text)
        made.calls.add("vm", "exec", "sh helper end-notebook planted", at=0.0)
        shutil.rmtree(made.folder / "vms/planted")
        found = search.found(played, secrets)
        assert set(found) == {(kind, name) for kind in KINDS for name in secrets}
    finally:
        stop.log.unlink()
        stop.reports.clear()
        stop.artifacts = None
        del project.states["planted"], project.packages[0]


def create_instance(made: World, text: str) -> None:
    """Order a VM with something in its metadata and on its serial console, and look at it."""
    project = f"{made.compute.endpoint}/compute/v1/projects/{GOOGLE_PROJECT}"
    headers = {"Authorization": f"Bearer {made.google_token}", "Content-Type": "application/json"}
    image = {"sourceImage": "projects/debian-cloud/global/images/family/debian-12"}
    order = {
        "name": "planted", "machineType": f"zones/{ZONE}/machineTypes/e2-small",
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": image}],
        "networkInterfaces": [{"network": "global/networks/default"}],
        "metadata": {"items": [{"key": "planted", "value": text}]},
    }  # fmt: skip
    for verb, path, body in (("POST", "", order), ("GET", "/planted", None), ("DELETE", "/planted", None)):
        request = urllib.request.Request(
            f"{project}/zones/{ZONE}/instances{path}", json.dumps(body).encode() if body else None, headers, method=verb
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200
        if verb == "GET":
            made.compute.instances.write_serial(made.compute.instances.get(ZONE, "planted"), text)


def test_no_secret_is_anywhere(everything: Everything) -> None:
    search, played, secrets = everything
    assert len(secrets) >= 13
    assert search.states
    assert search.metadata
    assert search.work
    assert any("glgpu\0train" in command for command in search.commands)
    assert any("terraform" in command for command in search.commands)
    assert search.found(played, secrets) == {}


UPLOADER = "vm@my-dl.iam.gserviceaccount.com"
DETACHED = f"""\
machine: {{gpu: [nvidia-l4], zones: [europe-west4-a]}}
storage: {{bucket: team-glgpu, uploader: {UPLOADER}}}
train:
  image: {REGISTRY}/team/train:1
  command: sh -c 'mkdir weights && echo trained >weights/w'
  outputs: [weights]
  follow: false
"""


@pytest.mark.every_fault
def test_what_a_vm_logs_in_to_the_bucket_with_is_nowhere(tmp_path: Path) -> None:
    own = repository(tmp_path / "own", {"glgpu.yml": DETACHED})
    with world() as made:
        search = Search(made)
        played = Played(made, made.adopt(own))
        with Watch() as watch:
            outcomes = played.play()
            assert outcomes["train"].status == "success", played.logs["train"]
            end = time.monotonic() + 60
            while "(TERMINATED)" not in str(played.left()["instances"]):
                assert time.monotonic() < end
                time.sleep(0.2)
        search.commands = watch.commands
        issued = made.google.project.tokens._issued.items()
        tokens = [token for token, (who, _) in issued if who.name == UPLOADER]
        assert tokens
        assert any("curl" in command for command in search.commands)
        # The disk of its VM is still there: not even that has it.
        assert search.found(played, {f"token {number}": token for number, token in enumerate(tokens)}) == {}
        played.close()


NOTEBOOK = f"""\
machine: {{gpu: [nvidia-l4], zones: [{ZONE}]}}
train: {{image: {REGISTRY}/team/train:1, command: python train.py, outputs: [weights]}}
notebook: {{can_push: true}}
"""


class Frank(Masker):
    """Hides nothing: what would be seen without it."""

    def add(self, secret: str) -> None:
        """Do not."""


@pytest.mark.every_fault
@pytest.mark.skipif(
    importlib.util.find_spec("jupyterlab") is None, reason="jupyterlab: not installed here: no notebook is started"
)
def test_what_opens_a_notebook_and_what_pushes_its_work_is_nowhere_but_where_it_is_used(tmp_path: Path) -> None:
    own = repository(tmp_path / "own", {"glgpu.yml": NOTEBOOK})
    with world(notebook=True) as made:
        search = Search(made)
        adopted = made.adopt(own, notebook=True)
        played = Played(made, adopted)
        visit = NotebookVisit(Console(Frank(), stream=search.said), made, adopted, played.player, [])
        with Watch() as watch:
            played.play()
            assert visit.pay() == []
        search.commands = watch.commands
        outcomes = played.player.outcomes
        assert [outcomes[name].status for name in (START, STOP)] == ["success", "success"], played.logs
        (token,) = search.notebook_tokens
        secrets = {"notebook": token, "GLGPU_GITLAB_TOKEN": adopted.token.value, "Google": made.google_token}
        secrets |= {f"deploy token {number}": one for number, one in enumerate(search.deploy_tokens)}
        secrets |= {f"token of {name}": str(outcomes[name].last.entry.token) for name in (START, STOP)}
        places = {kind for kind, _, data in search.places(played) if data}
        assert places >= KINDS - {"dotenv"}
        assert any("glgpu\0notebook\0open" in command for command in search.commands)
        assert any("jupyter" in command for command in search.commands)
        assert b"a cell ran" in search.said.getvalue()
        assert search.deploy_tokens
        pushed = made.gitlab.git(adopted.project, "ls-tree", "--name-only", "glgpu-notebook/ada/main").text
        assert "rehearsal.ipynb" in pushed.split()
        assert search.push_keys
        for number, key in enumerate(sorted(search.push_keys | search.login_keys)):
            secrets[f"private key {number}"] = key.splitlines()[-3]
        assert search.found(played, secrets) == {}
        assert played.left() == {}
        played.close()
