"""Which engine a rehearsal's VMs use, and the image that answers for every image it does not have.

With a real engine: the user's own images, and ``glgpu-rehearsal-base`` for all others. Without: the interpreter that
runs the rehearsal, as the process-based engine's only image. A requirements.txt becomes a layer above either, made
once and kept by the hash of its text; so does JupyterLab, where a notebook is rehearsed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glgpu.errors import ErrorClass, Failure

BASE = "glgpu-rehearsal-base"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PUBLIC_BASE = "FROM python:3.12-slim\nRUN pip install --no-cache-dir numpy\n"
"""What the base is made of where `ci/engine` did not make it."""


@dataclass(frozen=True)
class Engine:
    """A Docker engine, or none.

    Attributes:
        client: Path of the docker client; None: the process-based engine.
        host: Its DOCKER_HOST; empty: the client's default.
        version: The engine's version.
    """

    client: str | None = None
    host: str = ""
    version: str = ""

    def docker(self, *argv: str, text: str = "", seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Run the real client; only where there is one.

        Raises:
            subprocess.TimeoutExpired: It took longer than ``seconds``.
        """
        assert self.client is not None, "there is no engine"
        environment = os.environ | ({"DOCKER_HOST": self.host} if self.host else {})
        return subprocess.run(
            [self.client, *argv], input=text, capture_output=True, text=True, timeout=seconds, env=environment,
            check=False,
        )  # fmt: skip


@dataclass(frozen=True)
class Images:
    """What the VMs of one rehearsal find when they ask for an image.

    Attributes:
        engine: Who runs the containers.
        base: The image that answers for those the engine does not have: its name in that engine.
        store: Images of the process-based engine by name, as ``docker image inspect`` shows them; else empty.
    """

    engine: Engine
    base: str
    store: dict[str, dict[str, Any]] = field(default_factory=dict)


def find_engine(environment: Mapping[str, str]) -> Engine:
    """Ask the Docker engine that the environment names; where none answers, it is the process-based one."""
    client = shutil.which("docker", path=environment.get("PATH"))
    if client is None:
        return Engine()
    candidate = Engine(client, environment.get("DOCKER_HOST", ""))
    try:
        answer = candidate.docker("version", "--format", "{{.Server.Version}}", seconds=20)
    except (subprocess.TimeoutExpired, OSError):
        return Engine()
    return Engine(client, candidate.host, answer.stdout.strip()) if answer.returncode == 0 else Engine()


def prepare(engine: Engine, requirements: Sequence[Path], cache: Path, say: Callable[[str], None]) -> Images:
    """Make the base image, with what has to be in it.

    Args:
        engine: As ``find_engine`` found it.
        requirements: Files for pip, which installs one after the other; none: the bare base.
        cache: Folder for what is kept between rehearsals, ``$XDG_CACHE_HOME/glgpu``.
        say: Told in one line what takes time, and which engine it is in the end.

    Raises:
        Failure: IMAGE_PULL: a requirement cannot be installed; pip's own words are the evidence.
    """
    if engine.client is not None and not has_base(engine, say):
        engine = Engine()
    if engine.client is None:
        say("containers: processes of this machine, without isolation (no Docker engine is used)")
        python = layered_python(requirements, cache, say) if requirements else Path(sys.executable)
        return Images(engine, BASE, {BASE: process_image(python)})
    say(f"containers: Docker {engine.version}")
    base = layered_image(engine, requirements, say) if requirements else BASE
    return Images(engine, base)


def has_base(engine: Engine, say: Callable[[str], None]) -> bool:
    """Whether the engine has the base image, made from a public one where that can be had."""
    if engine.docker("image", "inspect", BASE).returncode == 0:
        return True
    say(f"making {BASE} from python:3.12-slim (once)")
    try:
        built = engine.docker("build", "-t", BASE, "-", text=PUBLIC_BASE)
    except subprocess.TimeoutExpired:
        say(f"Docker {engine.version} answers, but {BASE} was not made within ten minutes: not used")
        return False
    if built.returncode != 0:
        say(f"Docker {engine.version} answers, but {BASE} cannot be made: not used. {last_line(built.stderr)}")
        return False
    return True


def process_image(python: Path) -> dict[str, Any]:
    """The process-based engine's image of an interpreter, as ``docker image inspect`` shows it."""
    path = f"{python.parent}:{SYSTEM_PATH}"
    return {
        "Id": "sha256:" + hashlib.sha256(f"{python}\n{sys.version}".encode()).hexdigest(),
        "RepoTags": [f"{BASE}:latest"], "RepoDigests": [], "Created": "2026-01-01T00:00:00Z",
        "Architecture": os.uname().machine, "Os": "linux", "Size": 0,
        "Config": {
            "Env": [f"PATH={path}", "LANG=C.UTF-8"], "Cmd": ["python3"], "Entrypoint": None, "WorkingDir": "",
            "Labels": {}, "User": "",
        },
    }  # fmt: skip


def layered_python(requirements: Sequence[Path], cache: Path, say: Callable[[str], None]) -> Path:
    """A virtual environment with the requirements, above the rehearsal's own packages; kept by their hash.

    Raises:
        Failure: IMAGE_PULL: pip refused.
    """
    folder = cache / "layers" / key(requirements, sys.executable + sys.version)
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "complete").exists():
            return python
        say(f"installing {_told(requirements)} into a cached layer (once)")
        shutil.rmtree(folder, ignore_errors=True)
        # Without pip, which Debian's plain Python cannot put there: it is found among the rehearsal's own packages.
        venv.create(folder, with_pip=False, symlinks=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = [path for path in sys.path if path.endswith("-packages")]
        (folder / "lib" / version / "site-packages" / "rehearsal.pth").write_text("\n".join(packages) + "\n")
        for one in requirements:
            command = [str(python), "-I", "-m", "pip", "install", "--no-input", "-r", one.name]
            done = subprocess.run(command, capture_output=True, text=True, cwd=one.parent, check=False)
            if done.returncode != 0:
                shutil.rmtree(folder, ignore_errors=True)
                raise refused(one, done.stderr)
        (folder / "complete").touch()
    return python


def layered_image(engine: Engine, requirements: Sequence[Path], say: Callable[[str], None]) -> str:
    """An image with the requirements above the base, kept in the engine by their hash.

    pip's settings of this machine (its index, proxies, certificates) are given to the command alone, so that the
    image holds none of them.

    Raises:
        Failure: IMAGE_PULL: pip refused.
    """
    base_id = engine.docker("image", "inspect", "--format", "{{.Id}}", BASE).stdout
    image = f"glgpu-rehearsal-layer:{key(requirements, base_id)}"
    if engine.docker("image", "inspect", image).returncode == 0:
        return image
    say(f"installing {_told(requirements)} into a cached layer (once)")
    builder = f"glgpu-rehearsal-layer-{secrets.token_hex(6)}"
    folders = [one.parent.resolve() for one in requirements]
    settings = {name: value for name, value in os.environ.items() if is_pip_setting(name)}
    files = [Path(part) for value in settings.values() for part in value.split() if part.startswith("/")]
    files += [Path("/etc/pip.conf"), *folders]
    mounts = [argument for file in dict.fromkeys(files) if file.exists() for argument in ("-v", f"{file}:{file}:ro")]
    given = [argument for name in settings for argument in ("-e", name)]
    try:
        started = engine.docker("run", "-d", "--init", "--name", builder, "--network", "host", *mounts, BASE,
                                "sleep", "3600")  # fmt: skip
        if started.returncode != 0:
            raise refused(requirements[0], started.stderr)
        for folder, one in zip(folders, requirements, strict=True):
            done = engine.docker(
                "exec", *given, "-e", "PIP_BREAK_SYSTEM_PACKAGES=1", "-w", str(folder), builder,
                "python3", "-m", "pip", "install", "--no-input", "--no-cache-dir", "-r", one.name, seconds=3600,
            )  # fmt: skip
            if done.returncode != 0:
                raise refused(one, done.stderr)
        engine.docker("commit", "--change", 'CMD ["python3"]', builder, image)
    finally:
        engine.docker("rm", "-f", builder)
    return image


def is_pip_setting(name: str) -> bool:
    """Whether a variable of this machine tells pip how to reach its index."""
    return name.startswith("PIP_") or name.lower() in ("http_proxy", "https_proxy", "no_proxy", "ssl_cert_file")


def key(requirements: Sequence[Path], below: str) -> str:
    """The name of a layer: the hash of what it is made of."""
    made_of = [*(one.read_bytes() for one in requirements), below.encode()]
    return hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]


def _told(requirements: Sequence[Path]) -> str:
    return " and ".join("/".join(one.parts[-2:]) for one in requirements)


def refused(requirements: Path, output: str) -> Failure:
    """Pip's refusal as a failure."""
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else last_line(output)
    return Failure(
        ErrorClass.IMAGE_PULL,
        f"{requirements.name} cannot be installed: {reason}",
        f"correct {requirements.name}, or rehearse in an image of your own: --image NAME",
        "\n".join(errors) or output,
    )


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "(no output)"
