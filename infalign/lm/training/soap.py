"""SOAP: Adam in the slowly turning eigenbases of Shampoo (Vyas et al. 2024, arXiv 2409.11321).

What a weight matrix's rows, and its columns, have in common in their gradients is learnt as two
small matrices. In the basis of their eigenvectors the coordinates of a gradient are nearly
independent, and Adam's step sizes, one a coordinate, come near those of a second-order method.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from infalign.lm.training.bases import short_sides

EVERY = 5  # steps between turns of a basis
MEMORY = 0.95  # of what gradients have in common, a step
FLOOR = 0.01  # of the mean eigenvalue: what is smaller is taken for nothing
STEEPEST = 2.0  # times the rate, a coordinate: with the default betas Adam itself stays below 1.7


class Soap(torch.optim.Optimizer):
    """Learning rate and decay as AdamW has them; the first step is Adam's own.

    Of a weight that is in shares (FSDP2) and has a basis, every process keeps all of the state and
    computes all of the update, and takes its share of it; any other stays in shares.

    Args:
        betas: memory of the gradient and of its square, a step.
        epsilon: added to the root of the square.
        weight_decay: share of every weight, times the rate, that a step takes away.
    """

    def __init__(
        self,
        weights: Iterable[torch.Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "epsilon": epsilon, "weight_decay": weight_decay}
        super().__init__(weights, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        assert closure is None, "the loss is differentiated before"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)

    def _move(self, weight: Any, group: dict[str, Any]) -> None:
        gathers = hasattr(weight, "full_tensor") and bool(short_sides(weight.shape))
        gradient = weight.grad.full_tensor() if gathers else weight.grad
        state = self.state[weight]
        if not state:
            state.update(_begin(gradient))
        update = _advance(state, gradient, group["betas"], group["epsilon"])
        if gathers:
            from torch.distributed.tensor import distribute_tensor

            update = distribute_tensor(
                update, weight.device_mesh, weight.placements, src_data_rank=None
            )
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def _begin(gradient: torch.Tensor) -> dict[str, Any]:
    state: dict[str, Any] = {
        "step": torch.zeros(()),
        "mean": torch.zeros_like(gradient),
        "square": torch.zeros_like(gradient),  # in the bases
    }
    for side, size in short_sides(gradient.shape).items():
        state[f"common{side}"] = gradient.new_zeros(size, size)
        state[f"basis{side}"] = torch.eye(size, dtype=gradient.dtype, device=gradient.device)
    return state


def _advance(
    state: dict[str, Any], gradient: torch.Tensor, betas: tuple[float, float], epsilon: float
) -> torch.Tensor:
    """Take a gradient in; the direction against which to move."""
    beta, beta_square = betas
    state["step"] += 1
    number = int(state["step"])
    state["mean"].lerp_(gradient, 1 - beta)
    turned = _into(state, gradient)
    state["square"].lerp_(turned * turned, 1 - beta_square)
    root = (state["square"] / (1 - beta_square**number)).sqrt_().add_(epsilon)
    inside = _into(state, state["mean"]).div_(root).div_(1 - beta**number)
    update = _out_of(state, inside.clamp_(-STEEPEST, STEEPEST))
    for side in (0, 1):
        if f"common{side}" in state:
            product = gradient @ gradient.T if side == 0 else gradient.T @ gradient
            state[f"common{side}"].lerp_(product, 1 - MEMORY)
            if number == 1 or number % EVERY == 0:
                _turn(state, side)
    return update


def _turn(state: dict[str, Any], side: int) -> None:
    """Turn a basis towards the eigenvectors, largest first, by one orthogonal iteration.

    The squares turn with it, as those of independent coordinates do: left behind, a direction
    that had none would take a step a hundred times too long.

    Directions with less than the floor in common keep the basis that they have, which rounding
    would otherwise choose; and eigenvalues that are nearly equal do not change places.
    """
    common, basis = state[f"common{side}"], state[f"basis{side}"]
    floor = FLOOR * common.diagonal().mean() + torch.finfo(common.dtype).tiny
    product = torch.addcmul(common @ basis, basis, floor)
    order = (basis * product).sum(0).log2().floor().argsort(descending=True, stable=True)
    turned = torch.linalg.qr(product[:, order])[0]
    shares = (turned.T @ basis).square()
    square = state["square"]
    square.copy_(shares @ square if side == 0 else square @ shares.T)
    basis.copy_(turned)


def _into(state: dict[str, Any], matrix: torch.Tensor) -> torch.Tensor:
    """A matrix in the bases."""
    if "basis0" in state:
        matrix = state["basis0"].T @ matrix
    return matrix @ state["basis1"] if "basis1" in state else matrix.clone()


def _out_of(state: dict[str, Any], matrix: torch.Tensor) -> torch.Tensor:
    """Back from the bases."""
    if "basis0" in state:
        matrix = state["basis0"] @ matrix
    return matrix @ state["basis1"].T if "basis1" in state else matrix
