"""The notebook on the VM: what serves it, what it saves and takes up again, and how it is left to its VM."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from glgpu.clock import poll
from glgpu.disk import cannot_write
from glgpu.elsewhere import Part
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import DropOff, Instance
from glgpu.lifetime import Lifetime, spoken
from glgpu.notebook import (
    KIND,
    SAVE_SECONDS,
    SOFT_SECONDS,
    STATE_VERB,
    UNTIL_VERB,
    WORKSPACE,
    State,
    memory_of,
    read_state,
)
from glgpu.processes import need_tool
from glgpu.resources import resource_text
from glgpu.run_names import RunName
from glgpu.saved import ENDED, HANDED_OVER, Save, collected_by, collected_mark, manifests
from glgpu.settings import check_secrets, read_secret
from glgpu.steps.bring_together import damaged, split
from glgpu.steps.container import Container, Workload
from glgpu.steps.context import Run, hard_end_of
from glgpu.steps.detach import note_hand_over, parts_to_spare, read_note, saves_of, tar_of, way_home
from glgpu.steps.door import Guest
from glgpu.steps.download import download
from glgpu.steps.guest import ask, command
from glgpu.way_home import no_way

PROGRAM = {
    "glgpu_notebook.py": "vm/notebook/glgpu_notebook.py",
    "kernel.py": "vm/notebook/kernel.py",
    "requirements.txt": "vm/notebook/requirements.txt",
    "data/labextensions/glgpu-notebook/package.json": "vm/notebook/lab/package.json",
    "data/labextensions/glgpu-notebook/static/remoteEntry.js": "vm/notebook/lab/static/remoteEntry.js",
}
"""What serves the notebook: names on the VM, and in the package."""
PIP_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
"""Variables of the job with which pip finds packages; they may hold a password."""
INSTALL_SECONDS = 900
ANSWER_SECONDS = 180.0
"""How long JupyterLab may take until it answers: a big image is read from a cold disk."""
OWN_IMAGE = (
    "put jupyterlab into train.image; the VM has to reach an index of packages otherwise (docs/how-to/notebook.md)"
)
LAST_BYTES = 2000


@dataclass(frozen=True)
class Work:
    """What a notebook's VM has saved of somebody's work on a branch.

    Attributes:
        run: The notebook's run.
        at: Unix time of the save.
        save: What is in it.
    """

    run: RunName
    at: int
    save: Save = field(repr=False)


def check_notebook(run: Run) -> DropOff:
    """Refuse what cannot work while it costs nothing.

    Returns:
        Where the VM leaves what it saves.

    Raises:
        Failure: CONFIG, TOOL_MISSING.
    """
    if run.settings.train.image is None:
        raise Failure(
            ErrorClass.CONFIG, "train.image is not set: there is nothing to run a notebook in", "name an image there"
        )
    if not run.job.in_ci:
        raise Failure(
            ErrorClass.CONFIG,
            "a notebook is started by its job: only that can leave it to its VM",
            "start the job `start notebook` of a pipeline (docs/how-to/notebook.md)",
        )
    check_secrets(run.settings.train.secrets, run.job.variables)
    if run.settings.notebook.can_push and not run.forge.may_administer:
        raise Failure(
            ErrorClass.CONFIG,
            "notebook.can_push is true, but there is no GLGPU_GITLAB_TOKEN here to register the deploy key for it with",
            "set the CI variable GLGPU_GITLAB_TOKEN (Maintainer, scope api; a protected one is absent on unprotected "
            "branches), or notebook.can_push: false",
        )
    if run.settings.network.access == "iap":
        need_tool("gcloud", "for network.access: iap; the job image `job-iap` has it")
    home = way_home(run)
    if home is None:
        raise Failure(
            ErrorClass.CONFIG,
            f"the notebook's VM could leave nobody's work anywhere: {no_way(run.settings)}",
            "set storage.bucket and storage.uploader (docs/how-to/long-trainings.md), or the CI variable "
            "GLGPU_GITLAB_TOKEN (Maintainer, scope api)",
        )
    return home


def state_of(run: Run, guest: Guest) -> State | None:
    """What the VM says of its notebook; None where it has none.

    Raises:
        Failure: SSH.
    """
    done = ask(run, guest.machine, STATE_VERB, doing="asking for the notebook")
    try:
        return read_state(done.text)
    except ValueError as error:
        raise Failure(ErrorClass.SSH, f"the VM's answer is not understood: {error}", "retry the job") from None


def prepare(run: Run, guest: Guest, pinned: str) -> Workload:
    """Bring what serves the notebook, and what the image lacks for it.

    Args:
        run: The run.
        guest: Its VM.
        pinned: The image, as exactly what is on the VM.

    Raises:
        Failure: IMAGE_PULL, where JupyterLab is not in the image and cannot be had either; SSH.
    """
    machine, folder = guest.machine, f"{guest.home}/notebook"
    python = _python(run.settings.train.command)
    files = {name: resource_text(source) for name, source in PROGRAM.items()}
    ask(run, machine, "notebook-take", stdin=tar_of(files), doing="bringing the VM what serves the notebook")
    with run.console.section("jupyter", "JupyterLab"):
        whose = _jupyter(run, guest, pinned, python)
    layer = f"{folder}/layer" if whose == "layer" else ""
    if layer:
        kernel = _kernel_files(python, folder, layer)
        ask(run, machine, "notebook-take", stdin=tar_of(kernel), doing="bringing the VM the kernel's start")
    door, workspace = f"{memory_of(run.name)}/door", f"{guest.home}/code"
    base = f"{workspace}/{run.base}".rstrip("/")
    train = run.settings.train
    environment = {"JUPYTER_PATH": f"{folder}/data", "JUPYTER_RUNTIME_DIR": f"{door}/runtime"}
    if layer:
        environment["JUPYTER_PATH"] += f":{layer}/share/jupyter"
        environment["JUPYTER_CONFIG_PATH"] = f"{layer}/etc/jupyter"
        environment["JUPYTERLAB_DIR"] = f"{layer}/share/jupyter/lab"
    return Workload(
        image=train.image or "",
        argv=[python, f"{folder}/glgpu_notebook.py", door, folder, workspace, base, layer],
        environment={**train.env, **environment},
        secrets={name: read_secret(name, run.job.variables) for name in train.secrets},
        collect=["."],
        base=run.base,
        gpu="none" not in run.settings.machine.gpu,
        shm_gb=train.shm_gb,
        mounts=[f"{folder}:{folder}:ro", f"{door}:{door}"],
    )


def wait_for_answer(run: Run, guest: Guest, container: Container) -> None:
    """Wait until JupyterLab answers whoever has its token.

    Raises:
        Failure: TRAINING_FAILED, when its container has ended; OUT_OF_TIME; SSH.
    """
    python = _python(run.settings.train.command)

    def answers() -> bool | None:
        done = ask(run, guest.machine, "notebook-answers", python, doing="asking JupyterLab for an answer")
        if done.text.strip() == "yes":
            # What tells whether it is at work begins a moment later.
            told = state_of(run, guest)
            return (told is not None and told.answers) or None
        state = container.state()
        return None if state is not None and state.get("Running") else False

    said = poll(run.clock, answers, seconds=ANSWER_SECONDS, every=1.0)
    if said:
        return
    log = guest.machine.run(command(run, "logged", "")).text[-LAST_BYTES:].strip()
    last = run.console.masker.mask(log).splitlines()[-1:] or ["it printed nothing"]
    if said is False:
        raise Failure(ErrorClass.TRAINING_FAILED, f"JupyterLab has ended: {last[0]}", OWN_IMAGE, log)
    raise Failure(
        ErrorClass.OUT_OF_TIME,
        f"JupyterLab does not answer within {spoken(ANSWER_SECONDS)}: {last[0]}",
        "retry the job; if it happens again, try train.image with `glgpu ssh`",
        log,
    )


def leave_notebook(run: Run, instance: Instance, guest: Guest, home: DropOff) -> float:
    """Leave the notebook to its VM, which saves, and ends it; Unix time of its soft end.

    The watch begins before the label says so: a VM that is labelled is one that nobody waits for any more.

    Raises:
        Failure: what VM, Compute Engine or the place for saved work say.
    """
    hard_end = hard_end_of(instance)
    soft_end = min(hard_end, run.clock.now() + SOFT_SECONDS)
    ask(run, guest.machine, UNTIL_VERB, str(int(soft_end)), doing="setting the notebook's end")
    settings = run.settings.notebook
    words = [
        f"{guest.home}/code",
        str(settings.save_mb * 1024 * 1024),
        str(round(settings.idle_minutes * 60)),
        str(SAVE_SECONDS),
    ]
    ask(run, guest.machine, "leave", "watch-notebook", *words, doing="leaving the notebook to its VM")
    # Those of an earlier notebook of this pipeline.
    marks = [collected_mark(job) for job in collected_by(home.parts(run.name))]
    home.drop_parts(run.name, [HANDED_OVER, ENDED, *marks])
    note_hand_over(run, instance, home, Lifetime("deadline", soft_end, hard_end), user=run.job.user)
    return soft_end


def saved_work(run: Run, home: DropOff) -> list[Work]:
    """What notebooks of this user on this branch have saved, the newest first; what is not understood is passed over.

    Raises:
        Failure: the place does not tell.
    """
    found = list[Work]()
    for name in home.runs_with_parts():
        if name.kind != KIND or name.project_id != run.name.project_id:
            continue
        parts = home.parts(name)
        if HANDED_OVER not in parts:
            continue
        note = _note(run, home, name)
        if (note.get("user"), note.get("ref")) != (run.job.user, run.job.ref):
            continue
        newest = next(saves_of(run, home, name, parts), None)
        if newest is not None:
            found.append(Work(name, *newest))
    return sorted(found, key=lambda one: one.at, reverse=True)


def take_up(run: Run, guest: Guest, home: DropOff) -> None:
    """Put the newest saved work over the code; older work that is settled is removed.

    Raises:
        Failure: it is there and does not come through.
    """
    found = saved_work(run, home)
    if not found:
        return
    newest = found[0]
    folder = run.job.scratch / "saved-work"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        for bundle in newest.save.bundles:
            source = folder / f".{len(bundle.parts)}-{bundle.parts[0].name if bundle.parts else 'empty'}"
            download(partial(home.get_part, newest.run), bundle.parts, source, run.clock, run.console.say)
            split(source, bundle, folder)
        files = [file for file in newest.save.files if file.path.startswith(f"{WORKSPACE}/")]
        wrong = damaged(folder, {file.path: file.sha256 for file in files})
        if wrong:
            raise Failure(
                ErrorClass.TRANSIENT,
                f"saved work is not as it was: {wrong[0]!r}",
                "retry the job; `glgpu notebook start --fresh` begins without it",
            )
        _send(run, guest, folder / WORKSPACE, [file.path.removeprefix(f"{WORKSPACE}/") for file in files])
    except OSError as error:
        raise cannot_write(error, folder) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ago = spoken(run.clock.now() - newest.at)
    run.console.say(
        f"{len(files)} files that {run.job.user} had worked on here are back, as run {newest.run.run} saved them {ago} "
        "ago; `glgpu notebook start --fresh`, or GLGPU_FRESH=true, begins without them"
    )
    run.record.add("work-taken-up", files=len(files), run=newest.run.run, saved=newest.at)
    for old in found[1:]:
        parts = home.parts(old.run)
        # What was collected by a job of which nobody has seen yet whether GitLab has its artifacts stays.
        if old.run != run.name and ENDED in parts:
            home.drop_parts(old.run, parts_to_spare(run, home, old.run, parts))


def kept_work(parts: Mapping[str, Part], save: Save | None) -> set[str]:
    """Of a notebook that is settled: the parts with which its user may go on."""
    if save is None:
        return set()
    notes = {HANDED_OVER, ENDED, *manifests(parts)[:1]}
    return notes | {part.name for bundle in save.bundles for part in bundle.parts}


def _send(run: Run, guest: Guest, folder: Path, names: list[str]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.add(folder / name, name, recursive=False, filter=_for_all)
    ask(
        run,
        guest.machine,
        "notebook-work",
        stdin=buffer.getvalue(),
        timeout=600,
        doing="bringing the VM the saved work",
    )


def _for_all(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode = 0o666
    return entry


def _note(run: Run, home: DropOff, name: RunName) -> dict[str, Any]:
    try:
        note = json.loads(read_note(home, name, HANDED_OVER))
    except ValueError:
        run.console.say(f"{HANDED_OVER} of {name} cannot be understood")
        return {}
    return note if isinstance(note, dict) else {}


def _jupyter(run: Run, guest: Guest, pinned: str, python: str) -> str:
    """Whose JupyterLab it is: the image's `own`, or that of a `layer`."""
    given = "".join(f"{name}={run.job.variables[name]}\n" for name in PIP_SETTINGS if run.job.variables.get(name))
    doing = "installing JupyterLab beside the image"
    try:
        done = ask(
            run,
            guest.machine,
            "notebook-jupyter",
            pinned,
            python,
            stdin=given.encode(),
            timeout=INSTALL_SECONDS,
            klass=ErrorClass.IMAGE_PULL,
            doing=doing,
        )
    except Failure as failure:
        if failure.klass is ErrorClass.INTERRUPTED:
            raise
        raise Failure(failure.klass, failure.cause, OWN_IMAGE, failure.evidence) from None
    whose = done.text.strip().splitlines()[-1]
    run.console.say("JupyterLab: the image's own" if whose == "own" else "JupyterLab: beside the image's packages")
    run.record.add("jupyter-ready", whose=whose)
    return whose


def _kernel_files(python: str, folder: str, layer: str) -> dict[str, bytes]:
    spec = {
        "argv": [python, f"{folder}/kernel.py", layer, "-f", "{connection_file}"],
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "metadata": {"debugger": True},
    }
    return {"data/kernels/python3/kernel.json": json.dumps(spec, indent=1).encode()}


def _python(command: list[str]) -> str:
    """The image's Python: the one that trains, where the training is a Python's."""
    first = command[0] if command else ""
    return first if first.rpartition("/")[2].startswith("python") else "python3"
