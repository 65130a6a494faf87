"""The `infalign` command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows import production
from flows.frontier import frontier
from infalign.errors import InputError

app = typer.Typer(
    name="infalign",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Inference-aware alignment: prepare, train, align and evaluate, versioned and tracked.",
)
data_app = typer.Typer(no_args_is_help=True, help="Preference data under DVC.")
app.add_typer(data_app, name="data")

app.command()(frontier)
for _command in production.COMMANDS:
    app.command()(_command)

INTERRUPTED = 130


@app.command()
def run(
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Write a value into params.yaml first."),
    ] = None,
    name: Annotated[str, typer.Option(help="Shown in Prefect and MLflow.")] = "pipeline",
    dry_run: Annotated[bool, typer.Option(help="Only say what is stale, and why.")] = False,
    promote: Annotated[
        bool, typer.Option(help="Register, judge and promote the results at the end.")
    ] = False,
) -> None:
    """Bring every stage up to date: what did not change is skipped."""
    from flows import command

    root = Path.cwd()
    try:
        if dry_run:
            command.show_plan(root, assignments or [])
        else:
            command.run_pipeline(root, name, assignments or [], promote)
    except KeyboardInterrupt:
        print("infalign: interrupted, every stage was ended: run again to resume.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


@data_app.command("add")
def data_add(
    source: Annotated[str, typer.Argument(help="A folder, or hub:OWNER/NAME[@REVISION].")],
    name: Annotated[str | None, typer.Option(help="The folder's name below data/raw.")] = None,
) -> None:
    """Bring preference data in the Anthropic HH format into data/raw/NAME, under DVC."""
    from flows.datasets import add_data

    path = add_data(Path.cwd(), source, name)
    typer.echo(f"{path} is under DVC: commit {path}.dvc with git, then run")
    typer.echo(f"  infalign run --set data.path={path}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake is one sentence and exit code 2."""
    try:
        app(args=arguments, standalone_mode=True)
    except InputError as error:
        from flows.processes import redact

        print(f"infalign: {redact(str(error))}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if "MlflowException" not in [kind.__name__ for kind in type(error).__mro__]:
            raise
        from flows.processes import redact

        words = redact(str(error)).splitlines()[0][:300]
        print(f"infalign: MLflow says: {words} (nothing is half done: run again)", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
