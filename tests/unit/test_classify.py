"""What texts of the other side mean, held to real ones: tests/fixtures/errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from glgpu.classify import LONGEST_TEXT, explain, lay_bare, zones_with_capacity
from glgpu.error_rules import RULES
from glgpu.errors import WORTH_A_RETRY, ErrorClass

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures/errors"


def texts(path: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


CASES = [
    (ErrorClass[path.stem.upper()], entry["text"]) for path in sorted(FIXTURES.glob("*.yml")) for entry in texts(path)
]
IDS = [f"{klass}-{number}" for number, (klass, _) in enumerate(CASES)]
NOISE = (
    "Running with gitlab-runner 17.5.0 (66a723c3)\nUsing Docker executor with image python:3.11 ...\n"
    "Pulling docker image python:3.11 ...\n$ glgpu provision\nhttps://gitlab.example.com/team/x/-/jobs/1\n"
)


HARMLESS = [text for klass, text in CASES if klass is ErrorClass.UNKNOWN and text.count("\n") > 4]
"""Logs without an error, long enough to hide one in."""


def the(klass: ErrorClass, words: str) -> str:
    """The text of a class that holds these words."""
    return next(text for known, text in CASES if known is klass and words in text)


def test_there_are_enough_real_texts_each_with_its_source() -> None:
    entries = [entry for path in FIXTURES.glob("*.yml") for entry in texts(path)]
    assert len(entries) >= 250
    assert all(set(entry) == {"source", "text"} and entry["source"].strip() for entry in entries)
    assert len({entry["text"] for entry in entries}) == len(entries)


@pytest.mark.parametrize(("klass", "text"), CASES, ids=IDS)
def test_a_text_has_the_class_that_it_deserves(klass: ErrorClass, text: str) -> None:
    failure = explain(text)
    assert failure.klass is klass
    assert failure.evidence == text
    assert failure.cause
    assert failure.remedy
    assert "\n" not in failure.cause + failure.remedy
    assert not re.search(r"\{[ab]?\}", failure.cause + failure.remedy)


def coloured(text: str) -> str:
    return "\n".join(f"\x1b[31m\x1b[1m{line}\x1b[0m\x1b[0m" for line in text.splitlines())


def in_a_job_log(text: str) -> str:
    marked = (
        f"section_start:1700000000:step_script\r\x1b[0KExecuting\n{text}\nsection_end:1700000009:step_script\r\x1b[0K"
    )
    lines = f"{NOISE}{marked}\nCleaning up project directory and file based variables\nERROR: Job failed: exit code 1"
    return "\n".join(
        f"2026-11-23T12:00:{number % 60:02d}.123456Z 00O {line}" for number, line in enumerate(lines.split("\n"))
    )


def in_a_frame(text: str) -> str:
    return "\n".join(["\u2577", *(f"\u2502 {line}" for line in text.splitlines()), "\u2575"])


def in_json(text: str) -> str:
    return json.dumps({"@level": "error", "@message": f"Error: {text}", "type": "diagnostic"})


def twice_in_json(text: str) -> str:
    return json.dumps({"log": in_json(text)})


@pytest.mark.parametrize("dress", [coloured, in_a_job_log, in_a_frame, in_json, twice_in_json])
def test_the_class_is_the_same_however_the_text_is_pasted(dress: Callable[[str], str]) -> None:
    wrong = [
        (klass, explain(dress(text)).klass, text) for klass, text in CASES if explain(dress(text)).klass is not klass
    ]
    assert wrong == []


def test_the_class_is_the_same_in_the_middle_of_other_programs_words() -> None:
    assert len(HARMLESS) >= 4
    around = zip(HARMLESS, [*HARMLESS[1:], HARMLESS[0]], strict=True)
    wrong = [
        (klass, text, before)
        for before, after in around
        for klass, text in CASES
        if explain(f"{before}\n{text}\n{after}").klass is not klass
    ]
    assert wrong == []


def test_every_rule_is_the_answer_to_a_real_text() -> None:
    def first(text: str) -> int | None:
        bare = lay_bare(text)
        return next((number for number, rule in enumerate(RULES) if rule.pattern.search(bare)), None)

    used = {first(text) for _, text in CASES} - {None}
    assert [RULES[number].pattern.pattern[:80] for number in set(range(len(RULES))) - used] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (the(ErrorClass.QUOTA_GLOBAL, "(gcloud.compute.instances.create)"), "GPUS_ALL_REGIONS"),
        (
            the(ErrorClass.QUOTA_REGION, "NVIDIA_T4_GPUS"),
            "NVIDIA_T4_GPUS is used up (Limit: 1.0 in region us-central1)",
        ),
        (the(ErrorClass.PERMISSION, "compute.zones.get"), "lacks the permission compute.zones.get"),
        (the(ErrorClass.PERMISSION, "iam.serviceaccounts.actAs"), "may not use the VM's service account"),
        (the(ErrorClass.PERMISSION, "4033"), "may not use IAP's tunnel"),
        (the(ErrorClass.ORG_POLICY, "conditionNotMet"), "compute.vmExternalIpAccess"),
        (the(ErrorClass.API_DISABLED, "Subnetwork Not Found"), "the Compute Engine API is not enabled"),
        (the(ErrorClass.API_DISABLED, "(IAM)"), "the Google Identity and Access Management (IAM) API is not enabled"),
        (the(ErrorClass.STOCKOUT, "n1-standard-8"), "does not have enough resources"),
        (the(ErrorClass.OOM, "Bus error"), "/dev/shm"),
        ("something else\n\nmore", "something else"),
        ("\n \n", "no reason given"),
    ],
)
def test_the_cause_says_what_it_is_about(text: str, said: str) -> None:
    assert said in explain(text).cause


def test_the_remedy_names_the_api_to_enable() -> None:
    named = [explain(the(ErrorClass.API_DISABLED, words)).remedy for words in ("Subnetwork Not Found", "(IAM)")]
    assert named == [
        "enable it: `gcloud services enable compute.googleapis.com --project PROJECT`",
        "enable it: `gcloud services enable iam.googleapis.com --project PROJECT`",
    ]


def test_a_stockout_s_remedy_names_the_zones_that_have_capacity() -> None:
    assert "Google says that us-central1-c has capacity" in explain(the(ErrorClass.STOCKOUT, "n1-standard-8")).remedy


@pytest.mark.parametrize(
    ("text", "said", "unsaid"),
    [
        (
            the(ErrorClass.SSH, "IDENTIFICATION HAS CHANGED"),
            "only if the address is that of the run's VM",
            "known_hosts",
        ),
        (the(ErrorClass.SSH, "authenticity of host"), "add the key to known_hosts", "glgpu destroy"),
        (the(ErrorClass.CODE, "Host key verification failed"), "the git server publishes", "glgpu destroy"),
        (the(ErrorClass.CONFLICT, "/instances/glgpu-ab12cd"), "glgpu-ab12cd-7-42-train belongs to", "remove it"),
        (the(ErrorClass.CONFLICT, "cluster-global-net"), "networks/cluster-global-net is there", "glgpu destroy"),
        (the(ErrorClass.CONFLICT, "networkEndpointGroups"), "networkEndpointGroups/gateway is in the", "glgpu destroy"),
        (the(ErrorClass.PERMISSION, "insufficient authentication scopes"), "scope cloud-platform", "grant"),
        (the(ErrorClass.DRIVER, "not compiled with CUDA"), "set train.image", "machine.image"),
        (the(ErrorClass.DRIVER, "fallen off the bus"), "machine.zones", "train.image"),
        (the(ErrorClass.DRIVER, "CUDNN_STATUS_NOT_INITIALIZED"), "smaller batches", "machine.image"),
        (the(ErrorClass.CONFIG, "attribute condition must"), "docs/how-to/google-cloud-access.md", "glgpu.yml"),
        (the(ErrorClass.NETWORK, "Failed to pull image"), "the registry", "GLGPU_REGISTRY_PASSWORD"),
        (the(ErrorClass.STATE_ACCESS, "newer than current"), "`terraform version`", "state: local"),
        (the(ErrorClass.STATE_ACCESS, "bucket doesn't exist"), "gcloud storage buckets create", "Maintainer"),
        (the(ErrorClass.STATE_ACCESS, '"version" attribute'), "what lies there", "GLGPU_GITLAB_TOKEN"),
        (the(ErrorClass.STATE_LOCK, "strconv.ParseInt"), "where no job holds it", "glgpu destroy"),
        (the(ErrorClass.PERMISSION, "impersonate: status code 403"), "serviceAccountTokenCreator", "principalSet"),
        (the(ErrorClass.PERMISSION, "reading from Vault"), "not Google's", "grant"),
        (the(ErrorClass.PERMISSION, "data.example.com"), "not Google's", "grant"),
        (the(ErrorClass.RATE_LIMIT, "huggingface.co/someone"), "train.secrets", "console.cloud.google.com"),
        (the(ErrorClass.SSH, "github.com has changed"), "the git server publishes", "serial console"),
        (the(ErrorClass.NETWORK, "to HTTPS client"), "certificate", "proxies"),
        (the(ErrorClass.DRIVER, "No CUDA GPUs"), "CUDA_VISIBLE_DEVICES", "such as the default"),
        (the(ErrorClass.NOT_FOUND, "Error deleting disk"), "gone already", "glgpu.yml"),
        (the(ErrorClass.CONFIG, "Invalid JSON payload"), "update that program", "glgpu.yml"),
        (the(ErrorClass.CONFIG, "live migration"), "on_host_maintenance", "glgpu.yml"),
    ],
)
def test_the_remedy_helps_with_this_and_harms_nothing_else(text: str, said: str, unsaid: str) -> None:
    remedy = explain(text).remedy
    assert said in remedy
    assert unsaid not in remedy


def test_a_run_is_destroyed_only_for_what_is_its_own() -> None:
    outright = [
        (klass, text)
        for klass, text in CASES
        if "glgpu destroy" in explain(text).remedy
        and "glgpu-" not in text
        and klass is not ErrorClass.STATE_LOCK
        and "only if" not in explain(text).remedy
    ]
    assert outright == []


@pytest.mark.parametrize(
    ("text", "zones"),
    [
        (
            "Consider trying your request in the us-central1-a, us-central1-f zone(s), which currently has capacity",
            "a f",
        ),
        (
            "is currently unavailable in the us-central1-b zone. Consider trying your\n  request in the us-central1-c\n"
            "      zone(s), which currently has capacity",
            "c",
        ),
        ("zonesAvailable: us-central1-a,us-central1-f", "a f"),
        ('"metadatas": {"zone": "us-central1-b", "zonesAvailable": "us-central1-a,us-central1-f"}', "a f"),
        (r"{\"zonesAvailable\":\"us-central1-c\"}", "c"),
        ('metadatas { key: "zonesAvailable"\n value: "us-central1-a" }', "a"),
        (
            "zonesAvailable: us-central1-a\nConsider trying your request in the us-central1-a zone(s), which has",
            "a",
        ),
        ("zonesAvailable: ''\n    zone: us-central1-b", ""),
        ("The zone 'projects/p/zones/us-central1-b' does not have enough resources available.", ""),
    ],
)
def test_the_zones_with_capacity_are_those_that_the_error_names(text: str, zones: str) -> None:
    assert zones_with_capacity(text) == tuple(f"us-central1-{letter}" for letter in zones.split())


def test_what_was_being_done_begins_the_cause() -> None:
    assert explain("no such thing", doing="terraform apply").cause == "terraform apply: no such thing"


def test_the_caller_says_what_an_unknown_text_is() -> None:
    assert explain("no idea", unknown=ErrorClass.TERRAFORM).klass is ErrorClass.TERRAFORM
    assert explain("no space left on device", unknown=ErrorClass.TERRAFORM).klass is ErrorClass.DISK_FULL


def test_a_status_is_told_from_other_numbers() -> None:
    assert explain("  on main.tf line 502:\n 429: foo = 1\n4290 files, 503 of them new").klass is ErrorClass.UNKNOWN
    assert explain("Error: 503").klass is ErrorClass.TRANSIENT


def test_what_only_a_person_can_mend_is_not_worth_a_retry() -> None:
    assert explain(the(ErrorClass.STOCKOUT, "n1-standard-8")).retry
    assert not explain(the(ErrorClass.PERMISSION, "compute.zones.get")).retry
    assert not WORTH_A_RETRY & {ErrorClass.QUOTA_GLOBAL, ErrorClass.CONFIG, ErrorClass.UNKNOWN, ErrorClass.STILL_ALIVE}


@given(text=st.text())
def test_any_text_is_explained_and_kept(text: str) -> None:
    assert explain(text).evidence == text


@pytest.mark.parametrize("filler", ["A", "a ", "\n", "12345 ", "a-b_c.", "connection ", "http://x/", "\\", "│ ", "'"])
@pytest.mark.timeout(40)  # a second or two; a pattern that looks at every pair of places takes minutes
def test_no_pattern_loses_itself_in_a_text_of_5_mb(filler: str) -> None:
    failure = explain(filler * (5_000_000 // len(filler)) + "\ngoogleapi: Error 503: backendError")
    assert failure.klass is ErrorClass.TRANSIENT


def test_the_end_of_a_long_text_counts() -> None:
    assert explain("no space left on device\n" + "x\n" * LONGEST_TEXT).klass is ErrorClass.UNKNOWN
