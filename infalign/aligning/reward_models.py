"""Bradley-Terry reward models from preference pairs, and how often they are right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from infalign.errors import InputError
from infalign.files.tables import INDEPENDENT, SELECTING
from infalign.files.weights import check_source
from infalign.files.workspace import Workspace, write_json
from infalign.lm.formats import Format
from infalign.lm.models import (
    build_reward_model,
    load_format,
    own_padding,
    pick_device,
    precision_on,
    save_model,
)
from infalign.lm.sampling.randomness import derive_seed
from infalign.lm.scoring.scorer import LAST, pooled_rewards
from infalign.lm.text import TokenPairs
from infalign.lm.training.loop import EpochBatches, Schedule, Step, optimise
from infalign.lm.training.lora import plain, with_adapter
from infalign.lm.training.losses import preference_loss
from infalign.lm.training.parallel import Part, Trainable, microbatched
from infalign.lm.training.quantising import check_quantising
from infalign.processes.ranks import join
from infalign.rewards.classifier import Classifier, passes_of
from infalign.rewards.pairs import Pairs, accuracy, held_out_pairs, margins

STREAMS = {SELECTING: "train", INDEPENDENT: "judge"}  # of random numbers, by their old names
MOST_LOSS = 10.0  # nats a pair; a fair coin has 0.69


def train_model(
    workspace: Workspace, objective: str, half: str, alter: Callable[[Pairs], None] | None = None
) -> dict[str, float]:
    """One reward model; its metrics. A finished one is kept.

    Args:
        alter: changes the training pairs; the held-out ones stay as they are.
    """
    folder = workspace.work / half
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
    held_out = held_out_pairs(workspace, objective).cut(policys)
    if not pairs.prompts or not held_out.prompts:
        raise InputError(
            f"objective {objective!r} has no preference pairs to train a reward model from: give "
            f"data with pairs, or objectives.{objective}.reward and judge of another kind."
        )
    if alter is not None:
        alter(pairs)
    model = _trained(workspace, form, pairs.cut(policys), objective, half)
    metrics = {
        "pairs": len(pairs.prompts),
        **accuracy(margins(_source(workspace, model, form), held_out)),
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
    check_quantising(params, device)
    seed = derive_seed(params.run.seed, "reward", objective, STREAMS[half])

    precision = precision_on(params.run.precision, device)

    def start(device: torch.device) -> PreTrainedModel:
        return build_reward_model(
            _start(workspace),
            form.tokenizer,
            device,
            seed,
            precision,
            revision=settings.revision,
        )

    def build(device: torch.device) -> PreTrainedModel:
        if not settings.lora_rank:
            return start(device)
        return with_adapter(start, device, settings, seed, "reward")

    model, data = Trainable(build, params.run), _encoded(pairs, form)
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
        workspace.work / half,
        name=f"{workspace.instance} {half}",
        bounds={"loss": MOST_LOSS},
    )
    trained = model.plain()
    return plain(trained, lambda: start(torch.device("cpu"))) if settings.lora_rank else trained


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


def _encoded(pairs: Pairs, form: Format) -> TokenPairs:
    """The pairs as a reward model reads them."""
    both = [text for pair in zip(pairs.chosen, pairs.rejected, strict=True) for text in pair]
    asked = [prompt for prompt in pairs.prompts for _ in range(2)]
    prompts, responses = form.encode_whole(asked, both)
    return TokenPairs(prompts[::2], responses[::2], responses[1::2], form.pad)


def _source(workspace: Workspace, model: PreTrainedModel, form: Format) -> Classifier:
    params = workspace.params
    passes = passes_of(params.run, 4 * params.reward.batch_size)
    return Classifier("in training", model, form, LAST, passes)
