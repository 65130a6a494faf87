"""Has something drifted? Two groups of prompts, measured at two times, compared.

Numpy alone. Prompts are exchangeable while nothing drifts, so the tests permute them between the
groups: exact whatever the rewards' distribution, and samples of one prompt count as one draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from infalign.files.squares import Array

GRID = 1024  # places at which two distribution functions are compared, at most


@dataclass(frozen=True)
class Drift:
    """How far a quantity has moved.

    Attributes:
        before, now: its value in the two groups.
        size: of the change; positive is the direction that raises an alarm.
        threshold: of the alarm.
        p_value: chance of a change of this size without any drift.
        alarm: whether the size is above the threshold, and chance does not explain it.
    """

    before: float
    now: float
    size: float
    threshold: float
    p_value: float
    alarm: bool


def win_rate_drift(
    before: ArrayLike,
    now: ArrayLike,
    *,
    threshold: float,
    level: float,
    replicates: int,
    seed: int,
) -> Drift:
    """Loss of win rate.

    Args:
        before, now: win rate of each prompt, [prompts] each; the prompts differ.
        threshold: loss that raises the alarm.
        level: chance of an alarm without drift, at most.
    """
    first, second = _finite(before, 1, "before"), _finite(now, 1, "now")
    values = np.concatenate([first, second])[:, None]

    def loss(earlier: Array, later: Array) -> Array:
        return (earlier - later)[:, 0]

    size, p_value = _permuted(values, len(first), loss, replicates, seed)
    alarm = size > threshold and p_value <= level
    return Drift(float(first.mean()), float(second.mean()), size, threshold, p_value, alarm)


def reward_drift(
    before: ArrayLike,
    now: ArrayLike,
    *,
    threshold: float,
    level: float,
    replicates: int,
    seed: int,
) -> Drift:
    """Kolmogorov-Smirnov distance of two reward distributions, each prompt with the same weight.

    Args:
        before, now: rewards, [prompts, samples] each; prompts and numbers of samples differ.
        threshold: distance that raises the alarm.
        level: chance of an alarm without drift, at most.
    """
    first, second = _finite(before, 2, "before"), _finite(now, 2, "now")
    pooled = np.unique(np.concatenate([first.ravel(), second.ravel()]))
    if len(pooled) > GRID:
        pooled = pooled[np.linspace(0, len(pooled) - 1, GRID).round().astype(int)]
    shares = [
        np.searchsorted(np.sort(row), pooled, side="right") / len(row)
        for rows in (first, second)
        for row in rows
    ]

    def distance(earlier: Array, later: Array) -> Array:
        return np.abs(earlier - later).max(1)

    size, p_value = _permuted(np.array(shares), len(first), distance, replicates, seed)
    alarm = size > threshold and p_value <= level
    return Drift(float(first.mean()), float(second.mean()), size, threshold, p_value, alarm)


def _permuted(values: Array, n_first, statistic, replicates: int, seed: int):  # type: ignore[no-untyped-def]
    """A statistic of two groups' means [groups, columns], and its permutation p-value.

    Args:
        values: [prompts, columns], the first group first.
        n_first: prompts of the first group.
        statistic: means of both groups [replicates, columns] to [replicates].
    """
    total, n = values.sum(0), len(values)
    generator = np.random.default_rng(seed)
    member = np.zeros((replicates + 1, n))
    member[0, :n_first] = 1.0  # the groups as they are come first
    for row in member[1:]:
        row[generator.permutation(n)[:n_first]] = 1.0
    sums = member @ values
    found = statistic(sums / n_first, (total - sums) / (n - n_first))
    rounding = 1e-12  # equal groups in another order of summation
    return float(found[0]), float((found >= found[0] - rounding).mean())


def _finite(values: ArrayLike, ndim: int, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"{name} must hold finite numbers of at least two prompts, {ndim}-d.")
    return array
