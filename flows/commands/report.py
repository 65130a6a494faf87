"""`infalign report`: the report of the results at hand, with the run that made it, in a browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from infalign.errors import InputError


def report(
    show: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="In a browser; by default from a terminal only."),
    ] = None,
) -> None:
    """Open the report: may these policies replace what is deployed, and what made it."""
    from flows.runs import published
    from infalign.settings.params import load_params

    root = Path.cwd()
    params = load_params(root / "params.yaml")
    folder = published.publish(root, params)
    if folder is None:
        raise InputError("results/report/index.html does not exist: run `infalign run` first.")
    page = folder / "index.html"
    typer.echo(f"Report   {page.relative_to(root)}")
    if sys.stdout.isatty() if show is None else show:
        typer.launch(page.resolve().as_uri())
