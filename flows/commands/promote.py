"""`infalign promote`, `rollback`, `versions`, `history`, `approve`. Heavy imports wait."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands import completing
from infalign.errors import InputError

REFUSED = 1
Objective = Annotated[
    str | None,
    typer.Option(help="A name in run.objectives.", autocompletion=completing.objectives),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def promote(
    version: Annotated[
        str | None, typer.Option(help="A registered version; by default the results at hand.")
    ] = None,
    objective: Objective = None,
    force: Annotated[bool, typer.Option(help="Promote also what the gate refuses.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the history.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Judge, and change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Register the results, judge them against the champion, promote what passes."""
    from flows.registry import promotion
    from flows.registry.registry import open_registry

    def tell(line: str) -> None:
        if not as_json:
            print(line, flush=True)

    root = Path.cwd()
    params, names = _objectives(root, objective, needed=version is not None)
    why = promotion.check_reason(force, reason)
    registry, decisions = open_registry(root), []
    for name in names:
        if dry_run:
            decision = _preview(registry, params, name, version, tell)
        else:
            number = version
            if number is None:
                number = asyncio.run(_registered(registry, params, name, tell))
            decision = _decided(registry, params, (name, number), (why, force), tell)
            promotion.write_decision(registry, params, decision)
        decisions.append(decision)
        if not as_json:
            show_decision(decision)
    if as_json:
        _print_json([decision.as_tree() for decision in decisions])
    if any(decision.outcome in ("refused", "would refuse") for decision in decisions):
        raise typer.Exit(REFUSED)


def _decided(
    registry: Any, params: Any, candidate: tuple[str, str], told: tuple[str, bool], tell: Any
) -> Any:
    """What became of a version; force waits for no arena."""
    from flows.registry import promotion

    (objective, number), (why, force) = candidate, told
    if force:
        return promotion.promote(registry, params, objective, number, why, force=True)
    return asyncio.run(promotion.decide(registry, params, objective, number, tell, why))


async def _registered(registry: Any, params: Any, objective: str, tell: Any) -> str:
    """The version of the results at hand, registered if it was not."""
    from flows.registry import promotion

    await _check_results(registry.root, objective, tell)
    return await promotion.registered(registry, params, objective, tell)


def _preview(registry: Any, params: Any, objective: str, version: str | None, tell: Any) -> Any:
    """What would be decided; results that are not registered are judged as a package."""
    from flows.registry import promotion
    from flows.registry.arena import Entrant, meet
    from flows.registry.packaging import package

    folder = None
    if version is None:
        asyncio.run(_check_results(registry.root, objective, tell))
        version = promotion.known(registry, params, objective)
        if version is None:
            folder = asyncio.run(package(registry.root, params, objective, tell))
    asyncio.run(meet(registry, params, objective, Entrant(version, folder), tell))
    return promotion.preview(registry, params, objective, version, folder)


async def _check_results(root: Path, objective: str, tell: Any) -> None:
    """Raise one sentence where results/ is not what params.yaml and the code would give."""
    from flows.project import versions

    versions.check_project(root)
    plan = await versions.read_plan(root, tell)
    instance = f"evaluate@{objective}"
    if instance in plan.stale:
        raise InputError(
            f"the results of {instance} are not up to date ({plan.stale[instance]}): "
            "run `infalign run` first."
        )


def _objectives(root: Path, objective: str | None, needed: bool) -> tuple[Any, list[str]]:
    """Params, and the objectives that a command is about."""
    from infalign.settings.params import load_params
    from infalign.settings.reading import meant

    params = load_params(root / "params.yaml")
    names = list(params.run.objectives)
    if objective is None and needed and len(names) > 1:
        raise InputError(f"say which model: --objective {' or --objective '.join(names)}.")
    if objective is not None and objective not in names:
        near = meant(objective, names)
        raise InputError(f"--objective {objective!r} is not one of run.objectives {names}{near}.")
    return params, [objective] if objective is not None else names


def show_decision(decision: Any) -> None:
    """The table of rules and the sentence."""
    from flows.registry.tables import verdict_table

    if decision.verdict is not None:
        _print_table(verdict_table(decision))
    print(decision.sentence(), flush=True)


def rollback(
    objective: Objective = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
) -> None:
    """Return to the champion before this one."""
    from flows.registry.describing import describe_model
    from flows.registry.promotion import check_reason
    from flows.registry.registry import model_name, open_registry

    root = Path.cwd()
    _, names = _objectives(root, objective, needed=True)
    why = check_reason(False, reason)
    registry = open_registry(root)
    champions = registry.champions(names[0])
    move = champions.rollback(why)
    describe_model(champions, registry.versions(names[0]))
    print(
        f"{model_name(names[0])} version {move.to} is the champion again, in place of version "
        f"{move.source}."
    )


def versions(objective: Objective = None, as_json: Json = False) -> None:
    """Show every registered version with its aliases and numbers, and why others were refused."""
    from flows.registry.promotion import refusals
    from flows.registry.registry import open_registry
    from flows.registry.tables import version_table

    root = Path.cwd()
    _, names = _objectives(root, objective, needed=False)
    registry, trees = open_registry(root), {}
    for name in names:
        champions = registry.champions(name)
        if champions.settle() and not as_json:
            print(f"A move of infalign-{name} that was cut short is complete now.")
        aliases, found = champions.aliases(), registry.versions(name)
        refused = {refusal.version: refusal for refusal in refusals(found)}
        last = next(reversed(refused), None)
        trees[name] = [
            {
                "version": str(version.version),
                "aliases": sorted(k for k, v in aliases.items() if v == str(version.version)),
                "tags": version.tags,
                "refused": refused[str(version.version)].as_tree()
                if str(version.version) in refused
                else None,
            }
            for version in found
        ]
        if not as_json:
            _print_table(version_table(name, found, aliases))
            for number, refusal in refused.items():
                print(refusal.sentence(name, "Last refused" if number == last else "Refused"))
    if as_json:
        _print_json(trees)


def history(objective: Objective = None, as_json: Json = False) -> None:
    """Show every promotion and rollback: who, when, why, from, to, and the gate's result."""
    from dataclasses import asdict

    from flows.registry.registry import open_registry
    from flows.registry.tables import history_table

    root = Path.cwd()
    _, names = _objectives(root, objective, needed=False)
    registry, trees = open_registry(root), {}
    for name in names:
        moves = registry.champions(name).history()
        trees[name] = [asdict(move) for move in moves]
        if not as_json:
            _print_table(history_table(name, moves))
    if as_json:
        _print_json(trees)


def approve(
    run: Annotated[str | None, typer.Option(help="The flow run's id, where several wait.")] = None,
) -> None:
    """Let a pipeline run that waits for a human go on and promote."""
    from flows.runs.approval import resume

    print(asyncio.run(resume(Path.cwd(), run)))


COMMANDS: Sequence[Any] = (promote, rollback, versions, history, approve)


def _print_table(table: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _print_json(tree: Any) -> None:
    import json

    print(json.dumps(tree, indent=2, sort_keys=True))
