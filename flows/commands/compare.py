"""`infalign compare`: methods against each other at several KL budgets and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.project.recipes import Setting, read_recipe
from flows.project.versions import COMPARISON
from infalign.errors import InputError
from infalign.settings.params import Params, load_params

if TYPE_CHECKING:
    from flows.commands.live import View

OBJECTIVES = "compare.objectives"


def compare_methods(
    root: Path,
    name: str,
    assignments: Sequence[str],
    dry_run: bool,
    recipe: str | None = None,
    view: View | None = None,
) -> None:
    """Bring the comparison up to date; what did not change is skipped."""
    from flows.commands import run

    if not dry_run:
        settings = read_recipe(root, recipe) if recipe is not None else []
        settings = with_objectives(root, assignments, settings)
        run.run_pipeline(root, name, assignments, target=COMPARISON, recipe=settings, view=view)
    elif load_params(root / "params.yaml").compare.objectives:
        run.show_plan(root, assignments, COMPARISON, recipe)
    else:
        raise InputError(
            "params.yaml: compare.objectives is empty, so DVC knows of nothing to compare: leave "
            "out --dry-run, or name the objectives there."
        )


def with_objectives(
    root: Path, assignments: Sequence[str], recipe: Sequence[Setting] = ()
) -> list[Setting]:
    """The recipe's settings, and run.objectives to compare where none are named.

    While compare.objectives is empty dvc.yaml has no stages of a comparison, so that those who
    never compare have none that were never run. The first comparison names them.
    """
    named, chosen = load_params(root / "params.yaml"), dict(recipe)
    given = any(assignment.partition("=")[0].strip() == OBJECTIVES for assignment in assignments)
    if given or chosen.get(OBJECTIVES) or named.compare.objectives:
        return list(recipe)
    trained = [
        name
        for name in chosen.get("run.objectives", named.run.objectives)
        if _is_trained(named, chosen, name)
    ]
    if not trained:
        raise InputError(
            "params.yaml: no objective of run.objectives has a reward that is trained here, and a "
            "comparison poisons one: name objectives with such a reward in compare.objectives."
        )
    return [*recipe, (OBJECTIVES, trained)]


def _is_trained(named: Params, chosen: dict[str, Any], name: str) -> bool:
    """Whether an objective's reward is trained here, by the recipe or else by params.yaml."""
    given = chosen.get(f"objectives.{name}.reward")
    if given is not None:
        return bool(given.get("kind") == "train")
    return name not in named.objectives or named.objectives[name].reward.kind == "train"
