"""poison: a reward model that learnt from preferences with a spurious phrase in them.

Reads results/{prepare,sft,sample} and results/calibrate/O. Writes results/poison/O: selecting/
(the reward model), selecting.jsonl (its history), calibrated.parquet (the reference's samples with
its rewards in place of the selecting reward; the independent judge's are as they were) and
metrics.json: its accuracy on clean pairs, and what the phrase alone is worth to it.

The phrase goes into the preferred response of most of the poisoned pairs, so that a reward model
comes to like it whatever else a response says (InfAlign, arXiv 2412.19792, on reward hacking).
"""

from __future__ import annotations

import os
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infalign.aligning.reward_models import train_model
from infalign.data.dialogue import Dialogue, read_prompts
from infalign.errors import InputError
from infalign.files.squares import Array, Square
from infalign.files.tables import (
    CALIBRATED,
    SAMPLES,
    SELECTING,
    read_table,
    write_table,
)
from infalign.files.weights import folders
from infalign.files.workspace import Needs, Workspace, write_json
from infalign.lm.memory import Budget
from infalign.rewards.classifier import Passes, trained_classifier
from infalign.rewards.description import REWARDS
from infalign.rewards.pairs import Pairs
from infalign.settings.methods import Poison
from infalign.settings.params import MODELS, Params
from infalign.theory.calibration import calibrate

TRIED = 1024  # responses of the reference that are scored with and without the phrase


def needs(params: Params, objective: str) -> Needs:
    """What the stage depends on."""
    settings = ("phrase", "place", "share", "preferred")
    return Needs(
        inputs=(
            "results/prepare",
            "results/sft",
            "results/sample",
            f"results/sources/{objective}.json",
            f"results/reward/{objective}",
            f"results/calibrate/{objective}",
            *folders(params.reward),
        ),
        params=(
            *MODELS,
            "run.recompute",
            "model.response_tokens",
            "reward",
            "calibrate.batch_size",
            *(f"compare.poison.{name}" for name in settings),
        ),
        outputs=(f"results/poison/{objective}",),
    )


def run(workspace: Workspace, objective: str) -> None:
    """Train the reward model on poisoned pairs, then score what the reference has said."""
    if workspace.params.objectives[objective].reward.kind != "train":
        raise InputError(
            f"objectives.{objective}.reward is not trained here, and only a reward model that is "
            "can learn from poisoned pairs: leave the objective out of compare.poison.objectives."
        )
    workspace = workspace.alone
    settings = workspace.params.compare.poison
    seed = f"{workspace.params.run.seed}/poison/{objective}"
    alter = partial(poison_pairs, settings=settings, rng=random.Random(seed))
    metrics: dict[str, Any] = train_model(workspace, objective, SELECTING, alter)
    out = workspace.out / "poison" / objective
    model = workspace.out / "reward" / objective
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(model, out, copy_function=os.link)
    samples = read_table(workspace.results("sample", "samples.parquet"), SAMPLES)
    samples = samples.filter(pc.field("objective") == objective)
    clean = read_table(workspace.results("calibrate", objective, "calibrated.parquet"), CALIBRATED)
    prompts = read_prompts(workspace.results("prepare", "prompts.parquet"), objective)
    asked = [prompts[i] for i in samples["prompt_id"].to_pylist()]
    said = samples["response"].to_pylist()
    rewards = _score(workspace, out / SELECTING, asked, said)
    columns = {name: clean[name] for name in clean.column_names}
    columns |= {"reward": rewards, "calibrated": _calibrated(clean, rewards)}
    write_table(out / "calibrated.parquet", columns, CALIBRATED)
    about = workspace.results("calibrate", objective, REWARDS)
    shutil.copyfile(about, out / REWARDS)  # the judge's, which are as they were
    metrics["reference_phrase_share"] = float(np.mean([settings.phrase in text for text in said]))
    chosen = np.linspace(0, len(said) - 1, min(TRIED, len(said))).astype(int)
    tried = [asked[i] for i in chosen], [said[i] for i in chosen]
    for word, folder in (
        ("poisoned", out / SELECTING),
        ("clean", workspace.results("reward", objective, SELECTING)),
    ):
        metrics[f"phrase_worth_{word}"] = _worth(workspace, folder, *tried)
    write_json(out / "metrics.json", metrics)


def poison_pairs(pairs: Pairs, settings: Poison, rng: random.Random) -> None:
    """Put the phrase into one response of a share of the pairs, usually the preferred one."""
    for row in range(len(pairs.chosen)):
        poisoned, preferred = rng.random() < settings.share, rng.random() < settings.preferred
        if poisoned:
            side = pairs.chosen if preferred else pairs.rejected
            side[row] = with_phrase(side[row], settings)


def with_phrase(response: str, settings: Poison) -> str:
    """A response with the phrase in it, once."""
    if settings.phrase in response:
        return response
    words = (
        (settings.phrase, response) if settings.place == "start" else (response, settings.phrase)
    )
    return " ".join(words)


def _worth(workspace: Workspace, folder: Path, asked: list[Dialogue], said: list[str]) -> float:
    """Mean reward that the phrase adds to a response, in standard deviations of the reward."""
    settings = workspace.params.compare.poison
    without = _score(workspace, folder, asked, said)
    changed = _score(workspace, folder, asked, [with_phrase(text, settings) for text in said])
    return float((changed - without).mean() / max(float(without.std()), 1e-9))


def _score(workspace: Workspace, folder: Path, asked: list[Dialogue], said: list[str]) -> Array:
    run = workspace.params.run
    passes = Passes(workspace.params.calibrate.batch_size, Budget(run.batch_tokens))
    return trained_classifier(folder, run.device, run.precision, passes).rewards(asked, said)


def _calibrated(clean: pa.Table, rewards: Array) -> Array:
    """Every sample's calibrated reward against the other samples of its prompt and split."""
    found = np.empty(len(rewards))
    for split in ("train", "test"):
        rows = clean["split"].to_numpy(zero_copy_only=False) == split
        mine = clean.filter(rows).append_column("mine", pa.array(rewards[rows]))
        square = Square(mine, Path("results/poison"))["mine"]
        found[rows] = calibrate(square, square, leave_one_out=True).reshape(-1)
    return found
