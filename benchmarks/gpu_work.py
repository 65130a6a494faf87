"""One measurement of a large model: `python -m benchmarks.gpu_work WORK DEVICE SIZE`, JSON out.

`sample-ROWS` draws so many responses side by side; `train` takes CTRL's steps (log-probabilities of
policy and reference, RLOO, backward, update) on fixed responses, `lora` the same with an adapter,
`fsdp2` the same in the processes that torchrun started. Each in a process of its own, so that peaks
of memory are its own.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.turns import ROOT, status_mib
from infalign.aligning.losses import rloo_loss
from infalign.data.dialogue import Dialogue
from infalign.data.framing import asked
from infalign.lm.freezing import freeze
from infalign.lm.models import build_tiny, pick_device, precision_on
from infalign.lm.sampling.sampler import sample_responses
from infalign.lm.training.loop import Schedule, optimiser_of
from infalign.lm.training.parallel import Trainable
from infalign.lm.training.parts import batches_of, score_parts
from infalign.settings.params import Run, Tiny, load_params

RATE, WARM, ROUNDS = 1e-6, 2, 5


@dataclass(frozen=True)
class Size:
    """A Llama-type model with random weights, and a step's data."""

    model: Tiny
    prompts: int
    samples: int
    prompt_tokens: int
    response_tokens: int


SIZES = {
    "half": Size(  # 0.5 B parameters
        Tiny(vocab_size=64000, hidden_size=1280, intermediate_size=3456, layers=24, heads=20),
        prompts=16,
        samples=8,
        prompt_tokens=128,
        response_tokens=256,
    ),
    "toy": Size(
        Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2),
        prompts=4,
        samples=2,
        prompt_tokens=8,
        response_tokens=6,
    ),
}


class Ids:
    """A format of `size` numbers: texts are their ids, and what ends a response is none of them."""

    bos_token_id = pad_token_id = pad = 0

    def __init__(self, size: int) -> None:
        self.size = self.eos_token_id = size
        self.ends = (size,)

    def __len__(self) -> int:
        return self.size

    def encode_prompts(self, dialogues: list[Dialogue]) -> list[list[int]]:
        texts = [dialogue.turns[-1].content for dialogue in dialogues]
        return [[int(word) for word in text.split()] for text in texts]

    def decode(self, tokens: list[list[int]]) -> list[str]:
        return [" ".join(map(str, row)) for row in tokens]


def build(size: Size, run: Run, device: torch.device) -> PreTrainedModel:
    """The model; the same weights in every process."""
    positions = size.prompt_tokens + size.response_tokens
    ids: Any = Ids(size.model.vocab_size)
    precision = precision_on(run.precision, pick_device(run.device))
    return build_tiny(size.model, ids, positions, device, seed=0, precision=precision)


def settings(work: str, device: torch.device, processes: int) -> Run:
    """How it runs: bfloat16 on CUDA, float32 on CPU."""
    changes = {"device": device.type, "processes": processes, "sharding": "ddp"}
    if work == "fsdp2":
        changes["sharding"] = "fsdp2"
    return load_params(ROOT / "params.yaml").run.model_copy(update=changes)


def prompts_of(size: Size) -> list[list[int]]:
    """Random prompts of one length."""
    shape = (size.prompts, size.prompt_tokens)
    rows = np.random.default_rng(0).integers(1, size.model.vocab_size, shape)
    return [[int(i) for i in row] for row in rows]


def sampling(size: Size, device: torch.device, rows: int) -> dict[str, float]:
    """Tokens a second of the sampler, and what memory's bandwidth allows."""
    policy = freeze(build(size, settings("sample", device, 1), device))
    prompts = [asked(" ".join(map(str, row))) for row in prompts_of(size)]
    ids: Any = Ids(size.model.vocab_size)
    each = rows // size.prompts

    def once(number: int) -> int:
        found = sample_responses(
            policy,
            ids,
            prompts,
            [f"{i:016x}" for i in range(size.prompts)],
            np.tile(number * each + np.arange(each), (size.prompts, 1)),
            seed=0,
            longest=size.response_tokens,
            batch_size=rows,
        )
        return int(found.n_tokens.sum())

    # A new token passes the weights once; so do the prompts, which are counted as no tokens.
    found = measured(policy, device, once, passes=2)
    return found | {"floor": rows * bandwidth(device) / bytes_a_token(policy, size, rows)}


def bytes_a_token(policy: PreTrainedModel, size: Size, rows: int) -> int:
    """What is read to decode one more token of every row: all weights once, keys and values."""
    embedding = policy.get_input_embeddings().weight
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    if not policy.config.tie_word_embeddings:
        weights -= embedding.numel() * embedding.element_size()  # of which a row a token is read
    number = 2 if policy.autocast_dtype else 4
    keys = rows * (size.prompt_tokens + size.response_tokens // 2) * size.model.hidden_size
    return weights + 2 * size.model.layers * keys * number


def bandwidth(device: torch.device) -> float:
    """Measured bytes a second that are read, of a copy that reads as many as it writes."""
    source = torch.zeros(
        2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device
    )
    target, seconds = torch.empty_like(source), []
    for _ in range(WARM + ROUNDS):
        wait(device)
        begun = time.perf_counter()
        target.copy_(source)
        wait(device)
        seconds.append(time.perf_counter() - begun)
    return 2 * source.numel() / statistics.median(seconds[WARM:])


def training(work: str, size: Size, device: torch.device, processes: int) -> dict[str, float]:
    """Tokens a second of a training step, each prompt counted once."""
    run = settings(work, device, processes)
    reference: Any
    if work == "lora":
        from infalign.lm.training.lora import add_adapter, without_adapter

        policy = freeze(add_adapter(build(size, run, device), rank=16, seed=0))
        trainable, reference = Trainable(policy, run), partial(without_adapter, policy)
    else:
        trainable = Trainable(partial(build, size, run), run)
        reference = trainable.shared_out(lambda device: freeze(build(size, run, device)))
    optimiser = optimiser_of("auto", trainable.weights(), Schedule(WARM + ROUNDS, RATE, 0.0))
    prompts, rng = prompts_of(size), np.random.default_rng(1)
    shape = (size.prompts, size.samples, size.response_tokens)
    responses = rng.integers(1, size.model.vocab_size, shape).tolist()
    rewards = torch.from_numpy(rng.normal(size=shape[:2]).astype(np.float32)).to(device)
    a_row = size.samples * (size.prompt_tokens + size.response_tokens)
    lengths = np.full(size.prompts, a_row)

    def once(number: int) -> int:
        optimiser.zero_grad(set_to_none=True)
        parts = trainable.parts(np.arange(size.prompts), lengths)
        rows = np.concatenate([part.rows for part in parts])
        batches = batches_of(parts, prompts, [responses[i] for i in rows], 0, device)
        scored = score_parts(trainable, reference, batches)
        logp, other = (scored.sums(v).view(len(rows), -1) for v in scored.scores[:2])
        rloo_loss(rewards[torch.from_numpy(rows).to(device)], logp, other, 0.1).loss.backward()
        for again in scored.again:
            again()
        optimiser.step()
        return size.prompts * (size.prompt_tokens + size.samples * size.response_tokens)

    # Forward and twice that backward of the policy, forward of the reference. An adapter's
    # backward leaves out the derivatives by the model's own weights.
    return measured(
        trainable.model, device, once, passes=6 if work == "lora" else 8, ranks=processes
    )


def measured(
    policy: PreTrainedModel,
    device: torch.device,
    once: Callable[[int], int],
    *,
    passes: int,
    ranks: int = 1,
) -> dict[str, float]:
    """Median seconds of rounds, and what follows from them.

    Args:
        once: does the work and says how many tokens it was.
        passes: floating-point operations a token and parameter.
        ranks: processes that share the work.
    """
    seconds, tokens = [], 0
    for number in range(WARM + ROUNDS):
        wait(device)
        begun = time.perf_counter()
        tokens = once(number)
        wait(device)
        seconds.append(time.perf_counter() - begun)
    rate = tokens / statistics.median(seconds[WARM:])
    parameters = sum(p.numel() for p in policy.parameters())
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    return {
        "parameters": parameters,
        "tokens": tokens,
        "tokens_per_second": rate,
        "flops": rate * parameters * passes / ranks,
        "peak_mib": peak or status_mib("VmHWM"),
    }


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def product_flops(device: torch.device, width: int) -> float:
    """Measured floating-point operations a second of large products in the passes' precision."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = torch.randn(2, width, width, device=device, dtype=dtype)
    seconds = []
    for _ in range(WARM + ROUNDS):
        wait(device)
        begun = time.perf_counter()
        left @ right
        wait(device)
        seconds.append(time.perf_counter() - begun)
    return 2 * width**3 / statistics.median(seconds[WARM:])


def main(work: str, device_type: str, name: str) -> None:
    """Measure, and print JSON from rank 0."""
    from infalign.processes import torchrun

    rank, processes = torchrun.place()
    device = torch.device(device_type)
    if device.type == "cuda":
        torch.cuda.set_device(rank)
    size = SIZES[name]
    kind, _, rows = work.partition("-")
    if kind == "sample":
        found = sampling(size, device, int(rows))
    else:
        found = training(work, size, device, processes)
    found["product_flops"] = product_flops(device, 8192 if device.type == "cuda" else 256)
    if rank == 0:
        print(json.dumps(found), flush=True)
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
