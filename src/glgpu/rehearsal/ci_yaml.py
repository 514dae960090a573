"""From the text of ``.gitlab-ci.yml`` to the jobs of one pipeline, as GitLab 17.5 would make them.

The order is GitLab's: each file's ``spec:inputs`` are written into its text, includes are merged under the file that
names them, then ``extends``, ``!reference``, the stages, the checks, and last the rules. What GitLab refuses raises
PipelineError with GitLab's words where they are known (its source: ``lib/gitlab/ci/config`` and ``yaml_processor``);
what it takes and a rehearsal does not play is either refused by name or listed in ``Pipeline.not_played``.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from glgpu import ci_rules

Config = dict[str, Any]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DEFAULT_STAGES = ("build", "test", "deploy")
MOST_INCLUDES = 150
MOST_NEEDS = 50
DEEPEST_NESTING = 10

JOB_KEYS = _words(
    "after_script allow_failure artifacts before_script cache coverage dast_configuration dependencies environment "
    "except extends hooks id_tokens identity image inherit interruptible manual_confirmation needs only pages parallel "
    "publish release resource_group retry rules run script secrets services stage start_in tags timeout trigger "
    "variables when"
)
DEFAULT_KEYS = _words(
    "after_script artifacts before_script cache hooks id_tokens identity image interruptible retry services tags "
    "timeout"
)
LEGACY_DEFAULTS = ("image", "services", "before_script", "after_script", "cache")
"""Keys that GitLab still takes at the top level and treats as if they stood under ``default``."""
ROOT_KEYS = frozenset(("default", "include", "stages", "variables", "workflow", *LEGACY_DEFAULTS))
RULE_KEYS = _words("if changes exists when start_in allow_failure variables needs interruptible")
ARTIFACT_KEYS = _words("name untracked paths reports when expire_in expose_as exclude public access")
REPORT_KEYS = _words(
    "accessibility annotations api_fuzzing browser_performance cluster_image_scanning codequality container_scanning "
    "coverage_fuzzing coverage_report cyclonedx dast dependency_scanning dotenv junit license_scanning "
    "load_performance lsif metrics performance repository_xray requirements requirements_v2 sast secret_detection "
    "terraform"
)
ENVIRONMENT_KEYS = _words("name url action on_stop auto_stop_in kubernetes deployment_tier")
INPUT_KEYS = _words("default description options regex type")
INPUT_TYPES = ("array", "boolean", "number", "string")
JOB_WHEN = ("on_success", "on_failure", "always", "manual", "delayed")
ARTIFACTS_WHEN = ("on_success", "on_failure", "always")
RETRY_WHEN = _words(
    "always unknown_failure script_failure api_failure stuck_or_timeout_failure runner_system_failure "
    "runner_unsupported stale_schedule job_execution_timeout archived_failure unmet_prerequisites scheduler_failure "
    "data_integrity_failure"
)
NOT_PLAYED = ("cache", "coverage", "dast_configuration", "hooks", "identity", "pages", "publish", "release", "secrets",
              "services")  # fmt: skip
"""Job keywords that a rehearsal passes over, and says so."""

ENVIRONMENT_NAME = re.compile(r"(?!/)[a-zA-Z0-9_ .${}/-]+(?<!/)")
ENVIRONMENT_NAME_MESSAGE = (
    "can contain only letters, digits, '-', '_', '/', '$', '{', '}', '.', and spaces, "
    "but it cannot start or end with '/'"
)
DURATION_UNITS = {
    "s": 1, "sec": 1, "secs": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "mins": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hr": 3600, "hrs": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "dy": 86400, "day": 86400, "days": 86400,
    "w": 604800, "wk": 604800, "wks": 604800, "week": 604800, "weeks": 604800,
    "mo": 2592000, "mos": 2592000, "month": 2592000, "months": 2592000,
    "y": 31536000, "yr": 31536000, "yrs": 31536000, "year": 31536000, "years": 31536000,
}  # fmt: skip
REFERENCE_IN_VALUE = re.compile(r"\$\$|%%|\$(?P<bare>\w+)|\$\{(?P<braced>\w+)\}|%(?P<percent>\w+)%")
INTERPOLATION = re.compile(r"\$\[\[\s*(?P<data>\S.*?)\s*\]\]")


class PipelineError(Exception):
    """GitLab would make no pipeline of this; the text is what it says."""


class NoJobs(PipelineError):
    """The configuration is sound, but the rules leave no job: GitLab makes no pipeline and calls that no error."""


class NotPlayed(PipelineError):
    """GitLab would take this, a rehearsal cannot play it."""


@dataclass(frozen=True)
class Variable:
    """A variable of the YAML.

    Attributes:
        value: The text as written.
        expand: Whether ``$NAME`` in it is replaced.
    """

    value: str
    expand: bool = True


@dataclass(frozen=True)
class Need:
    """One entry of ``needs``."""

    job: str
    artifacts: bool = True
    optional: bool = False


@dataclass(frozen=True)
class Retry:
    """How often and after which failures GitLab runs a job again by itself.

    Attributes:
        max: Runs after the first one; 0 unless the YAML says otherwise, also where it names codes or reasons.
        when: Failure reasons.
        exit_codes: Exit codes of the script; either list may match.
    """

    max: int = 0
    when: tuple[str, ...] = ("always",)
    exit_codes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Artifacts:
    """What a job hands to GitLab; paths and patterns are relative to the project folder."""

    paths: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    when: str = "on_success"
    name: str = ""
    expire_in: str | None = None
    reports: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """The environment of a job; name and url may still hold variables."""

    name: str
    action: str = "start"
    url: str | None = None
    on_stop: str | None = None
    auto_stop_in: str | None = None


@dataclass(frozen=True)
class Job:
    """One job of a pipeline, every inheritance and rule applied.

    Attributes:
        name: Unique in the pipeline; with ``parallel`` it ends in the number or in the values of the matrix.
        base_name: The name in the YAML.
        source: The file that defined it first: a path of the repository, or ``project@ref:path``.
        variables: Of the YAML, the job's own and its rule's over the global ones.
        allow_failure_exit_codes: Exit codes that count as ``allow_failure``.
        needs: None where the job follows the stages.
        dependencies: None where the job takes the artifacts of all earlier stages (or of its needs).
        timeout: Seconds; None where the project's timeout counts.
        id_tokens: Variable name to audiences.
    """

    name: str
    base_name: str
    stage: str
    source: str
    script: tuple[str, ...]
    before_script: tuple[str, ...] = ()
    after_script: tuple[str, ...] = ()
    variables: Mapping[str, Variable] = field(default_factory=dict)
    image: str | None = None
    tags: tuple[str, ...] = ()
    when: str = "on_success"
    allow_failure: bool = False
    allow_failure_exit_codes: tuple[int, ...] = ()
    needs: tuple[Need, ...] | None = None
    dependencies: tuple[str, ...] | None = None
    artifacts: Artifacts | None = None
    retry: Retry = Retry()
    timeout: int | None = None
    interruptible: bool = False
    environment: Environment | None = None
    id_tokens: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    resource_group: str | None = None


@dataclass(frozen=True)
class Pipeline:
    """A pipeline ready to be played.

    Attributes:
        stages: In order, ``.pre`` and ``.post`` included.
        jobs: In stage order, then as the YAML lists them.
        name: ``workflow:name``, expanded.
        auto_cancel: ``workflow:auto_cancel:on_new_commit``.
        not_played: Sentences on what GitLab would do and a rehearsal does not.
    """

    stages: tuple[str, ...]
    jobs: tuple[Job, ...]
    name: str = ""
    auto_cancel: str = "conservative"
    not_played: tuple[str, ...] = ()

    def job(self, name: str) -> Job:
        """The job of that name.

        Raises:
            KeyError: There is none.
        """
        for job in self.jobs:
            if job.name == name:
                return job
        raise KeyError(name)

    def stage_index(self, job: Job) -> int:
        """Where in the order of the stages a job stands."""
        return self.stages.index(job.stage)


@dataclass(frozen=True)
class Reference:
    """A ``!reference [job, key, ...]`` not yet resolved."""

    path: tuple[str, ...]

    def __str__(self) -> str:
        return f"!reference {json.dumps(list(self.path))}"


def compile_pipeline(
    root: str,
    *,
    read_local: Callable[[str], str | None],
    read_project: Callable[[str, str, str], str | None],
    variables: Mapping[str, str],
    predefined: Mapping[str, str] | None = None,
    files: Callable[[], Iterable[str]] = lambda: (),
) -> Pipeline:
    """Make the pipeline that GitLab would make.

    Args:
        root: Text of ``.gitlab-ci.yml``.
        read_local: Text of a file of the repository at the pipeline's commit, by path; None where there is none.
        read_project: The same for another project: its path, a ref (``HEAD``: its default branch) and the file. It
            raises PipelineError where the project or the ref does not exist for the pipeline's user.
        variables: What stands above the YAML: variables of the project, of its groups, of the schedule or the person.
        predefined: What stands below the YAML: GitLab's own ``CI_...``.
        files: Paths of the repository, for ``exists`` and includes with ``*``.

    Raises:
        NoJobs: No pipeline, because of the rules.
        NotPlayed: A rehearsal cannot play it.
        PipelineError: GitLab refuses it.
    """
    return _Compiler(read_local, read_project, dict(variables), dict(predefined or {}), files).compile(root)


@dataclass(frozen=True)
class Lint:
    """GitLab's judgement of a ``.gitlab-ci.yml`` (its source: ``lib/gitlab/ci/lint.rb``).

    Attributes:
        errors: Why there would be no pipeline.
        warnings: What is allowed, but hardly meant.
        merged: Everything included, extended and referred to in one YAML text; None where the files cannot be read.
        jobs: In the form of GitLab's API: whatever their rules, or, simulated, those of the pipeline.
    """

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    merged: str | None = None
    jobs: tuple[Config, ...] = ()


def lint_pipeline(
    root: str,
    *,
    simulated: bool,
    read_local: Callable[[str], str | None],
    read_project: Callable[[str, str, str], str | None],
    variables: Mapping[str, str],
    predefined: Mapping[str, str],
    files: Callable[[], Iterable[str]],
) -> Lint:
    """Judge a configuration as GitLab's linter does; the arguments are those of ``compile_pipeline``.

    With ``simulated`` (``dry_run``) a pipeline is made of it too, by its rules, for what ``predefined`` says.
    """
    compiler = _Compiler(read_local, read_project, dict(variables), dict(predefined), files)
    merged = None
    try:
        config = compiler.merged(root)
        merged = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, explicit_start=True)
        checked = compiler.checked(config)
        jobs = [_listed(job) for job in compiler.pipeline(checked).jobs] if simulated else compiler.listed(checked)
    except PipelineError as error:
        return Lint((str(error),), merged=merged)
    return Lint(warnings=tuple(_warnings(checked)), merged=merged, jobs=tuple(jobs))


def _warnings(checked: _Checked) -> Iterator[str]:
    for name, entry in checked.entries.items():
        last = (_flat(entry["rules"]) or [{}])[-1] if "rules" in entry else {}
        if not checked.workflow.get("rules") and last.keys() == {"when"} and last["when"] != "never":
            yield (
                f"jobs:{name} may allow multiple pipelines to run for a single action due to `rules:when` clause with "
                "no `workflow:rules` - read more: https://docs.gitlab.com/ee/ci/troubleshooting.html#pipeline-warnings"
            )


def _listed(job: Job) -> Config:
    """What the linter says of a job in any case."""
    return {
        "name": job.name,
        "stage": job.stage,
        "before_script": list(job.before_script),
        "script": list(job.script),
        "after_script": list(job.after_script),
        "tag_list": list(job.tags),
        "environment": job.environment.name if job.environment else None,
        "when": job.when,
        "allow_failure": job.allow_failure,
    }


def _policy_value(policy: Any) -> Config | None:
    return policy if policy is None or isinstance(policy, dict) else {"refs": _as_list(policy)}


def includes_of(root: str) -> list[dict[str, Any]]:
    """The files that a ``.gitlab-ci.yml`` includes, in the form of GitLab's API; none where it cannot be read."""
    try:
        entries = _as_list(_load_yaml(root).get("include") or [])
    except PipelineError:
        return []
    found = []
    for entry in entries:
        words = {"local": entry} if isinstance(entry, str) else entry
        kind = next((word for word in ("file", "local", "remote", "template", "component") if word in words), None)
        if kind is not None:
            extra = {key: words[key] for key in ("project", "ref") if key in words}
            found += [{"type": kind, "location": path, "extra": extra} for path in _as_list(words[kind])]
    return found


def expand(value: str, variables: Mapping[str, str], *, keep_unknown: bool = False) -> str:
    """Replace ``$NAME``, ``${NAME}`` and ``%NAME%`` in a value; ``$$`` becomes ``$``.

    Args:
        value: The text.
        variables: Final values: what they hold is not looked at again.
        keep_unknown: Leave the name of an unset variable as it stands, else nothing takes its place.
    """

    def replacement(match: re.Match[str]) -> str:
        if match[0] in ("$$", "%%"):
            return {"$$": "$", "%%": "%%"}[match[0]]
        name = match["bare"] or match["braced"] or match["percent"]
        return variables.get(name, match[0] if keep_unknown or match["percent"] else "")

    return REFERENCE_IN_VALUE.sub(replacement, value)


def expand_all(variables: Mapping[str, Variable], *, keep_unknown: bool = False) -> dict[str, str]:
    """Replace variables in variables, each by its final value; whatever refers to itself stays as it is written."""
    done: dict[str, str] = {}

    def final(name: str, above: tuple[str, ...]) -> str:
        if name not in done:
            variable = variables[name]
            if not variable.expand or name in above:
                return variable.value
            used = {m["bare"] or m["braced"] or m["percent"] for m in REFERENCE_IN_VALUE.finditer(variable.value)}
            known = {n: final(n, (*above, name)) for n in used if n in variables}
            value = variable.value if name in known else expand(variable.value, known, keep_unknown=keep_unknown)
            if above:
                return value
            done[name] = value
        return done[name]

    return {name: final(name, ()) for name in variables}


def parse_duration(text: str | int | float) -> int | None:
    """Seconds of ``2h55m``, ``6 hours``, ``1 day 3 mins``, ``1:30:00`` or a plain number; None if it is no duration."""
    text = str(text).lower().replace(",", " ").replace(" and ", " ").strip()
    if re.fullmatch(r"\d+(:\d{1,2}){1,2}", text):
        return sum(int(part) * unit for unit, part in zip((1, 60, 3600), reversed(text.split(":")), strict=False))
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return round(float(text))
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text)
    if not parts or re.sub(r"\d+(?:\.\d+)?\s*[a-z]+\s*", "", text) or any(u not in DURATION_UNITS for _, u in parts):
        return None
    return round(sum(float(number) * DURATION_UNITS[unit] for number, unit in parts))


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """A glob of GitLab's YAML as an expression: ``**/`` any folders, ``*`` within one, ``{a,b}`` either."""
    out, position, open_braces = [], 0, 0
    while position < len(pattern):
        character = pattern[position]
        if pattern.startswith("**/", position):
            out.append("(?:.*/)?")
            position += 3
            continue
        if pattern.startswith("**", position):
            out.append(".*")
            position += 2
            continue
        if character == "*":
            out.append("[^/]*")
        elif character == "?":
            out.append("[^/]")
        elif character == "{":
            open_braces += 1
            out.append("(?:")
        elif character == "}" and open_braces:
            open_braces -= 1
            out.append(")")
        elif character == "," and open_braces:
            out.append("|")
        elif character == "[" and "]" in pattern[position + 2 :]:
            end = pattern.index("]", position + 2)
            inside = pattern[position + 1 : end].replace("\\", "\\\\")
            out.append("[" + ("^" + inside[1:] if inside[0] in "!^" else inside) + "]")
            position = end
        else:
            out.append(re.escape(character))
        position += 1
    return re.compile("".join(out) + ")" * open_braces, re.DOTALL)


def deep_merge(below: Config, above: Config) -> Config:
    """Merge maps into maps; anything else of ``above`` takes the place of what is below."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with ``!reference`` and without dates, which Ruby's safe loader refuses too."""


def _construct_reference(loader: yaml.SafeLoader, node: yaml.Node) -> Reference:
    if not isinstance(node, yaml.SequenceNode):
        raise PipelineError("!reference is invalid")
    return Reference(tuple(str(part) for part in loader.construct_sequence(node)))


def _refuse_date(_loader: yaml.SafeLoader, _node: yaml.Node) -> None:
    raise PipelineError("(<unknown>): Tried to load unspecified class: Date")


_Loader.add_constructor("!reference", _construct_reference)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _refuse_date)


def _load_yaml(text: str) -> Config:
    try:
        loaded = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise PipelineError(
            f"(<unknown>): {error.problem}{f' {error.context}' if error.context else ''}{place}"
        ) from error
    except yaml.YAMLError as error:
        raise PipelineError(f"(<unknown>): {error}") from error
    if not isinstance(loaded, dict):
        raise PipelineError("Invalid configuration format")
    return {str(key): value for key, value in loaded.items()}


def _read_document(text: str, given: Config, variables: Mapping[str, str]) -> Config:
    """Parse one file: its header, if any, takes the inputs, which are written into the rest before that is parsed."""
    documents = [d for d in re.split(r"^---(?=\s|$).*$", text, flags=re.MULTILINE) if d.strip()]
    if not documents:
        raise PipelineError("Please provide content of .gitlab-ci.yml")
    header = _load_yaml(documents[0]) if len(documents) > 1 else {}
    if "spec" not in header:
        if given:
            raise PipelineError("Given inputs not defined in the `spec` section of the included configuration file")
        return _load_yaml(documents[0])
    _only_keys("header", header, {"spec"})
    spec = header["spec"] or {}
    if not isinstance(spec, dict):
        raise PipelineError("header:spec config should be a hash")
    _only_keys("header:spec", spec, {"inputs"})
    inputs = _inputs(spec.get("inputs") or {}, given)
    return _load_yaml(_interpolate(documents[1], inputs, variables))


def _inputs(specification: Config, given: Config) -> Config:
    """The values of a file's inputs; GitLab converts none of them."""
    if unknown := [name for name in given if name not in specification]:
        raise PipelineError(f"unknown input arguments: {', '.join(unknown)}")
    values: Config = {}
    for name, entry in specification.items():
        entry = entry or {}
        _only_keys(f"header:spec:inputs:{name}", entry, INPUT_KEYS)
        kind = entry.get("type", "string")
        if kind not in INPUT_TYPES:
            raise PipelineError(f"unknown input specification for `{name}` (valid types: {', '.join(INPUT_TYPES)})")
        if "default" in entry:
            _check_input(name, kind, entry, entry["default"], "default")
        elif name not in given:
            raise PipelineError(f"`{name}` input: required value has not been provided")
        if name in given:
            _check_input(name, kind, entry, given[name], "provided")
        values[name] = given.get(name, entry.get("default"))
    return values


def _check_input(name: str, kind: str, entry: Config, value: Any, which: str) -> None:
    fits = {
        "string": isinstance(value, str),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "boolean": isinstance(value, bool),
        "array": isinstance(value, list),
    }
    if not fits[kind]:
        article = "an" if kind == "array" else "a"
        raise PipelineError(f"`{name}` input: {which} value is not {article} {kind}")
    if (options := entry.get("options")) is not None:
        if kind not in ("string", "number"):
            raise PipelineError(f"`{name}` input: Options can only be used with string and number inputs")
        if value not in options:
            raise PipelineError(
                f"`{name}` input: `{value}` cannot be used because it is not in the list of allowed options"
            )
    if "regex" in entry:
        if kind != "string":
            raise PipelineError(f"`{name}` input: RegEx validation can only be used with string inputs")
        try:
            expression = ci_rules.compile_re2(entry["regex"])
        except ci_rules.ExpressionError as error:
            raise PipelineError(f"`{name}` input: invalid regular expression") from error
        if not expression.search(value):
            raise PipelineError(f"`{name}` input: {which} value does not match required RegEx pattern")


def _interpolate(text: str, inputs: Config, variables: Mapping[str, str]) -> str:
    """Write inputs into the text of a file; whatever is no string is written as JSON, which is YAML."""

    def value_of(match: re.Match[str]) -> str:
        access, *functions = [part.strip() for part in match["data"].split("|")]
        owner, _, name = access.partition(".")
        if not name:
            raise PipelineError("invalid interpolation access pattern")
        if owner != "inputs" or name not in inputs:
            raise PipelineError(f"unknown interpolation key: `{owner if owner != 'inputs' else name}`")
        if len(functions) > 3:
            raise PipelineError("too many functions in interpolation block")
        value = inputs[name]
        for function in functions:
            value = _call_function(function, value, variables)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return INTERPOLATION.sub(value_of, text)


def _call_function(function: str, value: Any, variables: Mapping[str, str]) -> str:
    name = function.partition("(")[0].strip()
    cut = re.fullmatch(r"truncate\(\s*(\d+)\s*,\s*(\d+)\s*\)", function)
    if function not in ("expand_vars", "posix_escape") and not cut:
        raise PipelineError(
            f"no function matching `{function}`: check that the function name, arguments, and types are correct"
        )
    if not isinstance(value, str):
        raise PipelineError(f"invalid input type: {name} can only be used with string inputs")
    if cut:
        return value[int(cut[1]) : int(cut[1]) + int(cut[2])]
    if function == "posix_escape":
        return re.sub(r"([^A-Za-z0-9_\-.,:+/@\n])", r"\\\1", value).replace("\n", "'\n'") or "''"
    return expand(value, variables, keep_unknown=True)


def _only_keys(where: str, config: Any, allowed: Iterable[str]) -> None:
    if not isinstance(config, dict):
        raise PipelineError(f"{where} config should be a hash")
    if unknown := [str(key) for key in config if key not in set(allowed)]:
        raise PipelineError(f"{where} config contains unknown keys: {', '.join(unknown)}")


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


@dataclass(frozen=True)
class _Origin:
    """Where a file comes from; ``project`` is None for the pipeline's own repository."""

    path: str
    project: str | None = None
    ref: str = "HEAD"

    def __str__(self) -> str:
        return f"{self.project}@{self.ref}:{self.path}" if self.project else self.path


@dataclass(frozen=True)
class _Checked:
    """A configuration that is sound, before its rules are looked at."""

    stages: tuple[str, ...]
    variables: dict[str, Variable]
    workflow: Config
    entries: dict[str, Config]


class _Compiler:
    def __init__(
        self,
        read_local: Callable[[str], str | None],
        read_project: Callable[[str, str, str], str | None],
        variables: dict[str, str],
        predefined: dict[str, str],
        files: Callable[[], Iterable[str]],
    ) -> None:
        self.read_local = read_local
        self.read_project = read_project
        self.variables = variables
        self.predefined = predefined
        self.files = files
        self.known = {**predefined, **variables}
        self.includes = 0
        self.sources: dict[str, str] = {}
        self.not_played: dict[str, None] = {}

    def compile(self, root: str) -> Pipeline:
        return self.pipeline(self.checked(self.merged(root)))

    def merged(self, root: str) -> Config:
        """The one configuration that all files together are: nothing included, extended or referred to any more."""
        config = self._with_includes(_read_document(root, {}, self.known), _Origin(".gitlab-ci.yml"))
        config = _resolve_references(_extend_all(config))
        return {key: value for key, value in config.items() if value is not None}

    def checked(self, config: Config) -> _Checked:
        """All that GitLab checks before it looks at rules."""
        stages = _stages(config.get("stages", DEFAULT_STAGES))
        defaults = _defaults(config)
        variables = _variables("variables", config.get("variables", {}), prefill=True)
        workflow = config.get("workflow", {})
        _only_keys("workflow", workflow, {"name", "rules", "auto_cancel"})
        entries = self._entries(config, defaults)
        for name, entry in entries.items():
            _check_job(name, entry, stages, entries)
        return _Checked(stages, variables, workflow, entries)

    def pipeline(self, checked: _Checked) -> Pipeline:
        """What the rules leave of it."""
        stages, workflow = checked.stages, checked.workflow
        global_variables, auto_cancel = self._workflow(workflow, checked.variables)
        jobs = [
            job
            for name, entry in checked.entries.items()
            for job in self._jobs(name, entry, global_variables, bool(workflow.get("rules")))
        ]
        if not jobs:
            raise NoJobs(
                "The resulting pipeline would have been empty. Review the rules configuration for the relevant jobs."
            )
        jobs = _bind(sorted(jobs, key=lambda job: stages.index(job.stage)))
        name = expand(str(workflow.get("name", "")), self._rule_variables(global_variables))
        return Pipeline(stages, tuple(jobs), name, auto_cancel, tuple(self.not_played))

    def listed(self, checked: _Checked) -> list[Config]:
        """Every job whatever its rules, as GitLab's linter lists them."""
        found = []
        for base_name, entry in checked.entries.items():
            default = None if "rules" in entry or checked.workflow.get("rules") else ["branches", "tags"]
            for suffix, _ in _parallel(base_name, entry.get("parallel")):
                job = _job(base_name, base_name + suffix, entry, "", {})
                shown = [
                    {"name": one.job, "artifacts": one.artifacts, "optional": one.optional} for one in job.needs or ()
                ]
                only, besides = (
                    _policy_value(entry.get(key, value)) for key, value in (("only", default), ("except", None))
                )
                needs = None if job.needs is None else shown
                found.append(_listed(job) | {"only": only, "except": besides, "needs": needs})
        return sorted(found, key=lambda job: checked.stages.index(job["stage"]))

    # Includes

    def _with_includes(self, own: Config, origin: _Origin) -> Config:
        merged: Config = {}
        for entry in _as_list(own.get("include")):
            for included, inputs in self._wanted(entry, origin):
                self.includes += 1
                if self.includes > MOST_INCLUDES:
                    raise PipelineError(f"Maximum of {MOST_INCLUDES} nested includes are allowed!")
                merged = deep_merge(merged, self._include(included, inputs))
        own = {key: value for key, value in own.items() if key != "include"}
        for key in own:
            self.sources.setdefault(key, str(origin))
        return deep_merge(merged, own)

    def _wanted(self, entry: Any, origin: _Origin) -> Iterator[tuple[_Origin, Config]]:
        """The files that one entry of ``include`` names."""
        if isinstance(entry, str):
            entry = {"remote" if re.match(r"https?://", entry) else "local": entry}
        _only_keys(
            "include", entry,
            {"local", "project", "ref", "file", "remote", "template", "component", "artifact", "job", "inputs", "rules",
             "integrity"},
        )  # fmt: skip
        for kind in ("remote", "template", "component", "artifact"):
            if kind in entry:
                raise NotPlayed(f"include:{kind} cannot be read in a rehearsal: {entry[kind]}")
        if not self._include_applies(entry.get("rules")):
            return
        inputs = entry.get("inputs") or {}
        if "local" in entry:
            path = expand(str(entry["local"]), self.known).lstrip("/")
            if "*" in path and origin.project is None:
                pattern = glob_pattern(path)
                for match in sorted(file for file in self.files() if pattern.fullmatch(file)):
                    yield _Origin(match), inputs
            else:
                yield _Origin(path, origin.project, origin.ref), inputs
        elif "project" in entry:
            if "file" not in entry:
                raise PipelineError("include config must specify the file where to fetch the config from")
            project = expand(str(entry["project"]), self.known)
            ref = expand(str(entry.get("ref") or "HEAD"), self.known)
            for file in _as_list(entry["file"]):
                yield _Origin(expand(str(file), self.known).lstrip("/"), project, ref), inputs
        else:
            raise PipelineError(f"`{json.dumps(entry)}` does not have a valid subkey for include. Valid subkeys are: "
                                "`local`, `project`, `remote`, `template`, `component`, `artifact`")  # fmt: skip

    def _include_applies(self, rules: Any) -> bool:
        if rules is None:
            return True
        for rule in rules:
            _only_keys("include:rules:rule", rule, {"if", "exists", "changes", "when"})
            if rule.get("when", "always") not in ("always", "never"):
                raise PipelineError(f"include:rules:rule when unknown value: {rule['when']}")
            if self._rule_matches("include:rules:rule", rule, self.known):
                return bool(rule.get("when", "always") == "always")
        return False

    def _include(self, origin: _Origin, inputs: Config) -> Config:
        if not re.search(r"\.ya?ml$", origin.path, re.IGNORECASE):
            raise PipelineError(f"Included file `{origin.path}` does not have YAML extension!")
        if origin.project is None:
            text, named = self.read_local(origin.path), f"Local file `{origin.path}`"
        else:
            text = self.read_project(origin.project, origin.ref, origin.path)
            named = f"Project `{origin.project.lower()}` file `{origin.path}`"
        if text is None:
            raise PipelineError(f"{named} does not exist!")
        if not text.strip():
            raise PipelineError(f"{named} is empty!")
        try:
            own = _read_document(text, inputs, self.known)
        except PipelineError as error:
            raise PipelineError(f"`{origin.path}`: {error}") from error
        return self._with_includes(own, origin)

    # Jobs of the YAML

    def _entries(self, config: Config, defaults: Config) -> dict[str, Config]:
        """The visible jobs with defaults, each checked on its own."""
        entries: dict[str, Config] = {}
        for name, entry in config.items():
            if name in ROOT_KEYS or name.startswith("."):
                continue
            if not isinstance(entry, dict) or not {"script", "run", "trigger"} & entry.keys():
                raise PipelineError(f"jobs:{name} config should implement the script:, run:, or trigger: keyword")
            _only_keys(f"jobs:{name}", entry, JOB_KEYS)
            for keyword in ("run", "trigger"):
                if keyword in entry:
                    raise NotPlayed(f"{name}: a job with `{keyword}` cannot be played in a rehearsal")
            entry = {key: value for key, value in entry.items() if value is not None}
            inherit = entry.get("inherit", {}).get("default", True)
            for key, value in defaults.items():
                if key == "timeout":
                    continue  # GitLab takes it and does nothing with it (gitlab-org/gitlab#213634).
                if inherit is True or (isinstance(inherit, list) and key in inherit):
                    entry.setdefault(key, value)
            for keyword in NOT_PLAYED:
                if keyword in entry:
                    self.not_played[f"{name}: `{keyword}` is not played"] = None
            entries[name] = entry
        if not entries:
            raise PipelineError("jobs config should contain at least one visible job")
        return entries

    # Rules

    def _rule_variables(self, *layers: Mapping[str, Variable]) -> dict[str, str]:
        merged = {name: Variable(value) for name, value in self.predefined.items()}
        for layer in layers:
            merged |= layer
        merged |= {name: Variable(value) for name, value in self.variables.items()}
        return expand_all(merged, keep_unknown=True)

    def _rule_matches(self, where: str, rule: Config, variables: Mapping[str, str]) -> bool:
        """Whether all conditions of one rule hold; ``changes`` counts as holding, as in a pipeline without a push."""
        if "if" in rule:
            try:
                if not ci_rules.holds(str(rule["if"]), variables):
                    return False
            except ci_rules.ExpressionError as error:
                raise PipelineError(f"{where} if invalid expression syntax") from error
        if "changes" in rule:
            self.not_played["`changes` is not compared with anything: it counts as true"] = None
        if "exists" in rule:
            exists = rule["exists"]
            if isinstance(exists, dict):
                _only_keys(f"{where}:exists", exists, {"paths", "project", "ref"})
                if "project" in exists:
                    raise NotPlayed("rules:exists:project cannot be judged in a rehearsal")
                exists = exists.get("paths")
            patterns = [glob_pattern(expand(str(path), variables)) for path in _as_list(exists)]
            return any(pattern.fullmatch(file) for file in self.files() for pattern in patterns)
        return True

    def _workflow(self, workflow: Config, variables: dict[str, Variable]) -> tuple[dict[str, Variable], str]:
        auto_cancel = workflow.get("auto_cancel") or {}
        _only_keys("workflow:auto_cancel", auto_cancel, {"on_new_commit", "on_job_failure"})
        on_new_commit = auto_cancel.get("on_new_commit", "conservative")
        if on_new_commit not in ("conservative", "interruptible", "none"):
            raise PipelineError("workflow:auto_cancel on new commit must be one of: conservative, interruptible, none")
        if auto_cancel.get("on_job_failure", "none") != "none":
            raise NotPlayed("workflow:auto_cancel:on_job_failure cannot be played in a rehearsal")
        if (rules := workflow.get("rules")) is None:
            return variables, on_new_commit
        for rule in _flat(rules):
            where = "workflow:rules:rule"
            _only_keys(where, rule, {"if", "changes", "exists", "when", "variables", "auto_cancel"})
            if rule.get("when", "always") not in ("always", "never"):
                raise PipelineError(f"{where} when unknown value: {rule['when']}")
            if self._rule_matches(where, rule, self._rule_variables(variables)):
                if rule.get("when") == "never":
                    break
                own = (rule.get("auto_cancel") or {}).get("on_new_commit", on_new_commit)
                return variables | _variables(f"{where}:variables", rule.get("variables", {})), own
        raise NoJobs("Pipeline filtered out by workflow rules.")

    def _jobs(self, name: str, entry: Config, globals_: dict[str, Variable], workflow_rules: bool) -> Iterator[Job]:
        """The jobs that an entry gives in this pipeline: none, one, or several with ``parallel``."""
        inherit = entry.get("inherit", {}).get("variables", True)
        inherited = {n: v for n, v in globals_.items() if inherit is True or (inherit and n in inherit)}
        for suffix, extra in _parallel(name, entry.get("parallel")):
            variables = inherited | _variables(f"jobs:{name}:variables", entry.get("variables", {})) | extra
            known = self._rule_variables(variables)
            job = _job(name, name + suffix, entry, self.sources[name], variables)
            if "rules" in entry:
                applied = self._apply_rules(job, entry, known)
                if applied is None:
                    continue
                job = applied
            elif not self._only_except(name, entry, known, workflow_rules):
                continue
            if job.when == "delayed":
                self.not_played[f"{name}: `start_in` is not waited for"] = None
            yield job

    def _apply_rules(self, job: Job, entry: Config, known: Mapping[str, str]) -> Job | None:
        where = f"jobs:{job.base_name}:rules:rule"
        for rule in _flat(entry["rules"]):
            _only_keys(where, rule, RULE_KEYS)
            if not rule:
                raise PipelineError(f"{where} config can't be blank")
            if (when := rule.get("when", job.when)) not in (*JOB_WHEN, "never"):
                raise PipelineError(f"{where} when unknown value: {when}")
            if not isinstance(rule.get("allow_failure", False), bool):
                raise PipelineError(f"{where} allow failure should be a boolean value")
        for rule in _flat(entry["rules"]):
            if not self._rule_matches(where, rule, known):
                continue
            when = rule.get("when", job.when)
            if when == "never":
                return None
            own = _variables(f"{where}:variables", rule.get("variables") or {})
            return replace(
                job,
                when=when,
                # Unlike outside of rules, a manual job blocks the pipeline here unless told otherwise.
                allow_failure=rule.get("allow_failure", job.allow_failure if "allow_failure" in entry else False),
                variables={**job.variables, **own},
                needs=_needs(f"{where}:needs", rule["needs"]) if "needs" in rule else job.needs,
                interruptible=rule.get("interruptible", job.interruptible),
            )
        return None

    def _only_except(self, name: str, entry: Config, known: Mapping[str, str], workflow_rules: bool) -> bool:
        default = None if workflow_rules else ["branches", "tags"]
        only, besides = entry.get("only", default), entry.get("except")
        return (only is None or self._policy(name, "only", only, known)) and not (
            besides is not None and self._policy(name, "except", besides, known)
        )

    def _policy(self, name: str, keyword: str, policy: Any, known: Mapping[str, str]) -> bool:
        """Whether all parts of an ``only``, or any part of an ``except``, hold."""
        if not isinstance(policy, dict):
            policy = {"refs": _as_list(policy)}
        _only_keys(f"jobs:{name}:{keyword}", policy, {"refs", "variables", "changes", "kubernetes"})
        held = []
        if "refs" in policy:
            held.append(any(ci_rules.ref_matches(str(ref), known) for ref in policy["refs"]))
        if "variables" in policy:
            held.append(any(ci_rules.holds(str(condition), known) for condition in policy["variables"]))
        for part in ("changes", "kubernetes"):
            if part in policy:
                self.not_played[f"{name}: `{keyword}:{part}` is not judged: it counts as true for `only` alone"] = None
        return all(held) if keyword == "only" else any(held)


def _extend_all(config: Config) -> Config:
    done: Config = {}

    def extended(name: str, above: tuple[str, ...]) -> Any:
        entry = config[name]
        if name in done:
            return done[name]
        if not isinstance(entry, dict) or "extends" not in entry or name in ROOT_KEYS:
            return entry
        bases = [str(base) for base in _as_list(entry["extends"])]
        if unknown := [base for base in bases if base not in config]:
            raise PipelineError(f"{name}: unknown keys in `extends` ({', '.join(unknown)})")
        if wrong := [base for base in bases if not isinstance(config[base], dict)]:
            raise PipelineError(f"{name}: invalid base hashes in `extends` ({', '.join(wrong)})")
        if len(above) > DEEPEST_NESTING:
            raise PipelineError(f"{name}: nesting too deep in `extends`")
        if name in above:
            raise PipelineError(f"{name}: circular dependency detected in `extends`")
        merged: Config = {}
        for base in bases:
            merged = deep_merge(merged, extended(base, (*above, name)))
        done[name] = deep_merge(merged, entry)
        return done[name]

    return {name: extended(name, ()) for name in config}


def _resolve_references(config: Config) -> Config:
    def resolved(value: Any, above: tuple[Reference, ...]) -> Any:
        if isinstance(value, Reference):
            if value in above:
                raise PipelineError(f"{value} is part of a circular chain")
            found: Any = config
            for part in value.path:
                found = resolved(found, above) if isinstance(found, Reference) else found
                found = found.get(part) if isinstance(found, dict) else None
            if found is None:
                raise PipelineError(f"{value} could not be found")
            return resolved(found, (*above, value))
        if isinstance(value, dict):
            return {key: resolved(entry, above) for key, entry in value.items()}
        if isinstance(value, list):
            return [resolved(entry, above) for entry in value]
        return value

    return {key: resolved(value, ()) for key, value in config.items()}


def _stages(stages: Any) -> tuple[str, ...]:
    if not isinstance(stages, list | tuple) or not all(isinstance(stage, str) for stage in stages):
        raise PipelineError("stages config should be an array of strings")
    return (".pre", *(stage for stage in dict.fromkeys(stages) if stage not in (".pre", ".post")), ".post")


def _defaults(config: Config) -> Config:
    defaults = config.get("default", {})
    _only_keys("default", defaults, DEFAULT_KEYS)
    for key in LEGACY_DEFAULTS:
        if key in config and key in defaults:
            raise PipelineError(f"{key} is defined in top-level and `default:` entry")
    return {key: config[key] for key in LEGACY_DEFAULTS if key in config} | {
        key: value for key, value in defaults.items() if value is not None
    }


def _scalar_text(value: Any) -> str | None:
    """A scalar as Ruby's ``to_s`` writes it; None if it is none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def _variables(where: str, config: Any, *, prefill: bool = False) -> dict[str, Variable]:
    if not isinstance(config, dict):
        raise PipelineError(f"{where} config should be a hash")
    variables: dict[str, Variable] = {}
    for name, given in config.items():
        value, expanded = given, True
        if isinstance(given, dict):
            allowed = {"value", "expand", "description", "options"} if prefill else {"value", "expand"}
            if extra := [str(key) for key in given if key not in allowed]:
                raise PipelineError(f"{where}:{name} config uses invalid data keys: {', '.join(extra)}")
            if given.get("options") and given.get("value") not in given["options"]:
                raise PipelineError(f"{where}:{name} config value must be present in options")
            value, expanded = given.get("value", ""), given.get("expand", True)
        text = _scalar_text(value)
        if text is None or not isinstance(expanded, bool):
            raise PipelineError(f"{where}:{name} config variable definition must be either a string or a hash")
        variables[str(name)] = Variable(text, expanded)
    return variables


def _flat(rules: Any, depth: int = 0) -> list[Config]:
    if not isinstance(rules, list) or depth > DEEPEST_NESTING:
        raise PipelineError("rules should be an array containing hashes and arrays of hashes")
    flat: list[Config] = []
    for rule in rules:
        if isinstance(rule, list):
            flat += _flat(rule, depth + 1)
        else:
            flat.append(rule)
    return flat


def _strings(where: str, value: Any) -> tuple[str, ...]:
    """A string, or arrays of strings up to ten levels deep, as one list."""

    def walk(part: Any, depth: int) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, list) and depth < DEEPEST_NESTING:
            for inner in part:
                yield from walk(inner, depth + 1)
        else:
            raise PipelineError(f"{where} config should be a string or a nested array of strings up to 10 levels deep")

    return tuple(walk(value, 0))


def _array_of_strings(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise PipelineError(f"{where} should be an array of strings")
    return tuple(value)


def _parallel(name: str, parallel: Any) -> list[tuple[str, dict[str, Variable]]]:
    """Suffix of the name and own variables of each copy."""
    if parallel is None:
        return [("", {})]
    if isinstance(parallel, int) and not isinstance(parallel, bool):
        if not 1 <= parallel <= 200:
            raise PipelineError(f"jobs:{name}:parallel config must be greater than or equal to 1")
        combinations: list[tuple[str, dict[str, str]]] = [(f" {n}/{parallel}", {}) for n in range(1, parallel + 1)]
    else:
        _only_keys(f"jobs:{name}:parallel", parallel, {"matrix"})
        combinations = []
        for row in _as_list(parallel.get("matrix")):
            if not isinstance(row, dict) or not row:
                raise PipelineError(f"jobs:{name}:parallel:matrix config should be an array of hashes")
            for values in itertools.product(*(_as_list(value) for value in row.values())):
                texts = [_scalar_text(value) or "" for value in values]
                combinations.append((f": [{', '.join(texts)}]", dict(zip(map(str, row), texts, strict=True))))
        if not 1 <= len(combinations) <= 200:
            raise PipelineError(f"jobs:{name}:parallel:matrix config generates too many jobs (maximum is 200)")
    return [
        (
            suffix,
            {key: Variable(value) for key, value in own.items()}
            | {"CI_NODE_INDEX": Variable(str(index)), "CI_NODE_TOTAL": Variable(str(len(combinations)))},
        )
        for index, (suffix, own) in enumerate(combinations, 1)
    ]


def _job(base_name: str, name: str, entry: Config, source: str, variables: dict[str, Variable]) -> Job:
    where = f"jobs:{base_name}"
    when = entry.get("when", "on_success")
    allow_failure = entry.get("allow_failure", when == "manual")
    codes: tuple[int, ...] = ()
    if isinstance(allow_failure, dict):
        _only_keys(f"{where}:allow_failure", allow_failure, {"exit_codes"})
        codes, allow_failure = _integers(f"{where}:allow_failure exit codes", allow_failure["exit_codes"]), False
    if not isinstance(allow_failure, bool):
        raise PipelineError(f"{where} allow failure should be a hash or a boolean value")
    timeout = entry.get("timeout")
    if timeout is not None and not parse_duration(timeout):
        raise PipelineError(f"{where} timeout should be a duration")
    if not isinstance(entry.get("interruptible", False), bool):
        raise PipelineError(f"{where}:interruptible config should be a boolean value")
    image = entry.get("image")
    if isinstance(image, dict):
        _only_keys(f"{where}:image", image, {"name", "entrypoint", "docker", "kubernetes", "ports", "pull_policy"})
        image = image.get("name")
    if image is not None and not isinstance(image, str):
        raise PipelineError(f"{where}:image config should be a hash or a string")
    return Job(
        name=name,
        base_name=base_name,
        stage=entry.get("stage", "test"),
        source=source,
        script=_strings(f"{where}:script", entry["script"]),
        before_script=_strings(f"{where}:before_script", entry.get("before_script", [])),
        after_script=_strings(f"{where}:after_script", entry.get("after_script", [])),
        variables=variables,
        image=image,
        tags=_array_of_strings(f"{where}:tags config", entry.get("tags", [])),
        when=when,
        allow_failure=allow_failure,
        allow_failure_exit_codes=codes,
        needs=_needs(f"{where}:needs", entry["needs"]) if "needs" in entry else None,
        dependencies=(
            _array_of_strings(f"{where} dependencies", entry["dependencies"]) if "dependencies" in entry else None
        ),
        artifacts=_artifacts(f"{where}:artifacts", entry["artifacts"]) if "artifacts" in entry else None,
        retry=_retry(f"{where}:retry", entry.get("retry", 0)),
        timeout=parse_duration(timeout) if timeout is not None else None,
        interruptible=entry.get("interruptible", False),
        environment=_environment(f"{where}:environment", entry["environment"]) if "environment" in entry else None,
        id_tokens=_id_tokens(f"{where}:id_tokens", entry.get("id_tokens", {})),
        resource_group=entry.get("resource_group"),
    )


def _integers(where: str, value: Any) -> tuple[int, ...]:
    values = _as_list(value)
    if not values or not all(isinstance(part, int) and not isinstance(part, bool) for part in values):
        raise PipelineError(f"{where} should be an array of integers or an integer")
    return tuple(values)


def _needs(where: str, config: Any) -> tuple[Need, ...]:
    needs = []
    if not isinstance(config, list):
        raise PipelineError(f"{where} config can only be a hash or an array")
    for entry in config:
        if isinstance(entry, str):
            needs.append(Need(entry))
            continue
        if not isinstance(entry, dict) or "job" not in entry:
            if isinstance(entry, dict) and {"pipeline", "project"} & entry.keys():
                raise NotPlayed("needs:pipeline and needs:project cannot be played in a rehearsal")
            raise PipelineError(f"{where}:need has an unsupported type")
        if {"pipeline", "project", "ref"} & entry.keys():
            raise NotPlayed("needs:pipeline and needs:project cannot be played in a rehearsal")
        _only_keys(f"{where}:need", entry, {"job", "artifacts", "optional", "parallel"})
        if "parallel" in entry:
            raise NotPlayed("needs:parallel cannot be played in a rehearsal")
        for flag in ("artifacts", "optional"):
            if not isinstance(entry.get(flag, True), bool):
                raise PipelineError(f"{where}:need {flag} should be a boolean value")
        needs.append(Need(entry["job"], entry.get("artifacts", True), entry.get("optional", False)))
    return tuple(needs)


def _artifacts(where: str, config: Any) -> Artifacts:
    _only_keys(where, config, ARTIFACT_KEYS)
    if config.get("untracked"):
        raise NotPlayed("artifacts:untracked cannot be played in a rehearsal")
    if (when := config.get("when", "on_success")) not in ARTIFACTS_WHEN:
        raise PipelineError(f"{where} when should be one of: {', '.join(ARTIFACTS_WHEN)}")
    expire_in = config.get("expire_in")
    if expire_in is not None and expire_in != "never" and parse_duration(expire_in) is None:
        raise PipelineError(f"{where} expire in should be a duration")
    reports = config.get("reports") or {}
    _only_keys(f"{where}:reports", reports, REPORT_KEYS)
    return Artifacts(
        paths=_array_of_strings(f"{where} paths", config.get("paths", [])),
        exclude=_array_of_strings(f"{where} exclude", config.get("exclude", [])),
        when=when,
        name=str(config.get("name", "")),
        expire_in=None if expire_in is None else str(expire_in),
        reports={kind: _strings(f"{where}:reports {kind}", paths) for kind, paths in reports.items()
                 if kind != "coverage_report"},
    )  # fmt: skip


def _retry(where: str, config: Any) -> Retry:
    if isinstance(config, int) and not isinstance(config, bool):
        config = {"max": config}
    if not isinstance(config, dict):
        raise PipelineError(f"{where} config has to be either an integer or a hash")
    _only_keys(where, config, {"max", "when", "exit_codes"})
    most = config.get("max", 0)
    if not isinstance(most, int) or isinstance(most, bool):
        raise PipelineError(f"{where} max is not a number")
    if most > 2:
        raise PipelineError(f"{where} max must be less than or equal to 2")
    if most < 0:
        raise PipelineError(f"{where} max must be greater than or equal to 0")
    codes = _integers(f"{where} exit codes", config["exit_codes"]) if "exit_codes" in config else ()
    when = tuple(_as_list(config.get("when", [] if codes else ["always"])))
    if unknown := [str(reason) for reason in when if reason not in RETRY_WHEN]:
        raise PipelineError(f"{where} when contains unknown values: {', '.join(unknown)}")
    return Retry(most, when, codes)


def _environment(where: str, config: Any) -> Environment:
    if isinstance(config, str):
        config = {"name": config}
    if not isinstance(config, dict):
        raise PipelineError(f"{where} config should be a hash or a string")
    _only_keys(where, config, ENVIRONMENT_KEYS)
    name = config.get("name")
    if not name:
        raise PipelineError(f"{where} name can't be blank")
    if not isinstance(name, str) or not ENVIRONMENT_NAME.fullmatch(name):
        raise PipelineError(f"{where} name {ENVIRONMENT_NAME_MESSAGE}")
    if (action := config.get("action", "start")) not in ("start", "stop", "prepare", "verify", "access"):
        raise PipelineError(f"{where} action should be start, stop, prepare, verify, or access")
    auto_stop = config.get("auto_stop_in")
    if auto_stop is not None and "$" not in str(auto_stop) and parse_duration(auto_stop) is None:
        raise PipelineError(f"{where} auto stop in should be a duration")
    return Environment(
        name, action, config.get("url"), config.get("on_stop"), None if auto_stop is None else str(auto_stop)
    )


def _id_tokens(where: str, config: Any) -> dict[str, tuple[str, ...]]:
    tokens = {}
    for name, token in config.items():
        _only_keys(f"{where}:{name}", token, {"aud"})
        if not token.get("aud"):
            raise PipelineError(f"{where}:{name} config missing required keys: aud")
        tokens[str(name)] = _strings(f"{where}:{name} aud", token["aud"])
    return tokens


def _check_job(name: str, entry: Config, stages: tuple[str, ...], entries: dict[str, Config]) -> None:
    """What GitLab checks before it looks at the rules."""
    if not entry["script"]:
        raise PipelineError(f"jobs:{name} script can't be blank")
    if len(name) > 255:
        raise PipelineError(f"jobs:{name} name is too long (maximum is 255 characters)")
    if "rules" in entry and (both := [key for key in ("only", "except", "start_in") if key in entry]):
        raise PipelineError(f"jobs:{name} config key may not be used with `rules`: {', '.join(both)}")
    if entry.get("when", "on_success") not in JOB_WHEN:
        raise PipelineError(f"jobs:{name} when should be one of: {', '.join(JOB_WHEN)}")
    job = _job(name, name, entry, "", {})
    if job.stage not in stages:
        raise PipelineError(f"{name} job: chosen stage does not exist; available stages are {', '.join(stages)}")
    needed = [need for need in job.needs or ()]
    if "rules" in entry:
        needed += [need for rule in _flat(entry["rules"]) for need in _needs("needs", rule.get("needs", []))]
    for need in needed:
        if need.job in entries or not need.optional:
            _check_order(name, need.job, "need", stages, entries)
    names = [need.job for need in job.needs or ()]
    if twice := [one for one in dict.fromkeys(names) if names.count(one) > 1]:
        raise PipelineError(f"{name} has the following needs duplicated: {', '.join(twice)}.")
    if len(names) > MOST_NEEDS:
        raise PipelineError(f"{name}: one job can only need {MOST_NEEDS} others, but you have listed {len(names)}. "
                            "See needs keyword documentation for more details")  # fmt: skip
    for dependency in job.dependencies or ():
        _check_order(name, dependency, "dependency", stages, entries)
    if names and (missing := [one for one in job.dependencies or () if one not in names]):
        raise PipelineError(f"jobs:{name} dependencies the {', '.join(missing)} should be part of needs")
    if job.environment and job.environment.on_stop:
        _check_on_stop(name, job.environment, entries)


def _check_order(name: str, other: str, kind: str, stages: tuple[str, ...], entries: dict[str, Config]) -> None:
    if other not in entries:
        raise PipelineError(f"{name} job: undefined {kind}: {other}")
    stage = entries[other].get("stage", "test")
    if stage not in stages or stages.index(stage) > stages.index(entries[name].get("stage", "test")):
        raise PipelineError(f"{name} job: {kind} {other} is not defined in current or prior stages")


def _check_on_stop(name: str, environment: Environment, entries: dict[str, Config]) -> None:
    on_stop = environment.on_stop
    if on_stop not in entries:
        raise PipelineError(f"{name} job: on_stop job {on_stop} is not defined")
    if "environment" not in entries[on_stop]:
        raise PipelineError(f"{name} job: on_stop job {on_stop} does not have environment defined")
    other = _environment(f"jobs:{on_stop}:environment", entries[on_stop]["environment"])
    if other.name != environment.name:
        raise PipelineError(f"{name} job: on_stop job {on_stop} have different environment name")
    if other.action != "stop":
        raise PipelineError(f"{name} job: on_stop job {on_stop} needs to have action stop defined")


def _bind(jobs: list[Job]) -> list[Job]:
    """Replace names of the YAML in needs and dependencies by the names of the jobs that this pipeline has."""
    names: dict[str, list[str]] = {}
    for job in jobs:
        names.setdefault(job.base_name, []).append(job.name)
    bound = []
    for job in jobs:
        if job.needs is not None:
            needs: list[Need] = []
            for need in job.needs:
                if need.job not in names and not need.optional:
                    raise PipelineError(
                        f"'{job.name}' job needs '{need.job}' job, but '{need.job}' does not exist in the pipeline. "
                        "This might be because of the only, except, or rules keywords. To need a job that sometimes "
                        "does not exist in the pipeline, use needs:optional."
                    )
                needs += [replace(need, job=name) for name in names.get(need.job, [])]
            job = replace(job, needs=tuple(needs))
        if job.dependencies is not None:
            job = replace(job, dependencies=tuple(n for d in job.dependencies for n in names.get(d, [])))
        bound.append(job)
    return bound
