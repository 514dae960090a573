"""Terraform behind four verbs: prepare, apply, outputs, destroy.

python-terraform builds the command lines; our own process runs them, in a group of its own and read line by line.
No secret is ever a variable or an argument: credentials and the state's password go through the environment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glgpu.classify import explain
from glgpu.errors import ErrorClass, Failure
from glgpu.processes import Done, Running, TimedOut, environment, find_tool, run
from glgpu.resources import resource

OLDEST = {"terraform": (1, 5), "tofu": (1, 6)}
STOP_SECONDS = 20.0
"""How long Terraform has after SIGTERM: it finishes its request and releases the state's lock."""
LOCK_WAIT = "20s"
NOT_FOR_TERRAFORM = ("GLGPU_GITLAB_TOKEN", "CI_JOB_TOKEN", "GLGPU_REGISTRY_PASSWORD", "CI_REGISTRY_PASSWORD")


class TerraformStack:
    """One run's module, variables and state.

    Args:
        module: Name of the module below ``terraform/``, or a path.
        folder: Work folder, made anew by `prepare`.
        variables: The module's variables; nothing secret.
        state: The HTTP backend's variables; None: a local state that is thrown away.
        credentials: Variables with which the provider logs in.
        program: Path or name of Terraform; empty: terraform, else tofu.
        secrets: Names of variables that Terraform has no business to see.
        say: Takes one line of progress.
    """

    def __init__(
        self,
        module: str,
        folder: Path,
        variables: Mapping[str, object],
        *,
        state: Mapping[str, str] | None,
        credentials: Mapping[str, str],
        program: str = "",
        secrets: tuple[str, ...] = (),
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._module = module
        self._folder = folder
        self._variables = variables
        self._state = state
        self._say = say
        self._asked_program = program
        self._program = ""
        extra = {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "TF_INPUT": "0", **credentials, **(state or {})}
        self._env = environment(extra, without=[*NOT_FOR_TERRAFORM, *secrets])

    def prepare(self) -> None:
        """Lay out the work folder and run ``terraform init``.

        Raises:
            Failure: TOOL_MISSING, STATE_ACCESS, or what init said.
        """
        self._program = _program(self._asked_program)
        source = Path(self._module) if os.sep in self._module else resource("terraform") / self._module
        if not (source / "main.tf").exists():
            raise Failure(
                ErrorClass.CONFIG, f"there is no Terraform module {self._module}", "set GLGPU_TERRAFORM_MODULE=gpu-vm"
            )
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(source, self._folder, ignore=shutil.ignore_patterns("tests", ".terraform*", "*.tfstate*"))
        backend = 'backend "http" {}' if self._state else 'backend "local" {}'
        (self._folder / "backend.tf").write_text(f"terraform {{\n  {backend}\n}}\n", encoding="utf-8")
        (self._folder / "run.auto.tfvars.json").write_text(json.dumps(self._variables, indent=1), encoding="utf-8")
        done = self._run("init", input=False, no_color=_flag(), reconfigure=_flag())
        if done.code != 0:
            raise explain(done.complaint or done.text, unknown=ErrorClass.TERRAFORM, doing="terraform init")

    @contextmanager
    def start_apply(self) -> Iterator[RunningApply]:
        """Begin to apply; leaving the context ends it."""
        argv = self._argv("apply", auto_approve=_flag(), input=False, lock_timeout=LOCK_WAIT, json=_flag())
        with Running(argv, env=self._env, cwd=self._folder) as process:
            apply = RunningApply(process, self._say)
            try:
                yield apply
            finally:
                if not apply.ended():
                    apply.stop()

    def outputs(self) -> dict[str, str]:
        """The module's outputs.

        Raises:
            Failure: TERRAFORM, when there are none: an apply that made nothing is no success.
        """
        done = self._run("output", json=_flag())
        try:
            found = json.loads(done.text)
            values = {name: str(entry["value"]) for name, entry in found.items() if entry["value"] is not None}
        except (ValueError, KeyError, TypeError, AttributeError):
            values = {}
        if not values:
            raise Failure(
                ErrorClass.TERRAFORM,
                "Terraform ended well but has no outputs: it made no VM",
                "check that GLGPU_TERRAFORM, or terraform on PATH, is Terraform",
                f"{done.text}\n{done.complaint}",
            )
        return values

    def destroy(self, timeout: float) -> None:
        """Destroy what the state knows.

        Raises:
            Failure: what Terraform said; the caller goes on without it.
        """
        try:
            done = self._run(
                "destroy", auto_approve=_flag(), input=False, lock_timeout=LOCK_WAIT, no_color=_flag(), timeout=timeout
            )
        except TimedOut:
            raise Failure(
                ErrorClass.TERRAFORM, f"terraform destroy did not end within {timeout:.0f} s", "retry the job"
            ) from None
        if done.code != 0:
            raise explain(done.complaint or done.text, unknown=ErrorClass.TERRAFORM, doing="terraform destroy")

    def _run(self, verb: str, *, timeout: float = 300, **options: Any) -> Done:
        return run(self._argv(verb, **options), env=self._env, cwd=self._folder, timeout=timeout)

    def _argv(self, verb: str, **options: Any) -> list[str]:
        from python_terraform import Terraform

        builder = Terraform(working_dir=str(self._folder), terraform_bin_path=self._program)
        return [str(word) for word in builder.generate_cmd_string(verb, **options)]


class RunningApply:
    """A ``terraform apply -json`` and what it has said so far."""

    def __init__(self, process: Running, say: Callable[[str], None]) -> None:
        self._process = process
        self._say = say
        self._errors: list[str] = []
        self._other: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ended(self) -> bool:
        """Whether it is over."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End it: SIGTERM to its group, then SIGKILL."""
        self._process.terminate(STOP_SECONDS)

    def result(self) -> None:
        """Wait for its end.

        Raises:
            Failure: what Terraform said.
        """
        code = self._process.wait()
        self._reader.join(10)
        if code == 0:
            return
        said = "\n".join(self._errors or self._other[-20:])
        if code < 0 and not self._errors:
            raise Failure(ErrorClass.TERRAFORM, f"Terraform was killed by signal {-code}", "retry the job", said)
        raise explain(said, unknown=ErrorClass.TERRAFORM, doing="terraform apply")

    def _read(self) -> None:
        for line in self._process.lines():
            text = line.decode("utf-8", "replace").rstrip()
            try:
                message = json.loads(text)
                kind, shown = message.get("type", ""), str(message.get("@message", ""))
            except (ValueError, AttributeError):
                self._other.append(text)
                continue
            if kind == "diagnostic":
                detail = message.get("diagnostic", {})
                whole = f"{detail.get('summary', '')}\n{detail.get('detail', '')}".strip()
                if detail.get("severity") == "error":
                    self._errors.append(f"Error: {whole}")
                self._say(shown)
            elif kind in ("apply_start", "apply_complete", "apply_errored"):
                self._say(shown)


def _flag() -> Any:
    from python_terraform import IsFlagged

    return IsFlagged


def _program(asked: str) -> str:
    """Terraform, or OpenTofu in its place, new enough.

    Raises:
        Failure: TOOL_MISSING.
    """
    names = [asked] if asked else ["terraform", "tofu"]
    path = next((found for name in names if (found := find_tool(name))), None)
    if path is None:
        raise Failure(
            ErrorClass.TOOL_MISSING,
            f"{' and '.join(names)}: not found on PATH",
            "install Terraform 1.5 or OpenTofu 1.6 or newer, or use the job image",
        )
    done = run([path, "version", "-json"], env=environment({"CHECKPOINT_DISABLE": "1"}), timeout=60)
    try:
        version = str(json.loads(done.text)["terraform_version"])
    except (ValueError, KeyError, TypeError):
        return path  # whatever it is: an apply without a VM is found out
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    oldest = OLDEST["tofu" if "tofu" in Path(path).name else "terraform"]
    if numbers < oldest:
        raise Failure(
            ErrorClass.TOOL_MISSING,
            f"{path} is version {version}, older than {oldest[0]}.{oldest[1]}",
            "install a newer Terraform or OpenTofu, or use the job image",
        )
    return path
