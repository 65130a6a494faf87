"""The KL budget: none of it spent at the start, beta steered by the KL that training measures, the
rest settled at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from infalign.errors import CheckFailed

START_KL, START_LOG_RATIO = 0.01, 0.05  # nats a token that rounding may make of nothing, on a GPU
STORED_LOG_RATIO = (
    1e-4  # nats a token between what sampled a response and what trains on it, on CPU
)


def check_start(kl: float, log_ratio: torch.Tensor, tokens: int, device: str) -> None:
    """Raise where the policy is not the reference before the first step.

    On CPU both are computed by the same kernels: equal to the last bit. On a GPU kernels may differ
    with and without gradients, and bfloat16 rounds a logit by a hundredth.

    Args:
        kl: mean KL, nats a response.
        log_ratio: log policy - log reference, nats [responses].
        tokens: of these responses together.
        device: a torch device's type.
    """
    share = 1 / max(1, tokens)  # of a token in a sum over all responses
    found = abs(kl) * log_ratio.numel() * share, float(log_ratio.detach().abs().sum()) * share
    allowed = (0.0, 0.0) if device == "cpu" else (START_KL, START_LOG_RATIO)
    if not all(value <= most for value, most in zip(found, allowed, strict=True)):
        raise CheckFailed(
            f"before its first step the policy is not the reference: the KL is {found[0]:.2g} and "
            f"the log-ratio {found[1]:.2g} nats a token, but at most {allowed[0]:g} and "
            f"{allowed[1]:g} on {device}: the model does not compute the same twice (dropout, or "
            "kernels of its own); set run.precision to float32, or take another model."
        )


def check_stored(log_ratio: torch.Tensor, tokens: int, device: str) -> None:
    """Raise where stored log-probabilities of the reference are not what the policy computes.

    Before the first step the policy is the reference. The sampler that stored them adds in another
    order than a training step: on CPU they may part by STORED_LOG_RATIO nats a token.

    Args:
        log_ratio: log policy - stored log reference, nats [responses].
        tokens: of these responses together.
        device: a torch device's type.
    """
    found = float(log_ratio.detach().abs().sum()) / max(1, tokens)
    most = STORED_LOG_RATIO if device == "cpu" else START_LOG_RATIO
    if not found <= most:
        raise CheckFailed(
            f"before its first step the policy's log-probabilities of results/sample's responses "
            f"differ by {found:.2g} nats a token from those that were stored with them, but at "
            f"most by {most:g} on {device}: run `sample` again with this model, run.precision and "
            "run.device."
        )


class BetaControl:
    """Steer beta so that the policy's KL follows the budget.

    Near the optimum a small change of beta moves the KL far, so that no fixed beta meets a budget.
    beta therefore answers at once to how far the KL is from its target, in proportion, and the
    answer's lasting part is learnt slowly. The target rises to the budget over the first steps.

    Args:
        beta: the KL weight at which the theory meets the budget.
        budget: nats a response; None keeps beta as it is.
        steps: of the whole run.
        warm: whether the policy begins with KL spent: the target is the budget at once.
    """

    RAMP = 0.3  # share of the run in which the target reaches the budget
    MEMORY = 0.7  # of the smoothed KL, a step
    LEARNT = 10.0  # change of log beta over a whole run, for an error of one
    LEARNT_A_STEP = 0.05  # the same of one step, at most: short runs have no time to learn
    MOST = 0.7  # largest log error that counts

    def __init__(self, beta: float, budget: float | None, steps: int, warm: bool = False) -> None:
        self.beta, self._first, self._budget, self._steps = beta, beta, budget, steps
        self._warm = warm
        self._smooth: float | None = None
        self._learnt = 0.0  # change of log beta

    def update(self, number: int, kl: float) -> None:
        """Take the KL measured at a step, nats a response, before the step's beta is used."""
        if self._budget is None:
            return
        before = kl if self._smooth is None else self._smooth
        self._smooth = self.MEMORY * before + (1 - self.MEMORY) * kl
        risen = 1.0 if self._warm else (number + 2) / (self.RAMP * self._steps)
        target = self._budget * min(1.0, risen)
        error = math.log(max(self._smooth, 1e-3) / target)
        error = max(-self.MOST, min(self.MOST, error))
        if risen > 0.5:
            self._learnt += min(self.LEARNT / self._steps, self.LEARNT_A_STEP) * error
        self.beta = self._first * math.exp(error + self._learnt)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "beta": self.beta,
            "first": self._first,
            "smooth": self._smooth,
            "learnt": self._learnt,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.beta, self._first = state["beta"], state["first"]
        self._smooth, self._learnt = state["smooth"], state["learnt"]


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
    start: Iterable[torch.Tensor],
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
        start: the reference's weights, float32, in the policy's order; on any device.
        measure: the policy's KL, nats a response; the same random numbers at every call.
        budget: nats a response.
        tolerance: relative error of the KL at which to stop.
        rounds: of measuring and moving, at most.
    """
    ends = [  # in the machine's memory, whatever the device has
        (first.detach().cpu(), last.detach().to("cpu", copy=True))
        for first, last in zip(start, policy.parameters(), strict=True)
    ]
    tried: list[Settled] = []
    while True:
        scale = _next_scale(tried, budget)
        with torch.no_grad():
            for weight, (first, last) in zip(policy.parameters(), ends, strict=True):
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
