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
        if weight.is_floating_point():  # else it has fewer bits already
            weight.requires_grad_(False).data = weight.data.to(model.autocast_dtype)
    return model


def linear_weights(model: PreTrainedModel) -> Iterator[torch.nn.Parameter]:
    """Those of the trunk's linear layers."""
    for _, layer in linear_layers(model):
        yield from layer.parameters(recurse=False)


def linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """The trunk's linear layers by name, without an adapter's, embedding, head and pooler."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    ends += [module for _, module in classifier_head(model)]
    outside = {id(weight) for end in ends if end is not None for weight in end.parameters()}
    trunk = {id(module) for module in model.base_model.modules()}
    for name, layer in model.named_modules():
        is_linear = isinstance(layer, torch.nn.Linear | Conv1D) and "lora_" not in name
        if is_linear and id(layer) in trunk and id(layer.weight) not in outside:
            yield name, layer


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
