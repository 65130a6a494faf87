"""The step that CUDA records as a graph waits for nothing and makes nothing on the host.

A graph holds kernels alone: an operation that asks the device for a value, or copies from the host,
breaks its recording, or worse, is recorded with the value that it had. No machine without CUDA can
record one, but every operation of a step can be looked at: on the CPU, and on torch's meta device,
whose tensors have no values that could be waited for.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from infalign.lm.decoding import prefill
from infalign.lm.sampling.static import StaticDecoder, has_plain_cache

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "phi3": {},
    "gpt2": {},
    "gpt_neox": {},
    "olmo2": {},
    "smollm3": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
WAITING = {  # for a value, or for a size that depends on values
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "nonzero_numpy",
    "argwhere",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
    "histc",
}
FROM_HOST = {"lift_fresh", "lift", "_pin_memory"}  # what torch.tensor makes of numbers


class Recorded(TorchDispatchMode):
    """Operations that a graph cannot hold, by name, in the order in which they came."""

    def __init__(self, device):
        super().__init__()
        self.device, self.faults, self.operations = torch.device(device), [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.operations += 1
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if name in WAITING | FROM_HOST:
            self.faults.append(name)
        if name == "index" and any(x.dtype == torch.bool for x in given[1:]):
            self.faults.append("index by a mask")
        if name == "repeat_interleave" and func._overloadname == "Tensor":
            self.faults.append("repeat_interleave by a tensor")
        found = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(found) if isinstance(x, torch.Tensor)]
        if any(x.device != self.device for x in given + made):
            self.faults.append(f"{name} on another device")
        return found


def model_of(family, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES | FAMILIES.get(family, {}) | more)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@torch.inference_mode()
def begun(model, device):
    """A decoder behind its first step, on a device."""
    cache = DynamicCache(config=model.config)
    found = prefill(model, cache, [[3, 4, 5, 6], [7, 8]], 2, pad=0)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)
    mask, positions = found.mask.to(device), found.positions.to(device)
    decoder = StaticDecoder(model.to(device), cache, mask, positions, 4)
    decoder(torch.tensor([3, 4, 5, 6], device=device))
    return decoder


@torch.inference_mode()
def recorded(decoder, device):
    with Recorded(device) as found:
        decoder._forward()
    assert found.operations > 20
    return found.faults


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_kernels_alone(family, device):
    model = model_of(family)
    assert has_plain_cache(model)
    assert recorded(begun(model, device), device) == []


BREAKING = {
    "item": lambda x: x * x.sum().item(),
    "is_nonzero": lambda x: x if x.any() else -x,
    "nonzero": lambda x: x + len(x.nonzero()),
    "index by a mask": lambda x: x + x[x > 0].sum(),
    "lift_fresh": lambda x: x * torch.tensor(2.0),
    "unique": lambda x: x + x.unique().sum(),
    "on another device": lambda x: x + torch.ones(()),
}


@pytest.mark.parametrize("fault", BREAKING)
def test_a_step_that_is_more_is_found_out(fault):
    """The same step with one operation added behind a layer."""
    model = model_of("llama")
    device = "meta" if fault == "on another device" else "cpu"
    decoder = begun(model, device)
    model.model.norm.register_forward_hook(lambda module, given, found: BREAKING[fault](found))
    faults = recorded(decoder, device)
    assert any(fault in found for found in faults), faults


def test_a_model_that_indexes_with_numbers_of_the_host_is_found_out():
    """Falcon's fused projection of queries, keys and values does."""
    model = model_of("falcon", new_decoder_architecture=True, num_kv_heads=2)
    assert "lift_fresh" in recorded(begun(model, "cpu"), "cpu")
