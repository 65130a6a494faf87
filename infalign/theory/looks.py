"""A bound that may be looked at again and again: how well a system does, whatever chance does.

A candidate is compared with the champion every night, and one lucky night promotes it for good.
Two steps keep the chance of that below a stated level:

- one look: the lower bound of the mean of [0, 1] values of independent prompts, by betting against
  every smaller mean (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
  betting", JRSS B 86, 2024, section 4; the bets are mixed over a fixed grid, as a portfolio,
  so that the order of prompts is nothing). It holds at any number of prompts, without a normal law;
- many looks: the level is spent in equal parts, a line in the spending functions of Lan and DeMets
  ("Discrete sequential boundaries for clinical trials", Biometrika 70, 1983). Candidates of
  different nights have no common increments, so the parts are added up (Bonferroni), which holds
  however nights depend on one another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from infalign.theory.checks import FloatArray, finite_rewards, positive_integer

BETS = (np.arange(32) + 0.5) / 32  # shares of the capital that may be lost on a value of 0
STEPS = 40  # of the bisection: 1e-12


def look_level(level: float, looks: int) -> float:
    """What one look may spend of the level of all looks together."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level:g} but must lie between 0 and 1, such as 0.05.")
    return level / positive_integer("looks", looks)


def log_evidence(values: ArrayLike, mean: float) -> FloatArray:
    """log of the capital of who bets that the values' mean is larger than `mean`, from 1.

    Where it is not, the capital's expectation is at most 1, so that by Markov it reaches 1 / level
    with at most the chance `level`.

    Args:
        values: (..., prompts), in [0, 1], of independent prompts.
        mean: above 0.

    Returns:
        (...), nats.
    """
    data = _unit(values)
    growth = [np.log1p(bet * (data / mean - 1.0)).sum(-1) for bet in BETS]
    found: FloatArray = logsumexp(np.stack(growth), axis=0) - np.log(len(BETS))
    return found


def lower_bound(values: ArrayLike, level: float) -> float:
    """The largest mean below which every mean is refuted; 0 where none is.

    Args:
        values: (prompts,), in [0, 1].
        level: chance that the bound is above the true mean, at most.
    """
    data, wanted = _unit(values), -np.log(look_level(level, 1))
    low, high = 0.0, float(data.mean())
    for _ in range(STEPS):  # the capital falls as the mean that it bets against rises
        middle = (low + high) / 2.0
        enough = middle > 0.0 and log_evidence(data, middle) >= wanted
        low, high = (middle, high) if enough else (low, middle)
    return low


def _unit(values: ArrayLike) -> FloatArray:
    data = finite_rewards("values", values)
    if data.min() < 0.0 or data.max() > 1.0:
        raise ValueError(
            f"values lie between {data.min():g} and {data.max():g} but must lie in [0, 1]."
        )
    return data
