"""``glgpu init``: what it writes, what it leaves alone, what it refuses."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes import FakeScheduler
from glgpu.errors import ErrorClass, Failure
from glgpu.git_remotes import Place
from glgpu.interfaces import ForgePipeline
from glgpu.settings import Settings, load_settings, read_file
from glgpu.stages.init import Answers, GitLab, Outcome, init, write_files

KNOWN = Answers(
    home="team/GLGPU",
    google_project="my-dl",
    train_image="registry.example.com/team/train:latest",
    command="python train.py --epochs 3",
    outputs="weights/, metrics.json",
)
OURS = {
    "project": "team/GLGPU",
    "ref": "main",
    "file": "ci/train.yml",
    "inputs": {"image": "$CI_REGISTRY/team/glgpu/job:0.1.0", "google_project": "my-dl"},
}
OUR_NOTEBOOK = OURS | {"file": "ci/notebook.yml"}
OUR_CLEANUP = OURS | {"file": "ci/cleanup.yml"}
OUR_STAGES = ["provision", "train", "destroy"]


NOWHERE = GitLab(Place("", ""), Failure(ErrorClass.USAGE, "nobody knows", "name it"))


def never_ask(question: str, default: str) -> str:
    raise AssertionError(f"asked {question!r} (default {default!r})")


def run(folder: Path, text: str | None = None, answers: Answers = KNOWN) -> Outcome:
    if text is not None:
        (folder / ".gitlab-ci.yml").write_bytes(text.encode())
    return write_files(folder, answers, never_ask)


def pipeline(folder: Path) -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: (suffix, loader.construct_sequence(node)))
    documents = list(yaml.load_all((folder / ".gitlab-ci.yml").read_text(), Loader=Loader))
    return dict(documents[-1] or {}) if documents else {}


def test_an_empty_repository_gets_a_pipeline_and_settings(tmp_path: Path) -> None:
    outcome = run(tmp_path)
    assert {path.name for path in outcome.written} == {"glgpu.yml", ".gitlab-ci.yml"}
    assert pipeline(tmp_path) == {
        "stages": ["build", "test", "deploy", *OUR_STAGES],
        "include": [OURS, OUR_NOTEBOOK, OUR_CLEANUP],
    }
    settings = load_settings(tmp_path / "glgpu.yml", {})
    assert settings.project == "my-dl"
    assert settings.train.image == "registry.example.com/team/train:latest"
    assert settings.train.command == ["python", "train.py", "--epochs", "3"]
    assert settings.train.outputs == ["weights/", "metrics.json"]


def test_what_is_not_known_is_asked_and_nothing_else(tmp_path: Path) -> None:
    answers = {"Path": "team/glgpu", "Google": "", "Container": "img:1", "Command": "", "What": ""}
    asked: list[str] = []

    def ask(question: str, default: str) -> str:
        asked.append(question.split()[0])
        return answers[asked[-1]] or default

    outcome = write_files(tmp_path, Answers(), ask)
    assert sorted(asked) == sorted(answers)
    assert "google_project" not in str(pipeline(tmp_path))
    assert load_settings(tmp_path / "glgpu.yml", {}).project is None
    assert any("GLGPU_PROJECT" in line for line in outcome.needed)
    assert any("allow-list" in line and "team/glgpu" in line for line in outcome.needed)


@pytest.mark.parametrize(
    "text", [None, "build:\n  script: make\n", "stages: [build]\n", "include: other.yml\nstages: [a]\n"]
)
def test_a_second_run_changes_nothing_and_asks_nothing(tmp_path: Path, text: str | None) -> None:
    run(tmp_path, text)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    outcome = write_files(tmp_path, Answers(), never_ask)
    assert outcome.written == ()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_existing_glgpu_yml_is_kept(tmp_path: Path) -> None:
    (tmp_path / "glgpu.yml").write_text("mine")
    outcome = run(tmp_path)
    assert (tmp_path / "glgpu.yml").read_text() == "mine"
    assert outcome.kept == (tmp_path / "glgpu.yml",)


KEPT_LAYOUTS = {
    "flow stages": "# head\nstages: [build, test]  # mine\n\nbuild:\n  script:   make   # odd   blanks\n",
    "flow stages over lines": "stages: [\n  build,  # one\n  test,  # two\n]\n",
    "empty flow stages": "stages: []\nx:\n  stage: .pre\n  script: a\n",
    "block stages": "stages:\n  - build # one\n  # between\n  - test\n\n# after\nbuild:\n  script: make\n",
    "block stages at column 0": "stages:\n- build\n- test\nbuild:\n  script: make\n",
    "include list": "include:\n  - local: a.yml\n    rules:\n      - if: $A\n  # last word\n\nstages: [a]\n",
    "a text block ends the list": "include:\n  - local: a\n    inputs:\n      x: |\n        two\nstages: [a]\n",
    "include list at column 0": "stages: [a]\ninclude:\n- a.yml\n- template: X.gitlab-ci.yml\n",
    "include flow list": "stages: [a]\ninclude: [a.yml, {local: b.yml}]\n",
    "include scalar": "stages: [a]\ninclude: 'a.yml'  # why\n",
    "include mapping": "stages: [a]\ninclude:\n  local: a.yml\n  inputs:\n    x: |\n      two\n      lines\n",
    "include flow mapping": "stages: [a]\ninclude: {local: a.yml}\n",
    "include empty": "stages: [a]\ninclude:\nx:\n  script: a\n",
    "reference": "stages: [a]\n.x:\n  script: [echo]\ny:\n  script:\n    - !reference [.x, script]\n",
    "anchors": "stages: [a]\n.x: &x\n  script: [echo]\ny:\n  <<: *x\n  stage: a\n",
    "no newline at the end": "stages: [a]\nx:\n  script: a",
    "windows": "stages: [a]\r\nx:\r\n  script: a\r\n",
    "spec header": "spec:\n  inputs:\n    a: {}\n---\nstages: [a]\nx:\n  script: $[[ inputs.a ]]\n",
    "comment only": "# nothing yet\n",
    "unicode": 'stages: ["bäu", "😀"]\nx:\n  script: "ü"\n',
    "our stages were there": "stages: [build, provision, train, destroy, deploy]\n",
}


@pytest.mark.parametrize("text", KEPT_LAYOUTS.values(), ids=KEPT_LAYOUTS)
def test_an_edit_keeps_every_line_and_every_meaning(tmp_path: Path, text: str) -> None:
    (tmp_path / ".gitlab-ci.yml").write_bytes(text.encode())
    before = pipeline(tmp_path)
    run(tmp_path)
    after = pipeline(tmp_path)
    old_include, old_stages = before.pop("include", None), before.pop("stages", ["build", "test", "deploy"])
    include, stages = after.pop("include"), after.pop("stages")
    assert after == before
    assert isinstance(include, list)
    assert include[-3:] == [OURS, OUR_NOTEBOOK, OUR_CLEANUP]
    assert include[:-3] == (old_include if isinstance(old_include, list) else [old_include] if old_include else [])
    assert isinstance(old_stages, list)
    assert stages == [*old_stages, *(stage for stage in OUR_STAGES if stage not in old_stages)]
    # Every comment is still there, and every old line but those that were extended.
    new = (tmp_path / ".gitlab-ci.yml").read_bytes().decode()
    assert re.findall("#.*", text) == re.findall("#.*", new)
    assert ("\r\n" in text) == ("\r\n" in new)
    assert "\r\n" not in text or "\n" not in new.replace("\r\n", "")


def test_names_in_use_get_out_of_the_way(tmp_path: Path) -> None:
    run(tmp_path, "stages: [build, train]\ntrain:\n  stage: train\n  script: make train\n")
    assert pipeline(tmp_path)["stages"] == ["build", "train", "gpu-provision", "gpu-train", "gpu-destroy"]
    assert pipeline(tmp_path)["include"][0]["inputs"] == {
        "image": "$CI_REGISTRY/team/glgpu/job:0.1.0",
        "google_project": "my-dl",
        "prefix": "gpu-",
        "stage_provision": "gpu-provision",
        "stage_train": "gpu-train",
        "stage_destroy": "gpu-destroy",
    }
    for beside in pipeline(tmp_path)["include"][1:]:
        assert beside["inputs"] == {
            "image": "$CI_REGISTRY/team/glgpu/job:0.1.0",
            "google_project": "my-dl",
            "prefix": "gpu-",
            "stage": "gpu-destroy",
        }


def test_a_hand_written_include_gets_its_missing_stages_and_the_cleanup_beside_it(tmp_path: Path) -> None:
    inputs = "{image: x, stage_train: gpu, stage_destroy: end, tag: big}"
    text = f"stages: [build]\ninclude:\n  - {{project: a/b, ref: v1, file: [/ci/train.yml], inputs: {inputs}}}\n"
    run(tmp_path, text)
    new = (tmp_path / ".gitlab-ci.yml").read_text()
    assert new.startswith(text.replace("[build]", "[build, provision, gpu, end]"))
    assert pipeline(tmp_path)["include"][2] == {
        "project": "a/b", "ref": "v1", "file": "ci/cleanup.yml", "inputs": {"image": "x", "tag": "big", "stage": "end"}
    }  # fmt: skip
    assert pipeline(tmp_path)["include"][1] == pipeline(tmp_path)["include"][2] | {"file": "ci/notebook.yml"}


def test_the_home_itself_includes_its_own_cleanup(tmp_path: Path) -> None:
    run(tmp_path, "stages: [provision, train, destroy]\ninclude: [{local: ci/train.yml, inputs: {image: x}}]\n")
    beside = [{"local": f"/ci/{name}.yml", "inputs": {"image": "x"}} for name in ("notebook", "cleanup")]
    assert pipeline(tmp_path)["include"][1:] == beside


@pytest.mark.parametrize(("own", "prefix"), [("cleanup", "gpu-"), ("gpu-cleanup", "")])
def test_a_cleanup_of_ones_own_keeps_its_name(tmp_path: Path, own: str, prefix: str) -> None:
    include = "include: [{project: a/b, file: ci/train.yml, inputs: {image: x}}]\n"
    run(tmp_path, f"stages: [provision, train, destroy]\n{include}{own}:\n  stage: train\n  script: make clean\n")
    assert pipeline(tmp_path)["include"][-1]["inputs"].get("prefix", "") == prefix


def test_stages_that_another_file_may_set_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / ".gitlab-ci.yml").write_text("include: other.yml\nx:\n  stage: lint\n  script: a\n")
    write_files(tmp_path, KNOWN, lambda question, default: "lint, build" if "Stages" in question else default)
    assert pipeline(tmp_path)["stages"] == ["lint", "build", *OUR_STAGES]


REFUSED = {
    "not YAML": "a: [",
    "braces": "{a: {script: b}}",
    "a list": "- a\n- b\n",
    "alias for the list": ".s: &s [build]\nstages: *s\n",
    "stages from a reference": "stages: !reference [.x, stages]\n.x:\n  stages: [a]\n",
    "a stage from nowhere": "x:\n  stage: lint\n  script: a\n",
    "both names in use": "stages: [train, gpu-train]\n",
    "document end": "a:\n  script: b\n...\n",
    "both names of the cleanup in use": "include: [{project: a/b, file: ci/train.yml, inputs: {image: x}}]\n"
    "stages: [provision, train, destroy]\ncleanup:\n  script: a\ngpu-cleanup:\n  script: a\n",
    "wrong order": "stages: [train, provision]\ninclude: [{project: a/b, file: ci/train.yml, inputs: {image: x}}]\n",
    "not UTF-8": "\udcff",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_edited_safely_is_refused_with_the_lines_to_paste(tmp_path: Path, text: str) -> None:
    raw = text.encode(errors="surrogateescape")
    (tmp_path / ".gitlab-ci.yml").write_bytes(raw)
    with pytest.raises(Failure) as caught:
        write_files(tmp_path, KNOWN, never_ask)
    assert caught.value.klass is ErrorClass.CONFIG
    assert [path.name for path in tmp_path.iterdir()] == [".gitlab-ci.yml"]
    assert (tmp_path / ".gitlab-ci.yml").read_bytes() == raw
    if text != "\udcff":
        pasted = yaml.safe_load(caught.value.evidence)
        assert [one["file"] for one in pasted["include"]] == ["ci/train.yml", "ci/notebook.yml", "ci/cleanup.yml"]


@pytest.mark.parametrize(
    "answers", [Answers(home="nogroup"), Answers(home="a b/c"), Answers(home="a/b", google_project="No!")]
)
def test_an_impossible_answer_is_refused_before_anything_is_written(tmp_path: Path, answers: Answers) -> None:
    with pytest.raises(Failure) as caught:
        write_files(tmp_path, answers, lambda _question, default: default or "x")
    assert caught.value.klass is ErrorClass.USAGE
    assert list(tmp_path.iterdir()) == []


def test_odd_answers_arrive_intact(tmp_path: Path) -> None:
    answers = Answers(
        "a/b", train_image="img:1", google_project="", command="sh -c 'echo \"#: ü\" @image@'", outputs="a b, -x, #c"
    )
    run(tmp_path, None, answers)
    settings = load_settings(tmp_path / "glgpu.yml", {})
    assert settings.train.command == ["sh", "-c", 'echo "#: ü" @image@']
    assert settings.train.outputs == ["a b", "-x", "#c"]


def uncommented(text: str) -> str:
    """The template with every default made active: a `#` that no single blank follows."""
    return re.sub(r"(?m)^(\s*)#(?=\S|  )", r"\1", text)


def test_the_template_names_defaults_as_they_are(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "glgpu.yml"
    chosen = read_file(path)
    path.write_text(uncommented(path.read_text()))
    everything = read_file(path)
    settings = Settings.model_validate(everything)
    defaults = Settings()
    for section, value in everything.items():
        for key in value if isinstance(value, dict) and section != "labels" else [None]:
            active = section in chosen and (key is None or key in chosen[section])
            if not active:
                new, default = getattr(settings, section), getattr(defaults, section)
                assert key is None or getattr(new, key) == getattr(default, key), f"{section}.{key}"
                assert key is not None or new == default, section


def test_the_template_shows_every_key_of_machine_and_train_that_has_an_effect() -> None:
    not_offered = {"machine": {"regions"}, "train": {"follow"}}
    template = resources.files("glgpu").joinpath("templates/glgpu.yml").read_text(encoding="utf-8")
    shown = yaml.safe_load(uncommented(re.sub(r"@project@", "", template).replace("@", "")))
    fields = Settings.model_fields
    for section in ("machine", "train"):
        missing = set(type(fields[section].get_default(call_default_factory=True)).model_fields) - set(shown[section])
        assert missing == not_offered[section]


# What is said


def told(folder: Path, gitlab: GitLab, answers: Answers = KNOWN) -> list[str]:
    said: list[str] = []
    init(folder, answers, never_ask, lambda: gitlab, said.append)
    return said


def gitlab_with(forge: FakeScheduler, server: str = "https://gitlab.example.com") -> GitLab:
    return GitLab(Place(server, "group/project"), forge)


def test_a_new_repository_gets_files_a_schedule_and_a_list_of_what_remains(tmp_path: Path) -> None:
    forge = FakeScheduler()
    said = told(tmp_path, gitlab_with(forge))
    assert said[:2] == [f"written: {tmp_path / '.gitlab-ci.yml'}", f"written: {tmp_path / 'glgpu.yml'}"]
    assert said[2].startswith('made: the schedule "glgpu cleanup" on main, every hour')
    assert said[3] == "What remains:"
    assert [line.split(". ")[0] for line in said[4:]] == ["1", "2", "3", "4"]
    assert forge.made[0].active
    # GitLab was shown the file as it is now.
    assert ("judge", (tmp_path / ".gitlab-ci.yml").read_text()) in forge.calls


def test_a_second_time_all_is_kept_and_nothing_remains(tmp_path: Path) -> None:
    forge = FakeScheduler()
    told(tmp_path, gitlab_with(forge))
    said = told(tmp_path, gitlab_with(forge), Answers())
    assert [line.split(":")[0] for line in said] == ["kept as it was"] * 3
    assert len(forge.made) == 1


def test_without_a_gitlab_the_files_are_written_and_the_schedule_remains(tmp_path: Path) -> None:
    said = told(tmp_path, NOWHERE)
    assert "not made: the schedule that cleans up: nobody knows" in said
    assert said[-1].startswith("5. Make the schedule")
    for part in ("name it, then `glgpu init` again; or by hand", "Build > Pipeline schedules", "GLGPU_TASK", "cleanup"):
        assert part in said[-1]
    again = told(tmp_path, NOWHERE, Answers())
    assert again[-2:] == ["What remains:", said[-1].replace("5.", "1.")]


@pytest.mark.parametrize("verb", ["is_gitlab", "project", "schedules", "judge", "add_schedule", "finish_schedule"])
def test_a_gitlab_that_refuses_stops_nothing(tmp_path: Path, verb: str) -> None:
    forge = FakeScheduler()
    forge.refuse[verb] = Failure(ErrorClass.GITLAB_AUTH, "GitLab refuses", "get a better token, then retry the job")
    said = told(tmp_path, gitlab_with(forge))
    assert "not made: the schedule that cleans up: GitLab refuses" in said
    assert "get a better token, then `glgpu init` again" in said[-1]


def test_what_is_no_gitlab_is_asked_nothing_more(tmp_path: Path) -> None:
    forge = FakeScheduler()
    forge.there = False
    said = told(tmp_path, gitlab_with(forge, "https://github.com"))
    assert "not made: the schedule that cleans up: no GitLab answers at https://github.com" in said
    assert forge.verbs() == ["is_gitlab"]


def test_on_gitlab_com_it_runs_every_four_hours(tmp_path: Path) -> None:
    forge = FakeScheduler()
    said = told(tmp_path, gitlab_with(forge, "https://gitlab.com"))
    assert "every 4 hours" in said[2]
    assert forge.calls[-2][-1].endswith(" */4 * * *")


OWN = "stages: [build, train]\nbuild:\n  stage: build\n  script: make\ntrain:\n  stage: train\n  script: a\n"


@pytest.mark.parametrize(("answer", "made"), [("yes", True), ("y", True), ("no", False), ("NO", False)])
def test_jobs_of_ones_own_are_named_and_then_it_is_asked(tmp_path: Path, answer: str, made: bool) -> None:
    (tmp_path / ".gitlab-ci.yml").write_text(OWN)
    forge, said, asked = FakeScheduler(), list[str](), list[str]()

    def ask(question: str, default: str) -> str:
        asked.append(f"{question} {default}")
        assert any(line.endswith("jobs of yours every hour: build, train") for line in said)
        return answer

    init(tmp_path, KNOWN, ask, lambda: gitlab_with(forge), said.append)
    assert asked == ["Make the schedule now all the same, yes or no yes"]
    assert bool(forge.made) is made


def test_our_own_jobs_are_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their prefix: by name, since their rules hold for variables that nobody knows here."""
    (tmp_path / ".gitlab-ci.yml").write_text("stages: [train]\n")
    forge = FakeScheduler()

    def judge(_text: str) -> ForgePipeline:
        names = ["gpu-provision", "gpu-train", "gpu-destroy", "gpu-stop", "gpu-cleanup"]
        return ForgePipeline((), (), yaml.safe_dump({name: {"script": "a"} for name in names}))

    monkeypatch.setattr(forge, "judge", judge)
    assert not any("jobs of yours" in line for line in told(tmp_path, gitlab_with(forge)))
    assert forge.made[0].active
