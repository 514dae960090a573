"""The checks of doctor over facts: what each says, and what it says when a fact is missing."""

from __future__ import annotations

import dataclasses
import io
import itertools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from glgpu.console import Console
from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import (
    AcceleratorType,
    BootImage,
    CloudProject,
    ForgePipeline,
    ForgeProject,
    ForgeSchedule,
    ForgeToken,
    ForgeVariable,
    ImageManifest,
    MachineType,
    Nat,
    Network,
    NetworkRule,
    Policy,
    Quota,
    Region,
    Subnetwork,
    Tool,
    Zone,
)
from glgpu.job import read_job
from glgpu.machines import candidates
from glgpu.masking import Masker
from glgpu.settings import load_settings
from glgpu.stages.doctor import doctor, exit_code, list_checks, show, show_json
from glgpu.steps.checks import of_gitlab, of_machine, of_network
from glgpu.steps.checks.catalogue import CHECKS
from glgpu.steps.checks.facts import POLICIES, PROGRAMS, Fact, Facts, Sources, gather
from glgpu.steps.checks.judging import Check, Finding, Verdict, findings

NOW = 1_800_000_000.0
DAY = 24 * 3600.0
NETWORK = "projects/my-dl/global/networks/default"
JOB = {
    "CI_SERVER_URL": "https://gitlab.example.com", "CI_PROJECT_ID": "7", "CI_JOB_ID": "1", "CI_COMMIT_REF_NAME": "main",
    "GLGPU_GITLAB_TOKEN": "glpat-of-nobody", "CI_SERVER_VERSION": "17.5.0", "CI_RUNNER_VERSION": "17.5.0",
    "GLGPU_CALLER_ADDRESS": "203.0.113.10",
}  # fmt: skip
SETTINGS = {
    "GLGPU_PROJECT": "my-dl", "GLGPU_TRAIN_IMAGE": "registry.example.com/team/train:1",
    "GLGPU_MACHINE_GPU": "nvidia-l4", "GLGPU_MACHINE_ZONES": "europe-west4-a,europe-west1-b",
}  # fmt: skip
METRICS = ("NVIDIA_L4_GPUS", "PREEMPTIBLE_NVIDIA_L4_GPUS", "CPUS", "SSD_TOTAL_GB", "IN_USE_ADDRESSES")
WITH_BUCKET = {"GLGPU_STORAGE_BUCKET": "team", "GLGPU_STORAGE_UPLOADER": "uploader@my-dl.iam.gserviceaccount.com"}
REFUSAL = Failure(ErrorClass.NETWORK, "nobody answers", "look at the network")


def quotas(region: str | None, **limits: float) -> dict[str, Quota]:
    return {metric: Quota(metric, limit, 0, region) for metric, limit in limits.items()}


def known(own: Mapping[str, str] = {}, /, **changes: Any) -> Facts:
    """Facts of a world where all is well, but for what is changed."""
    environment = {**JOB, **SETTINGS, **own}
    settings = load_settings(None, environment)
    zones = settings.machine.zones
    regions = sorted({zone[:-2] for zone in zones})
    facts: dict[str, Any] = {
        "settings": settings,
        "gitlab_lag": 0.2,
        "gitlab_version": "17.5.0",
        "token": ForgeToken("glgpu", ("api",), NOW + 100 * DAY),
        "gitlab_project": ForgeProject("main", 40),
        "variables": [ForgeVariable("GLGPU_GITLAB_TOKEN", True, True)],
        "protected_branches": ["main", "release/*"],
        "schedules": [
            ForgeSchedule("clean", "main", True, "ada", "active", {"GLGPU_TASK": "cleanup"}, "success", NOW - 600, 1)
        ],
        "pipeline": ForgePipeline((), ("ci/train.yml",)),
        "host_keys": {"SHA256:x"},
        "google_lag": -0.3,
        "login": None,
        "project_state": "ACTIVE",
        "disabled_apis": [],
        "missing_to_run": [],
        "missing_to_look": [],
        "missing_act_as": [],
        "missing_on_bucket": [],
        "billing": True,
        "cloud_project": CloudProject("my-dl", quotas(None, GPUS_ALL_REGIONS=4, FIREWALLS=200), {}, ""),
        "regions": {
            region: Region(region, "UP", (), quotas(region, **dict.fromkeys(METRICS, 1000.0))) for region in regions
        },
        "zones": {zone: Zone(zone, zone[:-2], "UP") for zone in zones},
        "candidates": candidates(settings.machine, zones),
        "accelerators": [AcceleratorType("nvidia-l4", zone, 8) for zone in zones],
        "machine_types": [MachineType("g2-standard-4", zone, 4, 16, "nvidia-l4", 1) for zone in zones],
        "disk_types": {zone: {"pd-balanced"} for zone in zones},
        "boot_image": BootImage("projects/p/global/images/i", "f", "READY", 50, "", "", "X86_64"),
        "network": Network(NETWORK, True),
        "subnetworks": {
            region: [Subnetwork(f"projects/my-dl/regions/{region}/subnetworks/s", NETWORK, "10.0.0.0/20", False)]
            for region in regions
        },
        "rules": [],
        "nats": {region: [Nat("n", "r", None)] for region in regions},
        "manifest": ImageManifest(("linux/amd64",), 2.0),
        "terraform": Tool("/usr/bin/terraform", (1, 11)),
        "providers": {},
        "outdated": [],
        "caller": "203.0.113.10",
    }
    policies = {name: Fact.known(changes.pop(name, Policy())) for name in POLICIES}
    programs = {name: Fact.known(changes.pop(name, Tool(name, (9, 9)))) for name in PROGRAMS}
    wrapped = {
        name: Fact.refused(value) if isinstance(value, Failure) else Fact.known(value)
        for name, value in {**facts, **changes}.items()
    }
    return Facts(
        now=NOW,
        job=read_job(environment, Path("/nowhere"), NOW),
        wrong_variables=(),
        google_project="my-dl",
        policies=policies,
        programs=programs,
        **wrapped,
    )


def said(facts: Facts) -> dict[str, list[str]]:
    """Check -> what it says, as ``error CONFIG``; those that find nothing wrong are left out."""
    told = {check.name: [one.verdict for one in findings(check, facts)] for check in CHECKS}
    return {
        name: [f"{one.status} {one.klass}" if one.klass else one.status for one in verdicts]
        for name, verdicts in told.items()
        if [one.status for one in verdicts] != ["ok"]
    }


def test_where_all_is_well_nothing_is_said() -> None:
    assert said(known()) == {}


def rule(**facts: Any) -> NetworkRule:
    whole = {
        "name": "theirs", "direction": "INGRESS", "action": "allow", "priority": 100, "sources": ("0.0.0.0/0",),
        "source_tags": (), "source_accounts": (), "target_tags": (), "target_accounts": (),
        "protocols": {"tcp": ("22",)}, "disabled": False,
    }  # fmt: skip
    return NetworkRule(**{**whole, **facts})


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({}, "warning CONFIG"),
        ({"protocols": {"all": ()}}, "warning CONFIG"),
        ({"protocols": {"6": ("1-1024",)}}, "warning CONFIG"),
        ({"sources": ()}, "warning CONFIG"),
        ({"priority": 899}, "warning CONFIG"),
        # Ours denies at 900, and a denial wins among equals.
        ({"priority": 900}, None),
        ({"sources": ("198.51.100.0/24",)}, None),
        ({"sources": ("::/0",)}, None),
        ({"sources": (), "source_tags": ("bastion",)}, None),
        ({"protocols": {"udp": ("53",)}}, None),
        ({"target_tags": ("web",)}, None),
        ({"target_accounts": ("web@my-dl.iam.gserviceaccount.com",)}, None),
        ({"disabled": True}, None),
        ({"direction": "EGRESS"}, None),
    ],
)
def test_a_rule_that_lets_everybody_in_above_ours_is_told(facts: dict[str, Any], verdict: str | None) -> None:
    assert said(known(rules=[rule(**facts)])) == ({"firewall-open": [verdict]} if verdict else {})


def test_a_rule_for_the_tags_of_our_vms_counts() -> None:
    assert "firewall-open" in said(known({"GLGPU_MACHINE_TAGS": "web"}, rules=[rule(target_tags=("web",))]))


@pytest.mark.parametrize(
    ("facts", "variables", "shut"),
    [
        ({}, {}, True),
        # Ours allows at 800, and a denial wins among equals.
        ({"priority": 800}, {}, True),
        ({"priority": 801}, {}, False),
        ({"protocols": {"tcp": ("80", "8000-8080")}}, {}, False),
        ({"protocols": {"tcp": ("20-25",)}}, {}, True),
        ({"sources": ("203.0.113.0/24",)}, {}, True),
        ({"sources": ("198.51.100.0/24",)}, {}, False),
        ({"sources": ("198.51.100.0/24",)}, {"GLGPU_NETWORK_ALLOW": "198.51.100.7/32"}, True),
        ({"target_tags": ("web",)}, {}, False),
    ],
)
def test_a_rule_that_keeps_us_out_above_ours_is_told(
    facts: dict[str, Any], variables: dict[str, str], shut: bool
) -> None:
    found = said(known(variables, rules=[rule(action="deny", **{"priority": 100, "protocols": {"all": ()}, **facts})]))
    assert found == ({"firewall-shut": ["error CONFIG"]} if shut else {})


def with_limit(region: str, metric: str, limit: float) -> dict[str, Region]:
    regions = known().regions.get()
    old = regions[region]
    changed = {**old.quotas, metric: Quota(metric, limit, 0, region)}
    return {**regions, region: Region(region, "UP", (), changed)}


def test_losing_some_candidates_is_a_warning_and_losing_all_an_error() -> None:
    some = with_limit("europe-west4", "NVIDIA_L4_GPUS", 0)
    assert said(known(regions=some)) == {"gpu-quota": ["warning QUOTA_REGION"]}
    alone = {"GLGPU_MACHINE_ZONES": "europe-west4-a", "GLGPU_MACHINE_SPOT": "never"}
    assert said(known(alone, regions=some)) == {"gpu-quota": ["error QUOTA_REGION"]}
    # Only spot VMs count against spot's own limit.
    spot = with_limit("europe-west4", "PREEMPTIBLE_NVIDIA_L4_GPUS", 0)
    assert said(known(alone, regions=spot)) == {}
    assert said(known(alone | {"GLGPU_MACHINE_SPOT": "only"}, regions=spot)) == {"gpu-quota": ["error QUOTA_REGION"]}


def test_what_is_used_already_counts() -> None:
    project = CloudProject("my-dl", {"GPUS_ALL_REGIONS": Quota("GPUS_ALL_REGIONS", 4, 4)}, {}, "")
    assert said(known(cloud_project=project)) == {"gpu-quota-everywhere": ["error QUOTA_GLOBAL"]}


def test_a_project_without_a_limit_on_all_gpus_has_none() -> None:
    assert said(known(cloud_project=CloudProject("my-dl", {}, {}, ""))) == {}


def test_a_limit_that_google_does_not_tell_is_not_checked() -> None:
    bare = {name: Region(name, "UP", (), {}) for name in known().regions.get()}
    assert said(known(regions=bare)) == {"gpu-quota": ["not checked"]}


def test_spot_s_limit_on_cpus_counts_once_somebody_has_one() -> None:
    only = {"GLGPU_MACHINE_SPOT": "only", "GLGPU_MACHINE_ZONES": "europe-west4-a"}
    assert said(known(only, regions=with_limit("europe-west4", "PREEMPTIBLE_CPUS", 0))) == {}
    low = with_limit("europe-west4", "PREEMPTIBLE_CPUS", 2)
    assert said(known(only, regions=low)) == {"cpu-quota": ["error QUOTA_REGION"]}


def test_a_gpu_without_a_vm_needs_no_gpu_quota() -> None:
    plain = {"GLGPU_MACHINE_GPU": "none", "GLGPU_MACHINE_TYPE": "e2-small", "GLGPU_MACHINE_ZONES": "europe-west4-a"}
    types = [MachineType("e2-small", "europe-west4-a", 2, 2)]
    zero = CloudProject("my-dl", quotas(None, GPUS_ALL_REGIONS=0, FIREWALLS=200), {}, "")
    assert said(known(plain, machine_types=types, cloud_project=zero)) == {}


def test_a_machine_type_brings_its_own_number_of_gpus() -> None:
    types = [MachineType("g2-standard-4", zone, 4, 16, "nvidia-l4", 2) for zone in known().zones.get()]
    assert said(known(machine_types=types)) == {"machine-types": ["error NOT_AVAILABLE"]}


@pytest.mark.parametrize(
    ("policy", "verdict"),
    [
        (Policy(allowed=("in:europe-locations",)), None),
        (Policy(allowed=("in:europe-west4-locations", "europe-west1")), None),
        (Policy(allowed=("europe-west4-a",)), "warning ORG_POLICY"),
        (Policy(allowed=("in:us-locations",)), "error ORG_POLICY"),
        (Policy(denied=("in:europe-west1-locations",)), "warning ORG_POLICY"),
        (Policy(deny_all=True), "error ORG_POLICY"),
        (Policy(allowed=("in:eu-locations",)), "not checked"),
        # europe-west1 is no part of europe-west10 and the other way round.
        (Policy(allowed=("europe-west10", "europe-west4")), "warning ORG_POLICY"),
    ],
)
def test_places_of_a_policy_are_regions_zones_and_continents(policy: Policy, verdict: str | None) -> None:
    found = said(known(**{"gcp.resourceLocations": policy}))
    assert found == ({"locations": [verdict]} if verdict else {})


def test_a_list_of_instances_that_may_have_addresses_does_not_name_ours() -> None:
    listed = Policy(allowed=("projects/my-dl/zones/europe-west4-a/instances/web",))
    assert said(known(**{"compute.vmExternalIpAccess": listed})) == {"external-addresses": ["error ORG_POLICY"]}


def test_trusted_image_projects_are_read_with_and_without_their_prefix() -> None:
    trusted = Policy(allowed=("is:projects/deeplearning-platform-release",))
    assert said(known(**{"compute.trustedImageProjects": trusted})) == {}


def test_a_network_of_custom_mode_needs_a_subnetwork() -> None:
    assert said(known(network=Network(NETWORK, False))) == {"subnetworks": ["error CONFIG"]}
    named = known({"GLGPU_NETWORK_SUBNETWORK": "s"}, network=Network(NETWORK, False))
    assert said(named) == {}


def test_a_subnetwork_of_another_network_is_told() -> None:
    other = known({"GLGPU_NETWORK_SUBNETWORK": "s"}, network=Network("projects/my-dl/global/networks/other", True))
    assert said(other) == {"subnetworks": ["error CONFIG", "error CONFIG"]}


def test_a_missing_default_network_is_explained_by_the_policy_that_makes_none() -> None:
    facts = known(network=None, **{"compute.skipDefaultNetworkCreation": Policy(enforced=True)})
    (found,) = findings(of_network.network, facts)
    assert "compute.skipDefaultNetworkCreation" in found.verdict.cause


def test_insisting_on_a_deploy_key_makes_errors_of_what_else_is_a_loss() -> None:
    assert said(known(host_keys=set())) == {"host-keys": ["warning CODE"]}
    assert said(known({"GLGPU_CODE": "deploy-key"}, host_keys=set())) == {"host-keys": ["error CODE"]}
    assert said(known({"GLGPU_CODE": "job"}, host_keys=set())) == {}
    bare = known({"GLGPU_CODE": "deploy-key", "GLGPU_GITLAB_TOKEN": ""})
    assert said(bare)["gitlab-token"] == ["error GITLAB_AUTH"]


def test_notebooks_that_push_make_an_error_of_a_missing_token_and_want_to_know_gitlab_s_host_keys() -> None:
    pushing = {"GLGPU_NOTEBOOK_CAN_PUSH": "true"}
    (found,) = findings(of_gitlab.token, known({**pushing, "GLGPU_GITLAB_TOKEN": ""}))
    assert found.verdict.cause.endswith("no notebook, since notebook.can_push is true")
    assert said(known({**pushing, "GLGPU_GITLAB_TOKEN": ""}))["gitlab-token"] == ["error GITLAB_AUTH"]
    assert said(known({**pushing, "GLGPU_CODE": "job"}, host_keys=set())) == {"host-keys": ["warning CODE"]}
    (found,) = findings(of_gitlab.host_keys, known({**pushing, "GLGPU_CODE": "job"}, host_keys=set()))
    assert "no notebook's work is pushed" in found.verdict.cause
    assert said(known(pushing)) == {}


@pytest.mark.parametrize(
    ("lags", "verdict"),
    [
        ((40.0, 41.0), "warning AUTH"),
        ((-400.0, -400.0), "error AUTH"),
        # One of the two goes wrong, and not we.
        ((400.0, 0.5), None),
        ((REFUSAL, 400.0), "error AUTH"),
        ((REFUSAL, REFUSAL), "not checked"),
    ],
)
def test_the_clock_is_wrong_when_everybody_else_s_is_another(lags: tuple[Any, Any], verdict: str | None) -> None:
    found = said(known(gitlab_lag=lags[0], google_lag=lags[1]))
    found.pop("gitlab", None)
    assert found == ({"clock": [verdict]} if verdict else {})


def test_gitlab_s_version_is_compared_as_numbers() -> None:
    assert said(known({"CI_SERVER_VERSION": "17.10.1-ee"})) == {}
    assert said(known({"CI_SERVER_VERSION": "17.4.9"})) == {"gitlab-version": ["error GITLAB"]}
    assert said(known({"CI_SERVER_VERSION": ""}, gitlab_version="9.0.0")) == {"gitlab-version": ["error GITLAB"]}


def test_a_branch_is_protected_by_a_pattern_too() -> None:
    assert said(known({"CI_COMMIT_REF_NAME": "release/2"})) == {}
    assert said(known({"CI_COMMIT_REF_NAME": "releases"})) == {"protected-ref": ["warning GITLAB_AUTH"]}


def test_schedules_whose_variables_are_hidden_may_clean_up() -> None:
    hidden = ForgeSchedule("x", "main", True, "ada", "active", None, "success", NOW, 2)
    assert said(known(schedules=[hidden])) == {"cleanup-schedule": ["not checked"]}


def test_a_schedule_is_recognised_as_init_recognises_it() -> None:
    hidden = ForgeSchedule("glgpu cleanup", "main", True, "ada", "active", None, "success", NOW, 2)
    assert said(known(schedules=[hidden])) == {}
    of_another_task = ForgeSchedule("glgpu cleanup", "main", True, "ada", "active", {}, "success", NOW, 2)
    assert said(known(schedules=[of_another_task])) == {"cleanup-schedule": ["warning CONFIG"]}


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"GLGPU_TRAIN_FOLLOW": "true", "GLGPU_GITLAB_TOKEN": ""}, []),
        ({"GLGPU_TRAIN_FOLLOW": "false"}, []),
        ({"GLGPU_TRAIN_FOLLOW": "false", "GLGPU_GITLAB_TOKEN": ""}, ["error CONFIG"]),
        (
            {"GLGPU_MACHINE_MAX_HOURS": "40", "RUNNER_SCRIPT_TIMEOUT": "2h", "GLGPU_GITLAB_TOKEN": ""},
            ["warning CONFIG"],
        ),
        ({"GLGPU_TRAIN_FOLLOW": "false", "GLGPU_GITLAB_TOKEN": "", "GLGPU_STORAGE_BUCKET": "team"}, ["error CONFIG"]),
        ({"GLGPU_TRAIN_FOLLOW": "false", "GLGPU_GITLAB_TOKEN": "", **WITH_BUCKET}, []),
    ],
)
def test_a_training_that_no_job_waits_for_needs_a_way_home(own: dict[str, str], says: list[str]) -> None:
    assert said(known(own)).get("way-home", []) == says


def test_a_bucket_that_only_glgpu_yml_names_is_lost_sight_of() -> None:
    facts = known({"GLGPU_TRAIN_FOLLOW": "false", **WITH_BUCKET})
    variables = {name: value for name, value in facts.job.variables.items() if name != "GLGPU_STORAGE_BUCKET"}
    facts = dataclasses.replace(facts, job=dataclasses.replace(facts.job, variables=variables))
    assert said(facts) == {"way-home": ["warning CONFIG"]}


@pytest.mark.parametrize("setting", ["machine.service_account", "storage.uploader"])
def test_the_account_that_we_may_not_give_the_vm_is_named_with_its_setting(setting: str) -> None:
    variable = f"GLGPU_{setting.replace('.', '_').upper()}"
    facts = known({variable: "vm@my-dl.iam.gserviceaccount.com"}, missing_act_as=["iam.serviceAccounts.actAs"])
    (verdict,) = [one.verdict for check in CHECKS if check.name == "act-as" for one in findings(check, facts)]
    assert verdict.cause == f"{setting}: we may not act as vm@my-dl.iam.gserviceaccount.com"


def test_an_include_that_only_the_token_may_not_read_is_a_warning() -> None:
    """GitLab judges with the rights of the token's user; people's pushes may include it all the same."""
    refused = "Project `group/glgpu` not found or access denied! Make sure any includes are correctly defined."
    assert said(known(pipeline=ForgePipeline((refused,), ()))) == {"pipeline": ["warning CONFIG"]}
    broken = "train job: chosen stage does not exist"
    assert said(known(pipeline=ForgePipeline((broken,), ()))) == {"pipeline": ["error CONFIG"]}


def test_an_image_that_is_deprecated_names_what_to_take_instead() -> None:
    image = BootImage("i", "", "READY", 50, "DEPRECATED", "projects/p/global/images/next", "")
    (found,) = findings(of_machine.boot_image, known(boot_image=image))
    assert found.verdict.status == "warning"
    assert "projects/p/global/images/next" in found.verdict.remedy


def test_no_answer_is_no_verdict_and_holds_up_no_other_check() -> None:
    everything = {field.name for field in dataclasses.fields(Facts)}
    given = {"now", "job", "wrong_variables", "google_project", "policies", "programs", "settings", "candidates"}
    asked = everything - given
    found = said(known(**dict.fromkeys(asked, REFUSAL)))
    wrong = {name: verdicts for name, verdicts in found.items() if verdicts != ["not checked"]}
    assert wrong == {
        "gitlab": ["error NETWORK"], "google-credentials": ["error NETWORK"], "own-address": ["error NETWORK"],
        "container-image": ["warning NETWORK"], "terraform": ["error NETWORK"],
    }  # fmt: skip


def test_a_bug_in_one_check_is_its_own() -> None:
    def broken(_: Facts) -> Any:
        raise ZeroDivisionError("by zero")

    check = Check("broken", "machine", "", "", broken)
    (found,) = findings(check, known())
    assert (found.verdict.status, found.verdict.klass) == ("not checked", ErrorClass.BUG)


def finding(status: Any, klass: ErrorClass | None) -> Finding:
    return Finding(CHECKS[0], Verdict(status, klass, "cause", "remedy"))


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([], 0),
        ([finding("warning", ErrorClass.CONFIG), finding("not checked", None)], 0),
        ([finding("error", ErrorClass.TOOL_MISSING)], 40),
        ([finding("error", ErrorClass.NETWORK), finding("error", ErrorClass.GITLAB_AUTH)], 12),
        ([finding("error", ErrorClass.QUOTA_REGION), finding("error", ErrorClass.CONFIG)], 2),
    ],
)
def test_the_exit_code_is_the_lowest_of_the_errors(found: list[Finding], code: int) -> None:
    assert exit_code(found) == code


def printed(action: Callable[[Console], None]) -> str:
    stream = io.BytesIO()
    action(Console(Masker(), stream=stream))
    return stream.getvalue().decode()


def test_what_could_not_be_asked_for_one_reason_is_one_entry() -> None:
    facts = known(regions=REFUSAL)
    found = [one for check in CHECKS for one in findings(check, facts)]
    text = printed(lambda console: show(console, found))
    assert "not checked: gpu-quota, cpu-quota, disk-quota, address-quota: nobody answers\n" in text
    assert text.endswith(f"{len(CHECKS) - 4} checks good, 0 errors, 0 warnings, 4 not checked\n")
    assert '"class": null' in printed(lambda console: show_json(console, found))


def test_the_list_names_every_check() -> None:
    text = printed(lambda console: list_checks(console, as_json=False))
    assert all(check.name in text and check.asks in text for check in CHECKS)


def sources_of(anyone: Any) -> Sources:
    """One that answers for everybody."""
    environment = {**JOB, **SETTINGS}
    return Sources(
        job=read_job(environment, Path("/nowhere"), NOW), wrong_variables=(),
        settings=load_settings(None, environment), now=lambda: NOW, forge=anyone, rights=anyone, catalogue=anyone,
        registry=anyone, tools=anyone, caller_address=anyone.caller_address,
    )  # fmt: skip


def test_each_fact_is_asked_for_once() -> None:
    calls: list[str] = []

    class Counting:
        project = "my-dl"

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*_: Any, **__: Any) -> Any:
                calls.append(name)
                raise REFUSAL

            return call

    anyone: Any = Counting()
    with ThreadPoolExecutor(64) as pool:
        facts = gather(sources_of(anyone), pool)
        for check in CHECKS:
            findings(check, facts)
    assert calls.count("log_in") == 1
    repeated = {name for name in calls if calls.count(name) > 1}
    assert repeated <= {"server_time", "tool"}


def test_nobody_waits_for_another_s_answer() -> None:
    """What needs no other fact is asked side by side: 30 questions are under way before the first is answered."""
    asked, all_asked, alone = itertools.count(1), threading.Event(), list[str]()

    class Slow:
        project = "my-dl"

        def log_in(self) -> None:
            return None

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*_: Any, **__: Any) -> Any:
                if next(asked) == 30:
                    all_asked.set()
                if not all_asked.wait(30):
                    alone.append(name)
                    all_asked.set()
                raise REFUSAL

            return call

    assert {one.check.name for one in doctor(sources_of(Slow()))} == {check.name for check in CHECKS}
    assert next(asked) > 30
    assert alone == []
