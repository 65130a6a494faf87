"""Train a small policy in shares beside its reference: `torchrun … shares.py FOLDER STEPS LORA`.

Every process writes what it holds to FOLDER/held-RANK.json; the history is FOLDER/history.jsonl.
With STOP_AT in the environment every process ends in front of that step.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from infalign.lm.freezing import freeze
from infalign.lm.models import _ready
from infalign.lm.text import make_batch
from infalign.lm.training import loop
from infalign.lm.training.loop import Schedule, Step, optimise
from infalign.lm.training.lora import add_adapter, without_adapter
from infalign.lm.training.parallel import Trainable
from infalign.lm.training.parts import score_parts
from infalign.settings.params import Run

CPU = torch.device("cpu")
PROMPTS = 8
SIZES = {
    "vocab_size": 203,
    "hidden_size": 32,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def built(
    lora: int | None, precision: str, device: torch.device = CPU, *, frozen: bool = False
) -> Any:
    """The model before training."""
    torch.manual_seed(3)
    with device:
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model = _ready(model, device, precision, frozen)
    return freeze(add_adapter(model, lora, 5)) if lora else model


def held(tensors: Any) -> int:
    """Bytes of this process's part of some tensors."""
    own = [getattr(t, "to_local", lambda t=t: t)() for t in tensors]
    return sum(t.numel() * t.element_size() for t in own)


def main(folder: Path, steps: int, lora: int | None, precision: str) -> None:
    """Train, and write what is held."""
    size = int(os.environ["WORLD_SIZE"])
    run = Run(processes=size, sharding="fsdp2", device="cpu", precision=precision)
    training = Trainable(partial(built, lora, precision), run)
    model = training.shared_out(partial(built, None, precision, frozen=True))
    reference = partial(without_adapter, training.model) if lora else model
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 200, 5).tolist() for _ in range(PROMPTS)]
    replies = [rng.integers(3, 200, rng.integers(2, 7)).tolist() for _ in range(PROMPTS)]

    def take(number: int) -> Step:
        if number == int(os.environ.get("STOP_AT", -1)):
            os._exit(9)
        rows = np.roll(np.arange(PROMPTS), number)
        parts = training.parts(rows, np.full(PROMPTS, 12))
        chosen = [int(row) for part in parts for row in part.rows]
        batches = [
            make_batch([prompts[r] for r in part.rows], [replies[r] for r in part.rows], 0, CPU)
            for part in parts
        ]
        scored = score_parts(training, reference, batches)
        logp = scored.sums(scored.scores.logp)
        kl = float(scored.sums(scored.scores.kl).mean().detach())
        signs = torch.tensor([1.0 if row % 2 else -1.0 for row in chosen])
        return Step(-(signs * logp).mean(), {"kl": kl}, len(chosen), scored.again)

    folder.mkdir(exist_ok=True)
    schedule = Schedule(steps, 3e-3, 0.1, checkpoint_every=2)
    states = []

    make = loop.optimiser_of

    def kept_in_sight(*arguments: Any) -> torch.optim.Optimizer:
        states.append(make(*arguments))
        return states[-1]

    loop.optimiser_of = kept_in_sight
    optimise(training, schedule, take, folder, name="shares", optimizer="soap")
    loop.optimiser_of = make
    kept = [v for s in states[0].state.values() for v in s.values() if v.dim()]
    policy, other = list(training.model.parameters()), list(model.parameters())
    numbers = {
        "policy": held(policy),
        "trained": held(p for p in policy if p.requires_grad),
        "gradients": held(p.grad for p in policy if p.grad is not None),
        "optimiser": held(kept),
        "reference": 0 if lora else held(other),
        "whole": held(training.whole().parameters()),
    }
    plain = training.plain()
    numbers["sum"] = sum(float(p.detach().double().sum()) for p in plain.parameters())
    (folder / f"held-{training.ranks.rank}.json").write_text(json.dumps(numbers))
    training.ranks.part()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) or None, sys.argv[4])
