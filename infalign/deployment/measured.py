"""What the results of a run say of its policies, as the gate's evidence.

Reads results/{evaluate,calibrate,align}. Numpy and pyarrow alone: the report and a package both ask
here, so that what a report says of a policy is what the gate will find.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from infalign.aligning.budget import read_budget
from infalign.deployment.evidence import Evidence, Facts, Side
from infalign.errors import InputError
from infalign.files.squares import Square, policy_rewards
from infalign.files.tables import (
    EVALUATION_REWARDS,
    EVALUATION_SAMPLES,
    INDEPENDENT,
    REFERENCE,
    SELECTING,
    read_table,
)
from infalign.settings.params import Params


def measured(
    results: Path, params: Params, objective: str, variants: Sequence[str]
) -> dict[str, Evidence]:
    """Variant to its evidence, nameless: no digests, no other objectives, no trained prompts."""
    folder = results / "evaluate" / objective
    samples = read_table(folder / "samples.parquet", EVALUATION_SAMPLES)
    rewards = read_table(folder / "rewards.parquet", EVALUATION_REWARDS)
    reference_ids, reference = _side(samples, rewards, REFERENCE)
    error, references = _calibration_error(results, params, objective)
    found = {}
    for variant in variants:
        ids, policy = _side(samples, rewards, variant)
        if ids != reference_ids:
            raise InputError(f"{folder}: {variant} and the reference answer different prompts.")
        facts = Facts(
            objective=objective,
            variant=variant,
            procedure=params.objectives[objective].procedure,
            data="",
            judge="",
            reference="",
            calibration_error=error,
            references=references,
            seed=params.run.seed,
            kl_nats=read_budget(results / "align" / objective / variant).kl_nats,
        )
        found[variant] = Evidence(facts, ids, policy, reference, {})
    return found


def _side(samples: pa.Table, rewards: pa.Table, name: str) -> tuple[tuple[str, ...], Side]:
    """One policy's rows as arrays, prompts and samples in the order of their ids."""
    rows = samples.filter(pc.field("policy") == name)
    if not rows.num_rows:
        raise InputError(
            f"results/evaluate has no policy {name!r}: set promotion.variant to one of "
            "run.variants, and run the pipeline."
        )
    square = Square(rows, Path("results/evaluate"))
    scores = policy_rewards(rewards.filter(pc.field("policy") == name), Path("results/evaluate"))
    means = (square[column].mean(1) for column in ("kl", "n_tokens", "finished"))
    return tuple(square.prompt_ids), Side(scores[SELECTING], scores.get(INDEPENDENT), *means)


def _calibration_error(results: Path, params: Params, objective: str) -> tuple[float, int]:
    """The error at the largest measured number of references that training has."""
    path = results / "calibrate" / objective / "metrics.json"
    found = json.loads(path.read_text(encoding="utf-8"))["calibration_error"]
    sizes = sorted(int(size) for size in found)
    fitting = [size for size in sizes if size <= params.sample.train_samples]
    size = fitting[-1] if fitting else sizes[0]
    return float(found[str(size)]), size
