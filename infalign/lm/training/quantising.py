"""QLoRA (Dettmers et al. 2023, arXiv 2305.14314): the base under an adapter in 4 bits.

By way of bitsandbytes, the extra `qlora`: NF4 in blocks of 64, whose scales are quantised again,
and products in bfloat16. Only the trunk's linear layers are; embedding, norms and head stay
float32.

The quantised base is there while an adapter is trained, and nowhere else. The reference of that
time is the same quantised base with the adapter off: the KL is 0 at step 0, and counts what the
adapter does, not what the rounding does. What is written is the adapter merged into the base's own
weights, and its KL at the end is measured, and settled, from the reference as it is stored.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from infalign.errors import InputError
from infalign.lm.freezing import linear_layers
from infalign.settings.params import Params


def check_quantising(params: Params, device: torch.device) -> None:
    """Raise where a section asks for a quantised base, and this machine has none to give."""
    for section in ("sft", "reward", "align"):
        bits = getattr(params, section).lora_bits
        if bits is None:
            continue
        if device.type != "cuda":
            raise InputError(
                f"{section}.lora_bits = {bits} needs CUDA, and this stage runs on {device.type}: "
                "set it to null."
            )
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError(
                f"{section}.lora_bits = {bits} needs bitsandbytes, which is not installed: pip "
                "install -c constraints.txt -e '.[qlora]', or set it to null."
            )


def quantise(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on a device, the trunk's linear layers in 4 bits; layer by layer, in place.

    Args:
        model: in float32, on the CPU, so that the device never holds it whole.
    """
    for name, layer in list(linear_layers(model)):
        model.set_submodule(name, _in_four_bits(layer).to(device))
    model.is_loaded_in_4bit = True  # peft asks for it
    torch.nn.Module.to(model, device=device)
    return model


def is_quantised(model: PreTrainedModel) -> bool:
    """Whether `quantise` made it."""
    return getattr(model, "is_loaded_in_4bit", False)


def _in_four_bits(layer: Any) -> Any:
    """A linear layer whose weights are quantised when it is moved to its device."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight: torch.Tensor = layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data
    made = Linear4bit(
        weight.shape[1],
        weight.shape[0],
        bias=layer.bias is not None,
        compute_dtype=torch.bfloat16,
        device="meta",
    )
    made.weight = Params4bit(
        weight.contiguous(),
        requires_grad=False,
        quant_type="nf4",
        compress_statistics=True,
        module=made,
    )
    made.bias = layer.bias
    return made
