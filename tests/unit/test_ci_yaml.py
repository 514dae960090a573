"""The compiler of `.gitlab-ci.yml`: what GitLab would make of it, and what GitLab would refuse in its own words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from glgpu.rehearsal.ci_yaml import (
    Artifacts,
    Environment,
    Job,
    Need,
    NoJobs,
    NotPlayed,
    Pipeline,
    PipelineError,
    Retry,
    Variable,
    compile_pipeline,
    expand,
    expand_all,
    glob_pattern,
    parse_duration,
)

FIXTURES = Path(__file__).parent.parent / "fixtures" / "ci"
PUSH = {
    "CI_PIPELINE_SOURCE": "push",
    "CI_COMMIT_BRANCH": "main",
    "CI_COMMIT_REF_NAME": "main",
    "CI_COMMIT_REF_SLUG": "main",
    "CI_COMMIT_MESSAGE": "work",
}


def compiled(
    text: str,
    *,
    local: dict[str, str] | None = None,
    projects: dict[tuple[str, str, str], str] | None = None,
    **options: Any,
) -> Pipeline:
    options.setdefault("variables", {})
    return compile_pipeline(
        text,
        read_local=(local or {}).get,
        read_project=lambda project, ref, file: (projects or {}).get((project, ref, file)),
        predefined=PUSH | options.pop("predefined", {}),
        **options,
    )


def only_job(text: str, **options: Any) -> Job:
    (job,) = compiled(text, **options).jobs
    return job


def refusal(text: str, **options: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        compiled(text, **options)
    return str(caught.value)


def adopter(**options: Any) -> Pipeline:
    local = {"train.yml": (FIXTURES / "train.yml").read_text()}
    return compiled((FIXTURES / "adopter.yml").read_text(), local=local, **options)


# Jobs, stages, defaults


def test_a_job_is_read_with_gitlabs_defaults() -> None:
    assert only_job("train:\n  script: echo hi\n") == Job(
        name="train", base_name="train", stage="test", source=".gitlab-ci.yml", script=("echo hi",)
    )


def test_stages_are_build_test_deploy_between_pre_and_post() -> None:
    assert compiled("a: {script: x}").stages == (".pre", "build", "test", "deploy", ".post")


def test_jobs_come_in_the_order_of_the_stages_then_of_the_file() -> None:
    pipeline = compiled("""
c: {stage: deploy, script: x}
b: {stage: .pre, script: x}
a: {stage: build, script: x}
d: {stage: build, script: x}
z: {stage: .post, script: x}
""")
    assert [job.name for job in pipeline.jobs] == ["b", "a", "d", "c", "z"]


def test_an_unknown_stage_is_refused_in_gitlabs_words() -> None:
    assert refusal("provision: {stage: provision, script: x}") == (
        "provision job: chosen stage does not exist; available stages are .pre, build, test, deploy, .post"
    )


def test_the_stage_test_is_not_there_where_stages_omit_it() -> None:
    assert refusal("stages: [one]\na: {script: x}") == (
        "a job: chosen stage does not exist; available stages are .pre, one, .post"
    )


def test_default_fills_what_a_job_leaves_open_and_inherit_can_refuse_it() -> None:
    pipeline = compiled("""
default: {image: base, before_script: [one], retry: 2, tags: [t], timeout: 3h}
a: {script: x}
b: {script: x, image: own, before_script: []}
c: {script: x, inherit: {default: [image]}}
d: {script: x, inherit: {default: false}}
""")
    a, b, c, d = pipeline.jobs
    assert (a.image, a.before_script, a.retry.max, a.tags) == ("base", ("one",), 2, ("t",))
    assert (b.image, b.before_script) == ("own", ())
    assert (c.image, c.before_script) == ("base", ())
    assert (d.image, d.tags) == (None, ())
    assert a.timeout is None, "GitLab ignores default:timeout"


def test_scripts_may_be_nested_lists() -> None:
    assert only_job("a: {script: [one, [two, [three]]]}").script == ("one", "two", "three")


def test_anchors_and_merge_keys_work() -> None:
    job = only_job(".base: &base {image: i, variables: {A: '1'}}\na:\n  <<: *base\n  script: x\n")
    assert job.image == "i"
    assert job.variables == {"A": Variable("1")}


def test_all_keywords_of_a_job_are_read() -> None:
    job = only_job("""
a:
  stage: build
  image: {name: i, entrypoint: [""]}
  before_script: [b]
  script: [s]
  after_script: [f]
  tags: [gpu]
  timeout: 2h 55m
  interruptible: true
  resource_group: gpu/$CI_COMMIT_REF_SLUG
  retry: {max: 2, when: runner_system_failure, exit_codes: [10, 23]}
  allow_failure: {exit_codes: 21}
  artifacts:
    when: always
    paths: [outputs/]
    exclude: [outputs/tmp/**]
    expire_in: 30 days
    reports: {dotenv: glgpu.env, annotations: a.json}
  environment: {name: gpu/$CI_COMMIT_REF_SLUG, action: prepare, url: $U, auto_stop_in: 7 days}
  id_tokens: {T: {aud: one}, U: {aud: [one, two]}}
  dependencies: []
""")
    assert job == Job(
        name="a",
        base_name="a",
        stage="build",
        source=".gitlab-ci.yml",
        image="i",
        before_script=("b",),
        script=("s",),
        after_script=("f",),
        tags=("gpu",),
        timeout=10500,
        interruptible=True,
        resource_group="gpu/$CI_COMMIT_REF_SLUG",
        retry=Retry(2, ("runner_system_failure",), (10, 23)),
        allow_failure_exit_codes=(21,),
        artifacts=Artifacts(
            ("outputs/",),
            ("outputs/tmp/**",),
            "always",
            "",
            "30 days",
            {"dotenv": ("glgpu.env",), "annotations": ("a.json",)},
        ),
        environment=Environment("gpu/$CI_COMMIT_REF_SLUG", "prepare", "$U", None, "7 days"),
        id_tokens={"T": ("one",), "U": ("one", "two")},
        dependencies=(),
    )


def test_exit_codes_alone_retry_nothing_else_and_never_without_max() -> None:
    job = only_job("a: {script: x, retry: {max: 1, exit_codes: 10}}")
    assert job.retry == Retry(1, (), (10,))
    assert only_job("a: {script: x, retry: {exit_codes: 10}}").retry.max == 0


def test_what_is_not_played_is_said() -> None:
    pipeline = compiled("a: {script: x, services: [postgres], cache: {paths: [p]}}")
    assert pipeline.not_played == ("a: `cache` is not played", "a: `services` is not played")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {script: x, scrpt: y}", "jobs:a config contains unknown keys: scrpt"),
        ("a: {image: x}", "jobs:a config should implement the script:, run:, or trigger: keyword"),
        ("nonsense: 1\na: {script: x}", "jobs:nonsense config should implement the script:, run:, or trigger: keyword"),
        (".a: {script: x}", "jobs config should contain at least one visible job"),
        ("a: {script: []}", "jobs:a script can't be blank"),
        (
            "a:\n  script:\n    - echo: hi\n",
            "jobs:a:script config should be a string or a nested array of strings up to 10 levels deep",
        ),
        (
            "a: {script: x, when: sometimes}",
            "jobs:a when should be one of: on_success, on_failure, always, manual, delayed",
        ),
        ("a: {script: x, timeout: soon}", "jobs:a timeout should be a duration"),
        ("a: {script: x, retry: 3}", "jobs:a:retry max must be less than or equal to 2"),
        ("a: {script: x, retry: {max: 1, when: bad_luck}}", "jobs:a:retry when contains unknown values: bad_luck"),
        ("a: {script: x, artifacts: {path: [y]}}", "jobs:a:artifacts config contains unknown keys: path"),
        (
            "a: {script: x, artifacts: {paths: [y], when: never}}",
            "jobs:a:artifacts when should be one of: on_success, on_failure, always",
        ),
        (
            "a: {script: x, artifacts: {reports: {env: y}}}",
            "jobs:a:artifacts:reports config contains unknown keys: env",
        ),
        ("a: {script: x, environment: {url: y}}", "jobs:a:environment name can't be blank"),
        (
            "a: {script: x, environment: 'a#b'}",
            "jobs:a:environment name can contain only letters, digits, '-', '_', '/', '$', '{', '}', '.', "
            "and spaces, but it cannot start or end with '/'",
        ),
        ("a: {script: x, id_tokens: {T: {audience: y}}}", "jobs:a:id_tokens:T config contains unknown keys: audience"),
        ("a: {script: x, rules: [{iff: y}]}", "jobs:a:rules:rule config contains unknown keys: iff"),
        ("a: {script: x, rules: [{when: often}]}", "jobs:a:rules:rule when unknown value: often"),
        ("a: {script: x, rules: [{if: '$A ='}]}", "jobs:a:rules:rule if invalid expression syntax"),
        (
            "a: {script: x, rules: [{when: always}], only: [main]}",
            "jobs:a config key may not be used with `rules`: only",
        ),
        ("a: {script: x, needs: [b]}", "a job: undefined need: b"),
        (
            "a: {script: x, needs: [b]}\nb: {stage: deploy, script: x}",
            "a job: need b is not defined in current or prior stages",
        ),
        ("a: {script: x, dependencies: [b]}", "a job: undefined dependency: b"),
        (
            "a: {stage: deploy, script: x, needs: [b], dependencies: [c]}\nb: {script: x}\nc: {script: x}",
            "jobs:a dependencies the c should be part of needs",
        ),
        ("a: {script: x, needs: [b, b]}\nb: {script: x}", "a has the following needs duplicated: b."),
        ("default: {variables: {A: 1}}\na: {script: x}", "default config contains unknown keys: variables"),
        (
            "image: i\ndefault: {image: j}\na: {script: x}",
            "image is defined in top-level and `default:` entry",
        ),
        (
            "variables: {A: [1]}\na: {script: x}",
            "variables:A config variable definition must be either a string or a hash",
        ),
        (
            "a: {script: x, variables: {A: {value: b, description: c}}}",
            "jobs:a:variables:A config uses invalid data keys: description",
        ),
        ("a: {extends: .b, script: x}", "a: unknown keys in `extends` (.b)"),
        ("a: {extends: .b, script: x}\n.b: {extends: a}", "a: circular dependency detected in `extends`"),
        ("a:\n  script: !reference [.b, script]\n", '!reference [".b", "script"] could not be found'),
        (
            "a:\n  script: !reference [b, script]\nb:\n  script: !reference [a, script]\n",
            '!reference ["b", "script"] is part of a circular chain',
        ),
        ("a: {script: x, environment: {name: e, on_stop: b}}", "a job: on_stop job b is not defined"),
        (
            "a: {script: x, environment: {name: e, on_stop: b}}\nb: {script: x}",
            "a job: on_stop job b does not have environment defined",
        ),
        (
            "a: {script: x, environment: {name: e, on_stop: b}}\nb: {script: x, environment: {name: f, action: stop}}",
            "a job: on_stop job b have different environment name",
        ),
        (
            "a: {script: x, environment: {name: e, on_stop: b}}\nb: {script: x, environment: {name: e}}",
            "a job: on_stop job b needs to have action stop defined",
        ),
        ("workflow: {rule: []}\na: {script: x}", "workflow config contains unknown keys: rule"),
        ("include: nowhere.yml\na: {script: x}", "Local file `nowhere.yml` does not exist!"),
        ("include: nowhere.txt\na: {script: x}", "Included file `nowhere.txt` does not have YAML extension!"),
        ("include: {project: g/p, file: f.yml}\na: {script: x}", "Project `g/p` file `f.yml` does not exist!"),
        ("include: {locale: f.yml}\na: {script: x}", "include config contains unknown keys: locale"),
        ("- a\n", "Invalid configuration format"),
        ("", "Please provide content of .gitlab-ci.yml"),
        ("a: {script: x, variables: {D: 2026-01-01}}", "(<unknown>): Tried to load unspecified class: Date"),
    ],
)
def test_what_gitlab_refuses_is_refused_in_its_words(text: str, words: str) -> None:
    assert refusal(text) == words


def test_broken_yaml_is_refused_with_its_place() -> None:
    assert re.search(r"^\(<unknown>\): .* at line 3 column \d+$", refusal("a:\n  script: [x\nb: y"))


@pytest.mark.parametrize("keyword", ["trigger: other/project", "run: [{name: a, script: b}]"])
def test_a_job_that_a_rehearsal_cannot_play_is_refused_by_name(keyword: str) -> None:
    with pytest.raises(NotPlayed, match=r"^a: a job with"):
        compiled(f"a: {{{keyword}}}")


# extends, !reference, variables


def test_extends_merges_maps_and_replaces_lists() -> None:
    job = only_job("""
.one: {variables: {A: "1", B: "1"}, script: [one], tags: [x]}
.two: {variables: {B: "2", C: "2"}, script: [two]}
a: {extends: [.one, .two], variables: {C: "3"}}
""")
    assert {name: v.value for name, v in job.variables.items()} == {"A": "1", "B": "2", "C": "3"}
    assert job.script == ("two",)
    assert job.tags == ("x",)


def test_references_are_replaced_also_within_references() -> None:
    job = only_job("""
.a: {script: [one, two]}
.b:
  script: [zero, !reference [.a, script]]
c:
  script: [!reference [.b, script], three]
""")
    assert job.script == ("zero", "one", "two", "three")


def test_job_variables_win_over_global_ones_and_scalars_become_text() -> None:
    job = only_job("""
variables: {A: global, N: 1, F: 1.5, T: true, RAW: {value: $A, expand: false}}
a: {script: x, variables: {A: job}}
""")
    assert job.variables == {
        "A": Variable("job"),
        "N": Variable("1"),
        "F": Variable("1.5"),
        "T": Variable("true"),
        "RAW": Variable("$A", expand=False),
    }


def test_inherit_variables_chooses_among_the_global_ones() -> None:
    text = "variables: {A: '1', B: '2'}\na: {script: x, inherit: {variables: %s}}"
    assert set(only_job(text % "[A]").variables) == {"A"}
    assert set(only_job(text % "false").variables) == set()


def test_variables_expand_in_variables() -> None:
    assert expand_all(
        {
            "A": Variable("$B/${C}-%D%"),
            "B": Variable("b$C"),
            "C": Variable("c"),
            "D": Variable("d"),
            "MISSING": Variable("[$NOBODY]"),
            "PRICE": Variable("5$$ $$C"),
            "RAW": Variable("$C", expand=False),
            "OF_RAW": Variable("<$RAW>"),
            "LOOP": Variable("$LOOP"),
        }
    ) == {
        "A": "bc/c-d",
        "B": "bc",
        "C": "c",
        "D": "d",
        "MISSING": "[]",
        "PRICE": "5$ $C",
        "RAW": "$C",
        "OF_RAW": "<$C>",
        "LOOP": "$LOOP",
    }
    assert expand("$A $X", {"A": "1"}, keep_unknown=True) == "1 $X"


def test_variables_in_a_circle_end() -> None:
    assert set(expand_all({"A": Variable("$B"), "B": Variable("$C"), "C": Variable("$A")})) == {"A", "B", "C"}


# Rules


def test_the_first_rule_that_holds_decides() -> None:
    text = """
a:
  script: x
  rules:
    - {if: $CI_PIPELINE_SOURCE == "schedule", when: never}
    - {if: $CI_COMMIT_BRANCH == "main", when: manual, allow_failure: true, variables: {V: rule}, needs: [b]}
    - {when: always}
b: {stage: build, script: x}
"""
    job = compiled(text).job("a")
    assert (job.when, job.allow_failure, job.variables["V"].value, job.needs) == (
        "manual",
        True,
        "rule",
        (Need("b"),),
    )
    assert compiled(text, predefined={"CI_COMMIT_BRANCH": "other"}).job("a").when == "always"
    assert [j.name for j in compiled(text, predefined={"CI_PIPELINE_SOURCE": "schedule"}).jobs] == ["b"]


def test_a_manual_job_blocks_in_rules_and_does_not_outside_of_them() -> None:
    assert only_job("a: {script: x, when: manual}").allow_failure
    assert not only_job("a: {script: x, rules: [{when: manual}]}").allow_failure


def test_no_rule_that_holds_means_no_job_and_no_job_no_pipeline() -> None:
    with pytest.raises(NoJobs, match=r"^The resulting pipeline would have been empty\."):
        compiled("a: {script: x, rules: [{if: $UNSET}]}")


def test_rules_see_project_variables_above_the_yaml_and_predefined_ones_below() -> None:
    text = "variables: {A: yaml}\na: {script: x, variables: {CI_JOB: own}, rules: [{if: '%s'}]}"
    assert compiled(text % '$A == "project"', variables={"A": "project"}).jobs
    assert compiled(text % '$CI_JOB == "own"', predefined={"CI_JOB": "predefined"}).jobs


def test_exists_looks_at_the_files_of_the_repository() -> None:
    text = "a: {script: x, rules: [{exists: ['**/train.py']}]}"
    assert compiled(text, files=lambda: ["sub/train.py"]).jobs
    with pytest.raises(NoJobs):
        compiled(text, files=lambda: ["sub/train.pyc"])


def test_a_need_that_the_rules_left_out_is_refused_unless_it_is_optional() -> None:
    text = "a: {script: x, needs: [{job: b, optional: %s}]}\nb: {stage: build, script: x, rules: [{if: $UNSET}]}"
    assert only_job(text % "true").needs == ()
    assert "'b' does not exist in the pipeline" in refusal(text % "false")


def test_workflow_rules_filter_the_pipeline_and_add_variables() -> None:
    text = """
workflow:
  name: on $CI_COMMIT_BRANCH
  rules:
    - {if: $CI_COMMIT_MESSAGE =~ /draft/, when: never}
    - {if: $CI_COMMIT_BRANCH, variables: {W: "1"}}
a: {script: x, rules: [{if: $W}]}
"""
    pipeline = compiled(text)
    assert pipeline.name == "on main"
    assert pipeline.job("a").variables == {"W": Variable("1")}
    with pytest.raises(NoJobs, match=r"^Pipeline filtered out by workflow rules\.$"):
        compiled(text, predefined={"CI_COMMIT_MESSAGE": "draft"})


def test_only_and_except_choose_by_ref() -> None:
    text = "a: {script: x, only: [/^ma/, schedules]}\nb: {script: x, except: [main]}\nc: {script: x}"
    assert [j.name for j in compiled(text).jobs] == ["a", "c"]
    merge_request = {"CI_PIPELINE_SOURCE": "merge_request_event", "CI_COMMIT_BRANCH": "", "CI_COMMIT_REF_NAME": "x"}
    with pytest.raises(NoJobs):
        compiled(text, predefined=merge_request)


# Includes and inputs


def test_a_file_that_includes_wins_over_what_it_includes() -> None:
    pipeline = compiled(
        "include: [one.yml, /two.yml]\na: {image: own, variables: {A: own}}\n",
        local={
            "one.yml": "a: {script: one, image: one, variables: {A: one, B: one}}",
            "two.yml": "a: {script: two, tags: [two]}\nstages: [test]",
        },
    )
    (job,) = pipeline.jobs
    assert (job.script, job.image, job.tags) == (("two",), "own", ("two",))
    assert job.variables == {"A": Variable("own"), "B": Variable("one")}
    assert job.source == "one.yml"
    assert pipeline.stages == (".pre", "test", ".post")


def test_files_of_another_project_include_files_of_their_own_project() -> None:
    pipeline = compiled(
        "include: {project: group/$HOME_PROJECT, ref: v1, file: [ci/train.yml]}\n",
        variables={"HOME_PROJECT": "glgpu"},
        local={"ci/base.yml": "wrong: {script: x}"},
        projects={
            ("group/glgpu", "v1", "ci/train.yml"): "include: ci/base.yml\ntrain: {extends: .base}",
            ("group/glgpu", "v1", "ci/base.yml"): ".base: {script: glgpu train}",
        },
    )
    (job,) = pipeline.jobs
    assert (job.script, job.source) == (("glgpu train",), "group/glgpu@v1:ci/train.yml")


def test_rules_of_an_include_decide_whether_it_is_read() -> None:
    text = "include: [{local: gpu.yml, rules: [{if: $GLGPU_PROJECT}]}]\na: {script: x}"
    local = {"gpu.yml": "gpu: {script: x}"}
    assert [j.name for j in compiled(text, local=local).jobs] == ["a"]
    assert [j.name for j in compiled(text, local=local, variables={"GLGPU_PROJECT": "p"}).jobs] == ["gpu", "a"]


def test_an_include_that_includes_itself_ends() -> None:
    assert refusal("include: a.yml", local={"a.yml": "include: a.yml\na: {script: x}"}) == (
        "Maximum of 150 nested includes are allowed!"
    )


def test_inputs_are_written_into_the_text_with_their_type() -> None:
    included = """spec:
  inputs:
    name: {default: job}
    tags: {type: array}
    flag: {type: boolean, default: true}
    number: {type: number, default: 2}
    target: {default: to-$BRANCH}
---
"$[[ inputs.name ]]-train":
  script: echo $[[ inputs.flag ]] $[[inputs.number]] $[[ inputs.target | expand_vars | truncate(0,5) ]]
  tags: $[[ inputs.tags ]]
  interruptible: $[[ inputs.flag ]]
  retry: $[[ inputs.number ]]
"""
    job = only_job(
        "include: [{local: f.yml, inputs: {tags: [gpu, 'a b']}}]",
        local={"f.yml": included},
        variables={"BRANCH": "main"},
    )
    assert job.name == "job-train"
    assert job.script == ("echo true 2 to-ma",)
    assert (job.tags, job.interruptible, job.retry.max) == (("gpu", "a b"), True, 2)


@pytest.mark.parametrize(
    ("specification", "given", "words"),
    [
        ("x:", "{}", "`x` input: required value has not been provided"),
        ("x: {type: boolean}", '{x: "true"}', "`x` input: provided value is not a boolean"),
        ("x: {type: array}", "{x: y}", "`x` input: provided value is not an array"),
        ("x: {type: number, default: many}", "{}", "`x` input: default value is not a number"),
        ("x:", "{x: 1}", "`x` input: provided value is not a string"),
        (
            "x: {options: [a, b]}",
            "{x: c}",
            "`x` input: `c` cannot be used because it is not in the list of allowed options",
        ),
        ("x: {regex: ^v}", "{x: w}", "`x` input: provided value does not match required RegEx pattern"),
        ("x: {default: a}", "{y: b}", "unknown input arguments: y"),
        ("x: {defualt: a}", "{}", "header:spec:inputs:x config contains unknown keys: defualt"),
        (
            "x: {type: list}",
            "{}",
            "unknown input specification for `x` (valid types: array, boolean, number, string)",
        ),
    ],
)
def test_a_wrong_input_is_refused_with_the_name_of_the_file(specification: str, given: str, words: str) -> None:
    included = f"spec:\n  inputs:\n    {specification}\n---\na: {{script: x}}\n"
    assert refusal(f"include: [{{local: f.yml, inputs: {given}}}]", local={"f.yml": included}) == f"`f.yml`: {words}"


def test_an_unknown_input_in_the_text_is_refused() -> None:
    included = "spec:\n  inputs:\n    x: {default: a}\n---\na: {script: 'echo $[[ inputs.z ]]'}\n"
    assert refusal("include: f.yml", local={"f.yml": included}) == "`f.yml`: unknown interpolation key: `z`"


def test_inputs_for_a_file_without_a_header_are_refused() -> None:
    assert refusal("include: [{local: f.yml, inputs: {x: y}}]", local={"f.yml": "a: {script: x}"}) == (
        "`f.yml`: Given inputs not defined in the `spec` section of the included configuration file"
    )


@pytest.mark.parametrize("kind", ["remote: https://example.com/f.yml", "template: T.yml", "component: h/p/c@1"])
def test_an_include_that_a_rehearsal_cannot_read_is_refused_by_name(kind: str) -> None:
    with pytest.raises(NotPlayed):
        compiled(f"include: [{{{kind}}}]\na: {{script: x}}")


# A whole repository


def test_an_adopting_repository_gets_its_own_jobs_and_the_included_ones() -> None:
    pipeline = adopter()
    assert [job.name for job in pipeline.jobs] == [
        "matrix: [small, a]",
        "matrix: [large, a]",
        "lint",
        "after-matrix",
        "publish",
        "unpublish",
        "provision",
        "train",
        "destroy",
    ]
    train = pipeline.job("train")
    assert train.source == "train.yml"
    assert train.variables["EPOCHS"].value == "40"
    assert train.variables["GLGPU_MACHINE_SPOT"].value == "prefer"
    assert (train.before_script, train.timeout, train.tags) == ((), 10500, ("gpu", "shell"))
    assert train.id_tokens == {"GLGPU_ID_TOKEN": ("https://iam.example.com/$GLGPU_WIF_AUDIENCE",)}
    destroy = pipeline.job("destroy")
    assert (destroy.when, destroy.dependencies) == ("always", ("provision",))
    assert destroy.retry == Retry(2, ("runner_system_failure", "script_failure"))
    assert pipeline.job("after-matrix").needs == (Need("matrix: [small, a]"), Need("matrix: [large, a]"))
    assert pipeline.job("matrix: [large, a]").variables["CI_NODE_INDEX"].value == "2"


def test_skip_gpu_in_the_commit_message_leaves_the_included_jobs_out() -> None:
    names = {job.name for job in adopter(predefined={"CI_COMMIT_MESSAGE": "docs [skip gpu]"}).jobs}
    assert not names & {"provision", "train", "destroy"}


# Small parts


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h55m", 10500),
        ("2h 35m", 9300),
        ("6 hours", 21600),
        ("7 days", 604800),
        ("1 week", 604800),
        ("1 hour and 3 mins", 3780),
        ("90", 90),
        (3600, 3600),
        ("1:30:00", 5400),
        ("soon", None),
        ("3 parsecs", None),
        ("", None),
    ],
)
def test_durations_are_read_as_gitlab_reads_them(text: str | int, seconds: int | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.py", "a.py", True),
        ("*.py", "x/a.py", False),
        ("**/*.py", "a.py", True),
        ("**/*.py", "x/y/a.py", True),
        ("x/**/*", "x/y/z", True),
        ("x/**", "x/y/z", True),
        ("x/*.{json,txt}", "x/a.txt", True),
        ("x/[ab]?", "x/b1", True),
        ("x/[!ab]?", "x/b1", False),
        ("a+b(c).py", "a+b(c).py", True),
    ],
)
def test_globs_match_as_in_gitlabs_yaml(pattern: str, path: str, matches: bool) -> None:
    assert bool(glob_pattern(pattern).fullmatch(path)) is matches
