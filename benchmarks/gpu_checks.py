"""Is the model right on this device? `python -m benchmarks.gpu_checks DEVICE SIZE`, a line each.

Ends with 1 where a check fails, after all of them were made.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.gpu_work import SIZES, Ids, Size, build, prompts_of, settings
from infalign.data.framing import asked
from infalign.lm.freezing import freeze
from infalign.lm.memory import autocast
from infalign.lm.sampling.sampler import Responses, sample_responses
from infalign.lm.sampling.ways import proven_way
from infalign.lm.scoring.scorer import sum_responses
from infalign.lm.scoring.vocabulary import token_log_probs, token_scores
from infalign.lm.text import Batch, make_batch
from infalign.lm.training.parallel import Trainable

ROWS, TOKENS, THREADS = 32, 64, 8
SAMPLER, HALF, START = 2e-2, 5e-2, 0.01  # nats: a token, a token, a response
EXACT = 1e-4  # nats a token in float32


class Check(NamedTuple):
    """One of them, and how it went."""

    name: str
    value: float
    bound: float

    @property
    def is_right(self) -> bool:
        """Not above its bound, and a number."""
        return self.value <= self.bound


def drawn(policy: PreTrainedModel, size: Size, number: int, rows: int = ROWS) -> Responses:
    """Responses to random prompts; the same ones for a number."""
    prompts = [asked(" ".join(map(str, row))) for row in prompts_of(size)]
    each = max(1, rows // len(prompts))
    ids: Any = Ids(size.model.vocab_size)
    indices = np.tile(number * each + np.arange(each), (len(prompts), 1))
    names = [f"{i:016x}" for i in range(len(prompts))]
    longest = min(TOKENS, size.response_tokens)
    return sample_responses(
        policy, ids, prompts, names, indices, seed=0, longest=longest, batch_size=rows
    )


def batch_of(responses: Responses, size: Size, device: torch.device) -> Batch:
    """The same as a batch of whole sequences."""
    prompts = prompts_of(size)
    each = len(responses.tokens) // len(prompts)
    rows = [prompt for prompt in prompts for _ in range(each)]
    return make_batch(rows, [list(row) for row in responses.tokens], 0, device)


def sampler(size: Size, device: torch.device) -> Iterator[Check]:
    """What decoding says of its tokens against the plain forward pass of the whole sequences."""
    for precision, bound in (("float32", EXACT), ("bfloat16", SAMPLER)):
        run = settings("sample", device, 1).model_copy(update={"precision": precision})
        policy = freeze(build(size, run, device))
        way = proven_way(policy, prompts_of(size)[0], min(TOKENS, size.response_tokens))
        responses = drawn(policy, size, 0)
        with torch.no_grad(), autocast(policy):
            batch = batch_of(responses, size, device)
            own = sum_responses(token_log_probs(policy, batch), batch).cpu().numpy()
        apart = np.abs(own - responses.logp) / responses.n_tokens
        name = f"sampler against forward pass, {precision}, {way.name}"
        yield Check(name, float(apart.mean()), bound)


def half(size: Size, device: torch.device) -> Iterator[Check]:
    """Log-probabilities with products in bfloat16 against float32."""
    found: list[torch.Tensor] = []
    batch: Batch | None = None
    for precision in ("float32", "bfloat16"):
        run = settings("sample", device, 1).model_copy(update={"precision": precision})
        policy = build(size, run, device)
        batch = batch or batch_of(drawn(policy, size, 0), size, device)
        with torch.no_grad(), autocast(policy):
            found.append(token_log_probs(policy, batch).float())
    yield Check("bfloat16 against float32", float((found[0] - found[1]).abs().mean()), HALF)


def start(size: Size, device: torch.device) -> Iterator[Check]:
    """The KL of a policy that has not moved, in training's own passes."""
    run = settings("train", device, 1)
    responses = drawn(freeze(build(size, run, device)), size, 0)
    batch = batch_of(responses, size, device)
    for attention in ("sdpa", "eager"):
        for lora in (False, True):
            for recompute in (False, True):
                own = run.model_copy(update={"recompute": recompute})
                yield _started(size, own, device, batch, attention, lora)


def _started(
    size: Size, run: Any, device: torch.device, batch: Batch, attention: str, lora: bool
) -> Check:
    policy = build(size, run, device)
    policy.set_attn_implementation(attention)
    reference: Any = None
    if lora:
        from infalign.lm.training.lora import add_adapter, without_adapter

        policy = freeze(add_adapter(policy, rank=16, seed=0))
        reference = partial(without_adapter, policy)
    else:
        reference = freeze(build(size, run, device))
        reference.set_attn_implementation(attention)
    scores = Trainable(policy, run)(token_scores, reference, batch)
    words = [attention, *["adapter"] * lora, *["recomputed"] * run.recompute]
    value = float(sum_responses(scores.kl.detach(), batch).mean())
    return Check(f"KL at step 0, {', '.join(words)}", value, START)


def threads(size: Size, device: torch.device) -> Iterator[Check]:
    """Eight threads that draw from one model at a time get what each would get alone."""
    policy = freeze(build(size, settings("sample", device, 1), device))
    alone = [drawn(policy, size, number).tokens for number in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(lambda n: drawn(policy, size, n).tokens, range(THREADS)))
    apart = sum(
        list(one) != list(other)
        for before, after in zip(alone, together, strict=True)
        for one, other in zip(before, after, strict=True)
    )
    yield Check(f"{THREADS} threads: responses that differ", apart, 0)


CHECKS: tuple[Callable[[Size, torch.device], Iterator[Check]], ...] = (
    sampler,
    half,
    start,
    threads,
)


def main(device_type: str, name: str) -> int:
    """Make every check and print it."""
    device, wrong = torch.device(device_type), 0
    for check in CHECKS:
        begun = time.perf_counter()
        for made in check(SIZES[name], device):
            wrong += not made.is_right
            word = "right" if made.is_right else "WRONG"
            seconds = time.perf_counter() - begun
            told = f"{made.name:<72} {made.value:.3g} (at most {made.bound:g})"
            print(f"{word}  {told}  {seconds:.0f} s", flush=True)
            begun = time.perf_counter()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
