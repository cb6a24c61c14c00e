"""Charts as inline SVG with marks that can be pointed at: native, so that the page stays one small file.

A mark carries its numbers as a ``<title>``, which browsers show and screen readers read; the script of the
page (``templates/script.js``) shows the nearest one at once and zooms into a dragged rectangle. Colours and
sizes of text come from the page, so that a chart follows its theme and stays readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from experiments.report.text import number

WIDTH, HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 12, 12, 52
_TICKS = 5

Place = tuple[float, float, str]
"""x, y, and what is told of the mark."""


@dataclass(frozen=True)
class Series:
    """Marks of one kind.

    Attributes:
        label: in the legend.
        colour: a variable of the page, such as ``accent``.
        places: the marks.
        form: dots, rings around others, dots joined by a line, or a line of steps without dots.
    """

    label: str
    colour: str
    places: Sequence[Place]
    form: Literal["dots", "rings", "line", "steps"] = "dots"


@dataclass(frozen=True)
class Level:
    """A horizontal line, such as the score of the dense network."""

    label: str
    y: float
    colour: str = "ink"


def chart(title: str, series: Sequence[Series], x: str, y: str, levels: Sequence[Level] = ()) -> str:
    """Return a chart as a ``<figure>``; empty if all marks have one place, as it would say nothing.

    Args:
        title: what the chart shows, in one sentence.
        series: the marks; the first lie below the others, and those without any are left out.
        x, y: what the axes show, with units.
        levels: lines across the chart.
    """
    series = [own for own in series if own.places]
    places = [place for own in series for place in own.places]
    if len({place[:2] for place in places}) < 2:
        return ""
    across = _Axis.of([place[0] for place in places], _LEFT, WIDTH - _RIGHT)
    up = _Axis.of([*(p[1] for p in places), *(level.y for level in levels)], HEIGHT - _BOTTOM, _TOP)
    drawn = [
        *_grid(across, up, x, y),
        *(_level(level, up) for level in levels),
        *(part for own in series for part in _series(own, across, up)),
    ]
    body = "\n".join(drawn)
    named = f'role="img" aria-label="{escape(title)}"'
    return (
        f'<figure>\n<svg class="chart" {named} viewBox="0 0 {WIDTH} {HEIGHT}">\n'
        f"<title>{escape(title)}</title>\n{body}\n</svg>\n"
        f"<figcaption>{_legend(series, levels)}</figcaption>\n</figure>"
    )


def spark(curve: Sequence[tuple[float, float]], at: float, title: str) -> str:
    """Return a small curve with a dot.

    Args:
        curve: x in ascending order, and y, not negative.
        at: x of the dot, which lies on the nearest point.
        title: what it shows.
    """
    top, first, last = max(y for _, y in curve) or 1.0, curve[0][0], curve[-1][0]
    points = [(x, 2 + 96 * (x - first) / ((last - first) or 1), 26 - 22 * y / top) for x, y in curve]
    _, *near = min(points, key=lambda point: abs(point[0] - at))
    line = " ".join(f"{px:.1f},{py:.1f}" for _, px, py in points)
    return (
        f'<svg class="spark" role="img" aria-label="{escape(title)}" viewBox="0 0 100 28">'
        f"<title>{escape(title)}</title>"
        f'<polyline points="{line}" class="line accent"/>'
        f'<circle cx="{near[0]:.1f}" cy="{near[1]:.1f}" r="3" class="best"/></svg>'
    )


@dataclass(frozen=True)
class _Axis:
    """A scale from values to pixels, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    step: float

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        spread = high - low or abs(high) or 1.0
        raw = spread / _TICKS
        power = 10 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
        return cls(low - 0.04 * spread, high + 0.04 * spread, start, end, step)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        first, last = math.ceil(self.low / self.step), math.floor(self.high / self.step)
        return [count * self.step for count in range(first, last + 1)]

    def label(self, tick: float) -> str:
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        digits += self.step / 10**-digits % 1 > 1e-9  # 0.25 has two digits
        return f"{tick + 0.0:.{digits}f}"


def _grid(across: _Axis, up: _Axis, x: str, y: str) -> list[str]:
    """Return the grid, the numbers at the axes and what these show."""
    parts = []
    for tick in up.ticks():
        at = f"{up(tick):.1f}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 8}" y="{at}" dy="0.35em" text-anchor="end">'
            f"{up.label(tick)}</text>"
        )
    for tick in across.ticks():
        at = f"{across(tick):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
        place = f'x="{at}" y="{HEIGHT - _BOTTOM + 19}" text-anchor="middle"'
        parts.append(f'<text class="tick" {place}>{across.label(tick)}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x)}</text>')
    centre = (_TOP + HEIGHT - _BOTTOM) / 2
    turned = f'transform="translate(15 {centre}) rotate(-90)"'
    parts.append(f'<text class="axis" {turned} text-anchor="middle">{escape(y)}</text>')
    return parts


def _level(level: Level, up: _Axis) -> str:
    at = f"{up(level.y):.1f}"
    line = f'<line class="level {level.colour}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at}" y2="{at}">'
    return f"{line}<title>{escape(level.label)}: {number(level.y)}</title></line>"


def _series(own: Series, across: _Axis, up: _Axis) -> list[str]:
    places = [(across(x), up(y), told) for x, y, told in own.places]
    parts = []
    if own.form in ("line", "steps"):
        path = [f"{x:.1f},{y:.1f}" for x, y, _ in places]
        if own.form == "steps":
            path = [path[0]] + [
                point
                for (x, *_), (_, y, *_), after in zip(places[1:], places, path[1:], strict=False)
                for point in (f"{x:.1f},{y:.1f}", after)
            ]
        parts.append(f'<polyline class="line {own.colour}" points="{" ".join(path)}"/>')
    if own.form != "steps":
        shape = "ring" if own.form == "rings" else "dot"
        size = 7 if own.form == "rings" else 4
        parts += [
            f'<circle class="{shape} {own.colour}" cx="{x:.1f}" cy="{y:.1f}" r="{size}">'
            f"<title>{escape(told)}</title></circle>"
            for x, y, told in places
        ]
    return parts


def _legend(series: Sequence[Series], levels: Sequence[Level]) -> str:
    """Return the names of the marks and lines, each behind a piece of its colour."""
    named: list[tuple[str, str, str]] = [(own.label, own.colour, own.form) for own in series]
    named += [(f"{level.label} {number(level.y)}", level.colour, "level") for level in levels]
    return " ".join(
        f'<span class="key"><i class="{form} {colour}"></i>{escape(label)}</span>'
        for label, colour, form in named
    )
