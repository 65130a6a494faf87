"""Models that no one trains, in half the memory: linear weights as autocast makes them.

Where passes are in bfloat16, autocast rounds the weights of every linear layer anew at every call.
A frozen model keeps them rounded: the same products to the last bit, at 2 bytes a weight instead
of 4. Embeddings, norms and heads stay float32, which autocast leaves as they are; so do experts
whose weights are not in linear layers. Casting the whole model would give other numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from infalign.lm.heads import classifier_head

BASE = ".base_layer"  # where an adapter puts the layer that it changes


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Keep the trunk's linear weights in the type of the model's passes, without gradients.

    An adapter's own weights stay as they are. A frozen model is computed under autocast alone.
    """
    if model.autocast_dtype is None:
        return model
    for weight in linear_weights(model):
        weight.requires_grad_(False).data = weight.data.to(model.autocast_dtype)
    return model


def linear_weights(model: PreTrainedModel) -> Iterator[torch.nn.Parameter]:
    """Those of the trunk's linear layers, without an adapter's, embedding, head and pooler."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    outside = {id(end.weight) for end in ends if end is not None}
    for _, module in classifier_head(model):
        outside.update(id(weight) for weight in module.parameters(recurse=False))
    for name, layer in model.base_model.named_modules():
        if isinstance(layer, torch.nn.Linear | Conv1D) and "lora_" not in name:
            yield from (w for w in layer.parameters(recurse=False) if id(w) not in outside)


def is_frozen(model: PreTrainedModel) -> bool:
    """Whether some weights are no longer float32."""
    return any(weight.dtype is not torch.float32 for weight in model.parameters())


def thaw(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Give a frozen model the float32 weights of the one that it was frozen from.

    Args:
        source: without an adapter; the model may have one.
    """
    weights = dict(source.named_parameters())
    for name, weight in model.named_parameters():
        if weight.dtype is not torch.float32:
            weight.data = weights[name.replace(BASE, "")].data.to(weight.device)
