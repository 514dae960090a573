"""``docker`` of a VM: registries as the machine room plays them, NVIDIA's container toolkit, and behind both an engine.

The engine is the real one, where one answers: then every command goes to its client, with a label on containers
that says whose they are. Else it is the process-based one in the VM's folder. An image that the engine does not have
is answered, once pulled, by the rehearsal's base image under its own name; that is noted in the VM, not in the engine.
"""

from __future__ import annotations

import base64
import hashlib
import json
import operator
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from glgpu.rehearsal import docker_engine
from glgpu.rehearsal.docker_engine import DAEMON, Engine, Refusal, print_objects, with_tag
from glgpu.rehearsal.guest_programs import gpu_load, nvidia_smi
from glgpu.rehearsal.guest_programs.container_supervisor import write_json
from glgpu.rehearsal.guest_programs.guest import Guest

SWITCHES = {
    "detach", "init", "interactive", "tty", "rm", "privileged", "publish-all", "read-only", "no-healthcheck",
    "oom-kill-disable", "sig-proxy", "quiet", "help", "disable-content-trust",
}  # fmt: skip
SHORT_SWITCHES = "ditPq"
REFERENCE = re.compile(
    r"(?:(?:[a-zA-Z0-9][a-zA-Z0-9.-]*(?::\d+)?)/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
TOOLKIT = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: error during container init: error running prestart hook #0: exit status 1, "
    "stdout: , stderr: Auto-detected mode as 'legacy'\n"
    "nvidia-container-cli: {}: unknown"
)
CONDITION = re.compile(r"(?P<fact>\w+)(?P<operator>>=|<=|!=|<|>|=)(?P<value>[\w.]+)")
COMPARE: dict[str, Callable[[list[int], list[int]], bool]] = {
    ">=": operator.ge, "<=": operator.le, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "=": operator.eq,
}  # fmt: skip
RUNTIMES = {
    "io.containerd.runc.v2": {"path": "runc"},
    "nvidia": {"path": "nvidia-container-runtime"},
    "runc": {"path": "runc"},
}


def image_at(words: list[str]) -> int:
    """Where the image stands among the words after ``run``; their number if there is none."""
    position = 0
    while position < len(words) and words[position].startswith("-"):
        word = words[position]
        if word == "--":
            return position + 1
        if word.startswith("--"):
            name, equals, _ = word[2:].partition("=")
            position += 1 if equals or name in SWITCHES else 2
        else:
            first = next((n for n, letter in enumerate(word[1:], 1) if letter not in SHORT_SWITCHES), len(word))
            position += 2 if first == len(word) - 1 else 1
    return min(position, len(words))


def without_gpus(words: list[str]) -> list[str]:
    """The words of ``run`` before the image, less ``--gpus``."""
    kept: list[str] = []
    for position, word in enumerate(words):
        if word.startswith("--gpus=") or word == "--gpus" or (position and words[position - 1] == "--gpus"):
            continue
        kept.append(word)
    return kept


def host_of(reference: str) -> str:
    """The registry of an image."""
    first, slash, _ = reference.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


class GuestDocker:
    """The command in one VM."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.client: str | None = guest.machine["engine"]["client"]
        self.base: str = guest.machine["base"]
        self.root = guest.folder / "docker"
        self.pulled_file = guest.folder / "pulled.json"
        self.settings = Path(os.environ.get("DOCKER_CONFIG") or f"{os.environ['HOME']}/.docker") / "config.json"

    def main(self, argv: list[str]) -> int:
        """Run one command and return its exit code."""
        match argv:
            case ["login", *words]:
                return self.login(words)
            case ["logout", *words]:
                return self.logout(words)
            case ["pull", *words]:
                return self.pull(words)
            case ["image", "inspect", *words]:
                return self.inspect_images(words)
            case ["run", *words]:
                return self.run(words)
            case ["info"]:
                print(f"Server:\n Runtimes: {' '.join(RUNTIMES)}\n Default Runtime: runc")
                return 0
            case ["info", "--format", "{{json .Runtimes}}"]:
                print(json.dumps(RUNTIMES, separators=(",", ":")))
                return 0
            case ["ps", *words] if self.client:
                return self.engine(["ps", "--filter", f"label=glgpu-vm={self.guest.machine['instance_id']}", *words])
        return self.engine(argv)

    def engine(self, argv: list[str]) -> int:
        """Hand a command to the engine."""
        if self.client is None:
            return docker_engine.main(self.root, argv)
        return os.execve(self.client, ["docker", *argv], self.client_environment())

    def client_environment(self) -> dict[str, str]:
        """The real client's environment: its engine is the one that the rehearsal found."""
        host = self.guest.machine["engine"]["host"]
        return {**os.environ, **({"DOCKER_HOST": host} if host else {})}

    # --- images

    def pulled(self) -> dict[str, str]:
        """Digest of each image that was pulled, by name and tag."""
        return dict(json.loads(self.pulled_file.read_text())) if self.pulled_file.exists() else {}

    def is_pulled(self, reference: str) -> bool:
        """Whether the base image answers for this reference, be it by tag or by digest."""
        pulled = self.pulled()
        repository, at, digest = reference.partition("@")
        if at:
            return any(name.rsplit(":", 1)[0] == untagged(repository) and digest == d for name, d in pulled.items())
        return with_tag(reference) in pulled

    def local(self, reference: str) -> dict[str, Any] | None:
        """The engine's own image of that name, as ``docker image inspect`` shows it."""
        if self.client is None:
            return Engine(self.root).image(reference)
        told = subprocess.run(
            [self.client, "image", "inspect", reference],
            capture_output=True,
            env=self.client_environment(),
            check=False,
        )
        images: list[dict[str, Any]] = json.loads(told.stdout) if told.returncode == 0 else []
        return images[0] if images else None

    def fetch(self, reference: str) -> tuple[str, bool]:
        """Play the registry: the image's digest, and whether it is new here.

        Raises:
            Refusal: The registry, or a fault, does not give it.
        """
        if not REFERENCE.fullmatch(reference):
            raise Refusal("invalid reference format")
        host = host_of(reference)
        answer = self.guest.ask(do="pull", image=reference, host=host, auth=self.credentials().get(host, ""))
        if answer.get("silence"):
            while True:
                signal.pause()
        if "refuse" in answer:
            raise Refusal(DAEMON + answer["refuse"])
        own = self.local(reference)
        repository, at, digest = reference.partition("@")
        if own is not None:
            digests = [text.partition("@")[2] for text in own["RepoDigests"]]
            return (digests or [own["Id"]])[0], False
        base = self.local(self.base)
        if base is None:
            raise Refusal(f"{DAEMON}the rehearsal's base image {self.base} has gone")
        tagged = f"{untagged(repository)}:{digest[7:19]}" if at else with_tag(reference)
        digest = digest if at else "sha256:" + hashlib.sha256(f"{tagged} {base['Id']}".encode()).hexdigest()
        new = not self.is_pulled(reference)
        if new:
            print(f"rehearsal: {reference} is answered by {self.base}, with Python and numpy", file=sys.stderr)
            write_json(self.pulled_file, self.pulled() | {tagged: digest})
        return digest, new

    def pull(self, words: list[str]) -> int:
        """``docker pull``."""
        _, call = docker_engine.parse(["pull", *words])
        reference = call.arguments[0]
        digest, new = self.fetch(reference)
        tagged = reference if "@" in reference else with_tag(reference)
        whole = (
            tagged
            if host_of(reference) != "docker.io"
            else "docker.io/" + ("" if "/" in tagged else "library/") + tagged
        )
        if not call.has("quiet"):
            if "@" not in reference and tagged != reference:
                print("Using default tag: latest")
            print(f"{tagged.rsplit(':', 1)[-1]}: Pulling from {untagged(whole.partition('/')[2])}\nDigest: {digest}")
            print(f"Status: {'Downloaded newer image' if new else 'Image is up to date'} for {tagged}")
        print(whole)
        return 0

    def inspect_images(self, words: list[str]) -> int:
        """``docker image inspect``, with the name and digest under which an image was pulled."""
        _, call = docker_engine.parse(["image", "inspect", *words])
        if not any(self.is_pulled(name) and self.local(name) is None for name in call.arguments):
            return self.engine(["image", "inspect", *words])
        objects: list[dict[str, Any] | None] = []
        missing = []
        for reference in call.arguments:
            image = self.local(reference)
            if image is None and self.is_pulled(reference) and (base := self.local(self.base)):
                repository = untagged(reference.partition("@")[0])
                names = {n: d for n, d in self.pulled().items() if n.rsplit(":", 1)[0] == repository}
                digests = [f"{repository}@{digest}" for digest in dict.fromkeys(names.values())]
                image = base | {"RepoTags": list(names), "RepoDigests": digests}
            if image is None:
                missing.append(f"{DAEMON}no such image: {reference}: No such image: {with_tag(reference)}")
            objects.append(image)
        return print_objects(objects, missing, call.last("format"))

    def run(self, words: list[str]) -> int:
        """``docker run``: image, GPUs and owner put in, the rest as it is."""
        position = image_at(words)
        if position == len(words):
            return self.engine(["run", *words])
        options, reference, command = words[:position], words[position], words[position + 1 :]
        image = reference
        if self.local(reference) is None and not any(option.startswith("--pull=never") for option in options):
            if not self.is_pulled(reference):
                print(f"Unable to find image '{with_tag(reference)}' locally", file=sys.stderr)
                try:
                    self.fetch(reference)
                except Refusal as refusal:
                    raise Refusal(f"docker: {refusal}\n\nRun 'docker run --help' for more information", 125) from None
            image = self.base
        if self.guest.machine["gpu_count"]:
            asked = options
            options = without_gpus(options)
            if options != asked:
                self.give_gpus(image)
                if options[-2:] == ["--entrypoint", "nvidia-smi"] and not command:
                    # The toolkit brings it into the container, where this one's folder is not.
                    text, code = nvidia_smi.answer(self.guest.machine, [])
                    sys.stdout.write(text)
                    return code
                options = ["--label", f"{gpu_load.LABEL}=all", *options]
        if self.client is not None:
            own = ["--label", f"glgpu-vm={self.guest.machine['instance_id']}"]
            if os.getuid() != 0:
                # Files of a root container could neither be read nor removed by a rehearsal that is not root.
                own += ["--user", f"{os.getuid()}:{os.getgid()}"]
            options = [*own, *options]
        return self.engine(["run", *options, image, *command])

    def give_gpus(self, image: str) -> None:
        """Do what NVIDIA's toolkit does before a container starts.

        Raises:
            Refusal: The driver does not answer, or is older than the image's NVIDIA_REQUIRE_CUDA wants it.
        """
        machine = self.guest.machine
        problem = ""
        if not nvidia_smi.is_loaded(machine):
            problem = "initialization error: nvml error: driver not loaded"
        elif machine["library"] != machine["driver"]:
            problem = "initialization error: nvml error: driver/library version mismatch"
        else:
            environment = ((self.local(image) or {}).get("Config") or {}).get("Env") or []
            wanted = [text.partition("=")[2] for text in environment if text.startswith("NVIDIA_REQUIRE_CUDA=")]
            if wanted and not satisfied(wanted[-1], machine["driver"]):
                first = wanted[-1].split()[0].partition(",")[0]
                problem = (
                    f"requirement error: unsatisfied condition: {first}, please update your driver to a newer "
                    "version, or use an earlier cuda container"
                )
        if problem:
            text = TOOLKIT.format(problem)
            raise Refusal(f"docker: {DAEMON}{text}\n\nRun 'docker run --help' for more information", 125)

    # --- registries

    def credentials(self) -> dict[str, str]:
        """``user:password`` by registry, as the client's settings have them."""
        if not self.settings.exists():
            return {}
        auths = json.loads(self.settings.read_text()).get("auths", {})
        return {host: base64.b64decode(entry.get("auth", "")).decode() for host, entry in auths.items()}

    def login(self, words: list[str]) -> int:
        """``docker login -u USER --password-stdin [HOST]``; other ways to give a password are refused."""
        user, host, by_stdin = "", "docker.io", False
        words = list(words)
        while words:
            word = words.pop(0)
            name, equals, value = word.partition("=")
            if name in ("-u", "--username") and (equals or words):
                user = value if equals else words.pop(0)
            elif word == "--password-stdin":
                by_stdin = True
            elif word.startswith("-"):
                docker_usage("login", f"unknown flag: {word}")
            else:
                host = word
        if not by_stdin:
            raise Refusal("Error: Cannot perform an interactive login from a non TTY device")
        if not user:
            raise Refusal("the --password-stdin option requires --username to be set")
        password = sys.stdin.read().rstrip("\r\n")
        answer = self.guest.ask(do="login", host=host, user=user, password=password)
        if "refuse" in answer:
            raise Refusal(DAEMON + answer["refuse"])
        settings = json.loads(self.settings.read_text()) if self.settings.exists() else {}
        auth = base64.b64encode(f"{user}:{password}".encode()).decode()
        settings.setdefault("auths", {})[host] = {"auth": auth}
        self.settings.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(self.settings, settings)
        self.settings.chmod(0o600)
        print(f"\nWARNING! Your credentials are stored unencrypted in '{self.settings}'.", file=sys.stderr)
        print("Login Succeeded")
        return 0

    def logout(self, words: list[str]) -> int:
        """``docker logout [HOST]``."""
        host = words[0] if words else "docker.io"
        settings = json.loads(self.settings.read_text()) if self.settings.exists() else {}
        if settings.get("auths", {}).pop(host, None) is None:
            print(f"Not logged in to {host}")
            return 0
        write_json(self.settings, settings)
        print(f"Removing login credentials for {host}")
        return 0


def docker_usage(verb: str, text: str) -> NoReturn:
    """Refuse the command line of a verb that only the VM's docker has."""
    raise Refusal(
        f"{text}\n\nUsage:  docker {verb} [OPTIONS] [SERVER]\n\nRun 'docker {verb} --help' for more information", 125
    )


def satisfied(requirement: str, driver: str) -> bool:
    """Whether a driver meets NVIDIA_REQUIRE_CUDA, where a blank means or, and a comma means and.

    https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html#constraints
    """
    facts = {"cuda": nvidia_smi.cuda_of(driver), "driver": driver, "brand": "tesla"}

    def holds(condition: str) -> bool:
        match = CONDITION.fullmatch(condition)
        if match is None or match["fact"] not in facts:
            return False
        have, want = facts[match["fact"]], match["value"]
        if match["fact"] == "brand":
            return (have == want) == (match["operator"] == "=")
        return COMPARE[match["operator"]](version(have), version(want))

    return any(all(holds(condition) for condition in choice.split(",")) for choice in requirement.split())


def version(text: str) -> list[int]:
    """A version as numbers that can be compared."""
    return [int(part) for part in text.split(".")]


def untagged(reference: str) -> str:
    """A reference without its tag."""
    head, slash, last = reference.rpartition("/")
    return head + slash + last.partition(":")[0]


def main(argv: list[str]) -> int:
    """Run one ``docker`` command in this VM."""
    try:
        return GuestDocker(Guest()).main(argv)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return refusal.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
