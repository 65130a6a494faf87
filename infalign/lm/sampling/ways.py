"""Ways to decode a model, the fastest first; each is used only where it is seen to be right.

Whatever decodes step by step (a decoder of ours, a cache, the model's own steps) can draw from
another distribution than the model's, and nothing would fail. So the first responses that a model
draws are also computed by its plain forward: each whole sequence alone, no padding, no cache. A way
that differs from that by more than a bound gives place to the next, and behind the last one there
is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from infalign.errors import InputError
from infalign.lm.decoding import Decoder, OwnForward, prefill, roomy_cache
from infalign.lm.llama import passes
from infalign.lm.llama.decoding import LlamaDecoder
from infalign.lm.memory import Block, Budget, autocast, in_pieces, ran_out
from infalign.lm.sampling.randomness import draw, uniforms
from infalign.lm.sampling.static import StaticDecoder, can_be_static

TOKENS = 8  # of the compared responses: with those before a CUDA graph is recorded, some behind it
BOUND = 1e-4  # nats a token in float32; rounding makes some 1e-6
BFLOAT16_BOUND = 0.2  # nats a token in bfloat16; rounding makes some 1e-2


class Way(NamedTuple):
    """How a model is decoded.

    Attributes:
        roomy: whether the cache has room for the response from the start.
        padded: whether prompts of unequal lengths are decoded side by side.
    """

    name: str
    decoder: type[Decoder]
    roomy: bool = False
    padded: bool = True

    def begin(
        self,
        policy: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        samples: int,
        *,
        pad: int,
        longest: int,
    ) -> tuple[Decoder, torch.Tensor]:
        """What decodes the samples of prompts, prompt-major, and their first logits."""
        cache = roomy_cache(policy, longest) if self.roomy else DynamicCache(config=policy.config)
        mask, positions, logits = prefill(policy, cache, prompts, samples, pad)
        return self.decoder(policy, cache, mask, positions, longest), logits


STATIC = Way("a static cache", StaticDecoder)
LLAMA = Way("steps of our own", LlamaDecoder)
ROOMY = Way("its own steps in a cache of ours", OwnForward, roomy=True)
OWN = Way("its own steps and cache", OwnForward)
ALONE = Way("its own steps and cache, without padding", OwnForward, padded=False)


def ways_of(policy: PreTrainedModel) -> Iterator[Way]:
    """The ways that a model allows, the fastest first."""
    if can_be_static(policy):
        yield STATIC
    if passes.fits(policy):
        yield LLAMA
    yield from (ROOMY, OWN, ALONE)


def proven_way(
    policy: PreTrainedModel, prompt: Sequence[int], longest: int, budget: Budget | None = None
) -> Way:
    """The fastest way that is right; found out once for a model, and remembered with it.

    Args:
        prompt: token ids; its second half is the other prompt, so that there is padding.
        longest: tokens of a response. Shorter responses prove less: longer ones are compared anew.
    """
    proven, wrong = _found_out(policy)
    tokens, name = min(longest, TOKENS), type(policy).__name__
    fault = None
    for way in ways_of(policy):
        if proven.get(way.name, 0) >= tokens:
            return way
        if way.name in wrong:
            continue
        found = _fault(policy, way, prompt, tokens, budget or Budget())
        if found is None:
            proven[way.name] = tokens
            if fault:
                told = f"sampling: {name} is decoded by {way.name}, not {fault}."
                print(told, file=sys.stderr, flush=True)
            return way
        wrong[way.name] = fault = f"{way.name}, which {found}"
    raise InputError(
        f"{name} cannot be sampled from token by token (not by {wrong[way.name]}): set "
        "model.name_or_path to another model, or run.precision to float32 if it is not."
    )


def _found_out(policy: PreTrainedModel) -> tuple[dict[str, int], dict[str, str]]:
    """By the names of ways: tokens for which each was right, and what was wrong with others."""
    found: tuple[dict[str, int], dict[str, str]] = vars(policy).setdefault("ways", ({}, {}))
    return found


def _fault(
    policy: PreTrainedModel, way: Way, prompt: Sequence[int], tokens: int, budget: Budget
) -> str | None:
    """What is wrong with a way, if anything is."""
    bound = BOUND if getattr(policy, "autocast_dtype", None) is None else BFLOAT16_BOUND
    prompts = [list(prompt), list(prompt[len(prompt) // 2 :])]

    def work(block: Block) -> float:
        with autocast(policy):
            chosen = [prompts[i] for i in block.prompts]
            return departure(policy, way, chosen, len(block.columns), tokens)

    numbers, two = np.arange(2), np.arange(2)
    blocks = [Block(n, two) for n in ([numbers] if way.padded else np.split(numbers, 2))]
    try:
        parts = [in_pieces(b, work, lambda _: len(prompt) + tokens, budget) for b in blocks]
    except InputError:
        raise
    except Exception as error:  # whatever a model raises at what it does not know
        if ran_out(error):
            raise
        return " ".join(f"ends in {type(error).__name__}: {error}".split())[:200]
    worst = float(np.max([found for part in parts for _, found in part]))
    if worst <= bound:
        return None
    return f"differs from a full forward pass by {worst:.2g} nats a token, more than {bound:g}"


@torch.inference_mode()
def departure(
    policy: PreTrainedModel,
    way: Way,
    prompts: Sequence[Sequence[int]],
    samples: int,
    tokens: int,
) -> float:
    """How far the log-probabilities of drawn tokens are from those of whole sequences.

    The mean of the absolute differences over a response, of the response where it is largest,
    nats a token. One of the sequences leaves at its first token.
    """
    decoder, logits = way.begin(policy, prompts, samples, pad=prompts[0][0], longest=tokens)
    device, lengths = logits.device, [len(p) for p in prompts for _ in range(samples)]
    rows = [list(p) for p in prompts for _ in range(samples)]
    found: list[list[float]] = [[] for _ in rows]
    place = torch.arange(len(rows), device=device)
    for position in range(tokens):
        token, logp = draw(logits, uniforms(0, torch.zeros_like(place), place, position))
        for row, *drawn in zip(place.tolist(), token.tolist(), logp.tolist(), strict=True):
            rows[row].append(drawn[0])
            found[row].append(drawn[1])
        if position + 1 == tokens:
            break
        if position == 0 and len(rows) > 1:
            kept = place != 1
            decoder.keep(kept)
            token, place = token[kept], place[kept]
        logits = decoder(token)
    differences = [
        np.abs(_plain(policy, row, length) - logp).mean()
        for row, length, logp in zip(rows, lengths, found, strict=True)
    ]
    return float(np.max(differences))


def _plain(policy: PreTrainedModel, row: list[int], length: int) -> np.ndarray:
    """Log-probabilities of a sequence's tokens behind the first `length`, by the plain forward."""
    ids = torch.tensor([row], device=policy.device)
    logits = policy(input_ids=ids, use_cache=False, logits_to_keep=len(row) - length + 1).logits[0]
    logp = logits[length - len(row) - 1 : -1].float().log_softmax(-1)
    return logp.gather(1, ids[0, length:, None])[:, 0].double().cpu().numpy()
