"""Decoding on CUDA: a cache of fixed size, and one graph of a token's kernels, replayed.

A token of a small batch is a few hundred short kernels, which take longer to launch than to run. A
CUDA graph launches them all at once; it needs every tensor to stay where it is, which
transformers' static cache sees to. Off CUDA the same steps run without a graph.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

WARM_UP = 3  # steps before a graph is recorded, as torch asks for
FAR = 0.05  # difference of log-probabilities beyond which a graph is not what was recorded


def can_be_static(policy: PreTrainedModel) -> bool:
    """Whether decoding is on CUDA, with a cache whose layers are all of the plain kind."""
    return policy.device.type == "cuda" and has_plain_cache(policy)


def has_plain_cache(policy: PreTrainedModel) -> bool:
    """Whether every layer keeps all keys and values, and attention takes masks as torch's does."""
    if policy.config._attn_implementation != "sdpa":
        return False
    cache = StaticCache(config=policy.config, max_cache_len=1)
    return all(type(layer) is StaticLayer for layer in cache.layers)


class StaticDecoder:
    """A decoder in memory that does not move: see `lm.decoding.Decoder`."""

    leaving_share = 0.5  # leaving makes a new graph

    def __init__(
        self,
        policy: PreTrainedModel,
        cache: DynamicCache,
        mask: torch.Tensor,
        positions: torch.Tensor,
        more: int,
    ) -> None:
        self._policy, (rows, width) = policy, mask.shape
        self._cache = StaticCache(config=policy.config, max_cache_len=width + more)
        self._layers: list[Any] = list(self._cache.layers)
        past: list[Any] = list(cache.layers)
        for layer, filled in zip(self._layers, past, strict=True):
            layer.lazy_initialization(filled.keys, filled.values)
            layer.keys[:, :, :width] = filled.keys
            layer.values[:, :, :width] = filled.values
            layer.cumulative_length.fill_(width)
        self._token = torch.zeros((rows, 1), dtype=torch.int64, device=mask.device)
        self._positions = positions[:, None].clone()
        self._mask = mask.new_zeros(rows, 1, 1, width + more)
        self._mask[:, 0, 0, :width] = mask
        self._used = torch.tensor([width], device=mask.device)
        self._step, self._logits = 0, torch.empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_graphed = mask.is_cuda

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """Logits [batch, vocab] behind the sequences with `token` [batch] added."""
        self._token.copy_(token[:, None])
        if self._is_graphed and self._graph is None and self._step == WARM_UP:
            self._record()
        if self._graph is None:
            self._logits = self._forward()
        else:
            self._graph.replay()
        self._step += 1
        return self._logits

    def keep(self, kept: torch.Tensor) -> None:
        """Let all sequences but these go."""
        for layer in self._layers:
            layer.keys, layer.values = layer.keys[kept], layer.values[kept]
        for name in ("_token", "_positions", "_mask"):
            setattr(self, name, getattr(self, name)[kept])
        self._graph, self._step = None, 0

    def _forward(self) -> torch.Tensor:
        """One step: everything in place, nothing that waits for the device."""
        self._mask.index_fill_(3, self._used, True)
        logits = self._policy(
            input_ids=self._token,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        self._used.add_(1)
        self._positions.add_(1)
        return logits

    def _record(self) -> None:
        """Record a step as a graph, and use it if it gives what the step gives."""
        expected = self._forward()
        self._undo()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._logits = self._forward()
            graph.replay()
            found, wanted = (x.float().log_softmax(-1) for x in (self._logits, expected))
            self._is_graphed = bool((found - wanted).abs().max() < FAR)
            self._undo()
        except RuntimeError as error:
            self._is_graphed = False
            print(f"sampling goes on without a CUDA graph: {error}", file=sys.stderr, flush=True)
        self._graph = graph if self._is_graphed else None

    def _undo(self) -> None:
        """Take back a step's counters: the next one writes over what it wrote."""
        self._mask.index_fill_(3, self._used - 1, False)
        self._used.sub_(1)
        self._positions.sub_(1)
        for layer in self._layers:
            layer.cumulative_length.sub_(1)
