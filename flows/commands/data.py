"""`infalign data`: bring data and add to it, its versions and the way back, what is recognised."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infalign.errors import InputError

if TYPE_CHECKING:
    from flows.project.datasets import Wanted

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
    into: Annotated[
        str | None, typer.Option(metavar="NAME", help="Add what is new to data/raw/NAME.")
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Of NAME, into which data without subsets goes.")
    ] = None,
) -> None:
    """Bring preference data or prompts into data/raw/NAME, under DVC, and show what they are."""
    from flows.project.datasets import Wanted, add_data

    columns = _columns(column)
    if into is not None:
        if name is not None:
            raise InputError("--name and --into: give one of them.")
        _add_into(Wanted(source, into, tuple(split or ()), config, revision), columns, subset)
        return
    if subset is not None:
        raise InputError("--subset goes with --into: it is a subset of what is there.")
    wanted = Wanted(source, name, tuple(split or ()), config, revision)
    for line in add_data(Path.cwd(), wanted, columns):
        typer.echo(line)


def _add_into(wanted: Wanted, columns: dict[str, str], subset: str | None) -> None:
    from flows.project.data_growth import add_into, agreement_lines

    grown = add_into(Path.cwd(), wanted, columns, subset)
    for line in grown.lines():
        typer.echo(line)
    for line in agreement_lines(Path.cwd(), grown.name) if grown.growth.added else []:
        typer.echo(line)


@app.command("from-log")
def from_log(
    folder: Annotated[Path, typer.Argument(help="The folder of `infalign serve --log`.")],
    into: Annotated[str, typer.Option(metavar="NAME", help="The folder below data/raw.")],
) -> None:
    """Make preference pairs and prompts of what users thought of answers, and add them to NAME."""
    from flows.serving.feedback import from_log as add

    for line in add(Path.cwd(), folder, into):
        typer.echo(line)


@app.command("log")
def log(
    name: Annotated[str | None, typer.Argument(help="A folder of data/raw; else all.")] = None,
) -> None:
    """The versions of the data, the newest first: commit, date, hash, size."""
    from flows.project.data_versions import log as versions_of

    for version in versions_of(Path.cwd(), name):
        typer.echo(version.line())


@app.command("back")
def back(
    revision: Annotated[str, typer.Argument(help="A commit, tag or branch.")],
    name: Annotated[str | None, typer.Argument(help="A folder of data/raw.")] = None,
) -> None:
    """Go back to the data of a commit; what was made from it comes from DVC's cache."""
    from flows.project.data_versions import back as go_back

    for line in go_back(Path.cwd(), revision, name):
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
