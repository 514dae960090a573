"""Beside a training: a line where it is silent, a warning where its GPU is idle, samples that come home."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import pytest

from fakes import Stage, refusal
from glgpu.errors import ErrorClass, Failure
from glgpu.gpu_samples import Sample, csv_text, read_samples
from glgpu.steps.context import SETTINGS_ITEM, left_settings
from glgpu.steps.watch import MANY_REMARKS, SAMPLES_FILE, Watch, bring_samples, gpu_text, watching


def lines(samples: Iterable[Sample]) -> bytes:
    """As the VM writes them: no header."""
    return csv_text(samples).partition("\n")[2].encode()


def sampled(stage: Stage, *uses: float, processes: float = 1, cpu: float = 5, gpu: int = 0) -> list[Sample]:
    """A sample a minute, the last one now."""
    first = stage.clock.now() - 60 * (len(uses) - 1)
    return [Sample(first + 60 * n, gpu, use, 1024, 2048, 50, 30, processes, cpu) for n, use in enumerate(uses)]


def made(stage: Stage, usd: float | None = None) -> Watch:
    item = {SETTINGS_ITEM: left_settings(stage.run, stage.clock.now() + 3600, usd)}
    return Watch(stage.run, stage.machine, stage.vm(metadata=item))


def pass_by(stage: Stage, watch: Watch, seconds: int) -> None:
    for _ in range(seconds):
        stage.clock.sleep(1)
        watch.beat()


def remarks(stage: Stage) -> list[str]:
    return [line for line in stage.log.splitlines() if "no output since" in line]


def home(stage: Stage) -> list[Sample]:
    return read_samples((stage.run.outputs / SAMPLES_FILE).read_text())


def test_silence_is_remarked_on_once_a_minute_with_what_the_gpu_does(stage: Stage) -> None:
    stage.machine.sampling = [lines(sampled(stage, 97))]
    watch = made(stage)
    began = datetime.fromtimestamp(stage.clock.now(), UTC).strftime("%H:%M:%S UTC")
    pass_by(stage, watch, 59)
    assert remarks(stage) == []
    pass_by(stage, watch, 121)
    assert remarks(stage) == [
        f"glgpu: no output since {began} (60 s); GPU 97 %, 1.0 of 2.0 GiB, 50 °C",
        f"glgpu: no output since {began} (2 min); GPU 97 %, 1.0 of 2.0 GiB, 50 °C",
        f"glgpu: no output since {began} (3 min); GPU 97 %, 1.0 of 2.0 GiB, 50 °C",
    ]


def test_output_ends_the_silence(stage: Stage) -> None:
    watch = made(stage)
    for _ in range(5):
        pass_by(stage, watch, 50)
        watch.feed(b"epoch 1\n", "")
    assert remarks(stage) == []


def test_days_of_silence_do_not_fill_the_job_log(stage: Stage) -> None:
    watch = made(stage)
    for _ in range(7 * 24 * 60):
        stage.clock.sleep(60)
        watch.beat()
    assert len(remarks(stage)) < 2.7 * MANY_REMARKS
    assert len(stage.log) < 200_000


def test_samples_that_are_old_say_nothing_of_now(stage: Stage) -> None:
    stage.machine.sampling = [lines(sampled(stage, 97))]
    watch = made(stage)
    pass_by(stage, watch, 700)
    stage.machine.sampling = []
    assert "GPU use not known" in remarks(stage)[-1]


def test_a_machine_without_gpu_is_not_asked_for_samples(stage: Stage) -> None:
    stage.set(machine={"gpu": ["none"], "type": "e2-small"})
    with watching(stage.run, stage.machine, stage.vm()) as watch:
        pass_by(stage, watch, 61)
    assert stage.machine.verbs() == []
    assert "the container runs" in remarks(stage)[0]


def test_a_broken_connection_to_the_samples_is_made_again_later(stage: Stage) -> None:
    watch = made(stage)
    pass_by(stage, watch, 65)
    assert stage.machine.verbs() == ["sampling"] * 3


def test_a_line_that_comes_in_two_pieces_is_one(stage: Stage) -> None:
    data = lines(sampled(stage, 97))
    stage.machine.sampling = [data[:20], data[20:]]
    watch = made(stage)
    pass_by(stage, watch, 3)
    assert len(watch.samples) == 1


def test_an_idle_gpu_is_warned_of_once_and_then_rarely(stage: Stage) -> None:
    stage.machine.sampling = [lines(sampled(stage, *[0] * 11, processes=0))]
    watch = made(stage, usd=0.71)
    pass_by(stage, watch, 300)
    warnings = [line for line in stage.log.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("glgpu: WARNING: the GPU has been idle for 10 min: no process has opened it")
    assert warnings[0].endswith("The VM costs about 0.71 USD per hour.")
    event = stage.run.record.find("gpu-idle")
    assert event is not None
    assert event.facts == {"gpus": [0], "seconds": 600.0, "reason": "unused"}
    pass_by(stage, watch, 3600)
    assert stage.log.count("WARNING") == 2


def test_a_gpu_that_works_or_was_idle_for_less_is_not_warned_of(stage: Stage) -> None:
    stage.machine.sampling = [lines(sampled(stage, *[0] * 10)), lines(sampled(stage, 90, 95))]
    pass_by(stage, made(stage), 10)
    assert "WARNING" not in stage.log


def test_the_gpus_that_are_not_used_are_named(stage: Stage) -> None:
    both = [*sampled(stage, *[99] * 11), *sampled(stage, *[0] * 11, gpu=1)]
    stage.machine.sampling = [lines(both)]
    pass_by(stage, made(stage), 2)
    assert "WARNING: GPU 1 of 2 has been idle" in stage.log


def test_all_samples_are_home_after_the_training(stage: Stage) -> None:
    samples = sampled(stage, 1, 2, 3, 4)
    stage.machine.sampling, stage.machine.samples = [lines(samples[:2])], lines(samples)
    with watching(stage.run, stage.machine, stage.vm()) as watch:
        pass_by(stage, watch, 2)
    assert home(stage) == samples


def test_a_following_that_fails_keeps_what_has_come_and_asks_nobody(stage: Stage) -> None:
    stage.machine.sampling = [lines(sampled(stage, 1, 2))]

    def follow(watch: Watch) -> None:
        pass_by(stage, watch, 2)
        raise refusal(ErrorClass.PREEMPTED)

    with pytest.raises(Failure), watching(stage.run, stage.machine, stage.vm()) as watch:
        follow(watch)
    assert len(home(stage)) == 2
    assert "samples" not in stage.machine.verbs()


def test_a_job_that_is_killed_has_left_most_of_them(stage: Stage) -> None:
    stage.machine.sampling = [lines(sampled(stage, 1, 2))]
    pass_by(stage, made(stage), 61)
    assert len(home(stage)) == 2


def test_samples_of_an_earlier_vm_of_the_run_stay(stage: Stage) -> None:
    stage.machine.samples = lines(sampled(stage, 1, 2))
    bring_samples(stage.run, stage.machine)
    stage.clock.sleep(600)
    stage.machine.samples = lines(sampled(stage, 3))
    bring_samples(stage.run, stage.machine)
    assert [one.use for one in home(stage)] == [1, 2, 3]


def test_samples_that_cannot_be_had_stop_nothing_but_a_signal_does(stage: Stage) -> None:
    stage.machine.refuse["samples"] = refusal(ErrorClass.SSH)
    bring_samples(stage.run, stage.machine)
    assert f"{SAMPLES_FILE} lacks the last of them" in stage.log
    stage.machine.refuse["samples"] = refusal(ErrorClass.INTERRUPTED)
    with pytest.raises(Failure):
        bring_samples(stage.run, stage.machine)


def test_several_gpus_are_told_side_by_side_and_what_is_not_known_is_a_question_mark() -> None:
    told = gpu_text([Sample(0, 0, 97, 1024, 2048, 60), Sample(0, 1, None, None, 2048, None)])
    assert told == "GPU 97, ? %, 1.0, ? of 2.0 GiB, 60, ? °C"
