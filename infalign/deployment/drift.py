"""Has something drifted? Two groups of prompts, measured at two times, compared.

Numpy and scipy alone. Prompts are exchangeable while nothing drifts, so most tests permute them
between the groups: exact whatever the distribution, and samples of one prompt count as one draw.
Permutations end early where chance is a good explanation already: sequential Monte Carlo p-values
(Besag and Clifford, Biometrika 78, 1991), which are as valid and much cheaper. Of the prompts
themselves:

- lengths: the two-sample distance of Kolmogorov and Smirnov, as of rewards, by permutation, so
  that ties do no harm;
- hidden means: the energy distance of two samples of vectors (Szekely and Rizzo, "Testing for equal
  distributions in high dimension", InterStat 5, 2004), by permutation;
- the share unlike anything in training: a prompt is, whose hidden mean is further from its k-th
  nearest neighbour among training prompts than 95 % of those are from theirs (Sun et al.,
  "Out-of-distribution detection with deep nearest neighbors", ICML 2022). The threshold depends on
  the training prompts alone, so that Fisher's exact test compares the two shares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist
from scipy.stats import fisher_exact

from infalign.files.squares import Array

GRID = 1024  # places at which two distribution functions are compared, at most
AT_ONCE = 1024  # permutations
ENOUGH = 20  # that look as far apart: more say no more
NEIGHBOURS = 5  # k
USUAL = 0.95  # of the training prompts are like the others


@dataclass(frozen=True)
class Drift:
    """How far a quantity has moved.

    Attributes:
        before, now: its value in the two groups.
        size: of the change; positive is the direction that raises an alarm.
        threshold: of the alarm.
        p_value: chance of a change of this size without any drift, at most.
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

    found = _permuted(len(values), len(first), _means(values, loss), replicates, seed)
    return _judged(first.mean(), second.mean(), found, threshold, level)


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

    values = np.array(shares)
    found = _permuted(len(values), len(first), _means(values, distance), replicates, seed)
    return _judged(first.mean(), second.mean(), found, threshold, level)


def hidden_drift(
    before: ArrayLike,
    now: ArrayLike,
    *,
    threshold: float,
    level: float,
    replicates: int,
    seed: int,
) -> Drift:
    """Energy distance of two groups of vectors, over twice the mean distance between them: 0 to 1.

    `before` is the mean distance within the first group, `now` that from the first to the second.

    Args:
        before, now: [prompts, dimensions] each.
    """
    first, second = _finite(before, 2, "before"), _finite(now, 2, "now")
    joined = np.concatenate([first, second])
    apart, n = cdist(joined, joined), len(joined)
    rows, total = apart.sum(1), apart.sum()

    def distance(member: Array) -> Array:
        many = member.sum(1)
        within = ((member @ apart) * member).sum(1)
        across = member @ rows - within
        rest = total - within - 2.0 * across
        between = 2.0 * across / (many * (n - many))
        energy = between - within / many**2 - rest / (n - many) ** 2
        return np.divide(energy, between, out=np.zeros_like(energy), where=between > 0)

    found = _permuted(n, len(first), distance, replicates, seed)
    inside, across = cdist(first, first).mean(), cdist(first, second).mean()
    return _judged(inside, across, found, threshold, level)


def novel_drift(
    trained: ArrayLike, before: ArrayLike, now: ArrayLike, *, threshold: float, level: float
) -> Drift:
    """Rise of the share of prompts that are unlike anything in training.

    Args:
        trained: vectors of training prompts [prompts, dimensions], more than NEIGHBOURS.
        before, now: those of the two groups; lengths of vectors do not matter.
    """
    known = _directions(_finite(trained, 2, "trained"))
    among = np.sort(cdist(known, known), 1)[:, NEIGHBOURS]  # the first one is itself
    usual = np.quantile(among, USUAL)
    counts, shares = [], []
    for name, group in (("now", now), ("before", before)):
        apart = np.sort(cdist(_directions(_finite(group, 2, name)), known), 1)[:, NEIGHBOURS - 1]
        unlike = int((apart > usual).sum())
        counts.append([unlike, len(apart) - unlike])
        shares.append(unlike / len(apart))
    p_value = float(fisher_exact(counts, alternative="greater").pvalue)
    return _judged(shares[1], shares[0], (shares[0] - shares[1], p_value), threshold, level)


def _judged(
    before: float, now: float, found: tuple[float, float], threshold: float, level: float
) -> Drift:
    """What was found, the size of the change and its p-value, against threshold and level."""
    size, p_value = found
    alarm = size > threshold and p_value <= level
    return Drift(float(before), float(now), size, threshold, p_value, alarm)


def _directions(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def _means(values: Array, statistic: Callable[[Array, Array], Array]) -> Callable[[Array], Array]:
    """A statistic of two groups' means, as one of who is in the first.

    Args:
        values: [prompts, columns].
        statistic: means of both groups [arrangements, columns] to [arrangements].
    """
    total, n = values.sum(0), len(values)

    def of_members(member: Array) -> Array:
        sums, many = member @ values, member.sum(1, keepdims=True)
        return statistic(sums / many, (total - sums) / (n - many))

    return of_members


def _permuted(
    n: int, first: int, statistic: Callable[[Array], Array], replicates: int, seed: int
) -> tuple[float, float]:
    """A statistic of two groups, and its permutation p-value.

    Args:
        n, first: prompts in all, and of the first group, which come first.
        statistic: who is in the first group [arrangements, prompts] to [arrangements].
        replicates: permutations, at most.
    """
    generator = np.random.default_rng(seed)
    as_it_is = np.zeros((1, n))
    as_it_is[0, :first] = 1.0
    size = float(statistic(as_it_is)[0])
    extreme = size - 1e-12  # equal groups in another order of summation
    beyond = drawn = 0
    while drawn < replicates:
        many = min(AT_ONCE, replicates - drawn)
        member = np.zeros((many, n))
        chosen = generator.random((many, n)).argpartition(first - 1, axis=1)[:, :first]
        np.put_along_axis(member, chosen, 1.0, axis=1)
        reached = beyond + np.cumsum(statistic(member) >= extreme)
        if reached[-1] >= ENOUGH:
            return size, ENOUGH / (drawn + int(np.argmax(reached >= ENOUGH)) + 1)
        beyond, drawn = int(reached[-1]), drawn + many
    return size, (beyond + 1) / (replicates + 1)


def _finite(values: ArrayLike, ndim: int, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"{name} must hold finite numbers of at least two prompts, {ndim}-d.")
    return array
