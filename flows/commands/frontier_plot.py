"""The pictures of `infalign frontier`: win rate against KL, and the optimal transformation.

Reads a question and, where there is one, a finished run; computes the curves with
infalign.theory; writes one file, whole or not at all.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.commands.frontier_question import SHOWN, FinishedRun, Question
from infalign.errors import InputError
from infalign.page import palette
from infalign.theory.checks import MAX_KL_NATS, MIN_KL_NATS
from infalign.theory.frontier import frontier_point, limit
from infalign.theory.optimum import optimum
from infalign.theory.procedures import parse_procedure
from infalign.theory.transforms import parse_transform

COLOURED = SHOWN[:-2]  # a transformation has the same colour and dash in every panel
CURVE_POINTS = 33


def draw(question: Question, run: FinishedRun) -> Figure:
    """A row a procedure: win rate against KL on the left, Phi at the budgets on the right."""
    rows = len(question.procedures)
    figure = Figure(figsize=(13, 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False)
    for (left, right), procedure in zip(panels, question.procedures, strict=True):
        transforms = drawn(question, procedure)
        draw_frontier(left, procedure, transforms, _top_kl(question, run))
        _draw_run(left, procedure, run)
        draw_phi(right, procedure, transforms, question.kls)
        for axes in (left, right):  # beside the axes, where they cover no curve
            axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def drawn(question: Question, procedure: str) -> list[str]:
    """The transformations to draw: those asked for, with what `auto` chooses at each budget."""
    asked = question.transforms[procedure]
    if "auto" not in asked:
        return list(asked)
    rule = parse_procedure(procedure)
    chosen = (str(parse_transform("auto", rule, kl)) for kl in question.kls)
    return list(dict.fromkeys((*(text for text in asked if text != "auto"), *chosen)))


def _drawable(transforms: Sequence[str]) -> list[str]:
    """Those with a curve of one transformation; the optimum is another one at each KL."""
    return [text for text in transforms if text != "optimal"]


def _top_kl(question: Question, run: FinishedRun) -> float:
    """Where the KL axis ends: beyond every budget and every policy, within what is solved for."""
    spent = [row["kl"] for row in run.policies]
    return float(min(MAX_KL_NATS, 1.25 * max([2 * max(question.kls), *spent])))


def _style(transform: str, transforms: Sequence[str] = ()) -> dict[str, Any]:
    """The same for one transformation wherever it is drawn: a colour for any eye, and a dash."""
    place = list(dict.fromkeys((*COLOURED, *transforms))).index(transform)
    return {"color": palette.series(place).color, "ls": (0, palette.series(place).dash)}


def draw_frontier(axes: Axes, procedure: str, transforms: Sequence[str], top: float) -> None:
    """Win rate against KL of the transformations that were asked for, the optimum in black."""
    kls = top * np.linspace(0, 1, CURVE_POINTS) ** 2
    if "optimal" in transforms:
        reached = limit(procedure, kls)
        axes.plot(kls, reached, color="black", lw=2.2, label="optimal", zorder=5)
    for transform in _drawable(transforms):
        phi = parse_transform(transform)
        within = kls[(kls >= MIN_KL_NATS) & (kls < 0.999 * phi.reachable_kl_nats)]
        won = [0.5, *(frontier_point(procedure, phi, kl).win_rate for kl in within)]
        style = _style(transform, transforms)
        axes.plot([0.0, *within], won, lw=1.6, label=_short(transform), **style)
    axes.set(
        title=f"{procedure}: what each transformation reaches",
        xlabel="KL from the reference (nats a response)",
        ylabel="win rate against the reference",
        xlim=(0, top),
    )
    axes.grid(alpha=0.25)


def draw_phi(axes: Axes, procedure: str, transforms: Sequence[str], kls: Sequence[float]) -> None:
    """The transformations that were asked for, the optimum at each KL, scaled to 0 … 1."""
    for index, kl in enumerate(kls if "optimal" in transforms else ()):
        best = optimum(parse_procedure(procedure), kl)
        u, regret = best.grid.u.ravel(), np.exp(best.log_regret.ravel() - best.log_regret.max())
        shade = f"{0.6 * index / max(1, len(kls) - 1):.2f}"
        axes.plot(u, 1 - regret, color=shade, lw=2.2, label=f"optimal at KL {kl:g}")
    u = np.linspace(0, 1, 201)
    for transform in _drawable(transforms):
        if transform == "log":  # which has no bottom to be scaled from
            continue
        values = parse_transform(transform)(u)
        scaled = (values - values[0]) / (values[-1] - values[0])
        axes.plot(u, scaled, lw=1.4, label=_short(transform), **_style(transform, transforms))
    axes.set(
        title=f"{procedure}: the transformations",
        xlabel="calibrated reward u",
        ylabel="Φ(u), scaled to 0 … 1",
    )
    axes.grid(alpha=0.25)


def _short(transform: str) -> str:
    """A label that a legend has room for."""
    return transform if len(transform) <= 24 else transform[:23] + "…"


def _draw_run(axes: Axes, procedure: str, run: FinishedRun) -> None:
    """Policies as points with their intervals, their methods' limits as dotted lines."""
    methods: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in run.curves:
        if row["procedure"] == procedure and row["curve"] != "limit":
            key = row["objective"], row["curve"].removeprefix("method ")
            methods.setdefault(key, []).append((row["kl"], row["win_rate"]))
    policies = {
        (row["objective"], row["policy"]): row
        for row in run.policies
        if row["procedure"] == procedure
    }
    for index, key in enumerate(dict.fromkeys((*policies, *methods))):
        objective, name = key
        style = palette.series(index)
        if key in methods:
            label = f"{name} ({objective}): limit"
            axes.plot(
                *zip(*methods[key], strict=True), color=style.color, lw=1.8, ls=":", label=label
            )
        if key in policies:
            row = policies[key]
            axes.errorbar(
                row["kl"],
                row["win_rate"],
                yerr=[[row["win_rate"] - row["low"]], [row["high"] - row["win_rate"]]],
                fmt=style.marker,
                color=style.color,
                markeredgecolor="black",
                capsize=2,
                zorder=6,
                label=f"{name} ({objective})",
            )


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all, with the same bytes every time.

    Raises:
        InputError: if the file cannot be written.
    """
    suffix = path.suffix.lower()
    date = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix)
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "infalign"}):
        figure.savefig(drawn, format=suffix[1:], dpi=110, metadata=date)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(drawn.getvalue())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(
            f"{path} cannot be written ({error.strerror}): choose another file."
        ) from None
