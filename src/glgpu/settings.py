"""What a team sets, read once at the door: ``glgpu.yml``, ``GLGPU_*`` variables, the command line.

Precedence: command line, environment, file, defaults. Everything below this module receives frozen values.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from glgpu.errors import ErrorClass, Failure
from glgpu.masking import SHORTEST

LARGEST_FILE = 65_536
"""Bytes that a glgpu.yml may have."""
LONGEST_MAX_HOURS = 2_880.0
"""Compute Engine's own limit: 120 days (https://cloud.google.com/compute/docs/instances/limit-vm-runtime)."""


def _argv(value: Any) -> Any:
    """Split a command by shell rules, without expansion; a list is taken as it is."""
    if isinstance(value, str):
        return shlex.split(value)
    return value


def _text(value: Any) -> Any:
    """Take a plain number where text is wanted; true and false have no one spelling and are refused."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _mapping(value: Any) -> Any:
    """A section whose keys are all commented out is an empty one."""
    return {} if value is None else value


def _inside(path: str) -> str:
    """Refuse a path that leaves the folder of glgpu.yml."""
    if path.startswith("/"):
        raise ValueError("must be relative to the folder of glgpu.yml, not absolute")
    if ".." in path.split("/"):
        raise ValueError("must stay in the folder of glgpu.yml, without `..`")
    if "\0" in path or not path.strip("./"):
        raise ValueError("must name a file or folder below the folder of glgpu.yml")
    return path


def _output(path: str) -> str:
    """Refuse what would land on glgpu's own files in outputs/."""
    if PurePosixPath(path).parts[0] == "glgpu":
        raise ValueError("must not be `glgpu`: outputs/glgpu/ holds the run record, the log and the checksums")
    return path


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


def _image(value: str) -> str:
    # Only what could be taken for an option or could not be one argument is refused; the engine judges the rest.
    if value.startswith("-") or not value.strip() or re.search(r"[\s\0]", value):
        raise ValueError("must be an image reference such as registry.example.com/team/train:latest")
    return value


def _cidr(value: str) -> str:
    import ipaddress

    network = ipaddress.IPv4Network(value, strict=False)
    if network.prefixlen == 0:
        raise ValueError("would open the VM to the whole internet")
    return str(network)


SCALAR = ["string", "number", "boolean"]
"""What may stand in a glgpu.yml where text is wanted: it is taken as it is written, quoted or not."""
Name = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
LabelValue = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9_-]{0,63}$"), BeforeValidator(_text), WithJsonSchema({"type": SCALAR})
]
InnerPath = Annotated[str, AfterValidator(_inside)]
OutputPath = Annotated[InnerPath, AfterValidator(_output)]
Argument = Annotated[str, BeforeValidator(_text), AfterValidator(_no_nul), WithJsonSchema({"type": SCALAR})]
Command = Annotated[
    list[Argument],
    BeforeValidator(_argv),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": SCALAR}, "minItems": 1}]}),
]
Ranges = Annotated[list[Annotated[str, AfterValidator(_cidr)]], Field(min_length=1)]
GpuName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
Zone = Annotated[str, StringConstraints(pattern=r"^[a-z]+-[a-z]+[0-9]+-[a-z]$")]
Region = Annotated[str, StringConstraints(pattern=r"^[a-z]+-[a-z]+[0-9]+$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Machine(_Section):
    """The VM."""

    gpu: list[GpuName] = Field(
        ["nvidia-l4", "nvidia-tesla-t4"],
        min_length=1,
        description="Accelerator types in order of preference (`glgpu gpus`); `none` needs `type`.",
    )
    count: int = Field(1, ge=1, le=16, description="GPUs per VM.")
    type: Name | None = Field(None, description="Machine type; null: the smallest that fits the GPU.")
    zones: list[Zone] = Field(default_factory=list, description="Zones in order of preference; or `regions`.")
    regions: list[Region] = Field(default_factory=list, description="Regions in order of preference; or `zones`.")
    spot: Literal["only", "prefer", "never"] = Field(
        "prefer", description="Whether spot VMs are wanted; `prefer`: a standard one where no zone has one to spare."
    )
    disk_gb: int = Field(100, ge=10, le=65536, description="Boot disk in GB; it also holds the container image.")
    disk_type: Name | None = Field(None, description="Boot disk type; null: the one that fits the machine type.")
    image: str | None = Field(
        None,
        pattern=r"^[a-z0-9/._:-]+$",
        description="Boot image or family as projects/P/global/images/...; null: the default family.",
    )
    service_account: str | None = Field(
        None,
        pattern=r"^\S+@\S+$",
        description="Service account of the VM; null: none, so nothing on the VM can use the cloud.",
    )
    max_hours: float | None = Field(
        None, gt=0, le=LONGEST_MAX_HOURS, description="The VM's hard end in hours; null: what the jobs' times can hold."
    )
    max_price: float | None = Field(
        None, gt=0, description="Most that an hour of machine, GPUs and disk may cost, in USD; held against estimates."
    )
    tags: list[Name] = Field(default_factory=list, description="Network tags beside the run's own.")

    @model_validator(mode="after")
    def _fits(self) -> Machine:
        if self.zones and self.regions:
            raise ValueError("`zones` and `regions` exclude each other")
        if "none" in self.gpu and (self.type is None or len(self.gpu) > 1):
            raise ValueError("gpu `none` stands alone and needs `type`")
        return self


class Train(_Section):
    """The training."""

    image: Annotated[str, AfterValidator(_image)] | None = Field(
        None, description="Container image; glgpu train needs it."
    )
    command: Command = Field(
        ["python", "train.py"], min_length=1, description="Split by shell rules without expansion; a list is argv."
    )
    outputs: list[OutputPath] = Field(["weights/"], min_length=1, description="Files and folders to bring home.")
    checkpoints: InnerPath | None = Field(
        "checkpoints/", description="Folder of checkpoints, which come home while the training runs; null: none."
    )
    env: dict[VariableName, Argument] = Field(
        default_factory=dict, description="Environment of the container; nothing secret."
    )
    secrets: list[VariableName] = Field(
        default_factory=list, description="Names of CI variables to hand to the container; file variables too."
    )
    follow: Literal["auto"] | bool = Field(
        "auto",
        description="Whether the job stays until the training ends; auto: unless machine.max_hours is longer than it.",
    )
    on_cancel: Literal["save", "drop"] = Field(
        "save", description="Whether outputs come home when the job is cancelled."
    )
    shm_gb: float | None = Field(None, gt=0, le=65536, description="Size of /dev/shm; null: the host's IPC namespace.")


class Notebook(_Section):
    """The notebook."""

    idle_minutes: float = Field(60, gt=0, le=10_080, description="Minutes without work after which it ends.")
    save_mb: int = Field(500, ge=1, description="Most that is saved of the workspace.")
    can_push: bool = Field(
        False, description="Whether the end of a notebook also pushes its work, as `glgpu-notebook/<user>/<branch>`."
    )


class Net(_Section):
    """The network."""

    access: Literal["external", "iap"] = Field("external", description="How the VM is reached.")
    external_ip: bool = Field(True, description="False needs a NAT.")
    allow: Literal["auto"] | Ranges = Field(
        "auto", description="Who may reach the SSH port: the caller's own address, or a list of IPv4 ranges."
    )
    echo: str = Field(
        "https://api.ipify.org", pattern=r"^https?://", description="Tells a caller its address, as plain text."
    )
    name: Name = Field("default", description="Network.")
    subnetwork: str | None = Field(None, pattern=r"^[a-z0-9/.:_-]+$", description="Subnetwork, by name or path.")


class Limits(_Section):
    """Limits."""

    live_vms: int = Field(2, ge=1, description="VMs that one GitLab project may have alive at once.")
    claim_minutes: int = Field(20, ge=1, le=1440, description="Minutes for which a VM waits for the job that uses it.")
    create_minutes: float = Field(
        5, gt=0, le=20, description="Minutes that Google may take to create a VM before the next candidate is tried."
    )
    boot_minutes: float = Field(5, gt=0, le=60, description="Minutes that a running VM may take to let us in.")
    delete_minutes: float = Field(
        10,
        gt=0,
        le=60,
        description="Minutes for which a teardown waits for each thing under way: a delete, an insert, and, for one of "
        "them at most, the holder of the state's lock.",
    )
    idle_minutes: float = Field(
        10, gt=0, le=1440, description="Minutes of an idle GPU in a training after which the job's log warns of it."
    )
    rescue_minutes: int = Field(
        10,
        ge=0,
        le=120,
        description="Minutes that a teardown may spend on outputs; a training is told to end that long before its job.",
    )


class Storage(_Section):
    """Where big outputs go."""

    bucket: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$",
        description="A Cloud Storage bucket, for Terraform's states, outputs that are too big for artifacts, and what "
        "VMs leave whose trainings no job waits for.",
    )
    uploader: str | None = Field(
        None,
        pattern=r"^\S+@\S+$",
        description="Service account with which a VM whose training no job waits for adds to the bucket; it should be "
        "able to create objects there and nothing else. null: machine.service_account, else none.",
    )
    artifact_mb: int | None = Field(
        None,
        ge=1,
        description="Most that GitLab takes as artifacts, in its MB of 1024 * 1024 bytes; null: what the instance "
        "says, else 1000 on GitLab.com and 100 elsewhere.",
    )


class Settings(_Section):
    """A whole glgpu.yml."""

    project: str | None = Field(None, pattern=r"^[a-z][a-z0-9:.-]{1,61}[a-z0-9]$", description="Google Cloud project.")
    machine: Annotated[Machine, BeforeValidator(_mapping)] = Machine()
    train: Annotated[Train, BeforeValidator(_mapping)] = Train()
    notebook: Annotated[Notebook, BeforeValidator(_mapping)] = Notebook()
    network: Annotated[Net, BeforeValidator(_mapping)] = Net()
    limits: Annotated[Limits, BeforeValidator(_mapping)] = Limits()
    storage: Annotated[Storage, BeforeValidator(_mapping)] = Storage()
    code: Literal["auto", "deploy-key", "job"] = Field("auto", description="How the code reaches the VM.")
    state: Literal["auto", "gitlab", "gcs", "local"] = Field(
        "auto",
        description="Where Terraform's state lives; auto: storage.bucket if it is set, else GitLab if it lets us, else "
        "nowhere after the job.",
    )
    labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, max_length=50, description="Labels of the VM beside glgpu's own."
    )

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if self.state == "gcs" and self.storage.bucket is None:
            raise ValueError("`state: gcs` needs storage.bucket")
        taken = [key for key in self.labels if key.startswith("glgpu")]
        if taken:
            raise ValueError(f"label {taken[0]!r} is glgpu's own")
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema of glgpu.yml, as published in docs/reference."""
    return Settings.model_json_schema()


class _PlainLoader(yaml.SafeLoader):
    """YAML in which a value is what is written, without aliases and without repeated keys.

    A few bytes of aliases can stand for gigabytes. YAML 1.1 makes 3.1 of `3.10`, 45045 of `12:30:45` and false of
    `no`; here only null is anything else than its text, and the settings say what a text has to be.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, f"aliases are not accepted (line {self.line + 1})")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        # JSON writes an emoji as two escapes; a half of one is no text (UnicodeDecodeError is a ValueError).
        value = super().construct_scalar(node)
        return value.encode("utf-16", "surrogatepass").decode("utf-16") if isinstance(value, str) else value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_file(path: Path) -> dict[str, Any]:
    """Read a glgpu.yml without judging its values.

    Raises:
        Failure: CONFIG, when it is missing, too large, no YAML, or no mapping.
    """
    remedy = f"mend {path}; docs/reference/settings.md shows every key"
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise Failure(ErrorClass.CONFIG, f"{path} has more than {LARGEST_FILE} bytes", remedy)
        raw = yaml.load(data.decode("utf-8"), Loader=_PlainLoader)
    except FileNotFoundError:
        raise Failure(
            ErrorClass.CONFIG, f"there is no {path}", "write one with `glgpu init`, or name another with --config"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(ErrorClass.CONFIG, f"{path} cannot be read: {error}", remedy) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise Failure(ErrorClass.CONFIG, f"{path} is not plain YAML: {error}", remedy) from None
    if raw is None:
        raise Failure(ErrorClass.CONFIG, f"{path} is empty", "write one with `glgpu init`")
    if not isinstance(raw, dict):
        raise Failure(ErrorClass.CONFIG, f"{path} holds no keys at its top level", remedy)
    return raw


def load_settings(path: Path | None, environment: Mapping[str, str], overrides: Sequence[str] = ()) -> Settings:
    """Read the settings of one run.

    Args:
        path: The glgpu.yml; None where there is none to read (defaults and environment count alone).
        environment: Variables; ``GLGPU_<SECTION>_<KEY>`` override the file.
        overrides: ``section.key=value`` from the command line; they override everything.

    Raises:
        Failure: CONFIG, with the first thing that is wrong and where it stands.
    """
    raw = read_file(path) if path else {}
    sources: dict[str, str] = {}
    for source, dotted, text in [*_from_environment(environment), *map(_override, overrides)]:
        _set(raw, dotted, text, source)
        sources[dotted] = source
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise _explained(error, str(path) if path else "the settings", sources) from None


def _fields(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every key of the settings by its dotted name, with its annotation."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= _fields(annotation, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = annotation
    return found


def _from_environment(environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    names = {dotted: "GLGPU_" + dotted.replace(".", "_").upper() for dotted in _fields(Settings)}
    return [(name, dotted, environment[name]) for dotted, name in names.items() if environment.get(name)]


def _override(text: str) -> tuple[str, str, str]:
    dotted, equals, value = text.partition("=")
    if not equals or dotted not in _fields(Settings):
        raise Failure(
            ErrorClass.USAGE,
            f"--set {text!r} names no setting{_nearest(dotted, list(_fields(Settings)))}",
            "write it like --set machine.spot=never",
        )
    return "--set", dotted, value


def _set(raw: dict[str, Any], dotted: str, text: str, source: str) -> None:
    annotation = _fields(Settings)[dotted]
    *sections, key = dotted.split(".")
    for section in sections:
        if raw.get(section) is None:
            raw[section] = {}
        if not isinstance(raw[section], dict):
            return  # the validation names what is wrong there
        raw = raw[section]
    origins = _origins(annotation)
    items = [item.strip() for item in text.split(",") if item.strip()]
    if text in ("null", "") and type(None) in origins:
        raw[key] = None
    elif key == "command":
        raw[key] = text
    elif dict in origins:
        if lone := [item for item in items if "=" not in item]:
            raise Failure(
                ErrorClass.CONFIG, f"{source}: {dotted}: {lone[0]!r} is no NAME=VALUE", "write it like A=1,B=2"
            )
        raw[key] = dict(item.partition("=")[::2] for item in items)
    elif list in origins and not (text == "auto" and Literal in origins):
        raw[key] = items
    else:
        raw[key] = text


def _origins(annotation: Any) -> set[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _origins(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_origins(part) for part in typing.get_args(annotation)))
    return {origin or annotation}


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _explained(error: ValidationError, where: str, sources: Mapping[str, str]) -> Failure:
    # Each alternative of a union that did not fit has its own error; the one that got furthest is what was meant.
    found = error.errors(include_url=False)
    first = max((e for e in found if e["loc"][:2] == found[0]["loc"][:2]), key=lambda e: len(e["loc"]))
    place = _place(first["loc"])
    dotted = ".".join(place)
    if first["type"] == "extra_forbidden":
        siblings = _siblings(place[:-1])
        cause = f"{where}: unknown key {dotted!r}{_nearest(place[-1], siblings)}"
        return Failure(ErrorClass.CONFIG, cause, f"known here: {', '.join(siblings)}")
    source = next((name for key, name in sources.items() if f"{dotted}.".startswith(f"{key}.")), where)
    shown = "" if isinstance(first["input"], dict) else f" = {repr(first['input'])[:60]}"
    message = "must hold keys" if first["type"] == "model_type" else first["msg"].removeprefix("Value error, ")
    return Failure(
        ErrorClass.CONFIG,
        f"{source}: {dotted + shown + ': ' if dotted else ''}{message}",
        "mend that value; docs/reference/settings.md shows every key",
    )


def _place(location: Sequence[int | str]) -> list[str]:
    """The key that an error is about, without the words by which pydantic tells alternatives apart."""
    fields = _fields(Settings)
    for length in (1, 2):
        annotation = fields.get(".".join(map(str, location[:length])))
        if annotation is not None:
            inner = list(location[length:])
            if {Literal} < _origins(annotation):
                inner = inner[1:]
            return [str(part) for part in [*location[:length], *inner] if part != "[key]"]
    return [str(part) for part in location]


def _siblings(place: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in place:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def check_secrets(names: Sequence[str], environment: Mapping[str, str]) -> None:
    """Refuse secrets that are missing, empty or too short to be kept out of the logs, before anything costs money.

    Raises:
        Failure: CONFIG.
    """
    for name in names:
        value = read_secret(name, environment)[0]
        if not value:
            raise Failure(
                ErrorClass.CONFIG,
                f"train.secrets names {name}, but that variable is missing or empty here",
                f"set the CI variable {name} (a protected one is absent on unprotected branches), or take it out",
            )
        if len(value.strip()) < SHORTEST:
            raise Failure(
                ErrorClass.CONFIG,
                f"the secret {name} has fewer than {SHORTEST} characters: it could not be kept out of the log",
                f"make {name} longer, or, if it is no secret, set it under train.env",
            )


def read_secret(name: str, environment: Mapping[str, str]) -> tuple[str, bool]:
    """The value of a CI variable, and whether GitLab gave it as a file.

    A variable of type file holds the path ``$CI_PROJECT_DIR.tmp/NAME`` of a file with the value
    (https://docs.gitlab.com/ci/variables/#use-file-type-cicd-variables).
    """
    value = environment.get(name, "")
    project_dir = environment.get("CI_PROJECT_DIR", "")
    if project_dir and value == f"{project_dir}.tmp/{name}":
        try:
            return Path(value).read_text(encoding="utf-8", errors="surrogateescape"), True
        except OSError:
            return "", True
    return value, False


def process_environment() -> dict[str, str]:
    """The variables of this process, as a plain value for everything below."""
    return dict(os.environ)
