"""Terraform behind four verbs: prepare, apply, outputs, destroy.

python-terraform builds the command lines; our own process runs them, in a group of its own and read line by line.
No secret is ever a variable or an argument: credentials and the state's password go through the environment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from glgpu.classify import explain
from glgpu.clients.terraform_program import terraform_program
from glgpu.disk import cannot_write
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import Backend
from glgpu.processes import Done, Running, TimedOut, environment, run
from glgpu.resources import resource

STOP_SECONDS = 20.0
"""How long Terraform has after SIGTERM: it finishes its request and releases the state's lock."""
LOCK_WAIT = "20s"
INTERRUPTED = "Interrupt received"
"""What Terraform says on SIGTERM and SIGINT."""
NOT_FOR_TERRAFORM = ("GLGPU_GITLAB_TOKEN", "CI_JOB_TOKEN", "GLGPU_REGISTRY_PASSWORD", "CI_REGISTRY_PASSWORD")


class TerraformStack:
    """One run's module, variables and state.

    Args:
        module: Name of the module below ``terraform/``, or a path.
        folder: `prepare` makes a work folder below it.
        variables: The module's variables; nothing secret.
        state: Where its state is; None: a local one that is thrown away.
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
        state: Backend | None,
        credentials: Mapping[str, str],
        program: str = "",
        secrets: tuple[str, ...] = (),
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._module = module
        self._parent = self._folder = folder
        self._variables = variables
        self._state = state
        self._say = say
        self._asked_program = program
        self._program = ""
        places = dict(state.environment) if state else {}
        extra = {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "TF_INPUT": "0", **credentials, **places}
        self._env = environment(extra, without=[*NOT_FOR_TERRAFORM, *secrets])

    def prepare(self) -> None:
        """Lay out the work folder and run ``terraform init``.

        Raises:
            Failure: TOOL_MISSING, STATE_ACCESS, or what init said.
        """
        self._program, _ = terraform_program(self._asked_program)
        source = Path(self._module) if os.sep in self._module else resource("terraform") / self._module
        if not (source / "main.tf").exists():
            raise Failure(
                ErrorClass.CONFIG, f"there is no Terraform module {self._module}", "set GLGPU_TERRAFORM_MODULE=gpu-vm"
            )
        try:
            # Removing what another glgpu of this run works in would end its Terraform: each has a folder of its own.
            self._parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder = Path(tempfile.mkdtemp(prefix="terraform-", dir=self._parent))
            left_out = shutil.ignore_patterns("tests", ".terraform*", "*.tfstate*")
            shutil.copytree(source, self._folder, ignore=left_out, dirs_exist_ok=True)
            (self._folder / "backend.tf.json").write_text(json.dumps(_backend(self._state)), encoding="utf-8")
        except OSError as error:
            raise cannot_write(error, self._folder) from None
        self.change(self._variables)
        self._insist("init", 300, no_color=_flag(), reconfigure=_flag())

    def change(self, variables: Mapping[str, object]) -> None:
        """Apply with these variables from now on; what is prepared stays so.

        Raises:
            Failure: DISK_FULL.
        """
        self._variables = variables
        try:
            (self._folder / "run.auto.tfvars.json").write_text(json.dumps(variables, indent=1), encoding="utf-8")
        except OSError as error:
            raise cannot_write(error, self._folder) from None

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
        done = self._run("output", 60, json=_flag())
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
        self._insist("destroy", timeout, auto_approve=_flag(), lock_timeout=LOCK_WAIT, no_color=_flag())

    def _insist(self, verb: str, timeout: float, **options: Any) -> None:
        done = self._run(verb, timeout, input=False, **options)
        if done.code != 0:
            raise explain(done.complaint or done.text, unknown=ErrorClass.TERRAFORM, doing=f"terraform {verb}")

    def _run(self, verb: str, timeout: float, **options: Any) -> Done:
        try:
            return run(
                self._argv(verb, **options), env=self._env, cwd=self._folder, timeout=timeout, grace=STOP_SECONDS
            )
        except TimedOut:
            raise Failure(
                ErrorClass.TERRAFORM, f"terraform {verb} did not end within {timeout:.0f} s", "retry the job"
            ) from None

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
        self._interrupted = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ended(self) -> bool:
        """Whether it is over."""
        return self._process.poll() is not None

    def stop(self) -> bool:
        """End it: SIGTERM to its group, then SIGKILL; whether the first was enough, so that no lock is left."""
        return self._process.terminate(STOP_SECONDS) != -signal.SIGKILL

    def result(self, seconds: float | None = None) -> None:
        """Wait for its end.

        Args:
            seconds: How long at most: for the place of its state Terraform waits without end.

        Raises:
            Failure: what Terraform said; NETWORK, when it does not end in time.
        """
        try:
            code = self._process.wait(seconds)
        except TimedOut:
            raise Failure(
                ErrorClass.NETWORK,
                f"Terraform did not end within {seconds:.0f} s more: the place of its state does not answer",
                "retry the job when it does",
            ) from None
        self._reader.join(10)
        if code == 0:
            return
        said = "\n".join(self._errors or self._other[-20:])
        if code == -signal.SIGTERM or self._interrupted:
            # Who cancels a job ends its processes one by one, children first: our own signal is on its way.
            raise Failure(ErrorClass.INTERRUPTED, "Terraform was told to end", "run it again, if nobody meant to", said)
        if code < 0 and not self._errors:
            raise Failure(ErrorClass.TERRAFORM, f"Terraform was killed by signal {-code}", "retry the job", said)
        raise explain(said, unknown=ErrorClass.TERRAFORM, doing="terraform apply")

    def _read(self) -> None:
        # The pipe is closed under us when Terraform is stopped.
        with suppress(ValueError):
            for line in self._process.lines():
                self._take(line.decode("utf-8", "replace").rstrip())

    def _take(self, text: str) -> None:
        try:
            message = json.loads(text)
            kind, shown = message.get("type", ""), str(message.get("@message", ""))
        except (ValueError, AttributeError):
            self._other.append(text)
            return
        self._interrupted = self._interrupted or INTERRUPTED in shown
        if kind == "diagnostic":
            detail = message.get("diagnostic", {})
            whole = f"{detail.get('summary', '')}\n{detail.get('detail', '')}".strip()
            if detail.get("severity") == "error":
                self._errors.append(f"Error: {whole}")
            self._say(shown)
        elif kind in ("apply_start", "apply_complete", "apply_errored"):
            self._say(shown)


def _backend(state: Backend | None) -> dict[str, object]:
    kind, settings = (state.kind, dict(state.settings)) if state else ("local", {})
    return {"terraform": {"backend": {kind: settings}}}


def _flag() -> Any:
    from python_terraform import IsFlagged

    return IsFlagged
