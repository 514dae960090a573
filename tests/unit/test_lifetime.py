"""Durations as GitLab writes them, and the ends of a VM."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glgpu.errors import ErrorClass, Failure
from glgpu.lifetime import UNIT_SECONDS, Lifetime, parse_duration, spoken

HOUR = 3600


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h55m", 2 * HOUR + 55 * 60),
        ("2h 35m", 2 * HOUR + 35 * 60),
        ("2h35m0s", 2 * HOUR + 35 * 60),
        ("7 days", 7 * 24 * HOUR),
        ("1 day and 2 hours", 26 * HOUR),
        ("1 day, 2 hours", 26 * HOUR),
        ("3 weeks and 2 days", 23 * 24 * HOUR),
        ("2 hrs 20 min", 2 * HOUR + 20 * 60),
        ("3 mins 4 sec", 184),
        ("1.5h", 1.5 * HOUR),
        ("90 Minutes", 90 * 60),
        ("3600", 3600),
        (" 42 ", 42),
        ("0", 0),
    ],
)
def test_durations_are_read_as_gitlab_and_its_runner_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "soon", "h", "2x", "2h and", "2h,", "and 2h", ",2h", "2h,,3m", "2h35", "-1h", "1e3", "2 h h"),
        *("two hours", "never", "nan", "inf", "9" * 400, "\N{ARABIC-INDIC DIGIT THREE}h", "2hours3", "1h\0", "2hand3m"),
    ],
)
def test_nonsense_is_refused_with_an_example_of_what_is_not(text: str) -> None:
    with pytest.raises(Failure) as caught:
        parse_duration(text)
    assert caught.value.klass is ErrorClass.CONFIG
    assert "2h35m" in caught.value.remedy


@given(parts=st.lists(st.tuples(st.integers(0, 999), st.sampled_from(sorted(UNIT_SECONDS))), min_size=1, max_size=5))
def test_parts_add_up(parts: list[tuple[int, str]]) -> None:
    wanted = sum(number * UNIT_SECONDS[unit] for number, unit in parts)
    assert parse_duration(" ".join(f"{number} {unit}" for number, unit in parts)) == wanted
    assert parse_duration(" and ".join(f"{number}{unit.upper()}" for number, unit in parts)) == wanted


@given(text=st.text())
@example("1" * 13)
def test_any_text_is_a_duration_or_a_refusal(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except Failure:
        return
    assert math.isfinite(seconds)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0, "0 s"), (-5, "0 s"), (40.4, "40 s"), (119.6, "2 min"), (35 * 60, "35 min"), (9300, "2 h 35 min")),
        (math.inf, "an unknown time"),
    ],
)
def test_durations_are_spoken_as_people_speak(seconds: float, words: str) -> None:
    assert spoken(seconds) == words


def test_a_claimed_vm_has_its_hard_end_as_its_soft_one() -> None:
    assert Lifetime("pipeline", 100, 900).claimed() == Lifetime("pipeline", 900, 900)
