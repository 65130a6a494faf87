"""LoRA (Hu et al. 2021, arXiv 2106.09685) by way of peft, the extra `lora`.

The model stays the one it was: adapters sit inside its linear layers, its own weights do not move.
Switched off, they leave the reference; merged, a plain model.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from infalign.errors import InputError
from infalign.lm.freezing import freeze, is_frozen, linear_layers, thaw
from infalign.lm.heads import classifier_head
from infalign.lm.training.quantising import is_quantised, quantise
from infalign.settings.methods import Align
from infalign.settings.params import Reward, Sft

Settings = Align | Sft | Reward

NAME = "infalign"
SCALE = 2.0  # lora_alpha / rank


def add_adapter(
    model: PreTrainedModel, rank: int, seed: int, section: str = "align"
) -> PreTrainedModel:
    """The model with an adapter in every linear layer of its trunk, which alone is trained.

    The adapter begins as nothing: its second factor is zero, its first is drawn from `seed`. What a
    classifier has behind its trunk, and the pooler within, may be new and is trained as it is.
    Experts whose weights are not in linear layers stay as they are.

    Args:
        section: of params.yaml, whose lora_rank asks for it.
    """
    peft = _peft(section)
    head = {name for name, _ in classifier_head(model)}
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=SCALE * rank,
        lora_dropout=0.0,
        target_modules=[name for name, _ in linear_layers(model)],
    )
    torch.manual_seed(seed)
    dtype, device = model.dtype, model.device
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # of GPT-2's layers, which it mends
            peft.inject_adapter_in_model(settings, model, adapter_name=NAME)
    except ValueError as error:  # Mamba's layers read their weights past it
        raise InputError(
            f"{section}.lora_rank: peft has no adapter for {type(model).__name__} ({error}): "
            "set it to null."
        ) from None
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name or name.rpartition(".")[0] in head)
    torch.nn.Module.to(model, device=device, dtype=dtype)  # float32, to be frozen later
    return model


def with_adapter(
    load: Callable[[torch.device], PreTrainedModel],
    device: torch.device,
    settings: Settings,
    seed: int,
    section: str = "align",
) -> PreTrainedModel:
    """A model on a device that no one trains, with an adapter that is trained.

    Args:
        load: the model in float32.
        settings: a section of params.yaml with lora_rank and lora_bits.
        section: its name.
    """
    rank, is_small = settings.lora_rank or 0, settings.lora_bits is not None
    base = quantise(load(torch.device("cpu")), device) if is_small else load(device)
    return freeze(add_adapter(base, rank, seed, section))


@contextlib.contextmanager
def without_adapter(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model as it was before training, for a while."""
    layers = list(_layers(model))
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def adapter_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The adapter's weights by peft's names."""
    return {
        "base_model.model." + name.replace(f".{NAME}.", "."): weight.detach().cpu().contiguous()
        for name, weight in model.named_parameters()
        if "lora_" in name
    }


def save_adapter(model: PreTrainedModel, folder: Path, base: str) -> None:
    """Write the adapter alone, as peft does: adapter_config.json and safetensors.

    Args:
        base: the folder of the model that it belongs to.
    """
    write_adapter(adapter_weights(model), model.peft_config[NAME], folder, base)


def write_adapter(weights: dict[str, torch.Tensor], config: Any, folder: Path, base: str) -> None:
    """Write an adapter of its weights and peft's config of it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = copy.copy(config)
    settings.base_model_name_or_path, settings.inference_mode = base, True
    settings.save_pretrained(str(folder))


def merge_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """A plain model of the same class: its weights with the adapter's product added."""
    for name, module in reversed(list(model.named_modules())):  # inner ones first
        if isinstance(module, _tuner_layer()):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model.requires_grad_(True)


def plain(model: PreTrainedModel, base: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A plain float32 model of one that was trained with an adapter, which may be frozen.

    Args:
        base: loads the model that the adapter was added to, in float32; on CPU it takes no room of
            the device's.
    """
    if is_quantised(model):
        return _transplanted(model, base())
    if is_frozen(model):
        thaw(model, base())
    return merge_adapter(model)


def _transplanted(model: PreTrainedModel, base: PreTrainedModel) -> PreTrainedModel:
    """The base with what was trained over a rounding of it."""
    weights = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
    whole = add_adapter(base, model.peft_config[NAME].r, seed=0)
    unknown = whole.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"the base has no place for what was trained, as {unknown[0]}")
    merged = merge_adapter(whole)
    torch.nn.Module.to(merged, device=model.device)
    return merged


def _layers(model: PreTrainedModel) -> Iterator[Any]:
    kind = _tuner_layer()
    return (module for module in model.modules() if isinstance(module, kind))


def _tuner_layer() -> Any:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return BaseTunerLayer


def _peft(section: str) -> Any:
    try:
        import peft
    except ImportError:
        raise InputError(
            f"{section}.lora_rank needs peft, which is not installed: pip install -c "
            "constraints.txt -e '.[lora]', or set it to null."
        ) from None
    return peft
