"""Losses in a training's output: what is recognised, when it was said, and that no training makes them endless."""

from __future__ import annotations

import math
from typing import Any

import pytest

from glgpu.losses import MOST_POINTS, Loss, Losses, history_of, read_losses, told_in

STAMP = "2026-11-28T07:42:10.123456789Z"
AT = 1_795_851_730.123


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("loss 1.234", {"training": 1.234}),
        ("epoch 3 loss=1.5e-3 lr=0.01", {"training": 0.0015}),
        ("Train Epoch: 1 [0/60000 (0%)]\tLoss: 2.297", {"training": 2.297}),
        ("{'loss': 0.345, 'grad_norm': 1.2, 'epoch': 0.1}", {"training": 0.345}),
        ("{'eval_loss': 0.4, 'eval_runtime': 3.2}", {"validation": 0.4}),
        ("100/100 - 1s - loss: 0.34 - val_accuracy: 0.8 - val_loss: 0.45", {"training": 0.34, "validation": 0.45}),
        ("train/loss 3.4 val/loss 5.6", {"training": 3.4, "validation": 5.6}),
        ("Test set: Average loss: 0.0474, Accuracy: 98 %", {"validation": 0.0474}),
        ("epoch 1 of 3: training 2.345, held out 2.201 nats/character", {"training": 2.345, "validation": 2.201}),
        ("loss scale 65536", {}),
        ("loss_scale: 1024", {}),
        ("training 10 epochs", {}),
        ("the loss is what counts", {}),
        ("loss 1.2.3", {}),
        ("", {}),
    ],
)
def test_what_a_line_tells(line: str, told: dict[str, float]) -> None:
    assert told_in(line.encode()) == told


def test_a_loss_that_is_no_number_is_told_too() -> None:
    assert math.isnan(told_in(b"loss nan")["training"])
    assert told_in(b"loss: inf")["training"] == math.inf


def test_each_loss_has_the_time_at_which_it_was_printed_and_reads_as_it_was_written() -> None:
    losses = Losses()
    losses.feed(b"loss 1.5\n", STAMP)
    losses.feed(b"loss 1.25, val_loss 2\n", "2026-11-28T07:42:11Z")
    expected = [Loss(AT, "training", 1.5), Loss(AT + 0.877, "training", 1.25), Loss(AT + 0.877, "validation", 2)]
    assert read_losses(losses.text) == pytest.approx(expected)
    assert losses.text.splitlines()[:2] == ["time,series,loss", "2026-11-28T07:42:10.123Z,training,1.5"]


def test_losses_that_come_at_once_are_spread_over_the_time_since_those_before() -> None:
    losses = Losses()
    losses.feed(b"loss 4\n", "2026-11-28T07:42:10Z")
    losses.feed(b"loss 3\nnothing\nloss 2\nloss 1\n", "2026-11-28T07:42:40Z")
    assert [(one.at - losses.all[0].at, one.value) for one in losses.all] == [(0, 4), (10, 3), (20, 2), (30, 1)]


def test_a_line_may_come_in_pieces_and_a_progress_bar_ends_no_line() -> None:
    losses = Losses()
    for piece in (b"lo", b"ss 1.", b"5\nloss", b" 2.5\n"):
        losses.feed(piece, STAMP)
    assert [one.value for one in losses.all] == [2.5]
    losses.feed(b"10%| loss=3.5\r20%| loss=4.5\r", "2026-11-28T07:43:10Z")
    assert [one.value for one in losses.all] == [2.5, 3.5, 4.5]


def test_a_line_without_end_is_not_kept_whole() -> None:
    losses = Losses()
    for _ in range(100):
        losses.feed(b"x" * 100_000, STAMP)
    losses.feed(b" loss 1.5\n", STAMP)
    assert [one.value for one in losses.all] == [1.5]


def test_however_many_losses_are_told_they_are_bounded_and_reach_to_the_end() -> None:
    losses = Losses()
    last = 5 * MOST_POINTS
    for n in range(last):
        losses.feed(b"loss %d.5\n" % n, f"2026-11-28T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}Z")
    values = [one.value for one in losses.all]
    assert MOST_POINTS / 2 <= len(values) <= MOST_POINTS
    assert min(values) < 20
    assert max(values) > last - 20


def test_what_an_earlier_job_heard_is_kept_once() -> None:
    losses = Losses()
    losses.feed(b"loss 1.5\n", STAMP)
    losses.feed(b"loss 1.25\nloss 1\n", "2026-11-28T07:43:10Z")
    again = Losses()
    again.add([Loss(AT - 3600, "training", 9.0), *read_losses(losses.text)])
    again.feed(b"loss 1.5\n", STAMP)
    again.feed(b"loss 1.25\n", "2026-11-28T07:43:09Z")
    again.feed(b"loss 1\n", "2026-11-28T07:43:10Z")
    assert [one.value for one in again.all] == [9.0, 1.5, 1.25, 1]


@pytest.mark.parametrize("line", ["time,series,loss", "x,training,1", "2026-11-28T07:42:10Z,other,1", "a,b", ""])
def test_a_line_of_the_file_that_is_none_is_passed_over(line: str) -> None:
    assert read_losses(line) == []


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"history": [{"epoch": 1, "training": 2.5, "held_out": 2}, {"epoch": 2, "training": 2.0, "held_out": 1.5}]},
         {"training": [2.5, 2.0], "validation": [2.0, 1.5]}),
        ({"history": [{"loss": 1, "val_loss": 2, "accuracy": 3}]}, {"training": [1.0], "validation": [2.0]}),
        ({"history": [1, None, {"loss": "high"}, {"loss": True}]}, {}),
        ({"history": {"loss": [1]}}, {}),
        ({"history": [{"loss": 10**400, "val_loss": 2}]}, {"validation": [2.0]}),
        ([1], {}),
    ],
)  # fmt: skip
def test_the_history_of_a_metrics_file(metrics: Any, told: dict[str, list[float]]) -> None:
    assert history_of(metrics) == told
