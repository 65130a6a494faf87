"""`infalign measure`: anybody's samples, measured; needs no project.

Reads the files that its options name; prints a table or JSON, and writes the report that --page
names. The numbers are infalign.instrument's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from infalign.errors import InputError


def measure(
    reference: Annotated[
        Path,
        typer.Option(
            help="The reference's samples: JSON lines, Parquet, or results/evaluate/O of a run."
        ),
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="A policy's samples; repeatable."),
    ] = None,
    procedure: Annotated[
        list[str] | None,
        typer.Option(help="standard, best_of:4, worst_of:4, …; the first is the deployed one."),
    ] = None,
    reward: Annotated[str, typer.Option(help="Column that the procedure selects by.")] = "reward",
    judge: Annotated[
        list[str] | None, typer.Option(help="Column of a reward that only compares; repeatable.")
    ] = None,
    transform: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SPELLING", help="What a policy maximised: raw, exp:10, …; repeatable."
        ),
    ] = None,
    kl: Annotated[
        float | None, typer.Option(help="Budget at which optimal and auto were chosen, nats.")
    ] = None,
    width: Annotated[float, typer.Option(help="Wanted width of the 95 % interval.")] = 0.02,
    common: Annotated[
        bool, typer.Option("--common", help="Leave out prompts that a file lacks.")
    ] = False,
    bootstrap: Annotated[
        int | None, typer.Option(help="Resamples of the prompts; by default 1000.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    page: Annotated[Path | None, typer.Option(help="Write a report page there.")] = None,
) -> None:
    """Win rates, KL, limits and efficiencies of samples that were made anywhere."""
    from infalign.instrument.measuring import measure as measured

    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--page {page} must end in .html.")
    found = measured(
        reference,
        dict(_pairs("--policy", policy or [], named=False)),
        procedure or ["best_of:4"],
        reward=reward,
        judges=judge or (),
        transforms=dict(_pairs("--transform", transform or [])),
        kl_nats=kl,
        width=width,
        common=common,
        replicates=bootstrap,
        seed=seed,
    )
    if page is not None:
        found.save_page(page)
        typer.echo(f"Written to {page}.", err=True)
    typer.echo(found.to_json() if as_json else str(found))


def _pairs(option: str, given: Sequence[str], named: bool = True) -> list[tuple[str, str]]:
    """NAME=VALUE apart; a path alone is named for its file."""
    pairs: list[tuple[str, str]] = []
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or (not named and Path(text).exists()):
            if named:
                raise InputError(f"{option} {text}: write NAME=SPELLING, such as mine=exp:10.")
            name, value = Path(text).name.partition(".")[0], text
        if not name or not value:
            raise InputError(f"{option} {text}: write NAME={'SPELLING' if named else 'PATH'}.")
        if name in dict(pairs):
            raise InputError(f"{option} {text}: {name} is given twice: write NAME=PATH.")
        pairs.append((name, value))
    return pairs
