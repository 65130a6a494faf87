"""calibrate: the reference's rewards, sorted per prompt, and the calibrated rewards of its samples.

Reads results/{prepare,sample,reward}. Writes results/calibrate/O/{calibration,calibrated}.parquet,
errors.json (calibration error against the number of references) and metrics.json.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infalign.data.dialogue import Dialogue, read_prompts
from infalign.errors import InputError
from infalign.files.tables import (
    CALIBRATED,
    CALIBRATION,
    INDEPENDENT,
    SAMPLES,
    SELECTING,
    read_table,
    write_table,
)
from infalign.files.workspace import Needs, Workspace, write_json
from infalign.lm.memory import Budget
from infalign.lm.models import load_format, load_reward_model, pick_device
from infalign.lm.scoring.scorer import score_responses
from infalign.processes.ranks import join
from infalign.settings.params import MODELS, Params
from infalign.theory.calibration import calibrate, calibration_error
from infalign.theory.planning import expected_disagreement


def needs(params: Params, objective: str) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=(
            "results/prepare",
            "results/sample",
            f"results/reward/{objective}",
        ),
        params=(*MODELS[1:], "sample", "calibrate"),
        outputs=(f"results/calibrate/{objective}",),
    )


def run(workspace: Workspace, objective: str) -> None:
    """Score the reference's samples, calibrate them against each other, measure the error."""
    prompts = read_prompts(workspace.results("prepare", "prompts.parquet"), objective)
    score = _Scorer(workspace, objective, prompts)
    samples = _read(workspace, objective, "samples")
    rewards = {judge: score(samples, judge) for judge in (SELECTING, INDEPENDENT)}
    large = _read(workspace, objective, "large")
    large_rewards = score(large, SELECTING)
    if not join(workspace.params.run).main:
        return
    out = workspace.out / "calibrate" / objective
    settings = workspace.params.sample
    rows: list[dict[str, Any]] = []
    calibrated = np.zeros(samples.num_rows)
    metrics: dict[str, Any] = {}
    for split, k in (("train", settings.train_samples), ("test", settings.test_samples)):
        chosen = np.flatnonzero(samples["split"].to_numpy(zero_copy_only=False) == split)
        by_prompt = rewards[SELECTING][chosen].reshape(-1, k)
        calibrated[chosen] = calibrate(by_prompt, by_prompt, leave_one_out=True).reshape(-1)
        ids = samples["prompt_id"].take(pa.array(chosen[::k])).to_pylist()
        rows += [
            {"prompt_id": i, "split": split, "n_reference": k, "rewards": np.sort(r)}
            for i, r in zip(ids, by_prompt, strict=True)
        ]
        metrics[f"{split}_tied_share"] = tied_share(by_prompt)
        if split == "test":
            metrics |= uniformity(by_prompt)
    write_table(
        out / "calibration.parquet",
        {name: [row[name] for row in rows] for name in CALIBRATION.schema.names},
        CALIBRATION,
    )
    write_table(
        out / "calibrated.parquet",
        {
            **{name: samples[name] for name in ("prompt_id", "sample_index", "split")},
            "reward": rewards[SELECTING],
            "independent_reward": rewards[INDEPENDENT],
            "calibrated": calibrated,
        },
        CALIBRATED,
    )
    references = large_rewards.reshape(-1, settings.large_samples)
    candidates = rewards_of(rows, large["prompt_id"].to_pylist()[:: settings.large_samples])
    errors = calibration_errors(candidates, references, workspace.params.calibrate.error_references)
    write_json(out / "errors.json", errors)
    metrics["calibration_error"] = {str(row["references"]): row["measured"] for row in errors}
    metrics["reward_std"] = float(rewards[SELECTING].std())
    write_json(out / "metrics.json", metrics)


def _read(workspace: Workspace, objective: str, name: str) -> pa.Table:
    samples = read_table(workspace.results("sample", f"{name}.parquet"), SAMPLES)
    return samples.filter(pc.field("objective") == objective)


class _Scorer:
    """Rewards of samples under a reward model of the objective."""

    def __init__(self, workspace: Workspace, objective: str, prompts: dict[str, Dialogue]) -> None:
        self._workspace, self._objective, self._prompts = workspace, objective, prompts
        self._device = pick_device(workspace.params.run.device)

    def __call__(self, samples: pa.Table, judge: str) -> np.ndarray:
        folder = self._workspace.results("reward", self._objective, judge)
        run = self._workspace.params.run
        return score_responses(
            load_reward_model(folder, self._device, run.precision),
            load_format(folder),
            [self._prompts[i] for i in samples["prompt_id"].to_pylist()],
            samples["response"].to_pylist(),
            batch_size=self._workspace.params.calibrate.batch_size,
            budget=Budget(run.batch_tokens),
            ranks=join(run),
        )


def rewards_of(rows: list[dict[str, Any]], prompt_ids: list[str]) -> np.ndarray:
    """The evaluation samples' rewards of the named prompts [prompts, samples]."""
    known = {row["prompt_id"]: row["rewards"] for row in rows}
    return np.array([known[i] for i in prompt_ids])


def tied_share(rewards: np.ndarray) -> float:
    """Share of samples whose reward another of the prompt's has; rewards [prompts, samples]."""
    ordered = np.sort(rewards, axis=1)
    same = ordered[:, 1:] == ordered[:, :-1]
    edge = np.zeros((len(rewards), 1), dtype=bool)
    return float((np.hstack([edge, same]) | np.hstack([same, edge])).mean())


def uniformity(rewards: np.ndarray) -> dict[str, float]:
    """Are calibrated rewards of fresh reference samples uniform, whatever the reward's scale?

    Half of every prompt's samples are calibrated against the other half, K of them: without ties
    the result is uniform on 0, 1/K, …, 1. Rewards: [prompts, samples].

    Returns:
        `uniformity_ks`, the Kolmogorov-Smirnov distance from that; `scale_change`, the largest
        change of a calibrated reward when the rewards go through an increasing map (0).
    """
    k = rewards.shape[1] // 2
    candidates, references = rewards[:, :k], rewards[:, k : 2 * k]
    values = calibrate(candidates, references)
    grid = np.arange(k + 1) / k
    observed = (values.reshape(-1, 1) <= grid + 1e-12).mean(0)
    stretched = calibrate(np.sinh(candidates), np.sinh(references))
    return {
        "uniformity_ks": float(np.abs(observed - np.arange(1, k + 2) / (k + 1)).max()),
        "scale_change": float(np.abs(stretched - values).max()),
    }


def calibration_errors(
    candidates: np.ndarray, references: np.ndarray, sizes: list[int]
) -> list[dict[str, float]]:
    """Mean absolute calibration error of held-out samples against the number of references.

    Args:
        candidates: rewards of held-out samples [prompts, candidates].
        references: rewards of other samples of the same prompts [prompts, many]. The first half
            is cut into groups of K references, the other half gives the large-K estimate.
        sizes: numbers of references K.

    Returns:
        One row a size: `references`, `measured`, and `expected`: the closed form, the large-K
        estimate's own error included.
    """
    large = references.shape[1] // 2
    if large < max(sizes):
        raise InputError(
            f"sample.large_samples = {references.shape[1]} is too small: calibrate.error_references"
            f" needs twice its largest number, {max(sizes)}."
        )
    truth = calibrate(candidates, references[:, large:])
    rows = []
    for k in sizes:
        groups = [references[:, i : i + k] for i in range(0, large - k + 1, k)]
        errors = [calibration_error(calibrate(candidates, group), truth) for group in groups]
        expected = expected_disagreement(k, references.shape[1] - large)
        rows.append({"references": k, "measured": float(np.mean(errors)), "expected": expected})
    return rows
