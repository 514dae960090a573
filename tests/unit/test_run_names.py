"""Names before things: legal for every party, and one run's alone."""

from __future__ import annotations

import re
from typing import Literal

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from glgpu.errors import ErrorClass, Failure
from glgpu.lifetime import Lifetime
from glgpu.run_names import LONGEST_NAME, RunName, label_value, laptop_run, server_hash

GOOGLE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")

RUN = st.one_of(
    st.integers(0, 10**12).map(str),
    st.tuples(st.integers(0, 10**11), st.integers(0, 99)).map(lambda pair: f"{pair[0]}-{pair[1]}"),
    st.tuples(st.text(), st.text(), st.integers(0, 10**10)).map(lambda of: laptop_run(*of)),
)
KIND = st.sampled_from(["train", "notebook"])


def made(server: str, project: int, run: str, kind: Literal["train", "notebook"]) -> RunName:
    try:
        return RunName(server, project, run, kind)
    except Failure:
        reject()


NAMES = st.builds(made, st.sampled_from(["https://gitlab.com", "https://git.example.com"]), st.integers(0), RUN, KIND)


@given(name=NAMES)
def test_a_name_is_legal_at_google_and_so_is_the_deny_rules(name: RunName) -> None:
    assert len(str(name)) <= LONGEST_NAME
    assert GOOGLE_NAME.fullmatch(str(name))
    assert GOOGLE_NAME.fullmatch(name.closed_rule)


@given(one=NAMES, other=NAMES)
def test_two_runs_never_share_a_name(one: RunName, other: RunName) -> None:
    assert (one == other) == (str(one) == str(other))


def test_a_name_reads_as_the_contract_says() -> None:
    name = RunName("https://gitlab.com", 42, "1234-2", "notebook")
    assert str(name) == f"glgpu-{server_hash('https://gitlab.com')}-42-1234-2-notebook"
    assert re.fullmatch(r"[0-9a-f]{6}", server_hash("https://gitlab.com"))
    assert server_hash("https://gitlab.com") != server_hash("https://gitlab.example.com")


def test_what_a_run_needs_beside_its_own_project_is_not_in_its_name() -> None:
    """Project 1, run 2-3 and project 12, run 3 and the like."""
    names = {str(RunName("", project, run)) for project in (1, 2, 12, 123) for run in ("3", "23", "2-3", "1-2", "12-3")}
    assert len(names) == 20


@pytest.mark.parametrize(
    "run", ["", "x", "1-", "-1", "1--2", "1-2-3", "1.5", "\N{FULLWIDTH DIGIT ONE}", "1\n", "u1-2", "u0123456g-1"]
)
def test_what_is_no_run_is_refused(run: str) -> None:
    with pytest.raises(Failure) as caught:
        RunName("https://gitlab.com", 1, run)
    assert caught.value.klass is ErrorClass.USAGE


def test_a_name_that_would_not_fit_is_refused() -> None:
    longest = RunName("https://gitlab.com", 10**17, "1" * 9)
    assert len(str(longest)) <= LONGEST_NAME
    with pytest.raises(Failure, match="longer than 54"):
        RunName("https://gitlab.com", 10**17, "1" * 40)


@given(name=NAMES, user=st.text(), ref=st.text(), soft_end=st.floats(0, 1e11))
def test_labels_are_legal_whoever_pushed_whatever_branch(name: RunName, user: str, ref: str, soft_end: float) -> None:
    labels = name.labels(Lifetime("pipeline", soft_end, soft_end), user=user, ref=ref)
    assert all(LABEL_KEY.fullmatch(key) for key in labels)
    assert all(LABEL_VALUE.fullmatch(value) for value in labels.values())
    assert name.own_labels.items() <= labels.items()
    assert labels["glgpu-expires"] == str(int(soft_end))


@given(one=NAMES, other=NAMES)
def test_own_labels_find_one_run_only(one: RunName, other: RunName) -> None:
    assert (one == other) == (one.own_labels == other.own_labels)


def test_a_branch_can_still_be_read_in_its_label() -> None:
    assert label_value("Feature/ABC_1.2") == "feature-abc_1-2"


def test_a_laptop_run_tells_who_and_when_but_not_by_name() -> None:
    run = laptop_run("jane", "laptop", 1763930000.7)
    assert re.fullmatch(r"u[0-9a-f]{8}-1763930000", run)
    assert run != laptop_run("joe", "laptop", 1763930000.7)
    assert len(str(RunName("", 0, run))) <= LONGEST_NAME
