"""`infalign engine`: servers of vLLM that draw responses (docs/scale.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Servers of vLLM that draw responses.")


@app.command()
def start(
    model: Annotated[
        str, typer.Option(help="The policy: its place below results/, as in align/helpful/ctrl.")
    ] = "sft",
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 8000,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Take the adapters of align.lora_rank.")
    ] = False,
) -> None:
    """Start a server for a policy, from the environment of `make engine`."""
    from flows.services import engine

    engine.start(Path.cwd(), model, port, adapters, typer.echo)


@app.command()
def stop() -> None:
    """End every server that `start` began here."""
    from flows.services import engine

    engine.stop(Path.cwd(), typer.echo)
