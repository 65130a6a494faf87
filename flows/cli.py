"""The `infalign` command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows import INTERRUPTED
from flows.commands import completing, data, engine, promote
from flows.commands.frontier import frontier
from flows.commands.live import viewing
from flows.commands.measure import measure
from flows.commands.plan import plan
from flows.commands.prune import prune
from flows.commands.report import report
from flows.commands.restore import restore
from flows.commands.starting import demo, init
from infalign import __version__
from infalign.errors import InputError

WHAT_IS_LEFT = {"run", "compare"}  # whose stages can be resumed


class Interruptible(TyperGroup):
    """The commands; Ctrl-C ends any of them with a sentence."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            resumed = ctx.invoked_subcommand in WHAT_IS_LEFT
            end = ", every stage was ended: run again to resume." if resumed else "."
            print(f"infalign: interrupted{end}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="infalign",
    cls=Interruptible,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.add_typer(engine.app, name="engine")

app.command()(frontier)
app.command()(measure)
app.command()(prune)
app.command()(report)
app.command()(plan)
app.command()(restore)
app.command()(init)
app.command()(demo)
for _command in promote.COMMANDS:
    app.command()(_command)


Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Write a value into params.yaml first.",
        autocompletion=completing.settings,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Write recipes/NAME.yaml, or a file's path, before.",
        autocompletion=completing.recipes,
    ),
]
Name = Annotated[
    str, typer.Option(help="Shown in Prefect and MLflow.", show_default="what changed")
]
Schedules = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A deployment whose schedule to switch.",
        autocompletion=completing.deployments,
    ),
]


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
    assignments: Assignments = None,
    recipe: Recipe = None,
    name: Name = "",
    dry_run: Annotated[bool, typer.Option(help="Only say what is stale, and why.")] = False,
    promote: Annotated[
        bool, typer.Option(help="Register, judge and promote the results at the end.")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Push the results to the DVC remote at the end.")
    ] = False,
) -> None:
    """Bring every stage up to date: what did not change is skipped."""
    root = Path.cwd()
    if dry_run and push:
        raise InputError("--dry-run makes nothing to push: leave out --push.")
    if dry_run:
        from flows.commands.run import show_plan

        show_plan(root, assignments or [], recipe=recipe)
        return
    with viewing("Reading the project") as view:
        from flows.commands.run import run_pipeline
        from flows.project.recipes import read_recipe

        settings = read_recipe(root, recipe) if recipe is not None else []
        run_pipeline(root, name, assignments or [], promote, push, recipe=settings, view=view)


@app.command()
def compare(
    assignments: Assignments = None,
    recipe: Recipe = None,
    name: Name = "",
    dry_run: Annotated[bool, typer.Option(help="Only say what is stale, and why.")] = False,
) -> None:
    """Train every method in `compare` at every KL budget and seed, and set them side by side."""
    with viewing("Reading the project") as view:
        from flows.commands.compare import compare_methods

        compare_methods(Path.cwd(), name, assignments or [], dry_run, recipe, view)


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
    on: Schedules = None,
    off: Schedules = None,
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
    objective: Annotated[
        str | None,
        typer.Option(help="Which model; needless if one.", autocompletion=completing.objectives),
    ] = None,
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
