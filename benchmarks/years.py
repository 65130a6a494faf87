"""Simulated years of nightly candidates: `python -m benchmarks.years`.

Every night a candidate meets the champion on 256 prompts of 16 draws, and the gate's own bound says
whether it is promoted. How the win rates of prompts are spread, draws included, is taken from a run
of the default params (`ctrl` against `rlhf`, by the independent judge); their law is tilted
exponentially to the mean that the candidate deserves. Nights are independent in what they draw:
candidates are trained anew, on data that grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from infalign.settings.operating import Promotion
from infalign.theory.looks import log_evidence, look_level

NIGHTS, PROMPTS, FIRST = 365, 256, 10
GAPS = (-0.02, -0.01, 0.0, 0.01, 0.03)
# Quantiles, from 1/64 to 63/64 in steps of 1/32, of the win rates of prompts.
SPREADS = {
    "best_of:4": (),
    "worst_of:4": (),
}


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
    spread: tuple[float, ...], gap: float, bounds: Promotion, years: int, seed: int = 0
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
