"""Terraform as people run it, with the real hashicorp/google provider, shut off from everything but the stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glgpu.rehearsal.call_log import CallLog

TERRAFORM = Path(__file__).resolve().parents[1] / "terraform"
PACKAGE = Path("registry.terraform.io", "hashicorp", "google")
USERINFO = "openidconnect.googleapis.com:443"
"""Whom the provider asks who it is, whatever its endpoints; it goes on without an answer."""


class NoProvider(Exception):
    """There is no hashicorp/google at hand, or none that our modules take."""


@dataclass(frozen=True)
class Provider:
    """The provider, as one `terraform init` found it.

    Attributes:
        program: Path of Terraform.
        terraform: Version of Terraform.
        version: Version of hashicorp/google.
        source: The folder of its program.
        mirror: A folder laid out as Terraform wants a file system mirror.
        config: A CLI configuration with that mirror and nothing else, for TF_CLI_CONFIG_FILE.
    """

    program: str
    terraform: tuple[int, ...]
    version: str
    source: Path
    mirror: Path
    config: Path


def find_provider(folder: Path) -> Provider:
    """Let Terraform find the provider where GLGPU_PROVIDER_MIRROR names it, else in the user's plugin folder.

    Raises:
        NoProvider: It is in neither, or Terraform is missing.
    """
    program = shutil.which("terraform")
    if program is None:
        raise NoProvider("there is no terraform on PATH")
    named = os.environ.get("GLGPU_PROVIDER_MIRROR")
    source = Path(named).resolve() if named else Path.home() / ".terraform.d" / "plugins"
    if not (source / PACKAGE).is_dir():
        raise NoProvider(f"no {PACKAGE} in {source}, and GLGPU_PROVIDER_MIRROR {'' if named else 'not '}set")
    folder.mkdir(parents=True)
    shutil.copy(TERRAFORM / "gpu-vm" / "versions.tf", folder)
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "CHECKPOINT_DISABLE": "1",
        "TF_CLI_CONFIG_FILE": str(_configuration(folder / "found.tfrc", source)),
    }  # fmt: skip

    def terraform(*words: str) -> str:
        done = subprocess.run([program, *words], cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise NoProvider(f"terraform {words[0]} with {source}: {' '.join(done.stderr.split())}")
        return done.stdout

    terraform("init", "-no-color", "-input=false")
    told = json.loads(terraform("version", "-json"))
    # What init has unpacked is a mirror itself, and a quick one where the first held an archive.
    mirror = folder / ".terraform" / "providers"
    return Provider(
        program=program,
        terraform=tuple(map(int, told["terraform_version"].split("-")[0].split("."))),
        version=told["provider_selections"][str(PACKAGE)],
        source=next((mirror / PACKAGE).glob("*/*")).resolve(),
        mirror=mirror,
        config=_configuration(folder / "mirror.tfrc", mirror),
    )


def schema_of(provider: Provider) -> dict[str, Any]:
    """What the provider says of its own arguments and blocks: `provider_block`, `resources`, `data_sources`.

    Each is `{"attributes": {name: {"required", "optional", ...}}, "blocks": {name: {..., "min", "max"}}}`.
    """
    environment = {"PATH": os.environ["PATH"], "HOME": str(provider.config.parent), "CHECKPOINT_DISABLE": "1"}
    done = subprocess.run(
        [provider.program, "providers", "schema", "-json"],
        cwd=provider.config.parent, env=environment, capture_output=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)["provider_schemas"][str(PACKAGE)]

    def block(described: Mapping[str, Any], **limits: int) -> dict[str, Any]:
        inner = described.get("block_types", {}).items()
        blocks = {
            name: block(one["block"], min=one.get("min_items", 0), max=one.get("max_items", 0)) for name, one in inner
        }
        return {"attributes": described.get("attributes", {}), "blocks": blocks, **limits}

    return {
        "provider_block": block(told["provider"]["block"]),
        "resources": {name: block(one["block"]) for name, one in told["resource_schemas"].items()},
        "data_sources": {name: block(one["block"]) for name, one in told["data_source_schemas"].items()},
    }


def _configuration(path: Path, mirror: Path) -> Path:
    path.write_text(
        f"provider_installation {{\n  filesystem_mirror {{\n    path = {json.dumps(str(mirror))}\n  }}\n}}\n",
        encoding="utf-8",
    )
    return path


class Outside:
    """A proxy that lets nothing through and remembers where programs wanted to go.

    Attributes:
        address: For HTTPS_PROXY; no program sends what is meant for this machine there.
        wanted: ``host:port`` -> how often.
    """

    def __init__(self) -> None:
        self.wanted: Counter[str] = Counter()
        wanted = self.wanted

        class Refusal(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                _, target, *_ = [*self.rfile.readline().decode("latin-1").split(), "", ""]
                wanted[target] += 1
                self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusal)
        self._server.daemon_threads = True
        self.address = "http://{}:{}".format(*self._server.server_address)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass
class Tally:
    """What the provider asked of the stand-ins, over a whole test session.

    Attributes:
        answered: Its calls, by stand-in.
        unserved: Calls that a stand-in did not know what to do with, and why.
        who_am_i: Questions who the caller is, which go out to Google whatever the endpoints, and were refused.
        notes: Lines for the summary.
    """

    answered: Counter[str] = field(default_factory=Counter)
    unserved: list[str] = field(default_factory=list)
    who_am_i: int = 0
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def over(self, calls: CallLog) -> Iterator[None]:
        """Count what reaches a stand-in while the block lasts; afterwards, insist that nothing went unserved."""
        before = len(self.unserved)
        calls.listeners.append(self._hear)
        try:
            yield
        finally:
            calls.listeners.remove(self._hear)
        assert self.unserved[before:] == []

    def _hear(self, line: Mapping[str, Any]) -> None:
        agent = next((value for name, value in line["headers"].items() if name.lower() == "user-agent"), "")
        if "terraform-provider-google" not in agent:
            return
        if line.get("unserved"):
            self.unserved.append(f"{line['to']}: {line['verb']} {line['target']}: {line['unserved']}")
        else:
            self.answered[line["to"]] += 1


class Workspace:
    """A copy of a module in a folder with blanks in its path, with variables, and Terraform in it.

    Attributes:
        program: Path of Terraform.
        module: Name of the module.
        folder: The copy.
        environment: What Terraform gets, and no more; may be changed between calls.
    """

    def __init__(
        self, program: str, folder: Path, module: str, variables: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        self.program, self.module = program, module
        self.folder = folder / "work folder"
        shutil.copytree(TERRAFORM / module, self.folder, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "CHECKPOINT_DISABLE": "1", **environment,
        }  # fmt: skip
        self.write(variables)

    def write(self, variables: Mapping[str, Any]) -> None:
        """Set the module's variables."""
        (self.folder / "run.auto.tfvars.json").write_text(json.dumps(variables), encoding="utf-8")

    def override(self, text: str) -> None:
        """Change the copy: what `override.tf` says wins over the module's own files."""
        (self.folder / "override.tf").write_text(text, encoding="utf-8")

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Begin a Terraform command, in a process group of its own."""
        return subprocess.Popen(
            [self.program, *words], cwd=self.folder, env=self.environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *words: str, expect: int = 0) -> str:
        """Run a Terraform command to its end; what it said, as one line without frames."""
        with self.start(*words) as process:
            output, _ = process.communicate(timeout=240)
        assert process.returncode == expect, output
        return " ".join(output.replace("│", " ").split())

    def init(self) -> str:
        """`terraform init`."""
        return self.run("init", "-no-color", "-input=false")

    def apply(self, expect: int = 0) -> str:
        """`terraform apply`."""
        return self.run("apply", "-auto-approve", "-no-color", "-input=false", expect=expect)

    def assert_no_drift(self) -> None:
        """A refresh finds everything as the module wants it."""
        self.run("plan", "-detailed-exitcode", "-no-color", "-input=false")

    def destroy(self) -> str:
        """`terraform destroy`."""
        return self.run("destroy", "-auto-approve", "-no-color", "-input=false")

    def outputs(self) -> dict[str, Any]:
        """The outputs by name."""
        return {name: output["value"] for name, output in json.loads(self.run("output", "-json")).items()}

    def state(self) -> list[str]:
        """Addresses of what the state holds."""
        path = self.folder / "terraform.tfstate"
        if not path.exists() or not path.read_bytes():
            return []
        resources = json.loads(path.read_text(encoding="utf-8"))["resources"]
        return [f"{one['type']}.{one['name']}" for one in resources if one["mode"] == "managed" and one["instances"]]


MakeWorkspace = Callable[..., Workspace]
"""`(module, variables, *, environment)`."""
