"""Slow and plain ways to the numbers of infalign.theory: loops, enumeration, simulation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.optimize import brentq

from infalign.theory.procedures import Procedure
from infalign.theory.transforms import Transform


def calibrated_by_loops(candidates, reference, leave_one_out=False):
    result = np.empty(np.shape(candidates))
    for p, row in enumerate(candidates):
        for i, value in enumerate(row):
            others = [r for k, r in enumerate(reference[p]) if not (leave_one_out and k == i)]
            wins = sum((r < value) + 0.5 * (r == value) for r in others)
            result[p, i] = wins / len(others)
    return result


def selection_by_enumeration(procedure: Procedure, rewards) -> np.ndarray:
    """Selection probabilities of one prompt's samples, a member of a mixture at a time."""
    total = np.zeros(len(rewards))
    for share, part in procedure.parts:
        subsets = list(combinations(range(len(rewards)), len(part.weights)))
        for subset in subsets:
            ordered = sorted(rewards[i] for i in subset)
            for value, weight in zip(ordered, part.weights, strict=True):
                tied = [i for i in subset if rewards[i] == value]
                for i in tied:
                    total[i] += share * weight / len(tied) / len(subsets)
    return total


def win_rate_by_enumeration(procedure, policy, reference, policy_judge, reference_judge) -> float:
    """One prompt: every pair of kept responses, N the same on both sides."""
    total = 0.0
    for share, part in procedure.parts:
        p = selection_by_enumeration(part, policy)
        q = selection_by_enumeration(part, reference)
        for i, left in enumerate(policy_judge):
            for j, right in enumerate(reference_judge):
                total += share * p[i] * q[j] * ((left > right) + 0.5 * (left == right))
    return total


def simulated_win_rate(
    procedure: Procedure, transform: Transform, kl_nats: float, draws: int, seed: int
) -> tuple[float, float]:
    """Win rate and its standard error from `draws` calibrated rewards a side.

    Independent of the module's integration: 2e5 equal cells, beta by Brent's method.
    """
    cells = 200_000
    u = (np.arange(cells) + 0.5) / cells
    phi = transform(u)
    scaled = (phi - phi.max()) / (phi.max() - np.median(phi))

    def tilted(log_level: float) -> np.ndarray:
        weights = np.exp(np.exp(log_level) * scaled)
        return weights / weights.sum()

    def gap(log_level: float) -> float:
        mass = tilted(log_level)
        used = mass[mass > 0]
        return float(np.sum(used * np.log(used * cells))) - kl_nats

    cdf = np.concatenate([[0.0], np.cumsum(tilted(brentq(gap, -20, 20)))])
    edges = np.linspace(0, 1, cells + 1)
    rng = np.random.default_rng(seed)
    mean = variance = 0.0
    for share, part in procedure.parts:
        n = len(part.weights)
        trials = draws // n
        policy = np.interp(rng.random((trials, n)), cdf, edges)
        kept = [np.sort(side, axis=1) for side in (policy, rng.random((trials, n)))]
        ranks = [rng.choice(n, trials, p=part.weights) for _ in kept]
        ours, theirs = (k[np.arange(trials), r] for k, r in zip(kept, ranks, strict=True))
        won = ours > theirs
        mean += share * won.mean()
        variance += share**2 * max(won.var(), 1 / trials) / trials
    return mean, variance**0.5
