"""calibrate: the reference's rewards, sorted per prompt, and the calibrated rewards of its samples.

Reads results/{prepare,sample,sources,reward}. Writes to results/calibrate/O:
{calibration,calibrated}.parquet, errors.json (calibration error against the number of references),
rewards.json (of the reward and of the judge: the scales and the contributions of a sum's parts,
how often a prompt's samples are all alike, and accuracy on the pairs where none was trained from
them), parts.parquet (where there is a sum: what each part says) and metrics.json.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
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
    PART_REWARDS,
    SAMPLES,
    SELECTING,
    read_table,
    write_table,
)
from infalign.files.workspace import Needs, Workspace, write_json
from infalign.lm.models import load_format
from infalign.processes.ranks import join
from infalign.rewards.classifier import passes_of
from infalign.rewards.description import FIELDS, REWARDS, settings_of
from infalign.rewards.opening import judges_of, open_source
from infalign.rewards.pairs import accuracy, held_out_pairs, margins
from infalign.rewards.reference import Rewarded, Samples, reward_samples
from infalign.rewards.source import RewardSource
from infalign.settings.params import MODELS, Params
from infalign.settings.rewards import AnyReward
from infalign.theory.calibration import calibrate, calibration_error
from infalign.theory.levels import MANY_ALIKE, tied_share
from infalign.theory.planning import expected_disagreement


def needs(params: Params, objective: str) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=(
            "results/prepare",
            "results/sample",
            f"results/sources/{objective}.json",
            f"results/reward/{objective}",
        ),
        params=(
            *MODELS[1:],
            "model.response_tokens",
            "reward.held_out_pairs",
            "sample",
            "calibrate",
        ),
        outputs=(f"results/calibrate/{objective}",),
    )


def run(workspace: Workspace, objective: str) -> None:
    """Score the reference's samples, calibrate them against each other, measure the error."""
    samples, large = (_read(workspace, objective, name) for name in ("samples", "large"))
    ask = _Asking(workspace, objective)
    selecting, large_rewards = ask(SELECTING, samples, large)
    found = {SELECTING: selecting}
    if INDEPENDENT in judges_of(workspace, objective):
        found[INDEPENDENT], _ = ask(INDEPENDENT, samples, large.slice(0, 0))
    rewards = {judge: each.rewards for judge, each in found.items()}
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
            **({"independent_reward": rewards[INDEPENDENT]} if INDEPENDENT in rewards else {}),
            "calibrated": calibrated,
        },
        CALIBRATED,
    )
    write_json(out / REWARDS, {judge: each.about for judge, each in found.items()})
    _write_parts(out / "parts.parquet", samples, found)
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


class _Asking:
    """Rewards of an objective's samples under its sources."""

    def __init__(self, workspace: Workspace, objective: str) -> None:
        self._workspace, self._objective = workspace, objective
        path = workspace.results("prepare", "prompts.parquet")
        self._prompts = read_prompts(path, objective)

    def _texts(self, samples: pa.Table) -> tuple[list[Dialogue], list[str]]:
        """The prompt of every sample, and what it says."""
        asked = [self._prompts[i] for i in samples["prompt_id"].to_pylist()]
        return asked, samples["response"].to_pylist()

    def __call__(
        self, judge: str, samples: pa.Table, more: pa.Table
    ) -> tuple[Rewarded, np.ndarray]:
        """The samples' rewards, with how right the source is about pairs, and those of more."""
        workspace, params = self._workspace, self._workspace.params
        settings = settings_of(params.objectives[self._objective], judge)
        assert settings is not None
        passes = passes_of(params.run, params.calibrate.batch_size)
        source = open_source(workspace, self._objective, judge, passes, scaled=False)
        train = samples["split"].to_numpy(zero_copy_only=False) == "train"
        sizes = (params.sample.train_samples, params.sample.test_samples)
        place = f"objectives.{self._objective}.{FIELDS[judge]}"
        asked = Samples(*self._texts(samples), train, sizes)
        source, found = reward_samples(source, settings, asked, place)
        alike = found.about["alike_share"]
        if alike > MANY_ALIKE and passes.ranks.main:
            print(
                f"{workspace.instance}: {place} gives all samples of a prompt the same reward, for "
                f"{alike:.0%} of the prompts: those teach nothing.",
                flush=True,
            )
        found = replace(found, about=found.about | {"pairs": self._pairs(source, settings)})
        return found, source.rewards(*self._texts(more))

    def _pairs(self, source: RewardSource, settings: AnyReward) -> dict[str, float] | None:
        """Accuracy on the held-out pairs; None: there are none, or `reward` has said it."""
        if settings.kind == "train":
            return None
        form = load_format(self._workspace.results("prepare", "tokenizer"))
        pairs = held_out_pairs(self._workspace, self._objective).cut(form)
        return accuracy(margins(source, pairs)) if pairs.prompts else None


def _write_parts(path: Path, samples: pa.Table, found: dict[str, Rewarded]) -> None:
    """What every part of a sum says of every sample, where there is a sum."""
    parts = [
        (judge, name, values)
        for judge, each in found.items()
        for name, values in each.parts.items()
    ]
    if not parts:
        return
    ids, indices = (samples[name].to_pylist() for name in ("prompt_id", "sample_index"))
    columns = {
        "prompt_id": ids * len(parts),
        "sample_index": indices * len(parts),
        "judge": [judge for judge, _, _ in parts for _ in ids],
        "part": [name for _, name, _ in parts for _ in ids],
        "reward": np.concatenate([values for _, _, values in parts]),
    }
    write_table(path, columns, PART_REWARDS)


def rewards_of(rows: list[dict[str, Any]], prompt_ids: list[str]) -> np.ndarray:
    """The evaluation samples' rewards of the named prompts [prompts, samples]."""
    known = {row["prompt_id"]: row["rewards"] for row in rows}
    return np.array([known[i] for i in prompt_ids])


def uniformity(rewards: np.ndarray) -> dict[str, float]:
    """Are calibrated rewards of fresh reference samples uniform, whatever the reward's scale?

    Half of every prompt's samples are calibrated against the other half, K of them: without ties
    the result is uniform on 0, 1/K, …, 1. Rewards: [prompts, samples].

    Returns:
        `uniformity_ks`, the Kolmogorov-Smirnov distance from that; `scale_change`, the largest
        change of a calibrated reward when the rewards go through an increasing map (0): to the
        squares of their ranks, which no reward overflows.
    """
    k = rewards.shape[1] // 2
    candidates, references = rewards[:, :k], rewards[:, k : 2 * k]
    values = calibrate(candidates, references)
    grid = np.arange(k + 1) / k
    observed = (values.reshape(-1, 1) <= grid + 1e-12).mean(0)
    levels = np.unique(rewards)
    ranks = np.searchsorted(levels, rewards).astype(np.float64) ** 2
    stretched = calibrate(ranks[:, :k], ranks[:, k : 2 * k])
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
