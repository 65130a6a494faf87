"""The KL budget: beta steered by the KL that training measures."""

from __future__ import annotations

import math
from typing import Any


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

    def __init__(self, beta: float, budget: float | None, steps: int, gain: float = 0.1) -> None:
        self.beta, self._budget, self._steps, self._gain = beta, budget, steps, gain
        self._smooth: float | None = None

    def update(self, number: int, kl: float) -> None:
        """Take the KL measured at a step, nats a response."""
        if self._budget is None:
            return
        self._smooth = kl if self._smooth is None else 0.8 * self._smooth + 0.2 * kl
        error = math.log(max(self._smooth, 1e-3) / self._budget)
        strength = 1.0 if error > 0 else min(1.0, 2 * number / self._steps)
        self.beta *= math.exp(self._gain * strength * max(-0.3, min(0.3, error)))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"beta": self.beta, "smooth": self._smooth}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.beta, self._smooth = state["beta"], state["smooth"]
