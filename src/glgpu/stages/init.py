"""``glgpu init``: a commented glgpu.yml, the includes in .gitlab-ci.yml, and the schedule that cleans up.

An existing .gitlab-ci.yml is edited as text, so that its comments and its formatting stay, and the result is parsed
again: every other key must mean what it meant before, else nothing is written and the lines to paste are shown.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from glgpu import __version__
from glgpu.errors import ErrorClass, Failure
from glgpu.git_remotes import Place
from glgpu.interfaces import Scheduler
from glgpu.steps.cleanup_schedule import Repository, by_hand, make_cleanup_schedule, rhythm

Ask = Callable[[str, str], str]
"""Puts a question with a default (empty: there is none) to the user and returns the answer."""
Say = Callable[[str], None]
"""Takes a line for the user."""

TRAIN_FILE = "ci/train.yml"
CLEANUP_FILE = "ci/cleanup.yml"
NOTEBOOK_FILE = "ci/notebook.yml"
STAGES = ("provision", "train", "destroy")
NOTEBOOK_JOBS = ("start notebook", "stop notebook")
JOBS = (*STAGES, "stop", *NOTEBOOK_JOBS, "cleanup")
GITLAB_STAGES = ["build", "test", "deploy"]
"""What GitLab assumes where nothing sets ``stages`` (https://docs.gitlab.com/ci/yaml/#stages)."""
ALWAYS_THERE = (".pre", ".post")
FALLBACK_PREFIX = "gpu-"
"""Put before our job and stage names where the pipeline uses one of them already."""


@dataclass(frozen=True)
class Answers:
    """What is known beforehand; None is asked for when it is needed.

    Attributes:
        home: Path of glgpu's home on this GitLab, such as ``group/glgpu``.
        ref: Branch or tag of the home to include.
        image: Job image; None: the one that the home's own pipeline pushes.
        google_project: Google Cloud project; empty: the CI variable GLGPU_PROJECT says it.
        train_image: Container image of the training.
        command: Command of the training.
        outputs: What the training leaves, by comma.
        schedule: Whether to make the schedule also where other jobs would run on it.
    """

    home: str | None = None
    ref: str = "main"
    image: str | None = None
    google_project: str | None = None
    train_image: str | None = None
    command: str | None = None
    outputs: str | None = None
    schedule: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What ``init`` did with the files.

    Attributes:
        written: Files that are new or changed.
        kept: Files that stayed as they were.
        needed: What remains to be done by hand.
    """

    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    needed: tuple[str, ...]


@dataclass(frozen=True)
class GitLab:
    """The GitLab on which the repository is to train, as far as it is known.

    Attributes:
        place: Where; an empty ``server`` where nothing tells.
        forge: The same, to be asked; or why it cannot be.
    """

    place: Place
    forge: Scheduler | Failure


def init(folder: Path, answers: Answers, ask: Ask, find_gitlab: Callable[[], GitLab], say: Say) -> None:
    """Make a repository use glgpu: write its files, make its schedule, and say what remains.

    Args:
        folder: Root of the repository.
        answers: What is known beforehand.
        ask: Called for the rest, and only for what is needed.
        find_gitlab: Tells where the schedule is made. That it cannot be is no failure: it is among what remains then.
        say: Takes what was done and what remains, a line each.

    Raises:
        Failure: As ``write_files`` does.
    """
    outcome = write_files(folder, answers, ask)
    for path in outcome.written:
        say(f"written: {path}")
    for path in outcome.kept:
        say(f"kept as it was: {path}")
    remaining = [*outcome.needed, *_schedule(folder, _Questions(answers, ask), find_gitlab(), say)]
    if remaining:
        say("What remains:")
    for number, text in enumerate(remaining, 1):
        say(f"{number}. {text}")


def write_files(folder: Path, answers: Answers, ask: Ask) -> Outcome:
    """Write glgpu.yml and the includes in .gitlab-ci.yml, each only where it is missing.

    Args:
        folder: Root of the repository.
        answers: What is known beforehand.
        ask: Called for the rest, and only for what is needed.

    Raises:
        Failure: USAGE for an answer that cannot be; CONFIG where .gitlab-ci.yml cannot be edited safely, with the
            lines to paste as evidence. Nothing is written then.
    """
    if not folder.is_dir():
        raise Failure(ErrorClass.USAGE, f"{folder} is not a folder", "name the root of your repository with --folder")
    questions = _Questions(answers, ask)
    settings, pipeline = folder / "glgpu.yml", folder / ".gitlab-ci.yml"
    old = _read(pipeline)
    texts = {pipeline: _with_includes(old, questions)}
    if not settings.exists():
        texts[settings] = _settings_text(questions)
    written = tuple(path for path, text in texts.items() if text != (old if path == pipeline else None))
    for path in written:
        try:
            path.write_bytes(texts[path].encode())
        except OSError as error:
            remedy = "make it writable, then run glgpu init again"
            raise Failure(ErrorClass.CONFIG, f"{path} cannot be written: {error}", remedy) from None
    kept = tuple(path for path in (settings, pipeline) if path not in written)
    return Outcome(written, kept, _needed(questions) if written else ())


def _schedule(folder: Path, questions: _Questions, gitlab: GitLab, say: Say) -> tuple[str, ...]:
    """Make the schedule that cleans up; what remains of it, and why."""
    place = gitlab.place
    how_often = rhythm(place.server, place.project or str(folder.resolve()))
    try:
        if isinstance(gitlab.forge, Failure):
            raise gitlab.forge
        if not gitlab.forge.is_gitlab():
            cause = f"no GitLab answers at {place.server}"
            raise Failure(ErrorClass.GITLAB, cause, "name your GitLab with --gitlab, if it is another")
        return make_cleanup_schedule(
            gitlab.forge, _repository(folder), how_often, parse=_merged, agree=questions.agrees, say=say
        )
    except Failure as failure:
        say(f"not made: the schedule that cleans up: {failure.cause}")
        # Most refusals of GitLab are met in jobs, and their remedies end so.
        remedy = failure.remedy.removesuffix(", then retry the job")
        return (
            "Make the schedule that cleans up what a lost runner or a cancelled pipeline left behind: "
            f"{remedy}, then `glgpu init` again; or by hand, {by_hand(how_often)}.",
        )


def _repository(folder: Path) -> Repository:
    """What .gitlab-ci.yml is now, and what in it is ours."""
    text = _read(folder / ".gitlab-ci.yml") or ""
    before = _parsed(text)
    ours = {file: _our_include(before, file) or {} for file in (TRAIN_FILE, NOTEBOOK_FILE, CLEANUP_FILE)}
    train = ours[TRAIN_FILE]
    names = [_given(include, "prefix", "") + name for include in ours.values() for name in JOBS]
    return Repository(text, frozenset(names), str(train.get("project", "glgpu's home")))


def _merged(text: str) -> Mapping[str, Any]:
    """GitLab's merged configuration; nothing where there is none."""
    try:
        return _parsed(text)
    except _Unsafe:
        return {}


class _Questions:
    """The answers, each asked for at most once."""

    def __init__(self, answers: Answers, ask: Ask) -> None:
        self._answers = answers
        self._ask = ask
        self._known: dict[str, str] = {}

    def _get(self, key: str, question: str, default: str = "", *, valid: str = r".+") -> str:
        if key not in self._known:
            given = getattr(self._answers, key, None)
            answer = (self._ask(question, default) if given is None else given).strip()
            if not re.fullmatch(valid, answer):
                raise Failure(ErrorClass.USAGE, f"{answer!r} is no answer to: {question}", "run glgpu init again")
            self._known[key] = answer
        return self._known[key]

    @property
    def home(self) -> str:
        return self._get("home", "Path of glgpu's home on this GitLab (group/glgpu)", valid=r"[\w.-]+(/[\w.-]+)+")

    @property
    def ref(self) -> str:
        return self._answers.ref

    @property
    def image(self) -> str:
        # Registry paths are lower case; $CI_REGISTRY is the host of this GitLab's registry.
        return self._answers.image or f"$CI_REGISTRY/{self.home.lower()}/job:{__version__}"

    @property
    def google_project(self) -> str:
        """The project; empty where the CI variable says it."""
        question = "Google Cloud project, or - if the CI variable GLGPU_PROJECT will say it"
        return self._get("google_project", question, "-", valid=r"-?|[a-z][a-z0-9:.-]{1,61}[a-z0-9]").lstrip("-")

    @property
    def train_image(self) -> str:
        return self._get("train_image", "Container image of the training (registry.example.com/team/train:latest)")

    @property
    def command(self) -> str:
        return self._get("command", "Command of the training", "python train.py")

    @property
    def outputs(self) -> list[str]:
        answer = self._get("outputs", "What the training leaves, by comma", "weights/")
        return [part.strip() for part in answer.split(",") if part.strip()]

    def agrees(self) -> bool:
        """Whether the schedule is to be made although other jobs run on it."""
        question = "Make the schedule now all the same, yes or no"
        return self._get("schedule", question, "yes", valid=r"(?i)y|yes|n|no")[:1].lower() == "y"

    @property
    def stages(self) -> list[str]:
        """The stages that files included from elsewhere set: this file alone does not tell."""
        question = "Stages that the files of your `include` set, by comma"
        answer = self._get("stages", question, ", ".join(GITLAB_STAGES))
        return [part.strip() for part in answer.split(",") if part.strip()]


def _settings_text(questions: _Questions) -> str:
    template = resources.files("glgpu").joinpath("templates/glgpu.yml").read_text(encoding="utf-8")
    project = questions.google_project
    values = {
        "@project@": f"project: {_inline(project)}" if project else "#project: null",
        "@image@": _inline(questions.train_image),
        "@command@": _inline(questions.command),
        "@outputs@": _inline(questions.outputs),
    }
    return re.sub(r"@\w+@", lambda found: values[found[0]], template)


def _needed(questions: _Questions) -> tuple[str, ...]:
    project = "" if questions.google_project else "GLGPU_PROJECT (the Google Cloud project), and "
    return (
        "See it work before it costs anything: glgpu rehearse .",
        f"In {questions.home} on GitLab, Settings > CI/CD > Job token permissions: put this repository on the"
        " allow-list, so that its jobs can pull the job image. Whoever pushes here must be able to read that project.",
        f"In this repository on GitLab, Settings > CI/CD > Variables: {project}"
        "GLGPU_WIF_PROVIDER with GLGPU_WIF_SERVICE_ACCOUNT, or a key file as GOOGLE_APPLICATION_CREDENTIALS"
        " (type file, protected). And, protected and masked, GLGPU_GITLAB_TOKEN: a project access token (Maintainer,"
        " scope api), by which the cleanup knows which runs are over, and for Terraform's state in GitLab and a deploy"
        " key per run.",
        "Commit both files and push. Until the variables are set, the GPU jobs are left out of the pipeline.",
    )


# The pipeline file

WIDE = 10**6
"""Columns: no line is to be folded."""


@dataclass(frozen=True)
class _Insertion:
    """Text to put at an index of the file, in place of ``replaced`` characters."""

    index: int
    text: str
    replaced: int = 0


class _Unsafe(Exception):
    """Why the file is not edited."""


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(
            ErrorClass.CONFIG, f"{path} cannot be read: {error}", "make it a readable UTF-8 file, then run it again"
        ) from None


def _with_includes(old: str | None, questions: _Questions) -> str:
    """The text of .gitlab-ci.yml with our includes and our stages; unchanged if it has them."""
    try:
        before = _parsed(old or "")
        ours = _our_include(before, TRAIN_FILE)
        prefix = "" if ours else _prefix(before)
        names = _stage_names(ours) if ours else tuple(prefix + stage for stage in STAGES)
        missing_stages = _missing_stages(before, names, questions)
        train = ours or _train_item(questions, prefix)
        items = [] if ours else [train]
        if _our_include(before, NOTEBOOK_FILE) is None:
            items.append(_item_beside(train, before, NOTEBOOK_FILE, NOTEBOOK_JOBS, ("config",)))
        if _our_include(before, CLEANUP_FILE) is None:
            items.append(_item_beside(train, before, CLEANUP_FILE, ("cleanup",)))
    except _Unsafe as reason:
        raise _refusal(str(reason), _snippet(questions, "")) from None
    if not items and not missing_stages:
        return old or ""
    try:
        new = _edited(old or "", items, missing_stages, had_stages="stages" in before)
        _check(before, _parsed(new), items, missing_stages)
    except _Unsafe as reason:
        raise _refusal(str(reason), _snippet(questions, prefix)) from None
    return new


def _refusal(reason: str, snippet: str) -> Failure:
    return Failure(
        ErrorClass.CONFIG,
        f".gitlab-ci.yml cannot be edited safely: {reason}",
        "nothing was written; add the lines shown to it by hand, keeping the stages that you have",
        evidence=snippet,
    )


def _snippet(questions: _Questions, prefix: str) -> str:
    stages = [*GITLAB_STAGES, *(prefix + stage for stage in STAGES)]
    train = _train_item(questions, prefix)
    notebook = _item_beside(train, {}, NOTEBOOK_FILE, NOTEBOOK_JOBS, ("config",))
    return _new_stages(stages) + _new_include([train, notebook, _item_beside(train, {}, CLEANUP_FILE, ("cleanup",))])


def _train_item(questions: _Questions, prefix: str) -> dict[str, Any]:
    inputs = {"image": questions.image}
    if questions.google_project:
        inputs["google_project"] = questions.google_project
    if prefix:
        inputs |= {"prefix": prefix} | {f"stage_{stage}": prefix + stage for stage in STAGES}
    return {"project": questions.home, "ref": questions.ref, "file": TRAIN_FILE, "inputs": inputs}


def _item_beside(
    train: Mapping[str, Any], pipeline: Mapping[str, Any], file: str, jobs: Sequence[str], more: Sequence[str] = ()
) -> dict[str, Any]:
    """The include of another file of ours beside the one of the training: from the same place, with the same inputs."""
    where = {key: train[key] for key in ("project", "ref") if key in train} | (
        {"local": f"/{file}"} if "local" in train else {"file": file}
    )
    shared = ("image", "google_project", "tag", *more)
    inputs = {name: value for name in shared if (value := _given(train, name, ""))}
    prefix = _given(train, "prefix", "")
    if any(prefix + job in pipeline for job in jobs):
        prefix = FALLBACK_PREFIX
        if taken := [prefix + job for job in jobs if prefix + job in pipeline]:
            raise _Unsafe(f"it already uses {', '.join(taken)}")
    if prefix:
        inputs["prefix"] = prefix
    stage = _stage_names(train)[-1]
    if stage != STAGES[-1]:
        inputs["stage"] = stage
    return where | ({"inputs": inputs} if inputs else {})


def _given(include: Mapping[str, Any], name: str, default: str) -> str:
    """The value of one input of an include."""
    inputs = include.get("inputs")
    return str(inputs.get(name, default)) if isinstance(inputs, dict) else default


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _our_include(pipeline: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The include of one of our files that is there already, if any."""
    for item in _as_list(pipeline.get("include")):
        if isinstance(item, dict):
            files = [*_as_list(item.get("file")), *_as_list(item.get("local"))]
            if name in [str(file).lstrip("/") for file in files]:
                return item
    return None


def _stage_names(include: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_given(include, f"stage_{stage}", stage) for stage in STAGES)


def _prefix(pipeline: Mapping[str, Any]) -> str:
    """What goes before our names so that none means something else in this pipeline already."""
    stages = _as_list(pipeline.get("stages"))
    taken = {str(stage) for stage in stages} | set(pipeline)
    # All three in order were put there for us.
    if [stage for stage in stages if stage in STAGES] == list(STAGES):
        taken -= set(STAGES) - set(pipeline)
    for prefix in ("", FALLBACK_PREFIX):
        if not taken & {prefix + name for name in JOBS}:
            return prefix
    raise _Unsafe(f"it already uses {', '.join(sorted(taken & {FALLBACK_PREFIX + name for name in JOBS}))}")


def _missing_stages(pipeline: Mapping[str, Any], names: tuple[str, ...], questions: _Questions) -> list[str]:
    """What is to be appended to ``stages``; where there is none, the whole list."""
    stages = pipeline.get("stages")
    if stages is None:
        ours = [_our_include(pipeline, name) for name in (TRAIN_FILE, NOTEBOOK_FILE, CLEANUP_FILE)]
        foreign = [item for item in _as_list(pipeline.get("include")) if item not in ours]
        base = questions.stages if foreign else list(GITLAB_STAGES)
        for job, stage in _used_stages(pipeline).items():
            if stage not in (*base, *ALWAYS_THERE):
                raise _Unsafe(f"the job {job} is in the stage {stage}, and nothing here says where that stage stands")
        return [*base, *(name for name in names if name not in base)]
    if not isinstance(stages, list) or not all(isinstance(stage, str) for stage in stages):
        raise _Unsafe("its `stages` is not a plain list of names")
    missing = [name for name in names if name not in stages]
    if [stage for stage in [*stages, *missing] if stage in names] != list(names):
        raise _Unsafe(f"the stages {', '.join(names)} must stand in this order")
    return missing


def _used_stages(pipeline: Mapping[str, Any]) -> dict[str, str]:
    return {
        job: body["stage"]
        for job, body in pipeline.items()
        if isinstance(body, dict) and isinstance(body.get("stage"), str) and job not in ("default", "variables")
    }


class _Tagged(yaml.SafeLoader):
    """Plain YAML, with GitLab's own tags (``!reference``) kept as pairs of tag and value."""


def _tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return ("!" + suffix, loader.construct_sequence(node, deep=True))
    if isinstance(node, yaml.MappingNode):
        return ("!" + suffix, loader.construct_mapping(node, deep=True))
    return ("!" + suffix, node.value)


_Tagged.add_multi_constructor("!", _tagged)


def _parsed(text: str) -> dict[str, Any]:
    """The pipeline's own document: the last one, after a ``spec`` header if there is one."""
    try:
        documents = list(yaml.load_all(text, Loader=_Tagged))
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise _Unsafe(f"it is not valid YAML ({error})") from None
    last = documents[-1] if documents else None
    if last is None:
        return {}
    if not isinstance(last, dict):
        raise _Unsafe("its top level has no keys")
    return last


def _check(before: Mapping[str, Any], after: Mapping[str, Any], items: list[dict[str, Any]], stages: list[str]) -> None:
    """Refuse a result that means anything else than the old file plus what was to be added."""
    wanted = dict(before)
    if items:
        wanted["include"] = [*_as_list(before.get("include")), *items]
    if stages:
        wanted["stages"] = [*_as_list(before.get("stages")), *stages]
    if after != wanted:
        raise _Unsafe("its layout does not leave room for an edit that changes nothing else")


def _edited(text: str, items: list[dict[str, Any]], stages: list[str], *, had_stages: bool) -> str:
    documents = list(yaml.compose_all(text, Loader=_Tagged))
    root = documents[-1] if documents else None
    end_of_line = "\r\n" if "\r\n" in text else "\n"
    keys = {}
    if isinstance(root, yaml.MappingNode):
        if root.flow_style:
            raise _Unsafe("its top level stands in braces")
        keys = {key.value: value for key, value in root.value if isinstance(key, yaml.ScalarNode)}
    insertions: list[_Insertion] = []
    new_keys: list[str] = []
    if stages:
        if had_stages:
            insertions.append(_appended(text, keys["stages"], stages))
        else:
            new_keys.append(_new_stages(stages))
    if items:
        if "include" in keys:
            insertions += _appended_include(text, keys["include"], items)
        else:
            new_keys.append(_new_include(items))
    for insertion in sorted(insertions, key=lambda i: i.index, reverse=True):
        rest = text[insertion.index + insertion.replaced :]
        text = text[: insertion.index] + insertion.text.replace("\n", end_of_line) + rest
    for lines in new_keys:
        gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
        text += (gap + lines).replace("\n", end_of_line)
    return text


def _new_stages(stages: list[str]) -> str:
    return f"stages: {_inline(stages)}\n"


def _new_include(items: list[dict[str, Any]]) -> str:
    return "include:\n" + _indented(_block(items), 2)


def _appended(text: str, node: yaml.Node, items: list[Any]) -> _Insertion:
    """Items after the last one of a list, in the list's own style."""
    if not isinstance(node, yaml.SequenceNode):
        raise _Unsafe("its `stages` is not a plain list of names")
    if node.flow_style:
        flow = ", ".join(_inline(item) for item in items)
        if node.value:
            return _Insertion(node.value[-1].end_mark.index, ", " + flow)
        return _Insertion(node.end_mark.index - 1, flow)
    return _lines_after(text, node, _indented(_block(items), node.start_mark.column))


def _appended_include(text: str, node: yaml.Node, items: list[dict[str, Any]]) -> list[_Insertion]:
    if isinstance(node, yaml.SequenceNode):
        return [_appended(text, node, items)]
    ours = _indented(_block(items), 2)
    start = node.start_mark.index
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        # One file without a list: the first line gets the dash, the others move along.
        line = text.rfind("\n", 0, start) + 1
        last = _last_index(node)
        moved = [m.start() + 1 for m in re.finditer("\n", text[line:last]) if m.start() + 1 < last - line]
        return [
            _Insertion(start, "- "),
            *(_Insertion(line + offset, "  ") for offset in moved),
            _lines_after(text, node, _indented(_block(items), node.start_mark.column)),
        ]
    if node.start_mark.index == node.end_mark.index:
        return [_lines_after(text, node, ours)]
    blanks = len(text[:start]) - len(text[:start].rstrip(" \t"))
    return [_Insertion(start - blanks, "\n  - ", replaced=blanks), _lines_after(text, node, ours)]


def _lines_after(text: str, node: yaml.Node, lines: str) -> _Insertion:
    """Whole lines after the last one of a node, behind a comment that ends it."""
    last = _last_index(node)
    if last and text[last - 1] == "\n":
        return _Insertion(last, lines)
    line_end = text.find("\n", last)
    if line_end < 0:
        return _Insertion(len(text), "\n" + lines)
    return _Insertion(line_end + 1, lines)


def _last_index(node: yaml.Node) -> int:
    """Where a node's own text ends; PyYAML's marks of block collections lie behind what follows them."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_index(last[1] if isinstance(node, yaml.MappingNode) else last)
    return int(node.end_mark.index)


def _block(items: list[Any]) -> str:
    text: str = yaml.safe_dump(items, default_flow_style=False, sort_keys=False, allow_unicode=True, width=WIDE)
    return text


def _inline(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=WIDE)
    return text.removesuffix("\n").removesuffix("\n...")


def _indented(text: str, columns: int) -> str:
    return textwrap.indent(text, " " * columns)
