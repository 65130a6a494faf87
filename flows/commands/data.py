"""`infalign data add` and `infalign data show`: whose data, and what is recognised in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infalign.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Preference data and prompts, under DVC.")
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="ROLE=NAME", help="A column's name: prompt=instruction. Repeatable."
    ),
]


@app.command("add")
def add(
    source: Annotated[str, typer.Argument(help="OWNER/NAME on the hub, a folder, or a file.")],
    name: Annotated[str | None, typer.Option(help="The folder's name below data/raw.")] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="A split to take; else all. Repeatable.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="The data set's configuration.")] = None,
    revision: Annotated[str | None, typer.Option(help="On the hub; else the newest.")] = None,
    column: Columns = None,
) -> None:
    """Bring preference data or prompts into data/raw/NAME, under DVC, and show what they are."""
    from flows.project.datasets import Wanted, add_data

    columns = _columns(column)
    wanted = Wanted(source, name, tuple(split or ()), config, revision)
    for line in add_data(Path.cwd(), wanted, columns):
        typer.echo(line)


@app.command("show")
def show(
    path: Annotated[Path, typer.Argument(help="A folder or a file.")],
    model: Annotated[
        str | None, typer.Option(help="A model in whose tokens lengths are shown as well.")
    ] = None,
    column: Columns = None,
) -> None:
    """Say what is recognised in some data, and what of it will be dropped; nothing is changed."""
    from flows.project.datasets import shown
    from infalign.data.reading import options_of
    from infalign.settings.params import Data, load_params

    columns, measures = _columns(column), []
    if model is not None:
        from infalign.measuring.lengths import token_lengths

        measures.append(token_lengths(model))
    settings = load_params().data if Path("params.yaml").is_file() else Data()
    for line in shown(path, str(path), options_of(settings, columns), measures).lines:
        typer.echo(line)


def _columns(assignments: list[str] | None) -> dict[str, str]:
    from infalign.settings.params import COLUMNS

    columns = {}
    for assignment in assignments or []:
        role, sign, name = assignment.partition("=")
        if not sign or not name or role not in COLUMNS:
            raise InputError(
                f"--column {assignment}: write ROLE=NAME, with a role of {list(COLUMNS)}."
            )
        columns[role] = name
    return columns
