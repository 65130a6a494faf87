"""The `infalign` command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import data, engine, promote
from flows.commands.frontier import frontier
from flows.commands.measure import measure
from flows.commands.report import report
from flows.commands.restore import restore
from infalign import __version__
from infalign.errors import InputError

app = typer.Typer(
    name="infalign",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.add_typer(engine.app, name="engine")

app.command()(frontier)
app.command()(measure)
app.command()(report)
app.command()(restore)
for _command in promote.COMMANDS:
    app.command()(_command)

INTERRUPTED = 130


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"infalign {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Say which.")
    ] = False,
) -> None:
    """Inference-aware alignment: prepare, train, align and evaluate, versioned and tracked."""


@app.command()
def run(
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Write a value into params.yaml first."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Write recipes/NAME.yaml, or a file's path, before."),
    ] = None,
    name: Annotated[str, typer.Option(help="Shown in Prefect and MLflow.")] = "pipeline",
    dry_run: Annotated[bool, typer.Option(help="Only say what is stale, and why.")] = False,
    promote: Annotated[
        bool, typer.Option(help="Register, judge and promote the results at the end.")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Push the results to the DVC remote at the end.")
    ] = False,
) -> None:
    """Bring every stage up to date: what did not change is skipped."""
    from flows.commands import run
    from flows.project.recipes import read_recipe

    root = Path.cwd()
    try:
        if dry_run and push:
            raise InputError("--dry-run makes nothing to push: leave out --push.")
        if dry_run:
            run.show_plan(root, assignments or [], recipe=recipe)
        else:
            settings = read_recipe(root, recipe) if recipe is not None else []
            run.run_pipeline(root, name, assignments or [], promote, push, recipe=settings)
    except KeyboardInterrupt:
        print("infalign: interrupted, every stage was ended: run again to resume.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def compare(
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Write a value into params.yaml first."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Write recipes/NAME.yaml, or a file's path, before."),
    ] = None,
    name: Annotated[str, typer.Option(help="Shown in Prefect and MLflow.")] = "compare",
    dry_run: Annotated[bool, typer.Option(help="Only say what is stale, and why.")] = False,
) -> None:
    """Train every method in `compare` at every KL budget and seed, and set them side by side."""
    from flows.commands.compare import compare_methods

    try:
        compare_methods(Path.cwd(), name, assignments or [], dry_run, recipe)
    except KeyboardInterrupt:
        print("infalign: interrupted, every stage was ended: run again to resume.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def up(
    prefect_port: Annotated[
        int | None, typer.Option(envvar="PREFECT_PORT", help="Of Prefect's server; else 4200.")
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option(envvar="MLFLOW_PORT", help="Of MLflow's server; else 5000.")
    ] = None,
) -> None:
    """Start a Prefect server, an MLflow server and a worker; DB=postgresql://… for PostgreSQL."""
    from flows.services import services

    ports = {"prefect": prefect_port, "mlflow": mlflow_port}
    services.up(Path.cwd(), ports, os.environ.get("DB", ""), typer.echo)


@app.command()
def down() -> None:
    """End exactly what `infalign up` started."""
    from flows.services import services

    services.down(Path.cwd(), typer.echo)


@app.command()
def schedule(
    on: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Switch its schedule on.")
    ] = None,
    off: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Switch its schedule off.")
    ] = None,
) -> None:
    """Put prefect.yaml's deployments to work; what is switched on runs by itself from then on."""
    from flows.runs import deployments

    deployments.schedule(Path.cwd(), on or [], off or [], typer.echo)


@app.command()
def evaluate_champion(
    prompts: Annotated[
        list[str] | None,
        typer.Option(metavar="fresh|log|suite", help="On which prompts; else fresh. Repeatable."),
    ] = None,
    alias: Annotated[str, typer.Option(help="Whose versions are checked.")] = "champion",
) -> None:
    """Measure the champions again: have they, their rewards or the prompts drifted?"""
    from flows.commands.evaluate_champion import evaluate

    evaluate(Path.cwd(), alias, prompts or ["fresh"])


@app.command()
def serve(
    objective: Annotated[str | None, typer.Option(help="Which model; needless if one.")] = None,
    alias: Annotated[str, typer.Option(help="Whose version is served.")] = "champion",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 5001,
    log: Annotated[
        Path | None, typer.Option(help="Write what is asked and answered into this folder.")
    ] = None,
) -> None:
    """Answer prompts over HTTP with the champion; a new champion is picked up by itself."""
    from flows.serving.supervisor import serve as serve_alias

    serve_alias(Path.cwd(), objective, alias, host, port, typer.echo, log)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake is one sentence and exit code 2."""
    try:
        app(args=arguments, standalone_mode=True)
    except InputError as error:
        from flows.children.processes import redact

        print(f"infalign: {redact(str(error))}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if "MlflowException" not in [kind.__name__ for kind in type(error).__mro__]:
            raise
        from flows.children.processes import redact

        words = redact(str(error)).splitlines()[0][:300]
        print(f"infalign: MLflow says: {words} (nothing is half done: run again)", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
