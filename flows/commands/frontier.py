"""`infalign frontier`: which transformation, which beta, how much can be gained, before any GPU.

Reads its options, params.yaml for what they leave open and, with --samples, a results folder.
Prints a table or JSON; writes the plot that --plot names (flows.commands.frontier_plot draws it).
The numbers are infalign.theory's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import completing
from flows.commands.frontier_question import FinishedRun, answer, ask, missing_procedures, read_run
from infalign.errors import InputError

if TYPE_CHECKING:
    from infalign.theory.frontier import FrontierPoint

JSON_KEYS = ("procedure", "transform", "kl", "win_rate", "beta")
PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def frontier(
    procedure: Annotated[
        list[str] | None,
        typer.Option(
            help="standard, best_of:4, worst_of:4, rank:3/8, ...; repeatable.",
            autocompletion=completing.procedures,
        ),
    ] = None,
    kl: Annotated[
        list[str] | None,
        typer.Option(metavar="NATS", help="KL budget, nats a response, such as 0.5; repeatable."),
    ] = None,
    transform: Annotated[
        list[str] | None,
        typer.Option(
            help="identity, log, exp:10, optimal, auto, ...; repeatable.",
            autocompletion=completing.transforms,
        ),
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
        if plot is not None and plot.suffix.lower() not in PLOT_SUFFIXES:
            raise InputError(f"--plot {plot} must end in {', '.join(PLOT_SUFFIXES)}.")
        asked = ask(procedure or [], [_nats(text) for text in kl or []], transform or [], params)
        points = answer(asked)
        run = read_run(samples, asked) if samples else FinishedRun()
        for name in missing_procedures(asked, run) if samples else ():
            typer.echo(f"{samples} holds no policy evaluated under {name}.", err=True)
        typer.echo(to_json(points, run) if as_json else to_text(points, run))
        if plot is not None:  # which takes longer than the answer
            sys.stdout.flush()
            from flows.commands.frontier_plot import draw, save

            save(draw(asked, run), plot)
            typer.echo(f"Drawn in {plot}.", err=True)
    except ValueError as error:
        raise InputError(str(error)) from None


def _nats(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--kl {text!r} is not a number: write nats, such as 0.5.") from None


def to_json(points: Sequence[FrontierPoint], run: FinishedRun) -> str:
    """A JSON array of points; with a finished run, its raw method under the name `raw`."""
    rows = [{key: asdict(point)[key] for key in JSON_KEYS} for point in points]
    rows += [{key: row[key] for key in (*JSON_KEYS, "objective")} for row in run.raw]
    return json.dumps(rows, indent=2, allow_nan=False)


def to_text(points: Sequence[FrontierPoint], run: FinishedRun) -> str:
    """A table a procedure and KL, best last, and what follows from it in a sentence."""
    lines: list[str] = []
    for procedure, kl in dict.fromkeys((point.procedure, point.kl) for point in points):
        group = [p for p in points if (p.procedure, p.kl) == (procedure, kl)]
        group.sort(key=lambda point: point.win_rate)
        rows = [(p.win_rate, p.beta, p.transform) for p in group] + [
            (
                row["win_rate"],
                row["beta"],
                f"raw rewards of {row['objective']} (uncertain by {row['uncertainty']:.4f})",
            )
            for row in run.raw
            if (row["procedure"], row["kl"]) == (procedure, kl)
        ]
        lines += [f"{procedure} at {kl:g} nats", "  win rate   beta        transformation"]
        lines += [f"  {won:.4f}     {beta:<10.4g}  {name}" for won, beta, name in sorted(rows)]
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
