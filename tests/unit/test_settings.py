"""What a team sets arrives as it is written, or is refused by name before anything costs money."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from glgpu.errors import ErrorClass, Failure
from glgpu.settings import (
    LARGEST_FILE,
    Settings,
    check_secrets,
    json_schema,
    load_settings,
    process_environment,
    read_secret,
)

ROOT = Path(__file__).resolve().parents[2]
ANYTHING = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))

each_in_its_own_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def models(model: type[BaseModel] = Settings, prefix: str = "") -> dict[str, type[BaseModel]]:
    """Every section by its dotted name; the whole file has none."""
    found = {prefix.rstrip("."): model}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= models(field.annotation, f"{prefix}{name}.")
    return found


KEYS = {
    f"{section}.{name}".lstrip("."): field
    for section, model in models().items()
    for name, field in model.model_fields.items()
    if f"{section}.{name}".lstrip(".") not in models()
}


def nested(dotted: str, value: Any) -> dict[str, Any]:
    *sections, key = dotted.split(".")
    whole: dict[str, Any] = {key: value}
    for section in reversed(sections):
        whole = {section: whole}
    return whole


def value_of(loaded: Settings, dotted: str) -> Any:
    value: Any = loaded
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def load(
    tmp_path: Path, text: str | bytes, environment: Mapping[str, str] | None = None, overrides: Sequence[str] = ()
) -> Settings:
    path = tmp_path / "glgpu.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings(path, environment or {}, overrides)


def refused(tmp_path: Path, text: str | bytes, environment: Mapping[str, str] | None = None) -> Failure:
    with pytest.raises(Failure) as caught:
        load(tmp_path, text, environment)
    assert caught.value.klass is ErrorClass.CONFIG
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    return caught.value


def written(value: Any) -> str:
    return yaml.safe_dump(value)


def test_the_settings_of_the_example_are_valid() -> None:
    loaded = load_settings(ROOT / "examples/text-generation/glgpu.yml", {})
    assert loaded.train.command[-1] == "train.py"


def test_a_file_in_a_subfolder_is_read_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "models/one").mkdir(parents=True)
    assert load(tmp_path / "models/one", "project: my-dl").project == "my-dl"


# What is no glgpu.yml


def test_a_missing_file_is_named_with_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        load_settings(tmp_path / "glgpu.yml", {})
    assert "there is no" in caught.value.cause
    assert "glgpu init" in caught.value.remedy


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n", "---\n", "null"])
def test_an_empty_file_is_called_empty(tmp_path: Path, text: str) -> None:
    assert "is empty" in refused(tmp_path, text).cause


@pytest.mark.parametrize("text", ["- a\n- b", "just words", "42", "true", "''"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    assert "holds no keys" in refused(tmp_path, text).cause


def test_an_alias_bomb_goes_off_nowhere(tmp_path: Path) -> None:
    lines = ["a0: &a0 [lol, lol]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    assert "aliases are not accepted (line 2)" in refused(tmp_path, "\n".join(lines)).cause


def test_a_file_of_100_kb_is_not_even_parsed(tmp_path: Path) -> None:
    assert str(LARGEST_FILE) in refused(tmp_path, "project: my-dl\n#" + "x" * 100_000).cause
    assert load(tmp_path, "project: my-dl\n#" + "x" * (LARGEST_FILE - 20)).project == "my-dl"


@pytest.mark.parametrize(
    "text",
    [
        *("a: [", "a: b: c", "\ta: 1", "a: 'x", "[" * 60_000, "a: !!python/object/apply:os.system [ls]", "? [a]\n: 1"),
        *("project: \x07", 'project: "\\ud800"', "project: my-dl\n---\nproject: other"),
        *(b"\xff\xfe\x00", b"project: \xff"),
    ],
)
def test_what_is_no_plain_yaml_is_refused(tmp_path: Path, text: str | bytes) -> None:
    assert re.search("not plain YAML|cannot be read", refused(tmp_path, text).cause)


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    assert "'disk_gb' stands twice" in refused(tmp_path, "machine:\n  disk_gb: 10\n  disk_gb: 20").cause


def test_a_folder_is_no_glgpu_yml(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot be read"):
        load_settings(tmp_path, {})


@each_in_its_own_file
@given(text=st.one_of(st.text(max_size=200), st.binary(max_size=200)))
@example("'on': 1")
@example("~: 1")
@example("list: 1")
@example("str(x): 1")
@example("machine: {a[0]: 1}")
def test_whatever_a_file_holds_it_is_settings_or_a_refusal(tmp_path: Path, text: str | bytes) -> None:
    assume(not isinstance(text, str) or text.isprintable())
    try:
        loaded: object = load(tmp_path, text)
    except Failure as failure:
        loaded = failure.exit_code
    assert isinstance(loaded, Settings) or loaded == 2


# Keys


@pytest.mark.parametrize("section", models())
def test_an_unknown_key_is_refused_and_the_nearest_known_one_named(tmp_path: Path, section: str) -> None:
    for key in models()[section].model_fields:
        if section == "" and key in models():
            continue
        misspelt = key[:1] + "_" + key[1:] if len(key) > 3 else key + "s"
        dotted = f"{section}.{misspelt}".lstrip(".")
        failure = refused(tmp_path, written(nested(dotted, 1)))
        assert f"unknown key {dotted!r}" in failure.cause
        assert f"did you mean {key!r}?" in failure.cause
        assert key in failure.remedy


@pytest.mark.parametrize("key", ["list", "str(x)", "a[0]", "bool", "literal", "on", "yes", "12", "null_", "ümlaut"])
def test_an_unknown_key_is_named_as_it_stands(tmp_path: Path, key: str) -> None:
    assert f"unknown key {key!r}" in refused(tmp_path, f"{key}: 1").cause
    assert f"unknown key 'train.{key}'" in refused(tmp_path, f"train: {{'{key}': 1}}").cause


def wrong_for(schema: Mapping[str, Any]) -> list[Any]:
    """Values that a key cannot take, from its published schema."""
    kinds = [schema, *schema.get("anyOf", [])]
    types = {kind["type"] for kind in kinds if isinstance(kind.get("type"), str)}
    wrong: list[Any] = [{"a": [1]}] if "object" not in types else ["words", [1]]
    if "array" not in types:
        wrong.append([["x"]])
    if types & {"integer", "number"}:
        wrong += ["many", -1, "nan", ".nan", "inf", "1e999", "9" * 5000, True, "10,5", "0x10"]
    if types == {"integer"}:
        wrong += ["1.5"]
    if types == {"boolean"} or any("const" in kind for kind in kinds):
        wrong.append("perhaps")
    if any("enum" in kind for kind in kinds):
        wrong.append("something-else")
    if not types & {"null"}:
        wrong.append(None)
    return wrong


@pytest.mark.parametrize("dotted", KEYS)
def test_a_value_of_the_wrong_type_is_refused_with_its_key(tmp_path: Path, dotted: str) -> None:
    *sections, key = dotted.split(".")
    schema = json_schema()
    for section in sections:
        schema = json_schema()["$defs"][schema["properties"][section]["$ref"].rsplit("/", 1)[1]]
    for value in wrong_for(schema["properties"][key]):
        failure = refused(tmp_path, written(nested(dotted, value)))
        assert f"{dotted} = " in failure.cause or f"{dotted}: " in failure.cause or f"{dotted}." in failure.cause
        assert len(failure.cause) < 500


def test_a_key_with_alternatives_is_named_without_them(tmp_path: Path) -> None:
    assert "train.follow = 'perhaps': " in refused(tmp_path, "train: {follow: perhaps}").cause
    assert "network.allow.1 = 'here': " in refused(tmp_path, "network: {allow: [1.2.3.4, here]}").cause
    assert "train.command.1: " in refused(tmp_path, "train: {command: [x, {a: b}]}").cause


@pytest.mark.parametrize("section", [name for name in models() if name])
def test_a_section_whose_keys_are_all_commented_out_has_its_defaults(tmp_path: Path, section: str) -> None:
    assert load(tmp_path, f"{section}:\n  # nothing\n") == Settings()
    assert "must hold keys" in refused(tmp_path, f"{section}: [1]").cause
    assert "must hold keys" in refused(tmp_path, f"{section}: words").cause


# Values, as they are written


@pytest.mark.parametrize(
    "text", ["3.10", "0010", "1_000", "12:30:45", "0x1F", "1e3", "2026-11-23", "no", "on", "true", ".5", "<<", "="]
)
def test_text_arrives_as_it_is_written_quoted_or_not(tmp_path: Path, text: str) -> None:
    loaded = load(tmp_path, f"train: {{env: {{X: {text}}}, command: [run, {text}]}}")
    assert loaded.train.env == {"X": text}
    assert loaded.train.command == ["run", text]
    assert loaded == load(tmp_path, f"train: {{env: {{X: '{text}'}}, command: [run, '{text}']}}")


def test_only_null_is_no_text(tmp_path: Path) -> None:
    for null in ("null", "~", ""):
        assert load(tmp_path, f"train:\n  checkpoints: {null}\n").train.checkpoints is None
    assert load(tmp_path, "train: {checkpoints: 'null'}").train.checkpoints == "null"


@each_in_its_own_file
@given(argv=st.lists(ANYTHING, min_size=1))
@example(["sh", "-c", "echo $HOME `id` $(id) ; rm -rf / && 'x' \"y\" | > < * ? ~ # ! \\ \n\t"])
@example(["\ufeff", "\u2028", "\x85", "\x7f", "\U0010ffff", ""])
def test_every_argument_survives_whatever_unicode_it_is_made_of(tmp_path: Path, argv: list[str]) -> None:
    assert load(tmp_path, json.dumps({"train": {"command": argv}})).train.command == argv
    assert load(tmp_path, written({"train": {"command": argv}})).train.command == argv


@each_in_its_own_file
@given(image=ANYTHING)
@example("registry.example.com:5000/team/train@sha256:0123;$(id)`id`'\"\\|&<>*?!#~")
def test_an_image_survives_unchanged_or_is_refused_as_none(tmp_path: Path, image: str) -> None:
    text = json.dumps({"train": {"image": image}})
    if image.startswith("-") or not image or re.search(r"\s", image):
        assert "train.image" in refused(tmp_path, text).cause
    else:
        assert load(tmp_path, text).train.image == image


@each_in_its_own_file
@given(words=st.lists(ANYTHING, min_size=1))
def test_a_command_is_split_by_the_rules_of_the_shell_without_expansion(tmp_path: Path, words: list[str]) -> None:
    assert load(tmp_path, json.dumps({"train": {"command": shlex.join(words)}})).train.command == words
    assert load_settings(None, {"GLGPU_TRAIN_COMMAND": shlex.join(words)}).train.command == words


def test_nothing_in_a_command_is_expanded(tmp_path: Path) -> None:
    loaded = load(tmp_path, "train: {command: 'python train.py --out \"$HOME/a b\" *.txt ~ # no comment'}")
    assert loaded.train.command == ["python", "train.py", "--out", "$HOME/a b", "*.txt", "~", "#", "no", "comment"]


@pytest.mark.parametrize("command", ["'python \"train.py'", "''", "'  '", "[]", '["a\\0b"]', "'a\\'"])
def test_a_command_that_is_none_is_refused(tmp_path: Path, command: str) -> None:
    assert "train.command" in refused(tmp_path, f"train: {{command: {command}}}").cause


@pytest.mark.parametrize(
    ("path", "why"),
    [
        *((path, "not absolute") for path in ("/etc/passwd", "/")),
        *((path, "without `..`") for path in ("../up", "a/../../b", "..", "a/..")),
        *((path, "must name") for path in (".", "./", "", "a\0b")),
        *((path, "run record") for path in ("glgpu", "./glgpu/x")),
    ],
)
def test_outputs_stay_in_the_folder_and_off_our_own_files(tmp_path: Path, path: str, why: str) -> None:
    failure = refused(tmp_path, json.dumps({"train": {"outputs": ["ok", path]}}))
    assert "train.outputs.1" in failure.cause
    assert why in failure.cause


@pytest.mark.parametrize(
    "path", ["weights/", "a b/c\nd", "-rf", "..hidden", "a..b", "grün/重み.bin", "*", "./x", "glgpu2"]
)
def test_outputs_may_have_any_name(tmp_path: Path, path: str) -> None:
    assert load(tmp_path, json.dumps({"train": {"outputs": [path], "checkpoints": path}})).train.outputs == [path]


def test_the_door_is_never_open_to_everybody(tmp_path: Path) -> None:
    for ranges in ("[]", "[0.0.0.0/0]", "[10.0.0.0/8, 1.2.3.4/0]", "['::/0']", "[example.com]", "0.0.0.0/0"):
        assert "network.allow" in refused(tmp_path, f"network: {{allow: {ranges}}}").cause
    assert refused(tmp_path, "project: my-dl", {"GLGPU_NETWORK_ALLOW": ","}).cause.startswith("GLGPU_NETWORK_ALLOW")
    assert load(tmp_path, "network: {allow: [203.0.113.7, 10.1.2.3/8]}").network.allow == [
        "203.0.113.7/32",
        "10.0.0.0/8",
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("machine: {zones: [europe-west1-b], regions: [europe-west1]}", "exclude each other"),
        ("machine: {gpu: [none]}", "needs `type`"),
        ("machine: {gpu: [none, nvidia-l4], type: n1-standard-4}", "stands alone"),
        ("labels: {glgpu-run: x}", "glgpu's own"),
        ("labels: {Team: x}", "labels.Team"),
        ("train: {env: {a-b: x}}", "train.env.a-b"),
        ("train: {secrets: [my secret]}", "train.secrets.0"),
        ("labels: {" + ", ".join(f"l{n}: x" for n in range(51)) + "}", "labels"),
    ],
)
def test_what_cannot_work_together_is_refused(tmp_path: Path, text: str, why: str) -> None:
    assert why in refused(tmp_path, text).cause


# Precedence


def another(dotted: str) -> list[tuple[Any, str]]:
    """Values of a key that are not its default, as the file has them and as a variable has them."""
    known: dict[str, list[tuple[Any, str]]] = {
        "machine.gpu": [(["nvidia-tesla-v100"], "nvidia-tesla-v100"), (["nvidia-l4"], " nvidia-l4 ,")],
        "machine.zones": [(["us-west1-a", "us-west1-b"], "us-west1-a,us-west1-b"), (["us-east1-b"], "us-east1-b")],
        "machine.regions": [(["us-west1"], "us-west1"), (["us-east1", "us-west1"], "us-east1, us-west1")],
        "machine.type": [("n1-standard-4", "n1-standard-4"), ("g2-standard-4", "g2-standard-4")],
        "machine.disk_type": [("pd-ssd", "pd-ssd"), ("pd-balanced", "pd-balanced")],
        "machine.spot": [("only", "only"), ("never", "never")],
        "machine.service_account": [("a@b", "a@b"), ("c@d", "c@d")],
        "storage.uploader": [("a@b", "a@b"), ("c@d", "c@d")],
        "machine.tags": [(["a", "b"], "a,b"), (["c"], "c")],
        "train.command": [(["a", "b c"], "a 'b c'"), (["d"], "d")],
        "train.outputs": [(["a", "b c/"], "a,b c/"), (["d"], "d")],
        "train.env": [({"A": "1", "B": "x=y"}, "A=1, B=x=y"), ({"C": ""}, "C=")],
        "train.secrets": [(["A", "B"], "A,B"), (["C"], "C")],
        "train.follow": [(True, "true"), (False, "false")],
        "train.on_cancel": [("drop", "drop"), ("save", "save")],
        "network.access": [("iap", "iap"), ("external", "external")],
        "network.allow": [(["1.2.3.4/32", "10.0.0.0/8"], "1.2.3.4/32,10.0.0.0/8"), (["5.6.7.8/32"], "5.6.7.8/32")],
        "network.echo": [("http://a", "http://a"), ("http://b", "http://b")],
        "code": [("job", "job"), ("deploy-key", "deploy-key")],
        "state": [("local", "local"), ("gitlab", "gitlab")],
        "labels": [({"a": "b", "c": "d"}, "a=b,c=d"), ({"e": "f"}, "e=f")],
        "project": [("project-one", "project-one"), ("project-two", "project-two")],
    }
    if dotted in known:
        return known[dotted]
    kinds = str(KEYS[dotted].annotation)
    if "bool" in kinds:
        return [(True, "yes"), (False, "no")]
    if "int" in kinds or "float" in kinds:
        return [(11, "11"), (12, "12")]
    return [("one", "one"), ("two", "two")]


@pytest.mark.parametrize("dotted", KEYS)
def test_command_line_beats_variable_beats_file_beats_default(tmp_path: Path, dotted: str) -> None:
    (low, low_text), (high, high_text) = another(dotted)
    name = "GLGPU_" + dotted.replace(".", "_").upper()
    default = value_of(load(tmp_path, "{}"), dotted)
    file = written(nested(dotted, low))
    assert value_of(load(tmp_path, file), dotted) == low
    assert value_of(load_settings(None, {name: low_text}), dotted) == low
    assert value_of(load(tmp_path, file, {name: high_text}), dotted) == high
    assert value_of(load(tmp_path, file, {name: ""}), dotted) == low, "an empty variable is not set"
    assert value_of(load(tmp_path, file, {name: high_text}, [f"{dotted}={low_text}"]), dotted) == low
    assert value_of(load(tmp_path, file, {}, [f"{dotted}={low_text}", f"{dotted}={high_text}"]), dotted) == high
    if default is None:
        assert value_of(load(tmp_path, file, {name: "null"}), dotted) is None


def test_a_variable_reaches_a_section_that_the_file_leaves_empty(tmp_path: Path) -> None:
    assert load(tmp_path, "machine:\n", {"GLGPU_MACHINE_SPOT": "never"}).machine.spot == "never"


def test_a_variable_that_is_wrong_is_named_itself(tmp_path: Path) -> None:
    failure = refused(tmp_path, "project: my-dl", {"GLGPU_MACHINE_DISK_GB": "big"})
    assert failure.cause.startswith("GLGPU_MACHINE_DISK_GB: ")
    assert "'A' is no NAME=VALUE" in refused(tmp_path, "project: my-dl", {"GLGPU_TRAIN_ENV": "A"}).cause
    with pytest.raises(Failure, match=r"--set: machine.disk_gb = '1'"):
        load(tmp_path, "project: my-dl", {}, ["machine.disk_gb=1"])


@pytest.mark.parametrize("text", ["machine.spott=never", "machine=1", "machine.spot", "", "=", "spot=never"])
def test_an_override_that_names_no_setting_is_bad_usage(tmp_path: Path, text: str) -> None:
    with pytest.raises(Failure) as caught:
        load(tmp_path, "project: my-dl", {}, [text])
    assert caught.value.klass is ErrorClass.USAGE
    assert "--set machine.spot=never" in caught.value.remedy
    if text == "machine.spott=never":
        assert "did you mean 'machine.spot'?" in caught.value.cause


def test_variables_that_are_no_settings_do_not_disturb() -> None:
    assert (
        load_settings(None, {"GLGPU_TASK": "train", "GLGPU_": "x", "MACHINE_COUNT": "7", "PATH": "/bin"}) == Settings()
    )


# The published schema


def test_the_schema_is_one_and_takes_what_the_settings_take() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    example_file = (ROOT / "examples/text-generation/glgpu.yml").read_text()
    for text in (example_file, "train: {command: python train.py, env: {N: 20, DEBUG: true, V: 1.5}}\nlabels: {n: 7}"):
        assert list(check.iter_errors(yaml.safe_load(text))) == []
    for dotted in KEYS:
        for value, _ in another(dotted):
            assert list(check.iter_errors(nested(dotted, value))) == []
    for bad in ({"machin": {}}, {"machine": {"gpus": []}}, {"machine": {"disk_gb": "big"}}, {"train": {"command": []}}):
        assert list(check.iter_errors(bad))


def test_every_key_says_what_it_is() -> None:
    assert [dotted for dotted, field in KEYS.items() if not field.description] == []


# Secrets


@pytest.mark.parametrize("value", [None, "", " ", "7", "7Q", "7Q#", "  7Q#\n"])
def test_a_secret_that_is_missing_empty_or_too_short_is_refused_before_it_costs_money(value: str | None) -> None:
    environment = {"OTHER": "long enough"} | ({} if value is None else {"TOKEN": value})
    with pytest.raises(Failure) as caught:
        check_secrets(["OTHER", "TOKEN"], environment)
    assert caught.value.klass is ErrorClass.CONFIG
    assert "TOKEN" in caught.value.cause
    assert not value or not value.strip() or value.strip() not in caught.value.cause + caught.value.remedy
    check_secrets(["OTHER"], environment)


def test_a_variable_of_type_file_is_read_where_the_runner_put_it(tmp_path: Path) -> None:
    project = tmp_path / "builds/group/project"
    project.with_name("project.tmp").mkdir(parents=True)
    file = project.with_name("project.tmp") / "KEY"
    file.write_bytes(b"-----BEGIN\nline \xff\n")
    environment = {"CI_PROJECT_DIR": str(project), "KEY": str(file), "PLAIN": "plain text"}
    assert read_secret("KEY", environment) == ("-----BEGIN\nline \udcff\n", True)
    assert read_secret("PLAIN", environment) == ("plain text", False)
    check_secrets(["KEY", "PLAIN"], environment)
    file.write_bytes(b"")
    with pytest.raises(Failure, match="empty"):
        check_secrets(["KEY"], environment)
    file.unlink()
    assert read_secret("KEY", environment) == ("", True)
    with pytest.raises(Failure, match="missing or empty"):
        check_secrets(["KEY"], environment)


def test_a_value_that_merely_looks_like_a_path_is_no_file(tmp_path: Path) -> None:
    other = tmp_path / "KEY"
    other.write_text("not to be read")
    assert read_secret("KEY", {"CI_PROJECT_DIR": str(tmp_path / "p"), "KEY": str(other)}) == (str(other), False)
    assert read_secret("KEY", {"KEY": ".tmp/KEY"}) == (".tmp/KEY", False)


def test_the_variables_of_this_process_are_a_plain_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLGPU_X", "1")
    taken = process_environment()
    monkeypatch.setenv("GLGPU_X", "2")
    assert taken["GLGPU_X"] == "1"
