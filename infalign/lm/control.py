"""The KL budget: beta steered by the KL that training measures, the rest settled at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel


class BetaControl:
    """Steer beta so that the policy's KL settles at the budget.

    beta starts where the theory puts the optimum. The policy needs some steps to get there, so a
    KL below the budget says little early on: the pull towards a smaller beta grows from 0 to its
    full strength over the first half of the run, while a KL above the budget counts at once.

    Args:
        beta: the first KL weight.
        budget: nats a response; None keeps beta as it is.
        steps: of the whole run.
        gain: relative change of beta a step for a relative error of the KL.
    """

    def __init__(self, beta: float, budget: float | None, steps: int, gain: float = 0.03) -> None:
        self.beta, self._budget, self._steps, self._gain = beta, budget, steps, gain
        self._smooth: float | None = None

    def update(self, number: int, kl: float) -> None:
        """Take the KL measured at a step, nats a response."""
        if self._budget is None:
            return
        self._smooth = kl if self._smooth is None else 0.9 * self._smooth + 0.1 * kl
        error = math.log(max(self._smooth, 1e-3) / self._budget)
        strength = 1.0 if error > 0 else min(1.0, 2 * number / self._steps)
        self.beta *= math.exp(self._gain * strength * max(-0.3, min(0.3, error)))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"beta": self.beta, "smooth": self._smooth}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.beta, self._smooth = state["beta"], state["smooth"]


class Settled(NamedTuple):
    """Where `settle` left the policy.

    Attributes:
        scale: the policy's weights are reference + scale * (trained - reference).
        kl: the KL measured there, nats a response.
    """

    scale: float
    kl: float


def settle(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    measure: Callable[[], float],
    budget: float,
    *,
    tolerance: float = 0.01,
    rounds: int = 5,
) -> Settled:
    """Move a trained policy along the line from the reference until its KL is the budget.

    Near the trained weights the KL grows about as the square of the distance from the reference,
    and a small move along the line keeps the win rate's place on its frontier.

    Args:
        measure: the policy's KL, nats a response; the same random numbers at every call.
        budget: nats a response.
        tolerance: relative error of the KL at which to stop.
        rounds: of measuring and moving, at most.
    """
    trained = [p.detach().clone() for p in policy.parameters()]
    start = [p.detach() for p in reference.parameters()]
    tried: list[Settled] = []
    while True:
        scale = _next_scale(tried, budget)
        with torch.no_grad():
            for weight, first, last in zip(policy.parameters(), start, trained, strict=True):
                weight.copy_(torch.lerp(first, last, scale) if scale != 1 else last)
        tried.append(Settled(scale, measure()))
        if abs(tried[-1].kl / budget - 1) <= tolerance or len(tried) == rounds:
            return tried[-1]


def _next_scale(tried: list[Settled], budget: float) -> float:
    """The scale at which the KL should be the budget, by the power law through the last two."""
    if not tried:
        return 1.0
    power = 2.0
    if len(tried) > 1 and tried[-1].scale != tried[-2].scale:
        rise = math.log(max(tried[-1].kl, 1e-9) / max(tried[-2].kl, 1e-9))
        power = min(6.0, max(1.0, rise / math.log(tried[-1].scale / tried[-2].scale)))
    scale = tried[-1].scale * (budget / max(tried[-1].kl, 1e-9)) ** (1 / power)
    return min(1.3, max(0.5, scale))
