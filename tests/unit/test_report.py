"""The report: one page that needs nothing else, trusts no text, and tells how it went."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import Stage, refusal
from glgpu.charts import Axis, Line, chart, fitting, nice_step, nice_time_step, thinned
from glgpu.errors import ErrorClass, Failure
from glgpu.gpu_samples import Sample, csv_text
from glgpu.losses import Loss
from glgpu.report import Facts, report_html
from glgpu.run_record import Event
from glgpu.steps.report import REPORT_FILE, reported, take_over_charts, write_report

EVIL = "<script>alert('1')</script><img src=x onerror=alert(2)>\"'&"


def event(at: float, what: str, **facts: Any) -> Event:
    return Event(at=at, what=what, facts=facts)


def events(text: str = "x") -> list[Event]:
    ran = {"candidate": text, "machine_type": text, "zone": text, "gpu": text, "usd_per_hour": 0.72, "spot": True}
    return [
        event(0, "candidate-tried", **ran), event(5, "candidate-failed", **ran, failure=text, cause=text, seconds=5.0),
        event(6, "candidate-tried", **ran), event(50, "instance-running", **ran), event(70, "vm-ready"),
        event(80, "vm-claimed"), event(100, "container-started", pinned=text),
        event(200, "gpu-idle", seconds=60, reason=text), event(400, "training-ended", exit_code=0),
        event(410, "outputs-home", files=3, bytes=5_000_000), event(411, "gpu-released"),
        event(450, "proof", left=[]),
    ]  # fmt: skip


SAMPLES = [Sample(100 + 2 * n, gpu, 50 + gpu, 1024, 2048, 60, 70, 1, 100) for n in range(150) for gpu in (0, 1)]
LOSSES = [Loss(110 + n, "training", 3 - n / 100) for n in range(280)]


def page(**facts: Any) -> str:
    whole: dict[str, Any] = {"run": "r", "events": events(), "now": 460.0, "samples": SAMPLES, "losses": LOSSES}
    return report_html(Facts(**{**whole, **facts}))


NUMBERS = st.sampled_from([0.0, -1.5, 5e-324, 1.7e308, -1.7e308, math.inf, math.nan]) | st.floats()


@settings(max_examples=50)
@given(
    losses=st.lists(st.builds(Loss, st.integers(0, 500), st.sampled_from(["training", "validation"]), NUMBERS)),
    history=st.dictionaries(st.sampled_from(["training", "validation"]), st.lists(NUMBERS, max_size=4)),
    taken_up=st.booleans(),
)
def test_whatever_the_losses_are_and_whoever_began_the_training_there_is_a_page(
    losses: list[Loss], history: dict[str, list[float]], taken_up: bool
) -> None:
    told = [one for one in events() if one.what != "container-started"] if taken_up else events()
    assert Tags(page(losses=losses, history=history, events=told)).open == []


class Tags(HTMLParser):
    """Every tag with its attributes, and whether all are closed."""

    VOID = {"meta", "line", "rect", "circle", "path", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_asks_nobody_and_holds_no_script() -> None:
    tags = Tags(page())
    assert tags.open == []
    assert {tag for tag, _ in tags.seen}.isdisjoint({"script", "link", "img", "iframe", "a", "base", "form", "object"})
    assert not [name for _, attributes in tags.seen for name in attributes if name.startswith("on")]
    addresses = re.findall(r"[a-z]+://[^\"' )]+", page())
    assert set(addresses) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page()


def test_no_text_of_the_run_becomes_a_tag() -> None:
    evil = page(
        run=EVIL, events=events(EVIL), about=[(EVIL, EVIL)], failure=Failure(ErrorClass.UNKNOWN, EVIL, EVIL),
    )  # fmt: skip
    tags = Tags(evil)
    assert tags.open == []
    assert {tag for tag, _ in tags.seen}.isdisjoint({"script", "img"})
    assert evil.count("&lt;script&gt;") >= 8
    assert not [name for _, attributes in tags.seen for name in attributes if name.startswith("on")]


def test_secrets_are_masked() -> None:
    text = page(events=events("hunter2-hunter2"), mask=lambda text: text.replace("hunter2-hunter2", "[MASKED]"))
    assert "hunter2" not in text
    assert "[MASKED]" in text


def test_charts_have_labelled_axes_with_units_and_stay_in_their_frame() -> None:
    text = page()
    for label in ("time since the training began", "GPU use in %", "loss", "2 min", "GPU 1"):
        assert f">{label}</text>" in text
    for svg in re.findall(r"<svg class=.chart.*?</svg>", text):
        (width, height) = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
        xs = [float(x) for x in re.findall(r'[ML ](?:x[12]?|cx)="([-0-9.]+)"', svg)]
        path = [tuple(map(float, pair)) for pair in re.findall(r"[ML]([-0-9.]+) ([-0-9.]+)", svg)]
        assert path
        assert all(0 <= x <= width for x in xs)
        assert all(0 <= x <= width and 0 <= y <= height for x, y in path)


def test_a_run_of_which_nothing_is_known_makes_a_page_too() -> None:
    text = page(events=[], samples=[], losses=[])
    assert Tags(text).open == []
    for said in ("No loss was recognised", "No samples of a GPU", "no phase", "no candidate", "No VM ran"):
        assert said in text


def test_the_end_is_told_as_it_was() -> None:
    assert 'verdict good"><strong>The training ended well' in page()
    assert "nothing of it is left" in page()
    failed = page(failure=Failure(ErrorClass.NO_WEIGHTS, "left nothing in weights", "let it write there"))
    assert "NO_WEIGHTS: exit code 21" in failed
    assert "What may help: let it write there" in failed
    before = [*events()[:8], event(300, "failed", failure="PREEMPTED", cause="gone", exit_code=23)]
    assert "PREEMPTED: exit code 23" in page(events=before)
    again = sorted([*before, *events()[8:]], key=lambda one: one.at)
    assert "The training ended well" in page(events=again)
    assert "Still there: [&#x27;vm&#x27;]" in page(events=[*events()[:-1], event(450, "proof", left=["vm"])])


def test_a_loss_that_went_astray_is_said_and_the_rest_is_drawn() -> None:
    text = page(losses=[*LOSSES, Loss(395, "training", math.nan)])
    assert "The loss was nan for the first time at 4:55 min" in text
    assert "Loss over time" in text
    assert "Loss over time" not in page(losses=[Loss(395, "training", math.nan)])


def test_without_losses_in_the_output_the_history_of_metrics_is_drawn_by_epoch() -> None:
    text = page(losses=[], history={"training": [3, 2, 1.5], "validation": [3.1, 2.2, 1.9]})
    assert "Loss by epoch" in text
    assert ">epoch</text>" in text


def test_what_a_preemption_cost_is_told() -> None:
    taken = [event(150, "preempted", lost_seconds=90.0), event(300, "preempted", lost_seconds=60.0)]
    assert "Google took the VM away 2 times; 2 min of training were lost." in page(events=[*events()[:8], *taken])
    assert "Google took the VM away once; 90 s" in page(events=[*events()[:8], taken[0]])


def test_the_money_and_the_time_are_told() -> None:
    text = page()
    assert "About 0.07 USD: 0.72 USD an hour, for 6 min" in text
    assert "<strong>5 min</strong>" in text
    assert "<strong>3 files, 4.8 MiB</strong>" in text


def test_names_of_many_lines_take_the_rows_that_they_need() -> None:
    lines = [Line(f"GPU {n}", [(0.0, 1.0)]) for n in range(8)]
    few, many = (chart("t", some, Axis("x", 0, 1), Axis("y in %", 0, 2)) for some in (lines[:2], lines))
    heights = [int(re.findall(r'narrow" viewBox="0 0 400 (\d+)"', svg)[0]) for svg in (few, many)]
    assert heights[1] > heights[0]
    for svg in re.findall(r"<svg.*?</svg>", many):
        width = int(re.findall(r'viewBox="0 0 (\d+)', svg)[0])
        names = [float(x) for x in re.findall(r'x="([0-9.]+)" y="[0-9]+" text-anchor="start" fill="#48525d">GPU', svg)]
        assert len(names) == 8
        assert max(names) < width - 30


def test_a_page_of_days_is_small() -> None:
    samples = [Sample(100 + 60 * n, gpu, 50, 1, 2, 3, 4, 5, 6) for n in range(4000) for gpu in range(8)]
    assert len(page(samples=samples, losses=[Loss(100 + n, "training", n % 7) for n in range(4000)])) < 200_000


@pytest.mark.parametrize(
    ("span", "most", "step"), [(1, 5, 0.2), (7, 5, 2), (0.034, 5, 0.01), (100, 5, 20), (9, 4, 2.5)]
)
def test_round_steps(span: float, most: int, step: float) -> None:
    assert nice_step(span, most) == pytest.approx(step)


@pytest.mark.parametrize(("span", "step"), [(7, 1), (45, 10), (2700, 600), (86400, 10800), (30 * 86400, 5 * 86400)])
def test_round_steps_of_time(span: float, step: float) -> None:
    assert nice_time_step(span, 8) == step


@pytest.mark.parametrize(
    ("values", "ends"), [([1.1, 2.9], (1.0, 3.0)), ([5, 5], (4.4, 5.6)), ([0, 0], (-0.1, 0.1)), ([-3, 8], (-5, 10))]
)
def test_an_axis_has_round_ends_around_its_values(values: list[float], ends: tuple[float, float]) -> None:
    low, high = fitting(values)
    assert low <= min(values) <= max(values) <= high
    assert (low, high) == pytest.approx(ends, abs=0.11)


def test_many_points_are_averaged_and_few_are_left_alone() -> None:
    assert thinned([(0, 1), (1, 3)], 2) == [(0, 1), (1, 3)]
    assert thinned([(0, 1), (1, 3), (2, 5), (3, 5)], 2) == [(0.5, 2), (2.5, 5)]
    assert thinned([]) == []


def test_where_samples_are_missing_no_line_is_drawn() -> None:
    points = [(0.0, 1.0), (1.0, 1.0), (500.0, 1.0), (501.0, 1.0)]
    drawn = chart("t", [Line("a", points, gap=60)], Axis("x", 0, 501), Axis("y", 0, 2))
    assert re.findall(r' d="([^"]+)"', drawn)[0].count("M") == 2


def test_the_report_is_written_whether_the_job_ends_well_or_not(stage: Stage) -> None:
    stage.run.record.add("vm-ready")
    with reported(stage.run):
        pass
    path = stage.run.outputs / REPORT_FILE
    assert stage.name in path.read_text()
    with pytest.raises(Failure), reported(stage.run):
        raise refusal(ErrorClass.DISK_FULL, "the disk of this machine")
    assert "DISK_FULL: exit code 40" in path.read_text()
    assert "team/model" in path.read_text()


def test_the_jobs_page_links_to_its_report(stage: Stage) -> None:
    stage.run.record.add("vm-ready")
    write_report(stage.run)
    (link,) = json.loads((stage.run.outputs / "glgpu/annotations.json").read_text())["glgpu"]
    assert link["external_link"]["url"] == (
        "https://gitlab.example.com/team/model/-/jobs/5/artifacts/file/outputs/glgpu/report.html"
    )


def test_on_a_laptop_there_is_no_job_page(stage: Stage) -> None:
    stage.job(job_id="")
    stage.run.record.add("vm-ready")
    write_report(stage.run)
    assert not (stage.run.outputs / "glgpu/annotations.json").exists()


def test_the_reports_secrets_are_those_of_the_run(stage: Stage) -> None:
    stage.run.console.masker.add("s3cret-word")
    stage.run.record.add("vm-ready")
    write_report(stage.run, refusal(ErrorClass.UNKNOWN, "it said s3cret-word"))
    assert "s3cret-word" not in (stage.run.outputs / REPORT_FILE).read_text()


def test_a_report_that_cannot_be_written_stops_nothing(stage: Stage) -> None:
    stage.run.record.add("vm-ready")
    (stage.run.outputs / REPORT_FILE).mkdir(parents=True)
    write_report(stage.run)
    assert f"outputs/{REPORT_FILE} cannot be written" in stage.log


def test_a_run_without_any_event_has_no_report(stage: Stage) -> None:
    write_report(stage.run)
    assert not (stage.run.outputs / REPORT_FILE).exists()


@pytest.mark.parametrize("begun", ["container-started", "training-taken-up"])
def test_destroy_completes_the_report_with_what_train_has_left(stage: Stage, begun: str) -> None:
    sampled = csv_text([Sample(1_763_900_000, 0, 42, 1, 2, 3, 4, 5, 6)])
    stage.forge.artifacts["1001", "train", "outputs/glgpu/gpu.csv"] = sampled
    take_over_charts(stage.run)
    assert stage.forge.verbs() == []
    stage.run.record.add(begun)
    take_over_charts(stage.run)
    assert (stage.run.outputs / "glgpu/gpu.csv").read_text() == sampled
    write_report(stage.run)
    assert "GPU use over time" in (stage.run.outputs / REPORT_FILE).read_text()


def test_what_gitlab_does_not_show_is_left_out_of_the_report(stage: Stage) -> None:
    stage.run.record.add("container-started", image="i", pinned="p")
    stage.forge.refuse["artifact"] = refusal(ErrorClass.NETWORK)
    take_over_charts(stage.run)
    assert stage.forge.verbs() == ["artifact"]
    assert "gpu.csv cannot be had" in stage.log
