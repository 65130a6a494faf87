"""Models in shares (FSDP2): dealt out by process 0, tensor by tensor, and gathered again.

Each process builds the model on the meta device, where weights have shapes and take no memory, and
keeps its shares of it. Process 0 alone opens the model's files, on the CPU, and hands every tensor
round: the others never hold more than their shares and the tensor that is on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

Build = Callable[[torch.device], PreTrainedModel]
META = torch.device("meta")


class Place(NamedTuple):
    """Where a module keeps a tensor: a weight, a buffer, or an attribute.

    Attributes:
        name: within the model.
        held: the module's dictionary that it stands in, under `key`.
    """

    name: str
    held: dict[str, Any]
    key: str
    tensor: torch.Tensor


def share_all(passes: torch.nn.Module, model: PreTrainedModel, device: torch.device) -> None:
    """A share of every weight in each process. (accelerate's does not do it on CPU.)"""
    from torch.distributed.fsdp import fully_shard

    fully_shard(passes, mesh=share_layers(model, device))


def share_layers(model: PreTrainedModel, device: torch.device) -> Any:
    """A share of every layer in each process; the mesh of these."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model.in_shares = True
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    names = set(model._no_split_modules or ())
    dealt: set[int] = set()
    for module in model.modules():
        if type(module).__name__ in names and id(module) not in dealt:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
            dealt.update(id(inner) for inner in module.modules())  # Mamba names a layer's mixer too
    return mesh


def deal_out(model: PreTrainedModel, source: PreTrainedModel | None, device: torch.device) -> None:
    """Give a model without weights, some of them in shares, those that process 0 has.

    Args:
        model: on the meta device; every process calls it.
        source: the same model whole; None in the other processes.
        device: where the shares are.
    """
    given = {place.name: place.tensor for place in _places(source)} if source is not None else {}
    _fill(model, lambda place: _dealt(place.tensor, given[place.name] if given else None, device))


def gathered(build: Build, model: PreTrainedModel) -> PreTrainedModel:
    """A whole model with the present weights of one in shares; every process calls it.

    Args:
        build: makes one like it, which may keep weights in another type, on the meta device.
    """
    shares = {place.name: place.tensor for place in _places(model)}
    whole = build(META)
    _fill(whole, lambda place: full(shares[place.name]).to(place.tensor.dtype, copy=True))
    return whole


def full(tensor: Any) -> torch.Tensor:
    """A whole tensor of one that may be in shares; every process calls it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _places(model: PreTrainedModel) -> Iterator[Place]:
    """All tensors of a model; tied ones at each of their places."""
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for key, value in held.items():
                if isinstance(value, torch.Tensor):
                    yield Place(f"{path}.{key}", held, key, value)


@torch.no_grad()
def _fill(model: PreTrainedModel, value: Callable[[Place], torch.Tensor]) -> None:
    """Put another tensor in each place; one for all places of a tied one."""
    places, made = list(_places(model)), {}
    for place in places:
        before = place.tensor
        if id(before) not in made:
            new = value(place)
            if isinstance(before, torch.nn.Parameter):
                new = torch.nn.Parameter(new, before.requires_grad)
            made[id(before)] = new
        place.held[place.key] = made[id(before)]


def _dealt(empty: Any, given: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """One tensor of process 0, or this process's share of it."""
    from torch import distributed
    from torch.distributed.tensor import DTensor, distribute_tensor

    if given is None:
        whole = torch.empty(empty.shape, dtype=empty.dtype, device=device)
    else:
        whole = given.detach().to(device).contiguous()
    if isinstance(empty, DTensor):
        return distribute_tensor(whole, empty.device_mesh, empty.placements)
    distributed.broadcast(whole.reshape(-1).view(torch.uint8), 0)  # of any type
    return whole
