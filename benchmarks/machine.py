"""What the machine can do and what a step needs: the floor under any implementation."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.case import Case


def gemm_flops(size: int = 1024, rounds: int = 7) -> float:
    """Measured floating-point operations a second of large float32 products, median of rounds."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        for _ in range(4):
            left @ right
        seconds.append((time.perf_counter() - start) / 4)
    return 2 * size**3 / statistics.median(seconds[2:])


def body_flops(case: Case, context: float) -> float:
    """Of one token through the layers, forward, with so many tokens before it."""
    hidden = case.hidden_size
    shared = 2 * hidden**2 * (case.key_heads or case.heads) / case.heads  # keys and values
    dense = 2 * hidden**2 + shared + 3 * hidden * case.intermediate_size
    return 2 * case.layers * (dense + 2 * hidden * context)


def sampling_flops(case: Case, responses: int, prompt_tokens: float) -> float:
    """Arithmetic of sampling so many responses, a prompt computed once for its own."""
    return sum(_forward(case, responses // case.samples, prompt_tokens))


def _forward(case: Case, prompts: int, prompt_tokens: float) -> tuple[float, float, float]:
    """Of one pass over prompts with their responses: the prompts, the responses, the vocabulary."""
    response = prompts * case.samples * case.response_tokens
    return (
        prompts * body_flops(case, prompt_tokens / 2) * prompt_tokens,
        response * body_flops(case, prompt_tokens + case.response_tokens / 2),
        response * 2 * case.hidden_size * case.vocab_size,
    )


def step_flops(case: Case, prompt_tokens: float) -> float:
    """Arithmetic of one step in which no prompt is computed twice and no padding at all.

    Sampling and the reference pass forward, training forward and twice that backward (once where
    only an adapter is trained), the reward model, where it is as large, forward without a
    vocabulary.

    Args:
        prompt_tokens: mean length of a prompt.
    """
    prompts, replies, vocabulary = _forward(case, case.prompts, prompt_tokens)
    policy_passes = 1 + 1 + (2 if case.lora_rank else 3)  # sampling, reference, training
    judged = 0 if case.start else prompts + replies
    return policy_passes * (prompts + replies + vocabulary) + judged
