"""Line charts as SVG text: for notebooks and pages, in nothing but numbers and strings.

Colours are the page's CSS variables with their light values behind them, so that a chart is whole
without a style sheet. Every point's value is its tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from infalign.page import palette
from infalign.page.markup import Html, figure

WIDTH, HEIGHT = 560, 320  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 46
LEGEND_ROW = 18
PAPER, TEXT, MUTED, RULE, LIMIT = (
    f"var(--{ink.name}, {ink.light})"
    for ink in (palette.PAPER, palette.TEXT, palette.MUTED, palette.RULE, palette.LIMIT)
)


class Point(NamedTuple):
    """A value at x, with its interval where it has one, and what its tooltip says."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    says: str = ""


class Line(NamedTuple):
    """Points of one name; `position` fixes the colour, None is the limit's."""

    name: str
    points: Sequence[Point]
    position: int | None
    joined: bool = True


class Axis(NamedTuple):
    """What an axis shows: its name, the ticks and their words, whether values are at ticks only."""

    name: str
    ticks: Sequence[tuple[float, str]]
    few: bool = False


def colour(position: int | None) -> str:
    """The colour of the policy at a position, or of the limit."""
    if position is None:
        return LIMIT
    return f"var(--{palette.series_name(position)}, {palette.series(position).color})"


def drawn(title: str, lines: Sequence[Line], x: Axis, y: Axis, live: bool = False) -> Html:
    """A chart as a figure; `live` with the values that a page's script shows."""
    return figure(title, Html(chart(title, lines, x, y)), probe(lines, x, y) if live else None)


def probe(lines: Sequence[Line], x: Axis, y: Axis) -> dict[str, Any]:
    """The values of a chart, in the form that `infalign.page.script` reads."""
    panel = {
        "title": y.name,
        "axis": x.name,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "from": x.ticks[0][0],
        "to": x.ticks[-1][0],
        "digits": 3,
        "lines": [_values(line) for line in lines],
    }
    return {"panels": [panel | ({"snap": [list(tick) for tick in x.ticks]} if x.few else {})]}


def _values(line: Line) -> dict[str, Any]:
    ink = palette.LIMIT.name if line.position is None else palette.series_name(line.position)
    found: dict[str, Any] = {"name": line.name, "ink": ink}
    found |= {"x": [p.x for p in line.points], "y": [p.y for p in line.points]}
    if all(p.low is not None and p.high is not None for p in line.points):
        found |= {"low": [p.low for p in line.points], "high": [p.high for p in line.points]}
    return found | ({"single": True} if len(line.points) == 1 else {})


def chart(title: str, lines: Sequence[Line], x: Axis, y: Axis) -> str:
    """A chart as one <svg> element.

    Args:
        title: said above it, and to readers who cannot see it.
        lines: at least one point among them.
        x, y: axes; their first and last ticks are the chart's edges.
    """
    rows = -(-len(lines) // 3)
    height, names = HEIGHT + 6 + LEGEND_ROW * rows, ", ".join(line.name for line in lines)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}" '
        f'style="max-width: {WIDTH}px; width: 100%; font: 12px system-ui, sans-serif">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(f'{y.name} against {x.name}: {names}.')}</desc>",
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
        _words(LEFT, 18, title, "start", TEXT, "font-weight: 600"),
    ]
    across, up = _scale(x, LEFT, WIDTH - RIGHT), _scale(y, HEIGHT - BOTTOM, TOP)
    for value, word in y.ticks:
        at = up(value)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="{RULE}"/>'
        )
        parts.append(_words(LEFT - 6, at + 4, word, "end", MUTED))
    for value, word in x.ticks:
        parts.append(_words(across(value), HEIGHT - BOTTOM + 17, word, "middle", MUTED))
    parts.append(_words((LEFT + WIDTH) / 2, HEIGHT - 10, x.name, "middle", TEXT))
    parts.append(
        f'<text transform="rotate(-90)" x="{-(TOP + HEIGHT - BOTTOM) / 2:.0f}" y="13" '
        f'text-anchor="middle" fill="{TEXT}">{escape(y.name)}</text>'
    )
    for number, line in enumerate(lines):
        parts += _line(line, across, up)
        left = LEFT + (number % 3) * (WIDTH - LEFT - RIGHT) / 3
        below = HEIGHT + 10 + LEGEND_ROW * (number // 3)
        ink = colour(line.position)
        parts.append(
            f'<rect x="{left:.0f}" y="{below - 9}" width="10" height="10" rx="2" fill="{ink}"/>'
        )
        parts.append(_words(left + 15, below, line.name, "start", TEXT))
    return "\n".join([*parts, "</svg>"])


def ticks(low: float, high: float, digits: int = 2) -> list[tuple[float, str]]:
    """Five or six round numbers that enclose a range."""
    span = max(high - low, 1e-9)
    steps = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    step = next((s for s in steps if span / s <= 5), 20.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [(i * step, f"{i * step:.{digits}f}") for i in range(first, last + 1)]


class _scale:
    """From values to places along an axis."""

    def __init__(self, axis: Axis, start: float, end: float) -> None:
        self._low, self._high = axis.ticks[0][0], axis.ticks[-1][0]
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low or 1.0)
        return self._start + min(max(share, 0.0), 1.0) * (self._end - self._start)


def _words(x: float, y: float, text: str, anchor: str, ink: str, style: str = "") -> str:
    styled = f' style="{style}"' if style else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{ink}"{styled}>'
        f"{escape(text)}</text>"
    )


def _line(line: Line, across: _scale, up: _scale) -> list[str]:
    ink, found = colour(line.position), []
    if line.joined:
        places = " ".join(f"{across(p.x):.1f},{up(p.y):.1f}" for p in line.points)
        found.append(f'<polyline points="{places}" fill="none" stroke="{ink}" stroke-width="1.8"/>')
    for point in line.points if line.position is not None else ():
        x, y = across(point.x), up(point.y)
        if point.low is not None and point.high is not None:
            found.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up(point.low):.1f}" '
                f'y2="{up(point.high):.1f}" stroke="{ink}" stroke-width="1.4"/>'
            )
        says = escape(f"{line.name}: {point.says}" if point.says else line.name)
        found.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{ink}" stroke="{PAPER}">'
            f"<title>{says}</title></circle>"
        )
    return found
