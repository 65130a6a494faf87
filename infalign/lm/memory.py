"""Precision and memory: bfloat16 where it pays, a budget of tokens, and less when memory runs out.

What a model computes side by side is bounded by a budget of tokens, padding included: the batches
of sampling and scoring, and the parts of a training step. Where memory runs out all the same, the
budget is halved, and what failed is done again in smaller pieces.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from infalign.errors import InputError

T = TypeVar("T")
_NO_MEMORY = ("out of memory", "can't allocate memory")  # torch's words, of devices and of CPU


def autocast(model: PreTrainedModel) -> contextlib.AbstractContextManager[object]:
    """bfloat16 for the matrix products of a model that was loaded for it.

    A context for one call at a time: it keeps casts of the weights, which training outdates.
    """
    dtype = getattr(model, "autocast_dtype", None)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(model.device.type, dtype=dtype)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the device or on the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


class Budget:
    """Tokens computed side by side, halved when memory runs out.

    Attributes:
        tokens: of all sequences, prompts and padding included; None: no bound.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def holds(self, tokens: int) -> bool:
        """Whether so many tokens may be computed side by side."""
        return self.tokens is None or tokens <= self.tokens

    def halve(self, used: int, what: str) -> None:
        """Allow half of what was too much, give back what the allocator keeps, and tell."""
        self.tokens = max(1, min(used, self.tokens or used) // 2)
        gc.collect()
        torch.cuda.empty_cache()  # nothing where CUDA was not used
        print(
            f"{what}: memory ran out at {used} tokens side by side, going on with {self.tokens}: "
            f"set run.batch_tokens to {self.tokens} to begin there.",
            file=sys.stderr,
            flush=True,
        )


class Block(NamedTuple):
    """Sequences computed side by side: some samples of each of some prompts.

    Attributes:
        prompts: their numbers.
        columns: the numbers of the samples.
    """

    prompts: np.ndarray
    columns: np.ndarray

    def rows(self, samples: int) -> np.ndarray:
        """The sequences' numbers where every prompt has `samples` in a row."""
        return (self.prompts[:, None] * samples + self.columns).reshape(-1)

    @property
    def sequences(self) -> int:
        """How many."""
        return len(self.prompts) * len(self.columns)

    def halves(self) -> list[Block]:
        """Two blocks: half of the prompts each, or of the samples where there is one prompt."""
        part = 0 if len(self.prompts) > 1 else 1
        middle = -(-len(self[part]) // 2)
        return [
            self._replace(**{self._fields[part]: half})
            for half in (self[part][:middle], self[part][middle:])
        ]


def in_pieces(
    block: Block, work: Callable[[Block], T], width: Callable[[Block], int], budget: Budget
) -> list[tuple[Block, T]]:
    """Work on a block as it is; where the budget or the memory does not hold it, in halves.

    Args:
        width: tokens of a block's longest sequence.
        budget: lowered for what comes later where memory ran out.

    Returns:
        The pieces with what came of each.
    """
    tokens = block.sequences * width(block)
    if budget.holds(tokens) or block.sequences == 1:
        try:
            return [(block, work(block))]
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        if block.sequences == 1:
            raise InputError(
                f"memory ran out at a single sequence of {tokens} tokens: lower "
                "model.prompt_tokens or model.response_tokens, or take a smaller model."
            )
        budget.halve(tokens, "sampling or scoring")
    return [p for half in block.halves() for p in in_pieces(half, work, width, budget)]
