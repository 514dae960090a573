"""The report of a run as one page that needs nothing else: facts in, HTML out.

No text in it is trusted: whatever comes from a record, a log or a failure is masked and escaped in one place. The page
holds no script and asks nobody for anything, and forbids itself both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from itertools import groupby, pairwise
from statistics import median

from glgpu.charts import Axis, Line, chart, fitting, nice_step, nice_time_step
from glgpu.errors import Failure
from glgpu.gpu_idle import IDLE_PERCENT, SPOKEN
from glgpu.gpu_samples import Sample
from glgpu.lifetime import spoken
from glgpu.losses import Loss, Series
from glgpu.machines import dollars
from glgpu.phases import Phase, cost_of, number_of, phases_of, training_span, tries_of
from glgpu.run_record import Event

GAP_SECONDS, GAP_STEPS = 60.0, 5
"""Samples that lie further apart are not joined."""
LARGEST = 1e300
"""Values beyond it are told, and not drawn."""


@dataclass(frozen=True)
class Facts:
    """What a report is made of.

    Attributes:
        run: The run's name.
        events: Its record's events, oldest first.
        now: Unix time.
        about: Further lines of the head: what, and its value.
        samples: Samples of the GPUs.
        losses: The losses that the output told.
        history: The losses of a metrics.json, by epoch.
        failure: What the job that writes this ends with.
        mask: Hides secrets in a text.
    """

    run: str
    events: Sequence[Event]
    now: float
    about: Sequence[tuple[str, str]] = ()
    samples: Sequence[Sample] = ()
    losses: Sequence[Loss] = ()
    history: Mapping[Series, Sequence[float]] = field(default_factory=dict)
    failure: Failure | None = None
    mask: Callable[[str], str] = field(default=lambda text: text)


def report_html(facts: Facts) -> str:
    """The report."""
    return _Page(facts).html()


class _Page:
    """One report in the making."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._phases = phases_of(facts.events, facts.now)
        self._span = training_span(self._phases)

    def html(self) -> str:
        run = self._say(self._facts.run)
        body = "".join([
            f"<header><h1>{run}</h1>{self._verdict()}</header>", self._tiles(),
            self._section("Loss", self._losses()), self._section("GPU", self._gpus()),
            self._section("Phases", self._phase_table()), self._section("Candidates", self._tries()),
            self._section("Cost", self._cost()), self._section("Run", self._about()),
        ])  # fmt: skip
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{run}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
        )

    def _say(self, text: object) -> str:
        """The one way for a text into the page."""
        return escape(self._facts.mask(str(text)))

    def _section(self, title: str, content: str) -> str:
        return f"<section><h2>{title}</h2>{content}</section>"

    def _note(self, text: str) -> str:
        return f'<p class="note">{self._say(text)}</p>'

    def _find(self, what: str) -> Event | None:
        return next((event for event in reversed(self._facts.events) if event.what == what), None)

    # --- how it ended

    def _verdict(self) -> str:
        """How it ended, by this job's failure, else by the record."""
        failure, ended, proof = self._facts.failure, self._find("training-ended"), self._find("proof")
        lines = []
        last = self._find("failed")
        trained = ended is not None and ended.facts.get("exit_code") == 0
        if failure is not None:
            good, head = False, f"{failure.klass}: exit code {failure.exit_code}"
            lines += [failure.cause, f"What may help: {failure.remedy}"]
        elif last is not None and not (trained and last.at < (ended.at if ended else 0)):
            good, head = False, f"{last.facts.get('failure')}: exit code {last.facts.get('exit_code')}"
            lines.append(str(last.facts.get("cause", "")))
        elif trained:
            good, head = True, "The training ended well"
        elif ended is not None:
            good, head = False, f"The training ended with exit code {ended.facts.get('exit_code')}"
        else:
            good, head = False, "No training has ended"
        if proof is not None:
            left = proof.facts.get("left")
            lines.append("Proved at the end: nothing of it is left." if not left else f"Still there: {left}")
        told = "".join(f"<p>{self._say(line)}</p>" for line in lines if line)
        return f'<div class="verdict {"good" if good else "bad"}"><strong>{self._say(head)}</strong>{told}</div>'

    # --- figures

    def _tiles(self) -> str:
        trained = sum(one.seconds for one in self._phases if one.name == "Training")
        cost = cost_of(self._facts.events, self._facts.now)
        home, runs = self._find("outputs-home"), self._find("instance-running")
        means = [mean for gpu in self._by_gpu().values() if (mean := _mean(one.use for one in gpu)) is not None]
        tiles = [
            ("trained", spoken(trained) if trained else "-"),
            ("mean GPU use", f"{sum(means) / len(means):.0f} %" if means else "not known"),
            ("cost, estimate", _usd(cost.usd)),
            ("came home", _files(home.facts) if home else "nothing"),
            ("GPU", str(runs.facts.get("gpu")) if runs else "-"),
        ]
        drawn = "".join(f"<div><span>{name}</span><strong>{self._say(value)}</strong></div>" for name, value in tiles)
        return f'<div class="tiles">{drawn}</div>'

    # --- charts

    def _time_axis(self, times: Sequence[float]) -> Axis:
        """Seconds since the training's start, for all charts alike where there was one."""
        begin, end = self._span or (min(times), max(times))
        return Axis("time since the training began", 0, max(end - begin, 1.0), _clock, nice_time_step)

    def _begin(self, times: Sequence[float]) -> float:
        return self._span[0] if self._span else min(times)

    def _losses(self) -> str:
        losses = sorted(self._facts.losses, key=lambda loss: loss.at)
        finite = [one for one in losses if _drawable(one.value)]
        notes = ""
        if len(finite) < len(losses):
            first = next(one for one in losses if not _drawable(one.value))
            when = _clock(max(0.0, first.at - self._begin([one.at for one in losses])))
            notes = self._note(f"The loss was {first.value} for the first time at {when}.")
        if finite:
            times = [one.at for one in finite]
            across, begin = self._time_axis(times), self._begin(times)
            lines = [
                Line(series, [(min(max(0.0, one.at - begin), across.high), one.value) for one in finite
                              if one.series == series])
                for series in ("training", "validation") if any(one.series == series for one in finite)
            ]  # fmt: skip
            up = Axis("loss", *fitting([one.value for one in finite]))
            return chart("Loss over time", lines, across, up) + notes
        history = {name: [v for v in values if _drawable(v)] for name, values in self._facts.history.items()}
        if any(history.values()):
            lines = [Line(name, list(enumerate(values, 1))) for name, values in history.items() if values]
            most = max(len(line.points) for line in lines)
            across = Axis("epoch", 1, max(most, 2), step=lambda span, parts: max(1.0, nice_step(span, parts)))
            up = Axis("loss", *fitting([value for values in history.values() for value in values]))
            return chart("Loss by epoch", lines, across, up) + notes
        return notes + self._note(
            "No loss was recognised in the training's output, nor a history in a metrics.json. What is recognised: "
            "lines such as `loss 1.234` or `val_loss=1.234`."
        )

    def _by_gpu(self) -> dict[int, list[Sample]]:
        samples = sorted(self._facts.samples, key=lambda one: (one.gpu, one.at))
        return {gpu: list(group) for gpu, group in groupby(samples, key=lambda one: one.gpu)}

    def _gpus(self) -> str:
        by_gpu = self._by_gpu()
        if not by_gpu:
            return self._note("No samples of a GPU are at hand.")
        times = [one.at for one in self._facts.samples]
        across, begin = self._time_axis(times), self._begin(times)
        lines = []
        for gpu, samples in by_gpu.items():
            known = [(min(max(0.0, one.at - begin), across.high), one.use) for one in samples if one.use is not None]
            if known:
                lines.append(Line(f"GPU {gpu}", known, _gap([x for x, _ in known])))
        drawn = chart("GPU use over time", lines, across, Axis("GPU use in %", 0, 100)) if lines else ""
        rows = [
            [
                f"GPU {gpu}", _figure(_mean(one.use for one in samples), "%"), _idle_share(samples),
                _memory(samples), _figure(_most(one.celsius for one in samples), "°C"),
                _figure(_mean(one.watts for one in samples), "W"),
            ]
            for gpu, samples in by_gpu.items()
        ]  # fmt: skip
        header = ["", "mean use", "idle", "most memory", "warmest", "mean power"]
        warned = [
            f"Idle for {spoken(number_of(event.facts.get('seconds')) or 0)}: {told}."
            for event in self._facts.events if event.what == "gpu-idle"
            for reason in [event.facts.get("reason", "")]
            for told in [next((text for word, text in SPOKEN.items() if word == reason), reason)]
        ]  # fmt: skip
        return drawn + self._table("numbers", header, rows) + "".join(map(self._note, warned))

    # --- tables

    def _table(self, kind: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        head = "".join(f"<th>{self._say(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{self._say(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        return f'<div class="scroll">{table}</div>'

    def _phase_table(self) -> str:
        if not self._phases:
            return self._note("The record tells of no phase.")
        begin = self._phases[0].begin
        whole = max(self._phases[-1].end - begin, 1e-9)
        rows = "".join(self._phase_row(one, begin, whole) for one in self._phases)
        taken = [event.facts for event in self._facts.events if event.what == "preempted"]
        lost = spoken(sum(number_of(facts.get("lost_seconds")) or 0 for facts in taken))
        times = "once" if len(taken) == 1 else f"{len(taken)} times"
        note = self._note(f"Google took the VM away {times}; {lost} of training were lost.") if taken else ""
        return f'<table class="phases"><tbody>{rows}</tbody></table>{note}'

    def _phase_row(self, phase: Phase, begin: float, whole: float) -> str:
        left, width = 100 * (phase.begin - begin) / whole, max(0.4, 100 * phase.seconds / whole)
        kind = "training" if phase.name == "Training" else "other"
        colour = "#0b63c4" if kind == "training" else "#8b97a5"
        bar = (
            '<svg class="bar" viewBox="0 0 100 10" width="100%" height="14" preserveAspectRatio="none" '
            'aria-hidden="true"><rect class="track" width="100" height="10" fill="#eef1f5"/>'
            f'<rect class="{kind}" x="{min(left, 99.6):.2f}" width="{width:.2f}" height="10" fill="{colour}"/></svg>'
        )
        lasts = spoken(phase.seconds) if phase.ended else f"{spoken(phase.seconds)} so far"
        return f"<tr><th>{self._say(phase.name)}</th><td>{bar}</td><td>{self._say(lasts)}</td></tr>"

    def _tries(self) -> str:
        tries = tries_of(self._facts.events)
        if not tries:
            return self._note("The record tells of no candidate.")
        rows = [
            [
                one.candidate, {"ran": "runs", "tried": "was tried"}.get(one.outcome, one.outcome),
                "" if one.seconds is None else spoken(one.seconds), one.why,
            ]
            for one in tries
        ]  # fmt: skip
        return self._table("tries", ["candidate", "outcome", "after", "why"], rows)

    def _cost(self) -> str:
        cost = cost_of(self._facts.events, self._facts.now)
        if not cost.rates:
            return self._note("No VM ran.")
        rates = ", ".join("?" if rate is None else dollars(rate) for rate in cost.rates)
        text = (
            f"About {_usd(cost.usd)}: {rates} USD an hour, for {spoken(cost.seconds)} from the VM's start until it was "
            "given back. An estimate for machine, GPU and boot disk, without traffic."
        )
        return f"<p>{self._say(text)}</p>"

    def _about(self) -> str:
        container, runs = self._find("container-started"), self._find("instance-running")
        lines = [*self._facts.about]
        if runs is not None:
            facts = runs.facts
            how = "spot" if facts.get("spot") else "standard"
            lines.append(("machine", f"{facts.get('machine_type')} in {facts.get('zone')}, {how}"))
        if container is not None:
            lines.append(("image", str(container.facts.get("pinned"))))
        if self._facts.events:
            lines.append(("began", _date(self._facts.events[0].at)))
        lines.append(("this page is of", _date(self._facts.now)))
        rows = "".join(f"<dt>{self._say(name)}</dt><dd>{self._say(value)}</dd>" for name, value in lines)
        return f"<dl>{rows}</dl>"


def _drawable(value: float) -> bool:
    """Whether an axis can hold it: a loss that goes astray passes the largest number on its way to infinity."""
    return abs(value) <= LARGEST


def _clock(seconds: float) -> str:
    """A time on an axis: ``40 s``, ``12 min``, ``3 h``, ``3:30 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" if whole % 60 == 0 else f"{whole // 60}:{whole % 60:02} min"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02} h" if minutes else f"{hours} h"


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _usd(value: float | None) -> str:
    if value is None:
        return "not known"
    return f"{dollars(value)} USD" if value >= 0.01 else "less than 0.01 USD"


def _files(facts: Mapping[str, object]) -> str:
    count = facts.get("files")
    return f"{count} {'file' if count == 1 else 'files'}, {_bytes(facts.get('bytes'))}"


def _bytes(size: object) -> str:
    number = number_of(size)
    if number is None:
        return "?"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} {unit}" if number >= 100 or unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return "?"


def _gap(times: Sequence[float]) -> float:
    """From which distance on two samples are not joined."""
    steps = [after - before for before, after in pairwise(times)]
    return max(GAP_SECONDS, GAP_STEPS * median(steps)) if steps else GAP_SECONDS


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _figure(value: float | None, unit: str) -> str:
    return "not known" if value is None else f"{value:.0f} {unit}"


def _idle_share(samples: Sequence[Sample]) -> str:
    known = [one.use for one in samples if one.use is not None]
    return f"{100 * sum(use <= IDLE_PERCENT for use in known) / len(known):.0f} %" if known else "not known"


def _memory(samples: Sequence[Sample]) -> str:
    used, whole = _most(one.used_mib for one in samples), _most(one.memory_mib for one in samples)
    if used is None:
        return "not known"
    return f"{used / 1024:.1f} GiB" if whole is None else f"{used / 1024:.1f} of {whole / 1024:.1f} GiB"


STYLE = """
:root{--bg:#fff;--fg:#1b232c;--soft:#56616e;--line:#d8dee6;--card:#f6f8fa;--good:#116a3a;--goodbg:#e7f5ec;
--bad:#a1260d;--badbg:#fdeeea;--track:#eef1f5;--other:#8b97a5;--s0:#0b63c4;--s1:#c2410c;--s2:#0f766e;--s3:#7e22ce;
--s4:#a16207;--s5:#be185d;--s6:#4d7c0f;--s7:#475569}
@media(prefers-color-scheme:dark){:root{--bg:#14181d;--fg:#e4e9ef;--soft:#a3afbc;--line:#333c46;--card:#1c2229;
--good:#7fdca4;--goodbg:#12301f;--bad:#ffab94;--badbg:#3b1a12;--track:#252c34;--other:#6b7785;--s0:#6cb2ff;
--s1:#ff9f5a;--s2:#4fd1c1;--s3:#cd9bff;--s4:#e5c453;--s5:#ff8ab8;--s6:#a8d65c;--s7:#a9b8c9}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:920px;margin:0 auto;padding:24px 20px 48px}
h1{font-size:20px;margin:0 0 12px;overflow-wrap:anywhere}
h2{font-size:16px;margin:32px 0 8px}
p{margin:4px 0}
.verdict{border-radius:8px;padding:12px 16px;overflow-wrap:anywhere}
.verdict p{color:var(--fg)}
.good{background:var(--goodbg);color:var(--good)}
.bad{background:var(--badbg);color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin-top:16px}
.tiles div{background:var(--card);border-radius:8px;padding:10px 14px}
.tiles span{display:block;color:var(--soft);font-size:13px}
.tiles strong{font-size:16px;overflow-wrap:anywhere}
.note,dt{color:var(--soft)}
.note{overflow-wrap:anywhere}
.chart{display:block;width:100%;height:auto}
.chart.narrow{display:none}
@media(max-width:600px){.chart.wide{display:none}.chart.narrow{display:block}}
svg .label{fill:var(--soft)}
svg .grid{stroke:var(--line)}
svg .axis{stroke:var(--soft)}
.s0{stroke:var(--s0)}.s1{stroke:var(--s1)}.s2{stroke:var(--s2)}.s3{stroke:var(--s3)}
.s4{stroke:var(--s4)}.s5{stroke:var(--s5)}.s6{stroke:var(--s6)}.s7{stroke:var(--s7)}
.d0{fill:var(--s0)}.d1{fill:var(--s1)}.d2{fill:var(--s2)}.d3{fill:var(--s3)}
.d4{fill:var(--s4)}.d5{fill:var(--s5)}.d6{fill:var(--s6)}.d7{fill:var(--s7)}
.track{fill:var(--track)}
rect.training{fill:var(--s0)}
rect.other{fill:var(--other)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:6px 14px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--soft);font-weight:normal}
.numbers td,.numbers th{white-space:nowrap}
.phases{table-layout:fixed}
.phases th{font-weight:normal;width:34%}
.phases td:last-child{width:92px;white-space:nowrap;text-align:right;padding-right:0}
.bar{display:block;margin-top:4px}
@media(max-width:600px){.tries thead{display:none}.tries tr{display:block;padding:8px 0;
border-bottom:1px solid var(--line)}.tries td{display:block;border:0;padding:0}.phases th{width:42%}}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:0}
dd{margin:0;overflow-wrap:anywhere}
"""
