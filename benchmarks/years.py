"""Simulated years of nightly candidates: `python -m benchmarks.years`.

Every night a candidate meets the champion on 256 prompts of 16 draws, and the gate's own bound says
whether it is promoted. How the win rates of prompts are spread, draws included, is taken from a run
of the default params (`ctrl` against `rlhf`, by the independent judge); their law is tilted
exponentially to the mean that the candidate deserves. Nights are independent in what they draw:
candidates are trained anew, on data that grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from infalign.settings.operating import Promotion
from infalign.theory.looks import log_evidence, look_level

NIGHTS, PROMPTS, FIRST = 365, 256, 10
GAPS = (-0.02, -0.01, 0.0, 0.01, 0.03)
# Quantiles, from 1/64 to 63/64 in steps of 1/32, of the win rates of prompts.
# fmt: off
SPREADS = {
    "best_of:4": [
        0.363, 0.421, 0.462, 0.474, 0.497, 0.504, 0.511, 0.521,
        0.532, 0.541, 0.555, 0.561, 0.571, 0.577, 0.593, 0.602,
        0.607, 0.616, 0.625, 0.633, 0.642, 0.65, 0.66, 0.674,
        0.696, 0.707, 0.723, 0.733, 0.748, 0.79, 0.821, 0.857,
    ],
    "worst_of:4": [
        0.13, 0.231, 0.281, 0.305, 0.331, 0.353, 0.378, 0.403,
        0.42, 0.438, 0.459, 0.474, 0.487, 0.5, 0.516, 0.534,
        0.541, 0.56, 0.577, 0.59, 0.601, 0.615, 0.623, 0.635,
        0.641, 0.667, 0.683, 0.704, 0.739, 0.759, 0.811, 0.851,
    ],
}
# fmt: on


@dataclass(frozen=True)
class Years:
    """What became of candidates of one kind.

    Attributes:
        deserved: the mean win rate of every candidate against the champion.
        ever: share of years in which one was promoted.
        soon: share of years in which one was promoted within the first ten nights.
        a_night: chance of a promotion in one night.
    """

    deserved: float
    ever: float
    soon: float
    a_night: float


def tilted(values: np.ndarray, mean: float) -> np.ndarray:
    """Weights of the values, exponential in them, with which their mean is as wanted."""

    def weights(slope: float) -> np.ndarray:
        raw = np.exp(slope * (values - mean))
        return raw / raw.sum()

    return weights(brentq(lambda slope: float(weights(slope) @ values) - mean, -200.0, 200.0))


def simulate(
    spread: Sequence[float], gap: float, bounds: Promotion, years: int, seed: int = 0
) -> Years:
    """Years of candidates whose kept answer beats the champion's in 1/2 + gap of all cases."""
    values = np.asarray(spread)
    weights, rng = tilted(values, 0.5 + gap), np.random.default_rng(seed)
    wanted = -np.log(look_level(bounds.looks_level, bounds.looks))
    floor, promoted = 0.5 - bounds.champion_margin, np.empty((years, NIGHTS), dtype=bool)
    for year in promoted:
        nights = rng.choice(values, (NIGHTS, PROMPTS), p=weights)
        year[:] = log_evidence(nights, floor) >= wanted
    return Years(
        0.5 + gap,
        float(promoted.any(1).mean()),
        float(promoted[:, :FIRST].any(1).mean()),
        float(promoted.mean()),
    )


def main(years: int = 400) -> None:
    """The table of docs/production.md."""
    bounds = Promotion()
    print("| procedure | deserved | promoted in a night | within ten nights | ever in a year |")
    print("| --- | --- | --- | --- | --- |")
    for procedure, spread in SPREADS.items():
        for gap in GAPS:
            found = simulate(spread, gap, bounds, years)
            print(
                f"| `{procedure}` | {found.deserved:.2f} | {found.a_night:.5f} | "
                f"{found.soon:.3f} | {found.ever:.3f} |"
            )


if __name__ == "__main__":
    main()
