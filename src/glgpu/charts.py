"""Line charts as SVG: numbers in, text out; readable without a style sheet, and in the page's colours with one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

MOST_DOTS = 40
"""Points of a line up to which each is marked."""
MOST_POINTS = 300
"""Points of one line; more of them are averaged."""
COLOURS = ("#0b63c4", "#c2410c", "#0f766e", "#7e22ce", "#a16207", "#be185d", "#4d7c0f", "#475569")
"""Of the lines, on white; the page's style sheet has others for a dark one."""
TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: What it is called.
        points: Its points, from left to right.
        gap: Distance of two points from which nothing is drawn between them.
    """

    name: str
    points: Sequence[Point]
    gap: float = math.inf


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: What it tells, with its unit.
        low: Its smallest value.
        high: Its largest value.
        spoken: How a value is written at it.
        step: A round step for a span that gets at most so many.
    """

    label: str
    low: float
    high: float
    spoken: Callable[[float], str] = "{:g}".format
    step: Callable[[float, int], float] = field(default_factory=lambda: nice_step)


@dataclass(frozen=True)
class Size:
    """The size of a chart in its own units, which are pixels where it has room.

    Attributes:
        width: Its width.
        height: Its height.
        class_name: Which chart of a pair it is.
    """

    width: int
    height: int
    class_name: str


WIDE, NARROW = Size(860, 260, "wide"), Size(400, 240, "narrow")
LEFT, RIGHT, TOP, BOTTOM = 58, 26, 34, 46
FIRST_ROW, ROW_HEIGHT, LABEL_WIDTH, KEY_WIDTH = 16, 18, 6.5, 34
"""Of what stands above a chart: where its first row is, how high a row is, and how wide a letter and a key are."""


def chart(title: str, lines: Sequence[Line], across: Axis, up: Axis) -> str:
    """A chart in two sizes, of which the style sheet shows the one that fits.

    Args:
        title: For those who do not see it.
        lines: What is drawn.
        across: The horizontal axis.
        up: The vertical axis.
    """
    return "".join(_drawn(title, lines, across, up, size) for size in (WIDE, NARROW))


def nice_step(span: float, most: int) -> float:
    """A round step that divides a span, which is larger than 0, into at most so many parts."""
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999_999)


def nice_time_step(span: float, most: int) -> float:
    """The same for seconds, minutes and hours."""
    for step in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400):
        if span / step <= most:
            return float(step)
    return 86400 * nice_step(span / 86400, most)


def fitting(values: Sequence[float]) -> tuple[float, float]:
    """Round ends of an axis that has room for these values."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = low - max(abs(low) * 0.1, 0.1), high + max(abs(high) * 0.1, 0.1)
    step = nice_step(high - low, TICKS)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many points: neighbours are averaged."""
    size = math.ceil(len(points) / most) if points else 1
    parts = [points[first : first + size] for first in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _drawn(title: str, lines: Sequence[Line], across: Axis, up: Axis, size: Size) -> str:
    legend = _legend(lines, size, LABEL_WIDTH * len(up.label))
    top, height = TOP + legend.extra, size.height + legend.extra

    def x_of(value: float) -> float:
        share = (value - across.low) / (across.high - across.low)
        return round(LEFT + share * (size.width - LEFT - RIGHT), 1)

    def y_of(value: float) -> float:
        share = (value - up.low) / (up.high - up.low)
        return round(height - BOTTOM - share * (height - top - BOTTOM), 1)

    parts = [
        f'<svg class="chart {size.class_name}" viewBox="0 0 {size.width} {height}" role="img" '
        f'font-family="sans-serif" font-size="12" xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>'
    ]
    bottom, right = height - BOTTOM, size.width - RIGHT
    step = up.step(up.high - up.low, TICKS)
    for value in _ticks(up.low, up.high, step):
        y = y_of(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{right}" y2="{y}" stroke="#d8dee6"/>')
        parts.append(_text(LEFT - 6, y + 4, up.spoken(value), "end"))
    step = across.step(across.high - across.low, (size.width - LEFT - RIGHT) // 90)
    for value in _ticks(across.low, across.high, step):
        x = x_of(value)
        parts.append(f'<line class="axis" x1="{x}" y1="{bottom}" x2="{x}" y2="{bottom + 4}" stroke="#6b7785"/>')
        parts.append(_text(x, bottom + 18, across.spoken(value), "middle"))
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="#6b7785"/>')
    parts.append(_text((LEFT + right) / 2, height - 8, across.label, "middle"))
    parts.append(_text(4, FIRST_ROW, up.label, "start"))
    parts.append(legend.drawn)
    for number, line in enumerate(lines):
        parts.append(_line(line, number, x_of, y_of))
    return "".join([*parts, "</svg>"])


def _ticks(low: float, high: float, step: float) -> list[float]:
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    place = f'x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}"'
    return f'<text class="label" {place} fill="#48525d">{escape(text)}</text>'


@dataclass(frozen=True)
class _Legend:
    """Names of the lines.

    Attributes:
        drawn: As SVG.
        extra: Height that it takes beyond its first row.
    """

    drawn: str = ""
    extra: int = 0


def _legend(lines: Sequence[Line], size: Size, taken: float) -> _Legend:
    """Names of the lines in as many rows as they need, the first one beside the axis' label; one line needs none."""
    if len(lines) < 2:
        return _Legend()
    parts = list[str]()
    x, y = 4 + taken + KEY_WIDTH, FIRST_ROW
    for number, line in enumerate(lines):
        width = KEY_WIDTH + LABEL_WIDTH * len(line.name)
        if x + width > size.width - RIGHT:
            x, y = 4.0, y + ROW_HEIGHT
        colour = COLOURS[number % len(COLOURS)]
        parts.append(
            f'<line class="s{number % len(COLOURS)}" x1="{round(x, 1)}" y1="{y - 4}" x2="{round(x + 14, 1)}" '
            f'y2="{y - 4}" stroke="{colour}" stroke-width="3"/>'
        )
        parts.append(_text(x + 19, y, line.name, "start"))
        x += width
    return _Legend("".join(parts), y - FIRST_ROW)


def _line(line: Line, number: int, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> str:
    colour, kind = COLOURS[number % len(COLOURS)], f"s{number % len(COLOURS)}"
    points = thinned(line.points)
    path, last = [], None
    for x, y in points:
        begins = last is None or x - last > line.gap
        path.append(f"{'M' if begins else 'L'}{x_of(x)} {y_of(y)}")
        last = x
    drawn = (
        f'<path class="{kind}" d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="2" '
        'stroke-linejoin="round"/>'
    )
    dots = [
        f'<circle class="d{number % len(COLOURS)}" cx="{x_of(x)}" cy="{y_of(y)}" r="3" fill="{colour}"/>'
        for x, y in (points if len(points) <= MOST_DOTS else [])
    ]
    return drawn + "".join(dots)
