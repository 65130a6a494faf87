"""Decoding one token at a time by a Hugging Face model's own forward and cache.

`Room` keeps the keys and values of prompts and responses in one buffer of their final size, so
that a new token is written into its place; a growing cache would be copied whole at every token.
A model's attention stays as it is, in name too: many models look at the name and act on it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class Decoder(Protocol):
    """Next-token logits of a batch, from the cache of its prompts.

    Attributes:
        leaving_share: finished sequences leave the batch when they are this share of it.
    """

    leaving_share: float

    def __init__(
        self,
        policy: PreTrainedModel,
        cache: DynamicCache,
        mask: torch.Tensor,
        positions: torch.Tensor,
        more: int,
    ) -> None:
        """Begin behind the prompts.

        Args:
            cache: of the prompts, a row for every sequence.
            mask: bool [batch, prompt tokens], True at real tokens.
            positions: int64 [batch], of the first token behind each prompt.
            more: tokens to come, at most.
        """

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """Logits [batch, vocab] behind the sequences with `token` [batch] added."""

    def keep(self, kept: torch.Tensor) -> None:
        """Let all sequences but these (bool [batch]) go."""


class OwnForward:
    """A decoder by the model's own forward: see `Decoder`."""

    leaving_share = 0.25

    def __init__(
        self,
        policy: PreTrainedModel,
        cache: DynamicCache,
        mask: torch.Tensor,
        positions: torch.Tensor,
        more: int,
    ) -> None:
        self._policy, self._positions = policy, positions
        self._cache: dict[str, Any] = {cache_name(policy): cache, "use_cache": True}
        # A model of states alone has padding in its states, and no keys to mask.
        is_masked = "past_key_values" in self._cache and bool((~mask).any())
        self._mask = mask if is_masked else None

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """Logits [batch, vocab] behind the sequences with `token` [batch] added."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(token), 1)], 1)
        logits = self._policy(
            input_ids=token[:, None],
            attention_mask=None if self._mask is None else self._mask.long(),
            position_ids=self._positions[:, None],
            **self._cache,
        ).logits[:, -1]
        self._positions = self._positions + 1
        return logits

    def keep(self, kept: torch.Tensor) -> None:
        """Let all sequences but these go."""
        self._cache[cache_name(self._policy)].reorder_cache(kept.nonzero()[:, 0])
        self._positions = self._positions[kept]
        if self._mask is not None:
            self._mask = self._mask[kept]


class Prefilled(NamedTuple):
    """Prompts that were computed once, with a row for each of their samples.

    Attributes:
        mask: bool [prompts * samples, prompt tokens], True at real tokens.
        positions: int64 [prompts * samples], of the first token behind each prompt.
        logits: of that token [prompts * samples, vocab].
    """

    mask: torch.Tensor
    positions: torch.Tensor
    logits: torch.Tensor


def prefill(
    policy: PreTrainedModel,
    cache: DynamicCache,
    prompts: Sequence[Sequence[int]],
    samples: int,
    pad: int,
) -> Prefilled:
    """Fill an empty cache with prompts, padded on the left, and repeat its rows."""
    device, width = policy.device, max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (width - len(p)) + [*p] for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    mask = torch.arange(width, device=device) >= (width - lengths)[:, None]
    logits = policy(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
        **{cache_name(policy): cache},
    ).logits[:, -1]
    each = torch.arange(len(prompts), device=device).repeat_interleave(samples)
    cache.reorder_cache(each)
    return Prefilled(mask[each], lengths[each], logits[each])


def cache_name(policy: PreTrainedModel) -> str:
    """What a model calls the cache among its arguments."""
    taken = inspect.signature(policy.forward).parameters
    names = ("past_key_values", "cache_params")
    return next((name for name in names if name in taken), names[0])


class Room(DynamicLayer):
    """A layer's cache in a buffer with room for `more` tokens beyond the first ones written.

    Attributes:
        keys, values: the part in use, views [batch, heads, tokens, head size] of the buffers.
    """

    def __init__(self, more: int) -> None:
        super().__init__()
        self._more, self._used = more, 0
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new tokens behind the others; all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            *rest, tokens, _ = key_states.shape
            room = (*rest, tokens + self._more)
            self._buffers = [x.new_empty(*room, x.shape[-1]) for x in (key_states, value_states)]
        end = self._used + key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., self._used : end, :] = new
        self._used = end
        return self._view()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep the rows of these indices, as often as they are named."""
        self._buffers = [b.index_select(0, beam_idx) for b in self._buffers]
        self._view()

    def _view(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = (b[..., : self._used, :] for b in self._buffers)
        return self.keys, self.values


def roomy_cache(policy: PreTrainedModel, more: int) -> DynamicCache:
    """A cache with room for `more` tokens behind the prompts, where the model's layers allow it."""
    cache = DynamicCache(config=policy.config)
    cache.layers = [Room(more) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
