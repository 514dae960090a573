"""Waiting without sleeping: the clock is the caller's."""

from __future__ import annotations

import time

from glgpu.clock import SystemClock, poll


class Clock:
    def __init__(self) -> None:
        self.time, self.naps = 0.0, list[float]()

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.time += seconds


def test_what_is_there_at_once_costs_no_time() -> None:
    clock = Clock()
    assert poll(clock, lambda: "there", seconds=10, every=1) == "there"
    assert clock.naps == []


def test_looking_ends_with_the_first_answer() -> None:
    clock = Clock()
    assert poll(clock, lambda: clock.time if clock.time >= 3 else None, seconds=10, every=1) == 3
    assert clock.naps == [1, 1, 1]


def test_an_answer_that_is_false_is_an_answer() -> None:
    assert poll(Clock(), lambda: 0, seconds=10, every=1) == 0


def test_the_last_look_is_taken_when_the_time_is_up_and_not_before() -> None:
    clock, looks = Clock(), list[float]()
    assert poll(clock, lambda: looks.append(clock.time), seconds=2.5, every=1) is None
    assert looks == [0, 1, 2, 2.5]


def test_no_time_is_one_look() -> None:
    looks = list[int]()
    assert poll(Clock(), lambda: looks.append(1), seconds=0, every=1) is None
    assert looks == [1]


def test_the_machines_own_clock_is_unix_time() -> None:
    begin = time.time()
    clock = SystemClock()
    clock.sleep(0.001)
    assert begin < clock.now() <= time.time()
