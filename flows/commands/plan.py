"""`infalign plan`: what a run takes before anything is rented, from its settings alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from infalign.errors import InputError


def plan(
    model: Annotated[str | None, typer.Option(help="Folder or hub name of the policy.")] = None,
    parameters: Annotated[
        str | None, typer.Option(help="A Llama-type policy of so many: 8b, 350m.")
    ] = None,
    gpus: Annotated[int, typer.Option(help="In each node; 0: this machine's cores.")] = 0,
    gpu: Annotated[str, typer.Option(help="Kind: h100-80g, a100-40g, ...")] = "h100-80g",
    nodes: Annotated[int, typer.Option(help="Machines with so many GPUs each.")] = 1,
    price: Annotated[float | None, typer.Option(help="Of one GPU, an hour.")] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Longest prompt and response, tokens: 256,256.")
    ] = None,
    pairs: Annotated[int | None, typer.Option(help="Preference pairs an objective.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Settings of recipes/NAME.yaml.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As `infalign run`'s.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    params: Annotated[Path, typer.Option(help="Where settings come from.")] = Path("params.yaml"),
) -> None:
    """Memory, hours, cost and accuracy of a run, before anything is rented. Writes nothing."""
    from flows.project.configuration import planned
    from flows.project.recipes import read_recipe
    from infalign.planning import plan as planning
    from infalign.planning.load import load_of

    settings = read_recipe(params.parent, recipe) if recipe else []
    load = load_of(
        planned(params, assignments or [], settings),
        gpus=gpus,
        gpu=gpu,
        nodes=nodes,
        model=model,
        parameters=parameters,
        lengths=_lengths(lengths),
        pairs=pairs,
    )
    made = planning.plan(load)
    found = planning.as_json(made, price)
    print(json.dumps(found, indent=2) if as_json else planning.as_text(made, price))


def _lengths(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        prompt, response = (int(part) for part in text.split(","))
    except ValueError:
        prompt = response = 0
    if prompt < 1 or response < 1:
        raise InputError(f"--lengths {text!r} must be two numbers of tokens, such as 256,256.")
    return prompt, response
