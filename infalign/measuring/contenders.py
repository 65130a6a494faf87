"""A contender of a comparison: one policy at a KL budget and seed, trained, answered, measured.

What align and evaluate do, once more, on the same reference policy, reward models and stored
samples. The policy itself is not kept. A contender takes one process: there are many to run side
by side.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from infalign.aligning.policy import train_policy
from infalign.errors import InputError
from infalign.files.tables import REFERENCE
from infalign.files.workspace import Workspace, write_json
from infalign.measuring import answers
from infalign.measuring.contest import measure, summarise
from infalign.theory.checks import budget_kl

FILES = ("samples.parquet", "rewards.parquet", "history.jsonl", "metrics.json")


def parse_budget(kl_nats: str, seed: str) -> tuple[float, int]:
    """The words of the command line as numbers."""
    given = f"--kl-nats {kl_nats} --seed {seed}"
    try:
        budget = (float(kl_nats), int(seed))
    except ValueError:
        raise InputError(f"{given}: give a number and a whole number.") from None
    try:
        budget_kl(budget[0])
    except ValueError as error:
        raise InputError(f"{given}: {error}.") from None
    if not 0 <= budget[1] < 2**31:
        raise InputError(f"{given}: the seed must be a whole number from 0, below 2**31.")
    return budget


def compete(
    workspace: Workspace, objective: str, variant: str, budget: tuple[float, int], out: Path
) -> dict[str, Any]:
    """Train a policy at a KL budget and seed, have it answer, measure it; what was measured.

    Every part that is finished is kept after a kill.
    """
    workspace = workspace.alone
    params = workspace.params
    view = _train(workspace, objective, variant, *budget)
    found = {name: answers.answered(view, objective, name) for name in (REFERENCE, variant)}
    policies = {name: answers.read_responses(*paths) for name, paths in found.items()}
    trained = view.results("align", objective, variant)
    settled = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    contest = answers.contest_of(params, objective, [variant], budget[0])
    contest = replace(contest, kept=settled["kl_nats"] is not None)
    measured = summarise(measure(policies, contest), policies, contest)[variant]
    metrics = measured | {"beta": settled["beta"], "scale": settled["scale"]}
    out.mkdir(parents=True, exist_ok=True)
    for source, name in zip((*found[variant], trained / "history.jsonl"), FILES, strict=False):
        (out / name).unlink(missing_ok=True)
        os.link(source, out / name)
    write_json(out / "metrics.json", metrics)
    return metrics


def _train(
    workspace: Workspace, objective: str, variant: str, kl_nats: float, seed: int
) -> Workspace:
    """Train the policy unless that is done; a workspace in which it lies where evaluate looks."""
    params = workspace.params
    own = params.model_copy(
        update={
            "run": params.run.model_copy(update={"seed": seed}),
            "align": params.align.model_copy(update={"kl_nats": kl_nats, "start": "reference"}),
        }
    )
    trained = workspace.out / "align" / objective / variant
    if not (trained / "metrics.json").exists():
        train_policy(replace(workspace, params=own), objective, variant)
    moved = {**workspace.moved, f"align/{objective}/{variant}": str(trained)}
    return replace(workspace, moved=moved)
