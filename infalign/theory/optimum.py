"""The optimal transformation of a procedure at a KL budget, a fixed point.

The stationary point of W - beta KL over densities f is

    Phi*(u) = - integral from u to 1 of G'(F(v)) G'(v) dv,    f proportional to exp(Phi*/beta)

(InfAlign, arXiv 2412.19792, section 3).  It is solved at a fixed KL, not at a fixed
beta, where best-of-N flips between two states.  One step goes from a CDF to the CDF
that its own Phi* implies; Anderson acceleration of that step converges for every N
up to 256.  W is concave in f for best-of-N and convex for worst-of-N, where one
start is enough; other procedures are started from several densities.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import pairwise

import numpy as np

from infalign.theory.checks import FloatArray, positive_kl
from infalign.theory.procedures import Procedure
from infalign.theory.quadrature import REACH, Grid, grid
from infalign.theory.tilting import Tilt, tilt, win_rate

TOLERANCE_NATS = 1e-9
# (states remembered, damping, steps)
FAST = (5, 0.3, 45)
CAREFUL = ((5, 0.1, 250), (5, 0.05, 400), (1, 0.05, 1000))
EASY_KL_NATS = 0.02  # below it the fast iteration has never failed


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best density of one procedure at one KL.

    Attributes:
        grid: the quadrature grid of all arrays below.
        log_regret: log(-Phi*(u)) at its nodes.
        tilted: the density and its beta, in the units of Phi* in which dW/dKL = beta.
        win_rate: W of that density.
        residual: KL in nats from the density to the one that its own Phi* implies.  Times
            beta it is the win rate that another linearised step promises, which for
            best-of-N bounds the distance to the optimum from above.
    """

    grid: Grid
    log_regret: FloatArray
    tilted: Tilt
    win_rate: float
    residual: float


def grid_for(procedure: Procedure) -> Grid:
    """A grid fit for the procedure's densities at every supported KL.

    The optimal density of worst-of-N rises within 1/N in x; that of best-of-N for large
    N and KL falls like 1/(1-u) down to where 1 - u is about beta, 1e-21 and less.
    """
    n = procedure.n
    return grid(min(0.25, 4.0 / n), REACH + min(n, 64))


@lru_cache(maxsize=1024)
def optimum(procedure: Procedure, kl_nats: float) -> Optimum:
    """Solve for the optimal density of a procedure at a KL in nats.

    Raises:
        ValueError: for a KL outside the supported range, or (never seen for best-of-N and
            worst-of-N with N up to 256) if the fixed point is not met.
    """
    kl = positive_kl(kl_nats)
    nodes = grid_for(procedure)
    found = [
        candidate
        for start in _starts(procedure, nodes, kl)
        for candidate in _closest(_iterate(procedure, nodes, kl, start, FAST))
    ]
    if kl > EASY_KL_NATS and not any(_solved(candidate) for candidate in found):
        found += _from_half_the_kl(procedure, nodes, kl)
    solved = [candidate for candidate in found if _solved(candidate)]
    if not solved:
        residual = min((candidate.residual for candidate in found), default=math.inf)
        raise ValueError(
            f"the optimal transformation of {procedure} at {kl:g} nats was not found (residual "
            f"{residual:.1e} nats); use a member of the family, such as exp:10, there."
        )
    return max(solved, key=lambda candidate: candidate.win_rate)


def _starts(procedure: Procedure, nodes: Grid, kl: float) -> Iterator[FloatArray]:
    """CDFs (with their complements) to start from: one where the solution is unique."""
    yield np.stack([nodes.u, nodes.v])
    for end in (0, -1):  # only worst-of-N, or only best-of-N
        if all(part.weights[end] == 1.0 for _, part in procedure.parts):
            return
    for log_regret in (np.log(nodes.v), np.log(-np.log1p(-nodes.v)), -10 * nodes.v):
        tilted = tilt(nodes, log_regret, kl)
        yield np.stack([tilted.cdf, tilted.survival])


def log_regret_of(
    procedure: Procedure, nodes: Grid, cdf: FloatArray, survival: FloatArray
) -> FloatArray:
    """log(-Phi*) that a policy with this CDF implies, at the grid's nodes."""
    slopes = [
        math.log(share) + part.log_pdf(cdf, survival) + part.log_pdf(nodes.u, nodes.v)
        for share, part in procedure.parts
    ]
    return nodes.log_from_right(reduce(np.logaddexp, slopes))


def _solved(candidate: Optimum) -> bool:
    return candidate.residual <= TOLERANCE_NATS


def _from_half_the_kl(procedure: Procedure, nodes: Grid, kl: float) -> list[Optimum]:
    """Shorter and shorter steps from the optimum at half the KL, until one arrives."""
    try:
        halfway = optimum(procedure, kl / 2).tilted
    except ValueError:
        return []
    start = np.stack([halfway.cdf, halfway.survival])
    found: list[Optimum] = []
    for schedule in CAREFUL:
        found += _closest(_iterate(procedure, nodes, kl, start, schedule))
        if any(_solved(candidate) for candidate in found):
            break
    return found


def _closest(candidates: Iterator[Optimum]) -> list[Optimum]:
    """The first candidate within tolerance, else the one with the smallest residual, if any."""
    best: list[Optimum] = []
    for candidate in candidates:
        if not best or candidate.residual < best[0].residual:
            best = [candidate]
        if _solved(candidate):
            break
    return best


def _iterate(
    procedure: Procedure,
    nodes: Grid,
    kl: float,
    state: FloatArray,
    schedule: tuple[int, float, int],
) -> Iterator[Optimum]:
    """Densities visited from a state (CDF and complement), until one cannot reach the KL."""
    memory, damping, steps = schedule
    history: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=memory)
    level = None
    for _ in range(steps):
        try:
            tilted = tilt(nodes, log_regret_of(procedure, nodes, *state), kl, level)
            candidate = _assess(procedure, nodes, tilted, kl)
        except ValueError:
            return  # the state is no CDF, or its Phi* cannot spend the KL; others may
        yield candidate
        level = tilted.log_inverse_beta
        history.append((state, np.stack([tilted.cdf, tilted.survival]) - state))
        state = np.clip(_anderson(history, damping), 0.0, 1.0)


def _assess(procedure: Procedure, nodes: Grid, tilted: Tilt, kl: float) -> Optimum:
    """Measure how far a density is from the one its own Phi* implies."""
    log_regret = log_regret_of(procedure, nodes, tilted.cdf, tilted.survival)
    implied = tilt(nodes, log_regret, kl, tilted.log_inverse_beta)
    # At equal KL, KL(f || implied) is the difference of mean costs T/beta.
    cost = np.exp(np.minimum(implied.log_inverse_beta + log_regret, 700.0))
    moved = np.where(tilted.density == implied.density, 0.0, tilted.density - implied.density)
    residual = abs(nodes.integrate(moved * cost))
    return Optimum(nodes, log_regret, implied, win_rate(procedure, nodes, implied), residual)


def _anderson(history: deque[tuple[FloatArray, FloatArray]], damping: float) -> FloatArray:
    """Next state from the last (state, residual) pairs: Anderson's extrapolation."""
    state, residual = history[-1]
    plain = state + damping * residual
    if len(history) == 1:
        return plain
    pairs = list(pairwise(history))
    d_state = np.stack([(after[0] - before[0]).ravel() for before, after in pairs], axis=1)
    d_residual = np.stack([(after[1] - before[1]).ravel() for before, after in pairs], axis=1)
    mix = np.linalg.lstsq(d_residual, residual.ravel(), rcond=1e-10)[0]
    return plain - ((d_state + damping * d_residual) @ mix).reshape(plain.shape)
