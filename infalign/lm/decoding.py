"""What makes decoding one token at a time fast for any Hugging Face model: cache and attention.

`Room` keeps the keys and values of prompts and responses in one buffer of their final size, so
that a new token is written into its place; a growing cache would be copied whole at every token.
`attend` is scaled dot-product attention; for a single query token it is two batched matrix
products, which on CPU take a fraction of the fused kernel's time. Query heads that share a key
head are rows of one product, so that keys and values are never repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "infalign"


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

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Give every row `repeats` copies."""
        self._buffers = [b.repeat_interleave(repeats, dim=0) for b in self._buffers]
        self._view()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows of these indices."""
        self._buffers = [b[indices] for b in self._buffers]
        self._view()

    def _view(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = (b[..., : self._used, :] for b in self._buffers)
        return self.keys, self.values


def roomy_cache(policy: PreTrainedModel, more: int) -> DynamicCache:
    """A cache with room for `more` tokens behind the prompts, where the model's layers allow it."""
    cache = DynamicCache(config=policy.config)
    cache.layers = [Room(more) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as Hugging Face models call it.

    Args:
        query: [batch, heads, tokens, head size]; key and value: with the key heads.
        attention_mask: bool, True where a key may be seen, or additive; None: all.

    Returns:
        [batch, tokens, heads, head size].
    """
    batch, heads, tokens, size = query.shape
    plain = kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    if tokens > 1 or query.device.type != "cpu" or not plain:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    shared = query.view(batch, key.shape[1], heads // key.shape[1], size)
    scores = torch.matmul(shared * (scaling or size**-0.5), key.transpose(-1, -2))
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    mixed = torch.matmul(scores.softmax(-1), value)
    return mixed.reshape(batch, 1, heads, value.shape[-1]), None


@contextmanager
def fast_decoding(policy: PreTrainedModel) -> Iterator[None]:
    """Let a model that uses torch's attention use `attend` for a while."""
    usual = policy.config._attn_implementation
    if usual != "sdpa":
        yield
        return
    policy.config._attn_implementation = NAME
    try:
        yield
    finally:
        policy.config._attn_implementation = usual


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
