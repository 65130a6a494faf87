"""Text to tokens and back, the same way in every stage.

A sequence is the prompt's tokens, the tokens of a space and the response, and EOS. A response is
unfinished when it was cut at the longest length and so has no EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts, with the tokenizer's BOS where it adds one, never EOS."""
    if not prompts:
        return []
    eos = tokenizer.eos_token_id
    encoded = tokenizer(list(prompts), add_special_tokens=True)["input_ids"]
    return [ids[:-1] if ids and ids[-1] == eos else ids for ids in encoded]


def encode_responses(
    tokenizer: PreTrainedTokenizerBase, responses: Sequence[str], longest: int | None = None
) -> list[list[int]]:
    """Token ids of responses behind a prompt, EOS last; cut ones (`longest`) have no EOS."""
    if not responses:
        return []
    encoded = tokenizer([f" {r}" for r in responses], add_special_tokens=False)["input_ids"]
    return [[*ids, tokenizer.eos_token_id][:longest] for ids in encoded]


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
    eos = tokenizer.eos_token_id
    clean = [list(t[:-1]) if len(t) and t[-1] == eos else list(t) for t in tokens]
    texts = tokenizer.batch_decode(
        clean, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.strip() for text in texts]


@dataclass(frozen=True)
class Batch:
    """Sequences that meet in one column: prompts padded on the left, responses on the right.

    Attributes:
        ids: token ids, int64 [batch, tokens].
        mask: True at real tokens, bool [batch, tokens].
        width: columns of the responses, the last of `tokens`.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    width: int

    @property
    def positions(self) -> torch.Tensor:
        """Position of every token in its sequence, int64 [batch, tokens]."""
        return (self.mask.cumsum(1) - 1).clamp(min=0)

    @property
    def response(self) -> torch.Tensor:
        """Ids in the responses' columns [batch, width]."""
        return self.ids[:, -self.width :]

    @property
    def response_mask(self) -> torch.Tensor:
        """True at response tokens, bool [batch, width]."""
        return self.mask[:, -self.width :]


def make_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad: int,
    device: torch.device,
) -> Batch:
    """Pad prompt + response pairs; masks come from lengths, never from pad ids."""
    before, after = (np.array([len(t) for t in tokens]) for tokens in (prompts, responses))
    start, width = int(before.max()), int(after.max())
    ids = np.full((len(prompts), start + width), pad, dtype=np.int64)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[row, start - len(prompt) : start] = prompt
        ids[row, start : start + len(response)] = response
    columns = np.arange(start + width)
    mask = (columns >= start - before[:, None]) & (columns < start + after[:, None])
    return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), width)


def by_length(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Indices of sequences in batches of alike length, in a fixed order."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
