"""failover: which candidate is next, what is told, and what it means when none is left."""

from __future__ import annotations

import pytest

from glgpu.classify import explain
from glgpu.errors import ErrorClass, Failure
from glgpu.machines import Candidate
from glgpu.steps.failover import MOST_HICCUPS, Queue, Try, none_left, table_of

TYPES = {"nvidia-l4": "g2-standard-4", "nvidia-tesla-t4": "n1-standard-4", "nvidia-tesla-a100": "a2-highgpu-1g"}


def one(zone: str = "europe-west4-a", gpu: str = "nvidia-l4", *, spot: bool = True) -> Candidate:
    return Candidate(gpu, 1, TYPES[gpu], gpu == "nvidia-tesla-t4", spot, zone, "pd-balanced", "image")


def refused(klass: ErrorClass, evidence: str = "") -> Failure:
    return Failure(klass, "refused", f"remedy of {klass}", evidence)


def rest(queue: Queue) -> list[Candidate]:
    found = []
    while candidate := queue.next():
        found.append(candidate)
    return found


def after(failure: Failure, *candidates: Candidate) -> list[Candidate]:
    """What is left, in order, once the first candidate has failed like this."""
    queue = Queue(candidates)
    failed = queue.next()
    assert failed is not None
    queue.learn(failed, failure)
    return rest(queue)


def quota(metric: str, region: str = "europe-west4") -> Failure:
    return explain(f"Quota '{metric}' exceeded.  Limit: 0.0 in region {region}.")


A, B, C, D = (one(f"europe-west4-{letter}") for letter in "abcd")
ELSEWHERE = one("europe-west1-b")


def test_the_users_order_is_kept() -> None:
    assert rest(Queue([B, A, C])) == [B, A, C]


def test_after_a_stockout_comes_the_next_zone() -> None:
    assert after(refused(ErrorClass.STOCKOUT), A, B, C) == [B, C]


@pytest.mark.parametrize(
    "text",
    [
        "zonesAvailable: europe-west4-d,europe-west4-c",
        "Consider trying your request in the europe-west4-d, europe-west4-c zone(s), which currently has capacity",
    ],
)
def test_a_zone_that_the_stockout_names_comes_first(text: str) -> None:
    assert after(refused(ErrorClass.STOCKOUT, text), A, B, C, D, ELSEWHERE) == [D, C, B, ELSEWHERE]


def test_a_named_zone_that_the_settings_do_not_allow_is_not_tried() -> None:
    assert after(refused(ErrorClass.STOCKOUT, "zonesAvailable: europe-west4-z"), A, B) == [B]


def test_a_named_zone_is_brought_forward_for_the_same_machine_only() -> None:
    standard, t4 = one("europe-west4-c", spot=False), one("europe-west4-c", "nvidia-tesla-t4")
    assert after(refused(ErrorClass.STOCKOUT, "zonesAvailable: europe-west4-c"), A, B, standard, t4) == [
        B,
        standard,
        t4,
    ]


def test_a_regional_quota_of_spot_gpus_leaves_standard_ones_and_other_regions() -> None:
    standard, t4 = one(spot=False), one("europe-west4-a", "nvidia-tesla-t4")
    left = after(quota("PREEMPTIBLE_NVIDIA_L4_GPUS"), A, B, ELSEWHERE, standard, t4)
    assert left == [ELSEWHERE, standard, t4]


def test_a_regional_quota_of_standard_gpus_leaves_spot_ones() -> None:
    bought = [one(zone, spot=False) for zone in ("europe-west4-a", "europe-west4-b")]
    assert after(quota("NVIDIA_L4_GPUS"), *bought, A) == [A]


def test_a_spot_vm_without_a_quota_of_its_own_takes_the_standard_ones_along() -> None:
    standard, other = one(spot=False), one("europe-west4-b", "nvidia-tesla-t4")
    assert after(quota("NVIDIA_L4_GPUS"), A, B, standard, other) == [other]


@pytest.mark.parametrize("metric", ["CPUS", "SSD_TOTAL_GB", "IN_USE_ADDRESSES", "INSTANCES"])
def test_a_quota_that_all_share_rules_the_region_out(metric: str) -> None:
    others = [B, one(spot=False), one("europe-west4-b", "nvidia-tesla-t4", spot=False)]
    assert after(quota(metric), A, *others, ELSEWHERE) == [ELSEWHERE]


def test_a_quota_of_one_machine_family_concerns_that_family() -> None:
    a100, t4 = one("europe-west4-a", "nvidia-tesla-a100"), one("europe-west4-a", "nvidia-tesla-t4")
    assert after(quota("A2_CPUS"), a100, one("europe-west4-b", "nvidia-tesla-a100"), t4) == [t4]


def test_a_quota_of_spot_cpus_concerns_spot_vms() -> None:
    standard = one(spot=False)
    assert after(quota("PREEMPTIBLE_CPUS"), A, B, standard) == [standard]


def test_a_regional_quota_without_a_name_concerns_the_same_purchase() -> None:
    standard = one(spot=False)
    assert after(refused(ErrorClass.QUOTA_REGION, "QUOTA_EXCEEDED"), A, B, standard, ELSEWHERE) == [standard, ELSEWHERE]


def test_what_a_zone_does_not_offer_it_offers_to_nobody() -> None:
    standard, t4 = one(spot=False), one("europe-west4-a", "nvidia-tesla-t4")
    assert after(refused(ErrorClass.NOT_AVAILABLE), A, standard, t4, B) == [t4, B]


def test_a_preempted_vm_is_tried_elsewhere() -> None:
    assert after(refused(ErrorClass.PREEMPTED), A, B) == [B]


@pytest.mark.parametrize(
    "klass",
    [
        ErrorClass.QUOTA_GLOBAL, ErrorClass.PERMISSION, ErrorClass.ORG_POLICY, ErrorClass.BILLING, ErrorClass.CONFIG,
        ErrorClass.IMAGE, ErrorClass.UNKNOWN, ErrorClass.CONFLICT, ErrorClass.NETWORK, ErrorClass.AUTH,
        ErrorClass.API_DISABLED, ErrorClass.TERRAFORM, ErrorClass.STATE_LOCK,
    ],
)  # fmt: skip
def test_what_no_other_candidate_would_mend_ends_the_search(klass: ErrorClass) -> None:
    with pytest.raises(Failure) as caught:
        after(refused(klass), A, B)
    assert caught.value.klass is klass


@pytest.mark.parametrize("klass", [ErrorClass.TRANSIENT, ErrorClass.RATE_LIMIT])
def test_trouble_at_google_gives_a_candidate_a_second_try_and_then_the_next(klass: ErrorClass) -> None:
    queue = Queue([A, B])
    tried = []
    for _ in range(3):
        candidate = queue.next()
        assert candidate is not None
        tried.append(candidate)
        queue.learn(candidate, refused(klass))
    assert tried == [A, A, B]


def test_patience_with_google_ends() -> None:
    queue = Queue([A, B, C, D])
    for _ in range(MOST_HICCUPS):
        candidate = queue.next()
        assert candidate is not None
        queue.learn(candidate, refused(ErrorClass.TRANSIENT))
    with pytest.raises(Failure, match="refused"):
        queue.learn(C, refused(ErrorClass.TRANSIENT))


def tries(*classes: ErrorClass) -> list[Try]:
    return [Try(one(f"europe-west4-{chr(97 + n)}"), refused(klass), 1.0) for n, klass in enumerate(classes)]


@pytest.mark.parametrize(
    ("classes", "code"),
    [
        ((ErrorClass.STOCKOUT, ErrorClass.STOCKOUT), 10),
        ((ErrorClass.QUOTA_REGION, ErrorClass.STOCKOUT, ErrorClass.QUOTA_REGION), 10),
        ((ErrorClass.QUOTA_REGION, ErrorClass.PREEMPTED), 23),
        ((ErrorClass.QUOTA_REGION, ErrorClass.TRANSIENT), 18),
        ((ErrorClass.NOT_AVAILABLE, ErrorClass.QUOTA_REGION), 14),
        ((ErrorClass.NOT_AVAILABLE, ErrorClass.NOT_AVAILABLE), 2),
    ],
)
def test_when_none_is_left_what_a_later_try_may_cure_gives_the_exit_code(
    classes: tuple[ErrorClass, ...], code: int
) -> None:
    failure = none_left(tries(*classes))
    assert failure.exit_code == code
    for klass in set(classes):
        assert f"{classes.count(klass)} {klass}" in failure.cause
        assert f"remedy of {klass}" in failure.remedy


def test_the_only_candidate_speaks_for_itself() -> None:
    (only,) = tries(ErrorClass.QUOTA_REGION)
    assert none_left([only]) is only.failure


def test_the_table_tells_of_every_candidate() -> None:
    over = quota("PREEMPTIBLE_NVIDIA_L4_GPUS")
    told = [Try(A, refused(ErrorClass.STOCKOUT), 2.04), Try(B, over, 1.0), Try(C, over, None)]
    header, *rows = table_of([*told, Try(one(spot=False), None, 31.0)])
    assert header == ["machine", "zone", "model", "outcome", "time"]
    machine = "1 x nvidia-l4, g2-standard-4"
    assert rows == [
        [machine, "europe-west4-a", "spot", "STOCKOUT: no capacity", "2.0 s"],
        [machine, "europe-west4-b", "spot", "QUOTA_REGION: PREEMPTIBLE_NVIDIA_L4_GPUS is used up", "1.0 s"],
        [machine, "europe-west4-c", "spot", "not tried (QUOTA_REGION: PREEMPTIBLE_NVIDIA_L4_GPUS is used up)", "-"],
        [machine, "europe-west4-a", "standard", "runs", "31.0 s"],
    ]
