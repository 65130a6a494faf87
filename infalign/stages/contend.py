"""contend: one policy for an objective, variant, KL budget and seed, trained and answered.

A contender of `infalign compare`: the stages align and evaluate once more, at a budget and with a
training seed of its own, on the same reference policy, reward models and stored samples. Writes to
results/contend/O/V/KL/SEED: samples.parquet and rewards.parquet (as evaluate writes them, of this
policy alone), history.jsonl, and metrics.json, whose names are the same for every contender. The
policy itself is not kept. A contender takes one process: there are many to run side by side.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from infalign.errors import InputError
from infalign.files.workspace import Stage, Workspace, write_json
from infalign.measuring.contest import REFERENCE, measure, summarise
from infalign.settings.params import Params
from infalign.stages import align, evaluate

OWN = ("align.kl_nats", "run.processes", "run.sharding")  # given, or one process for each
FILES = ("samples.parquet", "rewards.parquet", "history.jsonl", "metrics.json")


def stage(params: Params, objective: str, variant: str, kl_nats: str, seed: str) -> Stage:
    """What the stage depends on: what align and evaluate do, but for the budget."""
    parse_budget(kl_nats, seed)
    aligned = align.stage(params, objective, variant)
    return Stage(
        "contend",
        inputs=aligned.inputs,
        params=(
            *(key for key in aligned.params if key not in OWN),
            "sample.test_samples",
            "evaluate.bootstrap",
            "evaluate.batch_size",
        ),
        outputs=(f"results/contend/{objective}/{variant}/{kl_nats}/{seed}",),
    )


def run(workspace: Workspace, objective: str, variant: str, kl_nats: str, seed: str) -> None:
    """Train, sample, score, measure."""
    out = workspace.out / "contend" / objective / variant / kl_nats / seed
    compete(workspace, objective, variant, parse_budget(kl_nats, seed), out)


def parse_budget(kl_nats: str, seed: str) -> tuple[float, int]:
    """The words of the command line as numbers."""
    try:
        budget = (float(kl_nats), int(seed))
    except ValueError:
        budget = (-1.0, 0)
    if not (0 < budget[0] <= 5 and 0 <= budget[1] < 2**31):
        raise InputError(
            f"--kl-nats {kl_nats} --seed {seed}: give a KL budget above 0, at most 5 nats, and a "
            "whole number from 0."
        )
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
    found = {name: evaluate.answered(view, objective, name) for name in (REFERENCE, variant)}
    policies = {name: evaluate.read_responses(*paths) for name, paths in found.items()}
    contest = evaluate.contest_of(params, objective, [variant], budget[0])
    measured = summarise(measure(policies, contest), policies, contest)[variant]
    trained = view.results("align", objective, variant)
    settled = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
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
            "align": params.align.model_copy(update={"kl_nats": kl_nats}),
        }
    )
    trained = workspace.out / "align" / objective / variant
    if not (trained / "metrics.json").exists():
        align.run(replace(workspace, params=own), objective, variant)
    moved = {**workspace.moved, f"align/{objective}/{variant}": str(trained)}
    return replace(workspace, moved=moved)
