"""Tilted densities f = exp(Phi/beta)/Z of the calibrated reward at a given KL budget.

Under the reference the calibrated reward is uniform on (0, 1), so the optimum of
E[Phi(C)] - beta KL has density f, and everything follows from the regret
T(u) = Phi(1) - Phi(u) (InfAlign, arXiv 2412.19792, sections 3 and 4).  Only log T
is handled: at worst-of-256 and five nats T/beta spans hundreds of decades.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from infalign.theory.checks import FloatArray
from infalign.theory.procedures import Procedure
from infalign.theory.quadrature import Grid

MAX_NEWTON_STEPS = 300
LONGEST_STEP = 100.0
LOG_LARGEST_COST = math.log(740.0)  # exp(-740) is the last float above zero


@dataclass(frozen=True, eq=False)
class Tilt:
    """A density on a grid.

    Attributes:
        density: f at the nodes, (panels, nodes).
        cdf, survival: F and 1 - F at the nodes.
        log_inverse_beta: log(1/beta); beta itself may underflow.
        kl: the KL it really has, in nats.
    """

    density: FloatArray
    cdf: FloatArray
    survival: FloatArray
    log_inverse_beta: float
    kl: float

    @property
    def beta(self) -> float:
        """The KL weight; 0.0 where it lies below the smallest float."""
        return math.exp(-min(self.log_inverse_beta, 800.0))


def tilt(grid: Grid, log_regret: FloatArray, kl_nats: float, start: float | None = None) -> Tilt:
    """Find beta with KL(f_beta || uniform) = kl_nats, by safeguarded Newton in log(1/beta).

    Args:
        grid: quadrature grid.
        log_regret: log(Phi(1) - Phi(u)) at its nodes.
        kl_nats: the budget; KL rises monotonically with 1/beta.
        start: log(1/beta) to begin with, for a warm start.

    Raises:
        ValueError: if no beta reaches the budget.
    """
    if not np.max(log_regret) > -math.inf:
        raise ValueError("the transformation is constant, so it cannot spend any KL; let it rise.")
    level = -_log_mean(grid, log_regret) if start is None else start
    low, high = -math.inf, math.inf
    tolerance = max(1e-12, 1e-15 / kl_nats)
    for _ in range(MAX_NEWTON_STEPS):
        kl, slope, weights, total = _kl_at(grid, log_regret, level)
        error = math.log(kl / kl_nats) if kl > 0 else -math.inf
        if abs(error) < tolerance or high - low < 1e-14 * max(1.0, abs(level)):
            break
        low, high = (level, high) if error < 0 else (low, level)
        level = _next_level(
            level, error, kl / slope if kl > 0 and slope > 0 else math.inf, low, high
        )
    if abs(error) > 1e-6:
        raise ValueError(
            f"kl_nats is {kl_nats:g} but this transformation reaches {kl:.6g} nats at most; "
            f"choose a smaller budget or a transformation that keeps rising towards 1."
        )
    density = weights / total
    cdf, survival = grid.from_left(density), grid.from_right(density)
    return Tilt(density, np.clip(cdf, 0, 1), np.clip(survival, 0, 1), level, kl)


def _next_level(level: float, error: float, scale: float, low: float, high: float) -> float:
    """One Newton step of log KL, replaced by bisection where it would leave the bracket."""
    step = max(-LONGEST_STEP, min(LONGEST_STEP, -error * scale))
    proposal = level + step
    return proposal if low < proposal < high else (low + high) / 2


def _kl_at(
    grid: Grid, log_regret: FloatArray, level: float
) -> tuple[float, float, FloatArray, float]:
    """KL, its derivative in log(1/beta), and the unnormalised density with its integral."""
    cost = np.exp(np.minimum(level + log_regret, LOG_LARGEST_COST))
    weights = np.exp(-cost)
    total = max(grid.integrate(weights), 1e-300)
    mean = grid.integrate(weights * cost) / total
    spread = grid.integrate(weights * cost * cost) / total - mean * mean
    return -mean - math.log(total), spread, weights, total


def _log_mean(grid: Grid, log_values: FloatArray) -> float:
    top = float(np.max(log_values))
    return top + math.log(grid.integrate(np.exp(log_values - top)))


def win_rate(procedure: Procedure, grid: Grid, tilted: Tilt) -> float:
    """W = integral of (1 - G(F(u))) G'(u), averaged over a mixture's members."""
    total = 0.0
    for share, part in procedure.parts:
        beaten = 1.0 - part.cdf(tilted.cdf)
        total += share * grid.integrate(beaten * part.pdf(grid.u))
    return min(max(total, 0.0), 1.0)
