"""compare: every method at every KL budget, for one objective.

Reads results/{contend,hack,poison}/O, results/{prepare,sample} and results/calibrate/O. Writes to
results/compare/O: index.html (one page that opens from disk), plots/{frontier,judges,poison}.png,
comparison.json (the rows behind them: curves, gains, theory, poisoned, phrases) and metrics.json.
Nothing is read or said of poison where compare.poison.objectives leaves the objective out.
The statistics need no model: `infalign.measuring.comparison`.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

from infalign.files.sources import check_listed, items
from infalign.files.tables import EVALUATION_SAMPLES, REFERENCE, read_table
from infalign.files.workspace import Needs, Workspace, write_json, write_text
from infalign.measuring import answers
from infalign.measuring.comparison import (
    Contender,
    Rivals,
    curve_rows,
    gain_rows,
    headline,
    phrase_rows,
    theory_rows,
)
from infalign.measuring.contest import PolicyResponses
from infalign.page.comparison import Comparison, plates, render_comparison
from infalign.page.figures import save_png
from infalign.settings.methods import Compare, Poison
from infalign.settings.params import Params

Key = tuple[str, float, int]


def needs(params: Params, objective: str) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=(
            "results/prepare",
            "results/sample",
            f"results/calibrate/{objective}",
            *items("compare", params, objective),
        ),
        params=(
            "run.seed",
            "run.threads",
            f"objectives.{objective}",
            "align.variants",
            "evaluate.bootstrap",
            "compare",
        ),
        outputs=(f"results/compare/{objective}",),
    )


def run(workspace: Workspace, objective: str) -> None:
    """Read every contender, compare, draw, write."""
    check_listed("compare", workspace.params, workspace.root)
    workspace = workspace.alone
    settings = workspace.params.compare
    rivals, _ = _rivals(workspace, objective, "contend", settings)
    found = Comparison(
        objective=objective,
        procedure=str(rivals.contest.own),
        methods=rivals.contest.methods,
        curves=curve_rows(rivals),
        gains=gain_rows(rivals),
        theory=theory_rows(rivals),
    )
    if objective in settings.poison.objectives:
        found = _with_poison(found, workspace, objective)
    out = workspace.out / "compare" / objective
    drawn = plates(found)
    for plate in drawn:
        save_png(plate.figure, out / "plots" / f"{plate.name}.png")
    write_text(out / "index.html", render_comparison(found, drawn))
    write_json(out / "comparison.json", found._asdict())
    write_json(out / "metrics.json", headline(found.curves, found.gains, found.procedure))


def _with_poison(found: Comparison, workspace: Workspace, objective: str) -> Comparison:
    """The comparison with what the poisoned reward did."""
    settings = workspace.params.compare.poison
    poisoned, said = _rivals(_poisoned(workspace, objective), objective, "hack", settings)
    folder = workspace.results("poison", objective)
    poison = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return found._replace(
        methods={**found.methods, **poisoned.contest.methods},
        poisoned=curve_rows(poisoned),
        phrases=phrase_rows(poisoned, said, settings.phrase),
        poison=poison | {"phrase": settings.phrase},
    )


def _poisoned(workspace: Workspace, objective: str) -> Workspace:
    """Where the reference's rewards are those of the poisoned reward model."""
    return replace(workspace, moved={f"calibrate/{objective}": f"poison/{objective}"})


def _rivals(
    workspace: Workspace, objective: str, word: str, settings: Compare | Poison
) -> tuple[Rivals, dict[Key, list[str]]]:
    """The contenders of a stage, with their texts, and the reference under the same judges."""
    params = workspace.params
    # Every stage's reference is scored by the selecting reward of its own.
    place = replace(workspace, instance=f"{workspace.instance}/{word}")
    reference = answers.read_responses(*answers.answered(place, objective, REFERENCE))
    contenders, said = [], dict[Key, list[str]]()
    for key in itertools.product(settings.variants, settings.kl_nats, settings.seeds):
        variant, budget, seed = key
        folder = workspace.results(word, objective, variant, str(budget), str(seed))
        contenders.append(Contender(*key, _read(folder)))
        table = read_table(folder / "samples.parquet", EVALUATION_SAMPLES)
        said[key] = table["response"].to_pylist()
    judges = [judge for judge in params.compare.judges if judge in reference.rewards]
    blind = frozenset(name for name in settings.variants if params.is_blind(name))
    contest = answers.contest_of(params, objective, settings.variants, max(settings.kl_nats))
    return Rivals(contenders, reference, contest, blind, judges), said


def _read(folder: Path) -> PolicyResponses:
    return answers.read_responses(folder / "samples.parquet", folder / "rewards.parquet")
