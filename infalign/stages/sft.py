"""sft: the reference policy, trained on the responses of both sides of every preference pair.

Reads results/prepare. Writes results/sft/{policy/, history.jsonl, metrics.json}; the policy is a
plain Hugging Face folder. The loss covers response tokens and EOS only; responses longer than
model.response_tokens are cut, without EOS.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable

import numpy as np
import torch

from infalign.lm.losses import likelihood_loss
from infalign.lm.models import build_tiny, load_policy, load_tokenizer, pick_device, save_model
from infalign.lm.randomness import derive_seed
from infalign.lm.sampling import sample_responses
from infalign.lm.scoring import token_log_probs
from infalign.lm.text import Batch, by_length, encode_prompts, encode_responses, make_batch
from infalign.lm.training import EpochBatches, Schedule, Step, optimise
from infalign.params import Params
from infalign.tables import PREFERENCES, PROMPTS, read_table
from infalign.workspace import Stage, Workspace, write_json

ENDING_PROMPTS = 256  # held-out prompts on which the share of responses that end is measured


def stage(params: Params) -> Stage:
    """What the stage depends on."""
    return Stage(
        "sft",
        inputs=("results/prepare",),
        params=("run.seed", "run.device", "run.threads", "model", "sft"),
        outputs=("results/sft",),
    )


def run(workspace: Workspace) -> None:
    """Train the reference policy and measure it on held-out responses."""
    params = workspace.params
    device = pick_device(params.run.device)
    tokenizer = load_tokenizer(workspace.results("prepare", "tokenizer"))
    if params.model.name_or_path == "tiny":
        positions = params.model.prompt_tokens + params.model.response_tokens
        policy = build_tiny(params.model.tiny, tokenizer, positions, device, params.run.seed)
    else:
        policy = load_policy(params.model.name_or_path, device)
    data = _Responses(workspace, tokenizer, "train")
    size = max(1, params.sft.batch_size // 2)  # a pair's two responses share their prompt
    batches = EpochBatches(data.lengths, size, derive_seed(params.run.seed, "sft"))
    schedule = Schedule(
        max(1, round(params.sft.epochs * len(data.lengths) / size)),
        params.sft.learning_rate,
        params.sft.warmup_share,
        params.sft.weight_decay,
    )

    def take(number: int) -> Step:
        batch = data.batch(batches.at(number), device)
        loss = likelihood_loss(token_log_probs(policy, batch))
        return Step(loss, {}, len(batch.tokens))

    optimise(policy, schedule, take, workspace.work, name=workspace.instance)
    out = workspace.out / "sft"
    save_model(policy, tokenizer, out / "policy")
    shutil.copyfile(workspace.work / "history.jsonl", out / "history.jsonl")
    held_out = _Responses(workspace, tokenizer, "test")
    write_json(
        out / "metrics.json",
        {
            "parameters": sum(p.numel() for p in policy.parameters()),
            "responses": 2 * len(data.lengths),
            "held_out_perplexity": _perplexity(policy, held_out, params.sft.batch_size, device),
            "ended_share": _ended_share(workspace, policy, tokenizer),
        },
    )


class _Responses:
    """Both responses of every pair of a split, tokenised, with their prompt."""

    def __init__(self, workspace: Workspace, tokenizer, split: str) -> None:  # type: ignore[no-untyped-def]
        prompts = read_table(workspace.results("prepare", "prompts.parquet"), PROMPTS)
        pairs = read_table(workspace.results("prepare", "preferences.parquet"), PREFERENCES)
        keys = zip(prompts["objective"].to_pylist(), prompts["prompt_id"].to_pylist(), strict=True)
        ids = dict(zip(keys, encode_prompts(tokenizer, prompts["prompt"].to_pylist()), strict=True))
        rows = [row for row in pairs.to_pylist() if row["split"] == split]
        longest = workspace.params.model.response_tokens
        self.prompts = [ids[row["objective"], row["prompt_id"]] for row in rows]
        sides = (
            encode_responses(tokenizer, [row[side] for row in rows], longest)
            for side in ("chosen", "rejected")
        )
        self.responses = list(zip(*sides, strict=True))
        self.lengths = [
            len(prompt) + max(map(len, pair))
            for prompt, pair in zip(self.prompts, self.responses, strict=True)
        ]
        self._pad = tokenizer.pad_token_id

    def batch(self, chosen: Iterable[int], device: torch.device) -> Batch:
        """The chosen pairs as one padded batch, two responses a prompt."""
        rows = list(chosen)
        return make_batch(
            [self.prompts[i] for i in rows],
            [response for i in rows for response in self.responses[i]],
            self._pad,
            device,
        )


@torch.inference_mode()
def _perplexity(policy, data: _Responses, batch_size: int, device: torch.device) -> float:  # type: ignore[no-untyped-def]
    total, count = 0.0, 0
    for chosen in by_length(data.lengths, 4 * batch_size):
        logp = token_log_probs(policy, data.batch(chosen, device))
        total, count = total - float(logp.double().sum()), count + len(logp)
    return math.exp(total / count)


def _ended_share(workspace: Workspace, policy, tokenizer) -> float:  # type: ignore[no-untyped-def]
    """Share of sampled responses to held-out prompts that end by themselves."""
    prompts = read_table(workspace.results("prepare", "prompts.parquet"), PROMPTS)
    rows = [row for row in prompts.to_pylist() if row["split"] == "test"]
    rows = sorted(rows, key=lambda row: (row["prompt_id"], row["objective"]))[:ENDING_PROMPTS]
    sampled = sample_responses(
        policy,
        tokenizer,
        [row["prompt"] for row in rows],
        [row["prompt_id"] for row in rows],
        np.zeros((len(rows), 1), dtype=np.int64),
        seed=derive_seed(workspace.params.run.seed, "sft", "ended"),
        longest=workspace.params.model.response_tokens,
        batch_size=len(rows),
    )
    return float(sampled.finished.mean())
