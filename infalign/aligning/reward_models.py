"""Bradley-Terry reward models from preference pairs, and how often they are right."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from infalign.data.dialogue import read_prompts
from infalign.files.tables import INDEPENDENT, PREFERENCES, SELECTING, read_table
from infalign.files.weights import check_source
from infalign.files.workspace import Workspace, write_json
from infalign.lm.formats import Format
from infalign.lm.memory import Budget
from infalign.lm.models import (
    build_reward_model,
    load_format,
    own_padding,
    pick_device,
    save_model,
)
from infalign.lm.sampling.randomness import derive_seed
from infalign.lm.scoring.scorer import pooled_rewards, score_responses
from infalign.lm.text import TokenPairs
from infalign.lm.training.loop import EpochBatches, Schedule, Step, optimise
from infalign.lm.training.losses import preference_loss
from infalign.lm.training.parallel import Part, Trainable, microbatched
from infalign.processes.ranks import join

STREAMS = {SELECTING: "train", INDEPENDENT: "judge"}  # of random numbers, by their old names
MOST_LOSS = 10.0  # nats a pair; a fair coin has 0.69


def train_model(
    workspace: Workspace, objective: str, half: str, alter: Callable[[Pairs], None] | None = None
) -> dict[str, float]:
    """One reward model; its metrics. A finished one is kept.

    Args:
        alter: changes the training pairs; the held-out ones stay as they are.
    """
    folder = workspace.work / objective / half
    finished = folder / "metrics.json"
    ranks = join(workspace.params.run)
    if ranks.first(finished.exists()):
        return json.loads(finished.read_text())
    check_source("reward", workspace.params.reward, workspace.root)
    revision = workspace.params.reward.revision
    form = load_format(_start(workspace), revision)
    own_padding(form.tokenizer)
    policys = load_format(workspace.results("prepare", "tokenizer"))
    pairs = Pairs(workspace, objective, "train", half)
    if alter is not None:
        alter(pairs)
    model = _trained(workspace, form, pairs.cut(policys), objective, half)
    held_out = Pairs(workspace, objective, "test", None).cut(policys)
    metrics = {
        "pairs": len(pairs.prompts),
        **accuracy(_margins(workspace, model, form, held_out)),
    }
    if ranks.main:
        out = workspace.out / "reward" / objective
        save_model(model, form.tokenizer, out / half)
        shutil.copyfile(folder / "history.jsonl", out / f"{half}.jsonl")
        write_json(finished, metrics)
    ranks.wait()
    return metrics


def _start(workspace: Workspace) -> Path:
    """The model that training starts from."""
    name = workspace.params.reward.name_or_path
    return workspace.results("sft", "policy") if name == "sft" else Path(name)


def _trained(
    workspace: Workspace,
    form: Format,
    pairs: Pairs,
    objective: str,
    half: str,
) -> PreTrainedModel:
    """A reward model after training on the pairs."""
    params, settings = workspace.params, workspace.params.reward
    device = pick_device(params.run.device)
    seed = derive_seed(params.run.seed, "reward", objective, STREAMS[half])

    def build() -> PreTrainedModel:
        return build_reward_model(
            _start(workspace),
            form.tokenizer,
            device,
            seed,
            params.run.precision,
            revision=settings.revision,
        )

    model, data = Trainable(build(), params.run, build), pairs.encoded(form)
    batches = EpochBatches(data.lengths, settings.batch_size, seed)
    schedule = Schedule(
        max(1, round(settings.epochs * len(data.lengths) / settings.batch_size)),
        settings.learning_rate,
        settings.warmup_share,
        settings.weight_decay,
    )
    optimise(
        model,
        schedule,
        lambda number: _step(model, data, batches.at(number), device),
        workspace.work / objective / half,
        name=f"{workspace.instance} {objective} {half}",
        bounds={"loss": MOST_LOSS},
    )
    return model.plain()


def _step(model: Trainable, data: TokenPairs, rows: np.ndarray, device: torch.device) -> Step:
    """The Bradley-Terry loss of some pairs, and how often the chosen response has more reward."""
    metrics = {"accuracy": 0.0}

    def loss(part: Part) -> torch.Tensor:
        rewards = model(pooled_rewards, data.batch(part.rows, device))
        chosen, rejected = rewards.view(-1, 2).unbind(1)
        metrics["accuracy"] += part.share * float((chosen > rejected).float().mean())
        return preference_loss(chosen, rejected)

    whole, more = microbatched(model.parts(rows, 2 * data.lengths[rows]), loss)
    return Step(whole, metrics, int(data.tokens[rows].sum()), more)


def _margins(
    workspace: Workspace, model: PreTrainedModel, form: Format, pairs: Pairs
) -> np.ndarray:
    """The reward of the chosen less that of the rejected response [pairs]."""
    params = workspace.params
    chosen, rejected = (
        score_responses(
            model,
            form,
            pairs.prompts,
            side,
            batch_size=4 * params.reward.batch_size,
            budget=Budget(params.run.batch_tokens),
            ranks=join(params.run),
        )
        for side in (pairs.chosen, pairs.rejected)
    )
    return chosen - rejected


class Pairs:
    """The preference pairs of an objective and split (and half): parallel lists."""

    def __init__(self, workspace: Workspace, objective: str, split: str, half: str | None) -> None:
        prompts = read_prompts(workspace.results("prepare", "prompts.parquet"), objective)
        pairs = read_table(workspace.results("prepare", "preferences.parquet"), PREFERENCES)
        rows = [
            row
            for row in pairs.to_pylist()
            if row["objective"] == objective
            and row["split"] == split
            and (half is None or row["half"] == half)
        ]
        self.prompts = [prompts[row["prompt_id"]] for row in rows]
        self.chosen = [row["chosen"] for row in rows]
        self.rejected = [row["rejected"] for row in rows]
        self._longest = workspace.lengths.response

    def cut(self, form: Format) -> Pairs:
        """The same pairs with responses as long as a policy, whose format it is, may write."""
        self.chosen, self.rejected = (
            form.cut_responses(side, self._longest) for side in (self.chosen, self.rejected)
        )
        return self

    def encoded(self, form: Format) -> TokenPairs:
        """The same as tokens."""
        both = [text for pair in zip(self.chosen, self.rejected, strict=True) for text in pair]
        asked = [prompt for prompt in self.prompts for _ in range(2)]
        prompts, responses = form.encode_whole(asked, both)
        return TokenPairs(prompts[::2], responses[::2], responses[1::2], form.pad)


def accuracy(margin: np.ndarray) -> dict[str, float]:
    """Accuracy on pairs with its 95 % interval (Wilson 1927), ties half; log-loss, nats.

    Args:
        margin: reward of the chosen less that of the rejected response [pairs].
    """
    n = len(margin)
    share = float(((margin > 0) + 0.5 * (margin == 0)).mean())
    z = 1.959963984540054
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return {
        "held_out_pairs": n,
        "accuracy": share,
        "accuracy_low": centre - half,
        "accuracy_high": centre + half,
        "held_out_loss": float(np.logaddexp(0, -margin).mean()),
        "margin_std": float(margin.std()),
    }
