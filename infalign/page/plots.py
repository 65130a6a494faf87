"""The report's plots: plain data in, a matplotlib figure out.

Win rates are shown in percent, KL in nats. Every policy keeps one colour, marker and dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infalign.files.squares import Array
from infalign.page import palette
from infalign.page.figures import draw

HEIGHT = 3.5  # inches
Z95 = 1.96
KEY_WIDTH, LETTER_WIDTH, LEGEND_ROW = 0.55, 0.06, 0.18  # inches, of a legend's parts
RUNNING = 10  # training steps in a running mean


class Point(NamedTuple):
    """A policy's measurement: win rate with its interval (0..1), KL and its error (nats)."""

    policy: str
    win_rate: float
    low: float
    high: float
    kl: float
    kl_se: float


class Frontier(NamedTuple):
    """Win rate against KL under one procedure.

    Fields: the panel's title; the KL grid, nats, and the limit there; each method's own KL grid and
    limit; the policies' points.
    """

    title: str
    kl: Sequence[float]
    limit: Sequence[float]
    methods: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    points: Sequence[Point]


def frontier(panels: Sequence[Frontier], budget: float | None, order: Sequence[str]) -> Figure:
    """Win rate against KL: the limit, each method's theory, each policy with its error.

    Args:
        panels: one per procedure, side by side.
        budget: the KL budget, nats; None where there was none.
        order: the policies' names, which fixes their colours.
    """

    def paint(axes: list[Axes]) -> None:
        for position, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
            _frontier_panel(axis, panel, budget, order)
            if position == 0:
                axis.set_ylabel("win rate over the reference (%)")
        legend_below(axes[0])

    return draw(paint, 4.6 * len(panels), HEIGHT + 0.1, len(panels))


def _frontier_panel(
    axis: Axes, panel: Frontier, budget: float | None, order: Sequence[str]
) -> None:
    limit = 100 * np.asarray(panel.limit)
    axis.fill_between(panel.kl, limit, 100, color=palette.SHADE.light, linewidth=0, zorder=0)
    axis.plot(panel.kl, limit, color=palette.LIMIT.light, label="limit (optimal transformation)")
    if budget is not None:
        _budget_line(axis, budget)
    for name, (kl, win_rate) in panel.methods.items():
        style = palette.series(order.index(name))
        axis.plot(
            kl,
            100 * np.asarray(win_rate),
            color=style.color,
            linestyle=(0, style.dash),
            label=f"{name}: theory",
        )
    for point in panel.points:
        style = palette.series(order.index(point.policy))
        axis.errorbar(
            point.kl,
            100 * point.win_rate,
            xerr=Z95 * point.kl_se,
            yerr=[[100 * (point.win_rate - point.low)], [100 * (point.high - point.win_rate)]],
            color=style.color,
            marker=style.marker,
            markersize=6,
            markeredgecolor=palette.PAPER.light,
            elinewidth=1.2,
            linestyle="none",
            zorder=5,
            label=f"{point.policy}: measured",
        )
    axis.set(title=panel.title, xlabel="KL from the reference (nats)")
    lowest = min([50.0, *(100 * point.low for point in panel.points)])
    axis.set_xlim(0, max(*panel.kl, 1.1 * (budget or 0)))
    axis.set_ylim(lowest - 1, min(100.0, float(limit.max()) + 3))


def _budget_line(axis: Axes, budget: float) -> None:
    axis.axvline(budget, color=palette.NEUTRAL.light, linewidth=1, linestyle=(0, (2, 2)))
    axis.annotate(
        "budget",
        (budget, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(3, 0),
        textcoords="offset points",
        color=palette.MUTED.light,
        fontsize=7.5,
    )


class Family(NamedTuple):
    """Win rate over N for Best-of-N or Worst-of-N.

    Fields: the family's title; the Ns; per policy the points at those Ns; the limit of each policy
    at its own KL is left to the table.
    """

    title: str
    sizes: Sequence[int]
    points: Mapping[str, Sequence[Point]]


def families(panels: Sequence[Family], order: Sequence[str]) -> Figure:
    """Win rate against N, the number of responses that the procedure draws."""

    def paint(axes: list[Axes]) -> None:
        for axis, panel in zip(axes, panels, strict=True):
            for name, points in panel.points.items():
                style = palette.series(order.index(name))
                at = np.array(panel.sizes, dtype=float) * _dodge(order.index(name), len(order))
                rates, low, high = _percent(points)
                axis.errorbar(
                    at,
                    rates,
                    yerr=[rates - low, high - rates],
                    color=style.color,
                    marker=style.marker,
                    markersize=5,
                    markeredgecolor=palette.PAPER.light,
                    elinewidth=1.2,
                    label=name,
                )
            axis.set_xscale("log", base=2)
            axis.set_xticks(list(panel.sizes), [str(n) for n in panel.sizes])
            axis.minorticks_off()
            axis.axhline(50, color=palette.NEUTRAL.light, linewidth=1)
            axis.set(title=panel.title, xlabel="N, responses drawn")
        axes[0].set_ylabel("win rate over the reference (%)")
        _same_height(axes)
        legend_below(axes[0])

    return draw(paint, 4.6 * len(panels), HEIGHT - 0.2, len(panels))


def _dodge(position: int, count: int) -> float:
    """A factor near 1 that keeps the policies' intervals from covering each other."""
    return float(2 ** (0.07 * (position - (count - 1) / 2)))


def judges(points: Mapping[str, Sequence[Point]], order: Sequence[str], title: str) -> Figure:
    """The same samples under every judge: one row a judge, one marker a policy."""
    names = list(points)

    def paint(axes: list[Axes]) -> None:
        axis = axes[0]
        step = 0.6 / max(1, len(order))
        for row, judge in enumerate(names):
            for point in points[judge]:
                position = order.index(point.policy)
                style = palette.series(position)
                axis.errorbar(
                    100 * point.win_rate,
                    row + step * (position - (len(order) - 1) / 2),
                    xerr=[
                        [100 * (point.win_rate - point.low)],
                        [100 * (point.high - point.win_rate)],
                    ],
                    color=style.color,
                    marker=style.marker,
                    markersize=5.5,
                    markeredgecolor=palette.PAPER.light,
                    elinewidth=1.2,
                    linestyle="none",
                    label=point.policy,
                )
        axis.axvline(50, color=palette.NEUTRAL.light, linewidth=1)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.grid(visible=False, axis="y")
        axis.set(title=title, xlabel="win rate over the reference (%)", ylabel="judged by")
        legend_below(axis)

    return draw(paint, 6.4, 1.2 + 0.6 * len(names))


def calibration_error(
    references: Sequence[int], measured: Sequence[float], expected: Sequence[float]
) -> Figure:
    """Mean absolute error of the calibrated reward against K, measured and in closed form."""

    def paint(axes: list[Axes]) -> None:
        axis = axes[0]
        style = palette.series(0)
        axis.plot(
            references,
            expected,
            color=palette.LIMIT.light,
            linestyle=(0, (5, 2)),
            label="closed form (continuous rewards)",
        )
        axis.plot(
            references,
            measured,
            color=style.color,
            marker=style.marker,
            linestyle="none",
            label="measured on held-out samples",
        )
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(references), [str(k) for k in references])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set(
            title="Calibration error",
            xlabel="K, reference samples a prompt",
            ylabel="mean absolute error of C",
        )
        axis.legend(loc="upper right")

    return draw(paint, 4.6, HEIGHT - 0.3)


def histograms(
    rewards: Mapping[str, Array], counts: Mapping[str, Array], references: int, order: Sequence[str]
) -> Figure:
    """Densities of the reward and of the calibrated reward, reference filled, policies outlined.

    Args:
        rewards: policy (`reference` included) to the selecting reward of every sample.
        counts: policy to how many of `references` samples each of its responses beats: their
            shares are uniform for the reference.
        references: number of samples compared with.
        order: the aligned policies' names, which fixes their colours.
    """
    everything = np.concatenate(list(rewards.values()))
    low, high = np.quantile(everything, [0.005, 0.995])
    if low == high:
        low, high = low - 0.5, high + 0.5

    def paint(axes: list[Axes]) -> None:
        _densities(axes[0], rewards, np.linspace(low, high, 41), order)
        axes[0].set(title="Reward, as scored", xlabel="selecting reward", ylabel="density")
        # A count s stands for the s-th of references + 1 equal cells of [0, 1].
        cells = {name: (s + 0.5) / (references + 1) for name, s in counts.items()}
        _densities(axes[1], cells, np.linspace(0, 1, _bins(references + 1) + 1), order)
        axes[1].axhline(1, color=palette.TEXT.light, linestyle=(0, (4, 2)), linewidth=1.2)
        axes[1].set(title="Calibrated reward C", xlabel="C, win rate against the reference")
        axes[1].set_xlim(0, 1)
        legend_below(axes[0])

    return draw(paint, 9.2, HEIGHT - 0.3, 2)


def _bins(cells: int) -> int:
    """A number of bins that share the cells equally, where there is one."""
    shares = [bins for bins in range(5, 25) if cells % bins == 0]
    return max(shares, default=20)


def _densities(axis: Axes, values: Mapping[str, Array], edges: Array, order: Sequence[str]) -> None:
    for name, array in values.items():
        density, _ = np.histogram(np.clip(array, edges[0], edges[-1]), bins=edges, density=True)
        if name not in order:
            axis.stairs(density, edges, fill=True, color=palette.RULE.light, label=name)
            continue
        style = palette.series(order.index(name))
        axis.stairs(density, edges, color=style.color, linewidth=1.5, label=name)
    axis.set_ylim(bottom=0)


class Curve(NamedTuple):
    """One training curve panel: title, unit, per policy steps and values, an optional target."""

    title: str
    unit: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    target: float | None = None


def training(panels: Sequence[Curve], order: Sequence[str]) -> Figure:
    """What each training run did, step by step."""

    def paint(axes: list[Axes]) -> None:
        for axis, panel in zip(axes, panels, strict=True):
            if panel.target is not None:
                axis.axhline(panel.target, color=palette.LIMIT.light, linestyle=(0, (4, 2)), lw=1)
            for name, (steps, values) in panel.lines.items():
                color = palette.series(order.index(name)).color
                axis.plot(steps, values, color=color, linewidth=0.7, alpha=0.35)
                axis.plot(steps, _running_mean(values), color=color, linewidth=1.5, label=name)
            axis.set(title=panel.title, xlabel="step", ylabel=panel.unit)
        legend_below(axes[0])

    return draw(paint, 2.55 * len(panels), HEIGHT - 1.0, len(panels))


def _running_mean(values: Sequence[float]) -> Array:
    """The mean of the last RUNNING values (fewer at the start)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - RUNNING)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _percent(points: Sequence[Point]) -> tuple[Array, Array, Array]:
    values = 100 * np.array([(point.win_rate, point.low, point.high) for point in points])
    return values[:, 0], values[:, 1], values[:, 2]


def _same_height(axes: Sequence[Axes]) -> None:
    limits = np.array([axis.get_ylim() for axis in axes])
    for axis in axes:
        axis.set_ylim(limits[:, 0].min(), limits[:, 1].max())


def legend_below(axis: Axes) -> None:
    """One legend for the whole figure, below its panels, which grows by the rows it needs."""
    figure = axis.get_figure(root=True)
    named = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    if figure is None or not named:
        return
    labels, handles = list(named), list(named.values())
    width, height = figure.get_size_inches()
    longest = KEY_WIDTH + LETTER_WIDTH * max(len(label) for label in labels)
    columns = max(1, min(4, len(handles), int(width / longest)))
    figure.set_size_inches(width, height + LEGEND_ROW * (-(-len(handles) // columns)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
