"""evaluate: win rates of every variant over the reference, on prompts no policy was trained on.

Reads results/prepare, results/sft, results/reward/O, the test split of results/sample and of
results/calibrate/O, and results/align/O/V/{policy,metrics.json}. Writes to results/evaluate/O:

- samples.parquet: every response, the reference's (KL 0) and each variant's, KL and log-ratio;
- rewards.parquet: their rewards by the training model, the independent judge and, on the built-in
  corpus, the gold utility;
- evaluation.parquet: win rate, limits, efficiency and KL of each policy, judge and procedure;
- differences.parquet: paired differences between variants;
- curves.json: win rate against KL in theory, for the limit and for each variant's own method;
- metrics.json: the objective's own procedure in numbers, and health.

How answers come about: `infalign.measuring.answers`; the statistics, which need no model:
`infalign.measuring.contest`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from infalign.aligning.budget import common_budget
from infalign.files.sources import check_listed, items
from infalign.files.tables import (
    DIFFERENCES,
    EVALUATION,
    EVALUATION_REWARDS,
    EVALUATION_SAMPLES,
    REFERENCE,
    Table,
    read_table,
    write_table,
)
from infalign.files.workspace import Needs, Workspace, write_json
from infalign.measuring.answers import (
    contest_of,
    evaluation_prompts,
    finish,
    part_path,
    read_responses,
)
from infalign.measuring.contest import measure, summarise, theory_curves
from infalign.processes.ranks import join
from infalign.settings.params import MODELS, Params, objective_params


def needs(params: Params, objective: str) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=(
            "results/prepare",
            "results/sft",
            f"results/sources/{objective}.json",
            f"results/reward/{objective}",
            "results/sample",
            f"results/calibrate/{objective}",
            *items("evaluate", params, objective),
        ),
        params=(
            *MODELS,
            "run.variants",
            "model.response_tokens",
            "generation.engine",
            *objective_params(objective),
            "sample.test_samples",
            "align.variants",
            "evaluate",
        ),
        outputs=(f"results/evaluate/{objective}",),
    )


def run(workspace: Workspace, objective: str) -> None:
    """Sample and score what is missing, then measure and write."""
    check_listed("evaluate", workspace.params, workspace.root)
    prompts = evaluation_prompts(workspace, objective)
    params = workspace.params
    budget = common_budget(
        workspace.results("align", objective, variant) for variant in params.run.variants
    )
    names = [REFERENCE, *params.run.variants]
    for name in names:
        finish(workspace, objective, name, prompts)
    if not join(params.run).main:
        return
    samples, rewards = (
        {name: read_table(part_path(workspace, name, word), kind).to_pydict() for name in names}
        for word, kind in (("samples", EVALUATION_SAMPLES), ("rewards", EVALUATION_REWARDS))
    )
    policies = {
        name: read_responses(*(part_path(workspace, name, word) for word in ("samples", "rewards")))
        for name in names
    }
    contest = contest_of(
        params, objective, params.run.variants, budget.theory_kl_nats, _families(params)
    )
    contest = replace(contest, kept=budget.kl_nats is not None)
    measured = measure(policies, contest)
    out = workspace.out / "evaluate" / objective
    for path, rows, kind in (
        ("evaluation.parquet", measured.rows, EVALUATION),
        ("differences.parquet", measured.differences, DIFFERENCES),
    ):
        there = kind.of(rows[0] if rows else ()).schema.names
        write_table(out / path, {name: [row[name] for row in rows] for name in there}, kind)
    for word, parts, kind in (
        ("samples", samples, EVALUATION_SAMPLES),
        ("rewards", rewards, EVALUATION_REWARDS),
    ):
        write_table(out / f"{word}.parquet", _joined(parts, names, kind), kind)
    write_json(out / "curves.json", theory_curves(policies, contest))
    write_json(out / "metrics.json", summarise(measured, policies, contest))


def _families(params: Params) -> list[str]:
    """Best-of-N and Worst-of-N at every N that is evaluated."""
    sizes = sorted(set(params.evaluate.best_of))
    return [f"{word}:{n}" for word in ("best_of", "worst_of") for n in sizes]


def _joined(
    parts: Mapping[str, Mapping[str, Sequence[Any]]], names: Sequence[str], kind: Table
) -> dict[str, list[Any]]:
    return {
        column: [value for name in names for value in parts[name][column]]
        for column in kind.schema.names
    }
