"""`infalign frontier`: which transformation, which beta, how much can be gained, before any GPU.

Reads its options, params.yaml for what they leave open and, with --samples, a results folder.
Prints a table or JSON; writes the plot that --plot names.  The numbers are infalign.theory's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infalign.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from infalign.theory.frontier import FrontierPoint

SHOWN = ("identity", "log", "exp:5", "exp:10", "exp:-5", "exp:-10", "auto", "optimal")
JSON_KEYS = ("procedure", "transform", "kl", "win_rate", "beta")
SELECTING = "train"  # the judge by whose reward the procedure selects
CURVE_POINTS = 33
PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def frontier(
    procedure: Annotated[
        list[str] | None,
        typer.Option(help="standard, best_of:4, worst_of:4, rank:3/8, ...; repeatable."),
    ] = None,
    kl: Annotated[
        list[float] | None, typer.Option(help="KL budget, nats a response; repeatable.")
    ] = None,
    transform: Annotated[
        list[str] | None,
        typer.Option(help="identity, log, exp:10, optimal, auto, ...; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw win rate against KL, and the optimal Phi.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Results folder of a finished run to lay over it.")
    ] = None,
    params: Annotated[Path, typer.Option(help="Where open options come from.")] = Path(
        "params.yaml"
    ),
) -> None:
    """What win rate is possible for a procedure and a KL budget, and with which beta."""
    try:
        if plot is not None and plot.suffix not in PLOT_SUFFIXES:
            raise InputError(f"--plot {plot} must end in {', '.join(PLOT_SUFFIXES)}.")
        asked = ask(procedure or [], kl or [], transform or [], params)
        points = answer(asked)
        run = read_run(samples, asked) if samples else FinishedRun()
    except ValueError as error:
        raise InputError(str(error)) from None
    typer.echo(to_json(points, run) if as_json else to_text(points, run))
    if plot is not None:
        save(draw(asked, run), plot)
        typer.echo(f"Drawn in {plot}.", err=True)


@dataclass(frozen=True)
class Question:
    """Procedures, KL budgets in nats, and the transformations asked for under each procedure."""

    procedures: tuple[str, ...]
    kls: tuple[float, ...]
    transforms: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class FinishedRun:
    """What a results folder adds: summary rows, theory curves, limits of raw rewards."""

    policies: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)


def ask(
    procedures: Sequence[str], kls: Sequence[float], transforms: Sequence[str], path: Path
) -> Question:
    """Complete the options from params.yaml, which is read only if they leave something open."""
    from infalign.theory.procedures import parse_procedure

    wanted: dict[str, tuple[str, ...]] = {
        str(parse_procedure(text)): tuple(transforms or SHOWN) for text in procedures
    }
    budgets = tuple(dict.fromkeys(kls))
    if not wanted or not budgets:
        from infalign.params import load_params

        settings = load_params(path)
        budgets = budgets or (settings.align.kl_nats,)
        for name in settings.run.objectives if not wanted else ():
            spellings = [settings.reward_spelling(name, v) for v in settings.run.variants]
            trained = [text for text in spellings if text != "raw"]
            shown = transforms or [*SHOWN[:-2], *trained, *SHOWN[-2:]]
            key = settings.objectives[name].procedure
            wanted[key] = tuple(dict.fromkeys((*wanted.get(key, ()), *shown)))
    return Question(tuple(wanted), budgets, wanted)


def answer(question: Question) -> list[FrontierPoint]:
    """Every point asked for; a transformation that `auto` chose again is not repeated."""
    from infalign.theory.frontier import frontier_point

    points: dict[tuple[str, str, float], FrontierPoint] = {}
    for procedure in question.procedures:
        for kl in question.kls:
            for transform in question.transforms[procedure]:
                point = frontier_point(procedure, transform, kl)
                points[point.procedure, point.transform, point.kl] = point
    return list(points.values())


def read_run(folder: Path, question: Question) -> FinishedRun:
    """Policies and methods of a finished run, for the procedures asked about.

    Raises:
        InputError: if the folder has no summary.
    """
    summary = folder / "report" / "summary.json"
    if not summary.is_file():
        raise InputError(f"{summary} does not exist: give the results folder of a finished run.")
    rows = json.loads(summary.read_text(encoding="utf-8"))
    policies = [
        row
        for row in rows
        if row["judge"] == SELECTING
        and row["procedure"] in question.procedures
        and row["policy"] != "reference"
    ]
    curves: list[dict[str, Any]] = []
    for path in sorted(folder.glob("evaluate/*/curves.json")):
        named = {"objective": path.parent.name}
        curves += [named | row for row in json.loads(path.read_text(encoding="utf-8"))]
    raw = [
        row
        for path in sorted(folder.glob("calibrate/*/calibrated.parquet"))
        for row in _raw_limits(path, question)
    ]
    return FinishedRun(policies, curves, raw)


def _raw_limits(path: Path, question: Question) -> Iterable[dict[str, Any]]:
    """The limit of RLHF on raw rewards, from the evaluation prompts' reference samples."""
    import numpy as np

    from infalign.tables import CALIBRATED, read_table
    from infalign.theory.limits import raw_limit

    table = read_table(path, CALIBRATED).to_pydict()
    prompts: dict[str, list[float]] = {}
    for prompt, split, reward in zip(
        table["prompt_id"], table["split"], table["reward"], strict=True
    ):
        if split == "test":
            prompts.setdefault(prompt, []).append(reward)
    rewards = np.array(list(prompts.values()))
    for procedure in question.procedures:
        for kl in question.kls:
            found = raw_limit(procedure, rewards, kl)
            yield {
                "procedure": procedure,
                "transform": "raw",
                "kl": kl,
                "win_rate": found.win_rate,
                "beta": found.beta,
                "objective": path.parent.name,
                "uncertainty": found.uncertainty,
            }


def to_json(points: Sequence[FrontierPoint], run: FinishedRun) -> str:
    """A JSON array of points; with a finished run, its raw method under the name `raw`."""
    rows = [{key: asdict(point)[key] for key in JSON_KEYS} for point in points]
    rows += [{key: row[key] for key in (*JSON_KEYS, "objective")} for row in run.raw]
    return json.dumps(rows, indent=2)


def to_text(points: Sequence[FrontierPoint], run: FinishedRun) -> str:
    """A table a procedure and KL, best last, and what follows from it in a sentence."""
    lines: list[str] = []
    for procedure, kl in dict.fromkeys((point.procedure, point.kl) for point in points):
        group = [p for p in points if (p.procedure, p.kl) == (procedure, kl)]
        group.sort(key=lambda point: point.win_rate)
        lines += [f"{procedure} at {kl:g} nats", "  win rate   beta        transformation"]
        lines += [f"  {p.win_rate:.4f}     {p.beta:<10.4g}  {p.transform}" for p in group]
        lines += [
            f"  {row['win_rate']:.4f}     {row['beta']:<10.4g}  raw rewards of "
            f"{row['objective']} (uncertain by {row['uncertainty']:.4f})"
            for row in run.raw
            if (row["procedure"], row["kl"]) == (procedure, kl)
        ]
        lines += [_advice(group), ""]
    if run.policies:
        lines += ["Policies of the finished run", *_policy_lines(run.policies), ""]
    return "\n".join(lines).rstrip()


def _advice(group: Sequence[FrontierPoint]) -> str:
    """Which member to train with, and how far it is from the best possible."""
    best = group[-1]
    members = [point for point in group if point.transform != "optimal"]
    if best.transform != "optimal" or not members:
        return f"  Train with {best.transform} and beta {best.beta:.4g}."
    chosen = members[-1]
    return (
        f"  Train with {chosen.transform} and beta {chosen.beta:.4g}: "
        f"{best.win_rate - chosen.win_rate:.4f} below the best possible {best.win_rate:.4f}."
    )


def _policy_lines(policies: Sequence[dict[str, Any]]) -> list[str]:
    width = max(len(f"{row['objective']} {row['policy']}") for row in policies)
    heading = "procedure    KL      win rate  95 % interval    limit   efficiency"
    lines = [f"  {'policy':<{width}}  {heading}"]
    for row in policies:
        name = f"{row['objective']} {row['policy']}"
        share = "-" if row["efficiency"] is None else f"{row['efficiency']:.3f}"
        lines.append(
            f"  {name:<{width}}  {row['procedure']:<11}  {row['kl']:<6.3f}  "
            f"{row['win_rate']:.4f}    {row['low']:.4f}-{row['high']:.4f}    "
            f"{row['limit']:.4f}  {share}"
        )
    return lines


def draw(question: Question, run: FinishedRun) -> Figure:
    """A row a procedure: win rate against KL on the left, Phi at the budgets on the right."""
    from matplotlib.figure import Figure

    rows = len(question.procedures)
    figure = Figure(figsize=(11, 4.4 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for (left, right), procedure in zip(axes, question.procedures, strict=True):
        draw_frontier(left, procedure, _drawable(question, procedure), _top_kl(question, run))
        _draw_run(left, procedure, run)
        left.legend(fontsize=8, loc="lower right")
        draw_phi(right, procedure, question.kls)
    return figure


def _drawable(question: Question, procedure: str) -> list[str]:
    """Families to draw a curve of: `auto` is whatever it chose, the optimum is drawn anyway."""
    return [text for text in question.transforms[procedure] if text not in ("optimal", "auto")]


def _top_kl(question: Question, run: FinishedRun) -> float:
    return 1.25 * max([2 * max(question.kls), *(row["kl"] for row in run.policies)])


def draw_frontier(axes: Axes, procedure: str, transforms: Sequence[str], top: float) -> None:
    """Win rate against KL of transformations and, in black, of the optimal one."""
    import numpy as np

    from infalign.theory.frontier import frontier_point, limit

    kls = top * np.linspace(0, 1, CURVE_POINTS) ** 2
    axes.plot(kls, limit(procedure, kls), color="black", lw=2.2, label="optimal", zorder=5)
    for index, transform in enumerate(transforms):
        reached = [0.5, *(frontier_point(procedure, transform, kl).win_rate for kl in kls[1:])]
        axes.plot(kls, reached, color=f"C{index}", lw=1.3, label=transform)
    axes.set(
        title=f"{procedure}: what each transformation reaches",
        xlabel="KL from the reference (nats a response)",
        ylabel="win rate against the reference",
        xlim=(0, top),
    )
    axes.grid(alpha=0.25)


def draw_phi(axes: Axes, procedure: str, kls: Sequence[float]) -> None:
    """The optimal transformation at each KL, scaled to run from 0 to 1."""
    import numpy as np

    from infalign.theory.optimum import optimum
    from infalign.theory.procedures import parse_procedure

    for index, kl in enumerate(kls):
        best = optimum(parse_procedure(procedure), kl)
        u, regret = best.grid.u.ravel(), np.exp(best.log_regret.ravel() - best.log_regret.max())
        shade = f"{0.6 * index / max(1, len(kls) - 1):.2f}"
        axes.plot(u, 1 - regret, color=shade, lw=2.2, label=f"optimal, {kl:g} nats")
    u = np.linspace(0, 1, 201)
    axes.plot(u, u, color="C0", lw=1, ls="--", label="identity")
    axes.plot(u, np.expm1(10 * u) / np.expm1(10), color="C1", lw=1, ls="--", label="exp:10")
    axes.plot(u, np.expm1(-10 * u) / np.expm1(-10), color="C2", lw=1, ls="--", label="exp:-10")
    axes.set(
        title=f"{procedure}: the optimal transformation",
        xlabel="calibrated reward u",
        ylabel="Phi(u), scaled to 0..1",
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)


def _draw_run(axes: Axes, procedure: str, run: FinishedRun) -> None:
    """Policies as points with their intervals, their methods' limits as dotted lines."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in run.curves:
        if row["procedure"] == procedure and row["curve"] != "limit":
            key = row["objective"], row["curve"]
            curves.setdefault(key, []).append((row["kl"], row["win_rate"]))
    for index, ((objective, curve), path) in enumerate(curves.items()):
        label = f"{curve} ({objective})"
        axes.plot(*zip(*path, strict=True), color=f"C{index}", lw=1, ls=":", label=label)
    for index, row in enumerate(r for r in run.policies if r["procedure"] == procedure):
        spread = [[row["win_rate"] - row["low"]], [row["high"] - row["win_rate"]]]
        axes.errorbar(
            row["kl"],
            row["win_rate"],
            yerr=spread,
            fmt="osD^v"[index % 5],
            color=f"C{index}",
            markeredgecolor="black",
            zorder=6,
            label=f"{row['policy']} ({row['objective']})",
        )


def save(figure: Figure, path: Path) -> None:
    """Write a figure with the same bytes every time."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    date = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    with matplotlib.rc_context({"svg.hashsalt": "infalign"}):
        figure.savefig(path, dpi=110, metadata=date)
