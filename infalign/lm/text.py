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
    """Right-padded sequences: prompt then response.

    Attributes:
        ids: token ids, int64 [batch, tokens].
        mask: True at real tokens, bool [batch, tokens].
        response: True where the token belongs to the response, bool [batch, tokens].
    """

    ids: torch.Tensor
    mask: torch.Tensor
    response: torch.Tensor

    @property
    def labels(self) -> torch.Tensor:
        """Response tokens from the second position on, False in front: bool [batch, tokens-1]."""
        return self.response[:, 1:]


def make_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad: int,
    device: torch.device,
) -> Batch:
    """Pad prompt + response pairs on the right; masks come from lengths, never from pad ids."""
    prompt_lengths = np.array([len(p) for p in prompts])
    lengths = prompt_lengths + np.array([len(r) for r in responses])
    ids = np.full((len(prompts), int(lengths.max())), pad, dtype=np.int64)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : lengths[row]] = response
    positions = np.arange(ids.shape[1])
    mask = positions < lengths[:, None]
    response_mask = mask & (positions >= prompt_lengths[:, None])
    return Batch(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(mask).to(device),
        torch.from_numpy(response_mask).to(device),
    )


def by_length(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Indices of sequences in batches of alike length, in a fixed order."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
