"""Samples of GPUs: what the VM's lines mean, that nothing is kept twice, and that no training makes them endless."""

from __future__ import annotations

import pytest

from glgpu.gpu_idle import Idling
from glgpu.gpu_samples import COLUMNS, MOST_MOMENTS, Sample, Samples, csv_text, read_samples

LINE = "2026-11-28T07:42:10Z,0,97,14321,23034,61,68.20,1,230"
AT = 1_795_851_730.0


def test_a_line_tells_one_gpu_at_one_moment() -> None:
    assert read_samples(LINE) == [Sample(AT, 0, 97, 14321, 23034, 61, 68.2, 1, 230)]


def test_what_the_driver_does_not_tell_is_not_known() -> None:
    (one,) = read_samples("2026-11-28T07:42:10Z,0,,0,N/A,nan,Unknown Error,,")
    assert (one.use, one.used_mib, one.memory_mib, one.celsius, one.watts) == (None, 0.0, None, None, None)


@pytest.mark.parametrize("line", [",".join(COLUMNS), "", LINE[:20], "2026-11-28T07:42,0,1,2,3,4,5,6,7", f"{LINE},9"])
def test_a_line_that_is_none_is_passed_over(line: str) -> None:
    assert read_samples(f"{line}\n{LINE}\n") == read_samples(LINE)


def test_the_file_has_a_header_and_reads_as_it_was_written_oldest_first() -> None:
    samples = [Sample(AT + 2, 0, 1.5), *read_samples(LINE), Sample(AT, 1)]
    text = csv_text(samples)
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert text.splitlines()[1] == "2026-11-28T07:42:10Z,0,97,14321,23034,61,68.2,1,230"
    assert read_samples(text) == [samples[1], samples[2], samples[0]]


def test_what_is_told_twice_is_kept_once() -> None:
    samples = Samples()
    assert len(samples.add(read_samples(LINE))) == 1
    assert samples.add(read_samples(f"{LINE}\n{LINE}")) == []
    assert len(samples) == 1


def test_however_long_a_training_lasts_its_samples_are_bounded_and_reach_from_begin_to_end() -> None:
    samples = Samples()
    last = 10 * MOST_MOMENTS
    for second in range(0, last, 500):
        samples.add(Sample(AT + one, gpu) for one in range(second, second + 500) for gpu in (0, 1))
    kept = read_samples(samples.text)
    assert MOST_MOMENTS / 2 <= len(kept) / 2 <= MOST_MOMENTS
    assert kept[0].at == AT
    assert kept[-1].at > AT + last - 20
    assert {(kept[i].at, kept[i].gpu, kept[i + 1].gpu) for i in range(0, len(kept), 2)} == {
        (one.at, 0, 1) for one in kept
    }


def idle(*uses: float | None, gpu: int = 0, processes: float | None = 1, cpu: float | None = 5) -> Idling:
    judge = Idling()
    watch(judge, *uses, gpu=gpu, processes=processes, cpu=cpu)
    return judge


def watch(judge: Idling, *uses: float | None, gpu: int = 0, processes: float | None = 1, cpu: float | None = 5) -> None:
    for number, use in enumerate(uses):
        judge.add(Sample(AT + 60 * number, gpu, use, processes=processes, cpu=cpu))


def test_a_gpu_is_idle_only_after_so_long_without_work() -> None:
    assert idle(0, 0, 2).verdict(121) is None
    verdict = idle(0, 0, 2).verdict(120)
    assert verdict is not None
    assert (verdict.gpus, verdict.seconds) == ((0,), 120)


def test_work_in_between_begins_the_count_anew() -> None:
    assert idle(0, 0, 80, 0, 0).verdict(61) is None
    assert idle(0, 0, 80, 0, 0).verdict(60) is not None


@pytest.mark.parametrize(
    ("processes", "cpu", "reason"),
    [
        (0, 400, "unused"), (1, 110, "loading"), (1, 4, "waiting"), (1, None, "unknown"), (None, 300, "loading"),
    ],
)  # fmt: skip
def test_the_likely_reason(processes: float | None, cpu: float | None, reason: str) -> None:
    verdict = idle(0, 0, processes=processes, cpu=cpu).verdict(60)
    assert verdict is not None
    assert verdict.reason == reason


def test_a_process_that_was_there_once_has_touched_the_gpu() -> None:
    judge = idle(0, processes=1, cpu=5)
    judge.add(Sample(AT + 60, 0, 0, processes=0, cpu=5))
    verdict = judge.verdict(60)
    assert verdict is not None
    assert verdict.reason == "waiting"


def test_of_several_gpus_the_idle_ones_are_named() -> None:
    judge = idle(90, 95, 99)
    for gpu in (1, 2):
        watch(judge, 0, 0, 0, gpu=gpu)
    verdict = judge.verdict(120)
    assert verdict is not None
    assert (verdict.gpus, verdict.reason) == ((1, 2), "some")


def test_a_use_that_is_not_told_is_no_idleness_and_a_moment_told_again_counts_once() -> None:
    assert idle(None, None, None).verdict(0.1) is None
    judge = idle(0, 0, 90)
    watch(judge, 0, 0)
    assert judge.verdict(0) is None
