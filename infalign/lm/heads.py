"""What a model has behind its trunk, and what is computed in float32 there whatever its passes are.

Rounded to bfloat16, logits would bias a KL by nats / 300, and rewards would tie.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel


class _InFloat32(torch.nn.Module):
    """A module whose product is float32 under autocast too."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return super().forward(states.float())


def in_float32(model: PreTrainedModel) -> None:
    """Let the products behind a model's trunk, logits and rewards, be float32 under autocast."""
    behind = [model.get_output_embeddings(), *(module for _, module in classifier_head(model))]
    for module in behind:
        kind = type(module)
        if isinstance(module, torch.nn.Linear) and not issubclass(kind, _InFloat32):
            module.__class__ = type(kind.__name__, (_InFloat32, kind), {})


def classifier_head(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules with weights of a classifier behind its trunk, and its pooler, by name.

    A language model lacks them all, so that they are drawn anew.
    """
    if "Classification" not in type(model).__name__:
        return
    trunk = {id(module) for module in model.base_model.modules()}
    for name, module in model.named_modules():
        owns = next(module.parameters(recurse=False), None) is not None
        if owns and (id(module) not in trunk or "pooler" in name.split(".")):
            yield name, module
