"""The figures of a comparison: win rate against KL for every method, by judge, under poison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infalign.page import palette
from infalign.page.figures import draw
from infalign.page.plots import legend_below

Row = Mapping[str, Any]
Measurement = tuple[float, float, float, float]  # KL, value, low, high
HEIGHT, PANEL = 3.6, 4.6  # inches


class Panel(NamedTuple):
    """Lines of values against KL, one a variant.

    Fields: the title; per variant rows of (kl, value, low, high), values in percent; per curve of
    theory its KL grid and values, `limit` among them where there is one; a level to draw across.
    """

    title: str
    lines: Mapping[str, Sequence[Measurement]]
    theory: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    level: float = 50.0
    unit: str = "win rate over the reference (%)"


def lines_of(rows: Sequence[Row], value: str = "win_rate") -> dict[str, list[Measurement]]:
    """Rows of a table as lines, by rising KL."""
    found: dict[str, list[Measurement]] = {}
    for row in sorted(rows, key=lambda row: float(row["kl"])):
        numbers = (row["kl"], 100 * row[value], 100 * row["low"], 100 * row["high"])
        found.setdefault(row["variant"], []).append(numbers)
    return found


def theory_of(rows: Sequence[Row], procedure: str) -> dict[str, tuple[list[float], list[float]]]:
    """Curves of theory under a procedure, in percent."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        if row["procedure"] == procedure:
            kl, values = found.setdefault(row["curve"], ([], []))
            kl.append(row["kl"])
            values.append(100 * row["win_rate"])
    return found


def rivalry(panels: Sequence[Panel], order: Sequence[str], methods: Mapping[str, str]) -> Figure:
    """Panels side by side with one legend.

    Args:
        order: the variants' names, which fixes their colours.
        methods: variant to the spelling of its reward, which names its curve of theory.
    """

    def paint(axes: list[Axes]) -> None:
        for position, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
            _paint_panel(axis, panel, order, methods)
            if position == 0 or panel.unit != panels[position - 1].unit:
                axis.set_ylabel(panel.unit)
        legend_below(axes[0])

    return draw(paint, PANEL * max(1.4, len(panels)), HEIGHT, len(panels))


def _paint_panel(
    axis: Axes, panel: Panel, order: Sequence[str], methods: Mapping[str, str]
) -> None:
    axis.axhline(panel.level, color=palette.NEUTRAL.light, linewidth=1, zorder=0)
    axis.annotate(
        "reference",
        (0.0, panel.level),
        xytext=(3, 2),
        textcoords="offset points",
        color=palette.MUTED.light,
        fontsize=7.5,
    )
    _paint_theory(axis, panel.theory, order, methods)
    for name, rows in panel.lines.items():
        _paint_line(axis, name, rows, palette.series(order.index(name)))
    rows = [row for line in panel.lines.values() for row in line]
    limit = panel.theory.get("limit", ((), (panel.level,)))[1]
    axis.set(title=panel.title, xlabel="KL from the reference (nats)")
    axis.set_xlim(0, 1.12 * max(kl for kl, *_ in rows))
    lowest = min([panel.level, *(low for *_, low, _ in rows)])
    highest = max([panel.level, max(limit), *(high for *_, high in rows)])
    axis.set_ylim(max(0.0, lowest - 2), min(100.0, highest + 2))


def _paint_theory(
    axis: Axes,
    theory: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    order: Sequence[str],
    methods: Mapping[str, str],
) -> None:
    """The limit, and one dashed line for every reward that methods maximise."""
    for spelling, (kl, values) in theory.items():
        if spelling == "limit":
            axis.fill_between(kl, values, 100, color=palette.SHADE.light, linewidth=0, zorder=0)
            label = "limit (optimal transformation)"
            axis.plot(kl, values, color=palette.LIMIT.light, label=label)
            continue
        users = [name for name in order if methods[name] == spelling]
        style = palette.series(order.index(users[0]))
        label = f"{spelling}: theory of {', '.join(users)}"
        axis.plot(kl, values, color=style.color, linestyle=(0, style.dash), lw=1.1, label=label)


def _paint_line(axis: Axes, name: str, rows: Sequence[Measurement], style: palette.Series) -> None:
    """A method's policies with their intervals, joined by rising KL."""
    kl, value, low, high = np.array(rows).T
    axis.errorbar(
        kl,
        value,
        yerr=[np.maximum(value - low, 0), np.maximum(high - value, 0)],
        color=style.color,
        marker=style.marker,
        markersize=5.5,
        markeredgecolor=palette.PAPER.light,
        elinewidth=1.2,
        linewidth=0.9,
        zorder=5,
        label=name,
    )
