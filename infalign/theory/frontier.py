"""Win rate, KL and beta of any procedure and transformation, before any training.

Continuous rewards: the calibrated reward of a reference sample is uniform, so these
numbers hold for every model, prompt and reward scale (InfAlign, arXiv 2412.19792,
section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from infalign.theory.checks import FloatArray
from infalign.theory.optimum import grid_for, optimum
from infalign.theory.procedures import Procedure, parse_procedure
from infalign.theory.quadrature import grid
from infalign.theory.tilting import LOG_LARGEST_COST, win_rate
from infalign.theory.transforms import Transform, density_at, parse_transform

CURVE_TOLERANCE = 2e-6
CURVE_END = 1e-7  # the curve is followed until 1 - W falls below this
MAX_CURVE_ROOT_KL = 4.0  # square root of 16 nats


@dataclass(frozen=True)
class FrontierPoint:
    """One transformation for one procedure at one KL.

    Attributes:
        procedure, transform: canonical spellings; `auto` is replaced by what it chose.
        kl: nats.
        win_rate: of the aligned policy against the reference, both under the procedure.
        beta: KL weight that spends exactly this KL on this Phi (0.0 if below every float).
        residual: nats; for `optimal` the KL to the density that its own Phi implies, for
            the others the distance to the wanted KL.
    """

    procedure: str
    transform: str
    kl: float
    win_rate: float
    beta: float
    residual: float


def frontier_point(
    procedure: str | Procedure, transform: str | Transform, kl_nats: float
) -> FrontierPoint:
    """Evaluate a transformation for a procedure at a KL in nats.

    The spelling `optimal` is solved for this procedure and KL; a `Transform` is evaluated
    as it is, even one that was optimal elsewhere.

    Raises:
        ValueError: for a bad spelling or a KL that cannot be reached.
    """
    chosen = parse_procedure(procedure)
    kl = float(kl_nats)
    if isinstance(transform, str) and transform.strip() == "optimal":
        best = optimum(chosen, kl)
        beta = best.tilted.beta
        return FrontierPoint(str(chosen), "optimal", kl, best.win_rate, beta, best.residual)
    phi = parse_transform(transform, chosen, kl)
    nodes = grid_for(chosen)
    tilted = density_at(phi, nodes, kl)
    reached = win_rate(chosen, nodes, tilted)
    return FrontierPoint(str(chosen), str(phi), kl, reached, tilted.beta, abs(tilted.kl - kl))


def solve_beta(transform: str | Transform, kl_nats: float) -> float:
    """The beta at which exact optimisation of E[Phi(C)] - beta KL spends `kl_nats`.

    Raises:
        ValueError: if no beta spends that much, with the reachable range.
    """
    phi = parse_transform(transform)
    return density_at(phi, grid(), float(kl_nats)).beta


def log_partition(transform: str | Transform, beta: float) -> float:
    """ln of the integral of exp(Phi(u) / beta) over u in (0, 1): log Z of every prompt's optimum.

    The calibrated reward of the reference's responses is uniform, whatever the prompt.

    Args:
        beta: the KL weight, in the unit of Phi a nat, above 0.

    Raises:
        ValueError: for a beta that is not finite and above 0.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be finite and above 0, found {beta:g}; raise it.")
    phi = parse_transform(transform)
    nodes = grid()
    cost = np.exp(np.minimum(phi.log_regret(nodes.u, nodes.v) - math.log(beta), LOG_LARGEST_COST))
    return float(phi(1.0)) / beta + math.log(nodes.integrate(np.exp(-cost)))


def limit(procedure: str | Procedure, kl_nats: ArrayLike) -> float | FloatArray:
    """The win rate that no policy can exceed at this KL: that of the optimal transformation.

    Interpolates the procedure's frontier to within 1e-5. What has been solved is kept, so that
    arrays of thousands are fast.

    Args:
        kl_nats: KL in nats, at least 0, a number or an array of any shape.

    Raises:
        ValueError: for a negative or non-finite KL.
    """
    chosen = parse_procedure(procedure)
    kl = np.asarray(kl_nats, dtype=np.float64)
    wrong = kl[~(np.isfinite(kl) & (kl >= 0))]
    if wrong.size:
        raise ValueError(
            f"kl_nats must be finite and at least 0 but holds {wrong[0]:g}; drop it, or "
            f"clip an estimate that fell below 0 by noise, before asking for its limit."
        )
    values = _frontier(chosen)(np.sqrt(kl))
    return float(values) if kl.ndim == 0 else values


@dataclass(frozen=True, eq=False)
class _Curve:
    """W over s = sqrt(KL): cubic Hermite between knots, exponential approach to 1 beyond."""

    s: FloatArray
    w: FloatArray
    slope: FloatArray

    def __call__(self, s: FloatArray) -> FloatArray:
        k = np.clip(np.searchsorted(self.s, s, side="right") - 1, 0, len(self.s) - 2)
        width = self.s[k + 1] - self.s[k]
        t = np.clip((s - self.s[k]) / width, 0.0, 1.0)
        rise = (1 - t) ** 2 * (1 + 2 * t) * self.w[k] + t**2 * (3 - 2 * t) * self.w[k + 1]
        bend = t * (1 - t) * width * ((1 - t) * self.slope[k] - t * self.slope[k + 1])
        beyond = np.maximum(s**2 - self.s[-1] ** 2, 0.0)
        inside = np.minimum(rise + bend, 1.0)
        return 1.0 - (1.0 - inside) * np.exp(-beyond)


@lru_cache(maxsize=64)
def _frontier(procedure: Procedure) -> _Frontier:
    return _Frontier(procedure)


class _Frontier:
    """W over s = sqrt(KL), followed as far as it is asked for, halving steps until it is exact.

    With s = sqrt(KL) the frontier starts with a finite slope, and dW/ds = 2 s beta.
    """

    def __init__(self, procedure: Procedure) -> None:
        self._procedure = procedure
        self._knots = {0.0: (0.5, _initial_slope(procedure))}
        self._end, self._step = 0.0, 0.08 / procedure.n**0.5

    def __call__(self, s: FloatArray) -> FloatArray:
        farthest = float(np.max(s, initial=0.0))
        while self._end <= farthest and not self._ended():
            self._advance()
        return _as_curve(self._knots)(s)

    def _ended(self) -> bool:
        return self._knots[self._end][0] >= 1.0 - CURVE_END or self._end >= MAX_CURVE_ROOT_KL

    def _advance(self) -> None:
        """Two knots more, or half the step where the curve between them would be wrong."""
        end = min(self._end + self._step, MAX_CURVE_ROOT_KL)
        middle = (self._end + end) / 2
        more = {at: _knot(self._procedure, at) for at in (middle, end)}
        pair = _as_curve({self._end: self._knots[self._end], end: more[end]})
        error = abs(float(pair(np.asarray(middle))) - more[middle][0])
        if error > CURVE_TOLERANCE * 8:
            self._step /= 2
            return
        self._knots |= more
        self._end = end
        self._step *= 2 if error < CURVE_TOLERANCE / 2 else 1


def _as_curve(knots: dict[float, tuple[float, float]]) -> _Curve:
    s = np.array(sorted(knots))
    return _Curve(s, *(np.array([knots[at][i] for at in s]) for i in (0, 1)))


def _knot(procedure: Procedure, root_kl: float) -> tuple[float, float]:
    best = optimum(procedure, root_kl**2)
    return best.win_rate, 2 * root_kl * best.tilted.beta


def _initial_slope(procedure: Procedure) -> float:
    """dW/ds at the reference: the square root of twice the variance of Phi* there."""
    nodes = grid_for(procedure)
    phi = np.zeros(nodes.u.shape)
    for share, part in procedure.parts:
        phi += share * nodes.from_left(part.pdf(nodes.u) ** 2)
    mean = nodes.integrate(phi)
    return float(np.sqrt(2 * nodes.integrate((phi - mean) ** 2)))
