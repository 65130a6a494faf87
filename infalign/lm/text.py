"""Token ids as batches: prompts padded on the left, their responses on the right.

What a prompt's and a response's ids are says the model's format (`formats`). A response is
unfinished when it was cut at the longest length and so has no end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """Prompts, padded on the left, each with the same number of responses, padded on the right.

    Rows of the responses are prompt-major: `samples` in a row answer one prompt, which is computed
    once for all of them.

    Attributes:
        prompts: token ids, int64 [prompts, prompt tokens].
        prompt_mask: True at real tokens, bool, of the same shape.
        responses: token ids, int64 [prompts * samples, response tokens].
        mask: True at real tokens of the responses, bool, of the same shape.
    """

    prompts: torch.Tensor
    prompt_mask: torch.Tensor
    responses: torch.Tensor
    mask: torch.Tensor

    @property
    def samples(self) -> int:
        """Responses a prompt."""
        return len(self.responses) // len(self.prompts)

    @property
    def tokens(self) -> torch.Tensor:
        """Ids of the response tokens, row after row: int64 [response tokens of the batch]."""
        return self.responses[self.mask]


def make_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad: int,
    device: torch.device,
) -> Batch:
    """Pad prompts and their responses; masks come from lengths, never from pad ids.

    Args:
        prompts: token ids.
        responses: token ids of the responses to each prompt in turn, as many to each.
    """
    if not prompts or len(responses) % len(prompts):
        raise ValueError(f"{len(responses)} responses do not divide among {len(prompts)} prompts")
    left, left_mask = _pad(prompts, pad, left=True)
    right, right_mask = _pad(responses, pad, left=False)
    tensors = (torch.from_numpy(a).to(device) for a in (left, left_mask, right, right_mask))
    return Batch(*tensors)


def _pad(rows: Sequence[Sequence[int]], pad: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows as one array of ids, and the mask of real tokens."""
    lengths = np.array([len(row) for row in rows])
    width = int(lengths.max())
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    begins = width - lengths if left else np.zeros_like(lengths)
    for index, row in enumerate(rows):
        ids[index, begins[index] : begins[index] + len(row)] = row
    columns = np.arange(width)
    return ids, (columns >= begins[:, None]) & (columns < (begins + lengths)[:, None])


class TokenPairs:
    """Two responses to every prompt, as token ids.

    Attributes:
        lengths: tokens of each prompt with the longer one of its responses, int64 [pairs].
        tokens: of both responses, int64 [pairs].
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        first: Sequence[Sequence[int]],
        second: Sequence[Sequence[int]],
        pad: int,
    ) -> None:
        self.prompts, self.responses = prompts, list(zip(first, second, strict=True))
        both = list(zip(prompts, self.responses, strict=True))
        lengths = [len(prompt) + max(map(len, pair)) for prompt, pair in both]
        self.lengths = np.array(lengths, dtype=np.int64)
        self.tokens = np.array([sum(map(len, pair)) for pair in self.responses], dtype=np.int64)
        self._pad = pad

    def batch(self, rows: np.ndarray, device: torch.device, sides: Iterable[int] = (0, 1)) -> Batch:
        """Some pairs as one batch, two responses a prompt, or one of them."""
        responses = [self.responses[row][side] for row in rows for side in sides]
        return make_batch([self.prompts[row] for row in rows], responses, self._pad, device)


def shared_prompts(prompts: Sequence[Hashable], most: int) -> int:
    """How many responses in a row always share their prompt, `most` at the most.

    Args:
        prompts: the prompt of every response.
    """
    runs = [len(list(group)) for _, group in itertools.groupby(prompts)]
    shared = math.gcd(*runs)
    return shared if shared <= most else math.gcd(shared, most)


def by_length(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Indices of sequences in batches of alike length, in a fixed order."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
