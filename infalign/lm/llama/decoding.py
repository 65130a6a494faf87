"""One token of many sequences through a small Llama, in as few operations as it takes.

A token's products are so small that the time goes into starting operations: transformers starts
about ninety a layer. Here are some twenty, over weights put together once for a whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel

from infalign.lm.llama.fused import rotate_
from infalign.lm.llama.passes import layers_of, turns_of


class LlamaDecoder:
    """A decoder for models that `passes.fits`: see `lm.decoding.Decoder`."""

    leaving_share = 0.25

    def __init__(
        self,
        policy: PreTrainedModel,
        cache: DynamicCache,
        mask: torch.Tensor,
        positions: torch.Tensor,
        more: int,
    ) -> None:
        trunk: Any = policy.base_model
        attention = trunk.layers[0].self_attn
        self._size, self._shared = attention.head_dim, attention.num_key_value_groups
        self._keys = attention.k_proj.out_features // self._size
        self._epsilon = trunk.norm.variance_epsilon
        self._layers = [[w.t() for w in layer] for layer in layers_of(trunk)]
        self._embedding = trunk.embed_tokens.weight
        head: Any = policy.get_output_embeddings()
        self._head = (head.weight * trunk.norm.weight).t()
        self._turns = turns_of(trunk, int(positions.max()) + more)
        self._positions, self._used = positions, mask.shape[1]
        self._mask = None if bool(mask.all()) else self._additive(mask, more)
        half = self._size // 2
        order = torch.arange(self._size).view(2, half).t().flatten()  # as layers_of orders them
        layers: Any = cache.layers
        self._past = [
            (self._room(layer.keys[..., order], more), self._room(layer.values, more))
            for layer in layers
        ]

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """Logits [batch, vocab] behind the sequences with `token` [batch] added."""
        x = F.embedding(token, self._embedding)
        turns = self._turns[self._positions]
        end = self._used + 1
        for weights, past in zip(self._layers, self._past, strict=True):
            qkv, out, gate_up, down = weights
            mixed = self._normalise(x) @ qkv
            x = torch.addmm(x, self._attend(mixed, turns, past, end), out)
            gate, up = (self._normalise(x) @ gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate).mul_(up), down)
        self._used = end
        self._positions = self._positions + 1
        return self._normalise(x) @ self._head

    def keep(self, kept: torch.Tensor) -> None:
        """Let all sequences but these go."""
        self._past = [(keys[kept], values[kept]) for keys, values in self._past]
        self._positions = self._positions[kept]
        if self._mask is not None:
            self._mask = self._mask[kept]

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * (length * length).div_(x.shape[-1]).add_(self._epsilon).rsqrt_()

    def _attend(
        self,
        mixed: torch.Tensor,
        turns: torch.Tensor,
        past: tuple[torch.Tensor, torch.Tensor],
        end: int,
    ) -> torch.Tensor:
        """Write the token's keys and values behind the others; attention to all of them."""
        (keys, values), n_keys, size = past, self._keys, self._size
        queries = n_keys * self._shared
        heads = rotate_(mixed, turns, (queries + n_keys) * size).view(len(mixed), -1, size)
        keys[:, :, end - 1] = heads[:, queries : queries + n_keys]
        values[:, :, end - 1] = heads[:, queries + n_keys :]
        query = heads[:, :queries].reshape(len(mixed), n_keys, self._shared, size)
        scores = query @ keys[:, :, :end].transpose(-1, -2)
        if self._mask is not None:
            scores += self._mask[..., :end]
        return (scores.softmax(-1) @ values[:, :, :end]).view(len(mixed), -1)

    @staticmethod
    def _room(filled: torch.Tensor, more: int) -> torch.Tensor:
        """A buffer that begins with what is there: [batch, heads, tokens, size]."""
        *rest, width, size = filled.shape
        buffer = filled.new_empty(*rest, width + more, size)
        buffer[..., :width, :] = filled
        return buffer

    @staticmethod
    def _additive(mask: torch.Tensor, more: int) -> torch.Tensor:
        lowest = torch.finfo(torch.float32).min
        seen = torch.cat([mask, mask.new_ones(len(mask), more)], 1)
        return torch.zeros(seen.shape).masked_fill_(~seen, lowest)[:, None, None]
