"""Text to tokens and back, the same way in every stage.

A sequence is the prompt's tokens, the tokens of a space and the response, and EOS (SEP in an
encoder that has no EOS). A response is unfinished when it was cut at the longest length and so has
no EOS.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase


def end_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token behind a response: EOS, or SEP of an encoder without EOS."""
    eos = tokenizer.eos_token_id
    return int(tokenizer.sep_token_id if eos is None else eos)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts, with the tokenizer's BOS where it adds one, never EOS."""
    if not prompts:
        return []
    end = end_of(tokenizer)
    encoded = tokenizer(list(prompts), add_special_tokens=True)["input_ids"]
    return [ids[:-1] if ids and ids[-1] == end else ids for ids in encoded]


def encode_responses(
    tokenizer: PreTrainedTokenizerBase, responses: Sequence[str], longest: int | None = None
) -> list[list[int]]:
    """Token ids of responses behind a prompt, EOS last; cut ones (`longest`) have no EOS."""
    if not responses:
        return []
    encoded = tokenizer([f" {r}" for r in responses], add_special_tokens=False)["input_ids"]
    return [[*ids, end_of(tokenizer)][:longest] for ids in encoded]


def cut_responses(
    tokenizer: PreTrainedTokenizerBase, responses: Sequence[str], longest: int
) -> list[str]:
    """Responses as a policy of at most `longest` tokens would have been cut off in them."""
    tokens = encode_responses(tokenizer, responses)
    decoded = decode_responses(tokenizer, [t[:longest] for t in tokens])
    return [
        cut if len(t) > longest else response
        for response, cut, t in zip(responses, decoded, tokens, strict=True)
    ]


def decode_responses(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]]
) -> list[str]:
    """The text of sampled responses: special tokens left out, stripped."""
    end = end_of(tokenizer)
    clean = [list(t[:-1]) if len(t) and t[-1] == end else list(t) for t in tokens]
    texts = tokenizer.batch_decode(
        clean, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.strip() for text in texts]


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


def shared_prompts(prompts: Sequence[str], most: int) -> int:
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
