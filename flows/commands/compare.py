"""`infalign compare`: methods against each other at several KL budgets and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.project.configuration import planned
from flows.project.recipes import Setting, read_recipe
from flows.project.versions import COMPARISON
from infalign.errors import InputError
from infalign.settings.params import load_params

if TYPE_CHECKING:
    from flows.commands.live import View

OBJECTIVES, POISONED = "compare.objectives", "compare.poison.objectives"


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
    """The recipe's settings, and which objectives to compare and to poison where none are named.

    While compare.objectives is empty dvc.yaml has no stages of a comparison, so that those who
    never compare have none that were never run. The first comparison names them: those of
    run.objectives, and for the poison those of them whose reward is trained here. Where others are
    compared later, those that were poisoned still are.
    """
    path = root / "params.yaml"
    before = load_params(path).compare
    assigned = {text.partition("=")[0].strip(): text for text in assignments}
    keys = {*assigned, *dict(recipe)}
    if before.objectives and OBJECTIVES not in keys:
        return list(recipe)
    assigned.pop(POISONED, None)
    asked = planned(path, [*assigned.values()], [*recipe, (POISONED, [])])
    compared = asked.compare.objectives if OBJECTIVES in keys else asked.run.objectives
    settings = [*recipe, *([] if OBJECTIVES in keys else [(OBJECTIVES, compared)])]
    if POISONED not in keys:
        trained = [name for name in compared if asked.objectives[name].reward.kind == "train"]
        known = before.poison.objectives if before.objectives else trained
        settings.append((POISONED, [name for name in trained if name in known]))
    return settings
