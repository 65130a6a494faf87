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

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.commands.frontier_question import SHOWN, FinishedRun, Question
from infalign.errors import InputError
from infalign.theory.checks import MAX_KL_NATS, MIN_KL_NATS
from infalign.theory.frontier import frontier_point, limit
from infalign.theory.optimum import optimum
from infalign.theory.procedures import parse_procedure
from infalign.theory.transforms import parse_transform

COLOURED = SHOWN[:-2]  # a transformation has the same colour in every panel
CURVE_POINTS = 33


def draw(question: Question, run: FinishedRun) -> Figure:
    """A row a procedure: win rate against KL on the left, Phi at the budgets on the right."""
    rows = len(question.procedures)
    figure = Figure(figsize=(13, 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False)
    for (left, right), procedure in zip(panels, question.procedures, strict=True):
        draw_frontier(left, procedure, _drawable(question, procedure), _top_kl(question, run))
        _draw_run(left, procedure, run)
        draw_phi(right, procedure, question.kls)
        for axes in (left, right):  # beside the axes, where they cover no curve
            axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _drawable(question: Question, procedure: str) -> list[str]:
    """Families to draw a curve of: `auto` is whatever it chose, the optimum is drawn anyway."""
    return [text for text in question.transforms[procedure] if text not in ("optimal", "auto")]


def _top_kl(question: Question, run: FinishedRun) -> float:
    """Where the KL axis ends: beyond every budget and every policy, within what is solved for."""
    spent = [row["kl"] for row in run.policies]
    return float(min(MAX_KL_NATS, 1.25 * max([2 * max(question.kls), *spent])))


def _colour(transform: str, transforms: Sequence[str] = ()) -> str:
    """The same for one transformation wherever it is drawn."""
    return f"C{list(dict.fromkeys((*COLOURED, *transforms))).index(transform) % 10}"


def draw_frontier(axes: Axes, procedure: str, transforms: Sequence[str], top: float) -> None:
    """Win rate against KL of transformations and, in black, of the optimal one."""
    kls = top * np.linspace(0, 1, CURVE_POINTS) ** 2
    axes.plot(kls, limit(procedure, kls), color="black", lw=2.2, label="optimal", zorder=5)
    for transform in transforms:
        phi = parse_transform(transform)
        within = kls[(kls >= MIN_KL_NATS) & (kls < 0.999 * phi.reachable_kl_nats)]
        reached = [0.5, *(frontier_point(procedure, phi, kl).win_rate for kl in within)]
        colour, label = _colour(transform, transforms), _short(transform)
        axes.plot([0.0, *within], reached, color=colour, lw=1.3, label=label)
    axes.set(
        title=f"{procedure}: what each transformation reaches",
        xlabel="KL from the reference (nats a response)",
        ylabel="win rate against the reference",
        xlim=(0, top),
    )
    axes.grid(alpha=0.25)


def draw_phi(axes: Axes, procedure: str, kls: Sequence[float]) -> None:
    """The optimal transformation at each KL, scaled to run from 0 to 1."""
    for index, kl in enumerate(kls):
        best = optimum(parse_procedure(procedure), kl)
        u, regret = best.grid.u.ravel(), np.exp(best.log_regret.ravel() - best.log_regret.max())
        shade = f"{0.6 * index / max(1, len(kls) - 1):.2f}"
        axes.plot(u, 1 - regret, color=shade, lw=2.2, label=f"optimal at KL {kl:g}")
    u = np.linspace(0, 1, 201)
    for name, phi in (
        ("identity", u),
        ("exp:10", np.expm1(10 * u) / np.expm1(10)),
        ("exp:-10", np.expm1(-10 * u) / np.expm1(-10)),
    ):
        axes.plot(u, phi, color=_colour(name), lw=1.2, ls="--", label=name)
    axes.set(
        title=f"{procedure}: the optimal transformation",
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
        colour = matplotlib.colormaps["Dark2"](index % 8)
        if key in methods:
            label = f"{name} ({objective}): limit"
            axes.plot(*zip(*methods[key], strict=True), color=colour, lw=1.8, ls=":", label=label)
        if key in policies:
            row = policies[key]
            axes.errorbar(
                row["kl"],
                row["win_rate"],
                yerr=[[row["win_rate"] - row["low"]], [row["high"] - row["win_rate"]]],
                fmt="osD^v"[index % 5],
                color=colour,
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
