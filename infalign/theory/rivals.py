"""Two systems on the same prompts: how often the response that one keeps beats the other's.

A system is a policy, the reward that its procedure selects by, and the procedure; the two may
differ in all of it, N included. Both may have drawn with the same random numbers, so that sample
k of one is not independent of sample k of the other: only disjoint sets of samples are compared,
N of the first system and M of the second, which leaves a U-statistic without bias (Hoeffding 1948,
section 5) and keeps what common random numbers gain.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from infalign.theory.checks import FloatArray, finite_rewards, same_prompts
from infalign.theory.procedures import Procedure, parse_procedure

AT_ONCE = 2_000_000  # pairs of samples whose weights are held in memory


def head_to_head(
    procedures: tuple[str | Procedure, str | Procedure],
    selections: tuple[ArrayLike, ArrayLike],
    judged: tuple[ArrayLike, ArrayLike],
) -> FloatArray:
    """Per prompt, how often the first system's kept response beats the second's; ties one half.

    Exact over every pair of disjoint sets of N and M of the m samples. Equal selecting rewards
    rank by the samples' order, as deployed. Of one mixture on both sides, each member meets itself,
    for it stands for an N that both share; different mixtures are independent.

    Args:
        procedures: of the first and of the second system.
        selections: (prompts, m) each, the rewards that a system selects by; sample k of both
            may share its random numbers.
        judged: (prompts, m) each, what the judge says of the same responses.

    Returns:
        (prompts,) win rates of the first.

    Raises:
        ValueError: for NaN or infinite rewards, shapes that differ, N + M above m.
    """
    first, second = (parse_procedure(procedure) for procedure in procedures)
    ours, theirs = (finite_rewards("selections", one, ndim=2) for one in selections)
    above, below = (finite_rewards("judged", one, ndim=2) for one in judged)
    same_prompts("selections and judged", ours, theirs, above, below)
    if not ours.shape == theirs.shape == above.shape == below.shape:
        raise ValueError(
            f"selections and judged have shapes {ours.shape}, {theirs.shape}, {above.shape} and "
            f"{below.shape} but must be of the same prompts and samples; draw as many for both."
        )
    samples = ours.shape[1]
    if first.n + second.n > samples:
        raise ValueError(
            f"{first} and {second} keep from {first.n} and {second.n} samples that must not "
            f"overlap but there are {samples}; draw at least {first.n + second.n}."
        )
    block = max(1, AT_ONCE // samples**2)
    found = np.empty(len(ours))
    for start in range(0, len(ours), block):
        rows = slice(start, start + block)
        won = _wins(above[rows], below[rows])
        kept = sum(
            share * _kept_together(one, other, ours[rows], theirs[rows])
            for share, one, other in _meetings(first, second)
        )
        found[rows] = np.einsum("pij,pij->p", kept, won)
    return np.clip(found, 0.0, 1.0)


def kept_mean(procedure: str | Procedure, selection: ArrayLike, values: ArrayLike) -> FloatArray:
    """Per prompt, the mean of a value of the kept response, exact over all sets of N samples.

    Args:
        selection: (prompts, m), the rewards that the procedure selects by.
        values: (prompts, m) of the same responses.

    Returns:
        (prompts,).
    """
    rewards = finite_rewards("selection", selection, ndim=2)
    found = finite_rewards("values", values, ndim=2)
    if rewards.shape != found.shape:
        raise ValueError(
            f"selection has shape {rewards.shape} but values {found.shape}; score the same "
            "responses with both."
        )
    total = np.zeros(len(rewards))
    for share, part in parse_procedure(procedure).parts:
        total += share * np.sum(part.selection_weights(rewards) * found, axis=1)
    return total


def _meetings(first: Procedure, second: Procedure) -> list[tuple[float, Procedure, Procedure]]:
    """Which simple procedures meet, and how often."""
    if first == second:
        return [(share, part, part) for share, part in first.parts]
    return [(a * b, one, other) for a, one in first.parts for b, other in second.parts]


def _wins(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """(prompts, m, m): 1, 1/2 or 0 for every pair of samples."""
    apart = ours[:, :, None] - theirs[:, None, :]
    return (np.sign(apart) + 1.0) / 2.0


def _kept_together(
    first: Procedure, second: Procedure, ours: FloatArray, theirs: FloatArray
) -> FloatArray:
    """(prompts, m, m): how likely sample i is kept of N and j of M others.

    With i kept at rank r of its N, and j at rank s of its M, the other samples are of four kinds,
    below or above i by the first reward and below or above j by the second; how many ways there
    are to fill both sets is a sum over how many the first takes of those below j.
    """
    m, n, k = ours.shape[1], first.n, second.n
    under, over = _below(ours), _below(theirs)  # [p, i, l]: sample l ranks below i
    both = np.einsum("pil,pjl->pij", under, over).astype(np.intp)
    only_i = under.sum(2, dtype=np.intp)[:, :, None] - under - both
    only_j = over.sum(2, dtype=np.intp)[:, None, :] - np.swapaxes(over, 1, 2) - both
    neither = m - 2 - both - only_i - only_j
    table, chances = _log_choose(m), np.zeros(both.shape)
    ways = table[m, n] + table[m - n, k]
    for rank, first_weight in _ranks(first):
        for place, second_weight in _ranks(second):
            for u in range(rank):
                for w in range(n - rank + 1):
                    log = (
                        table[both, u]
                        + table[only_i, rank - 1 - u]
                        + table[only_j, w]
                        + table[neither, n - rank - w]
                        + table[np.maximum(both + only_j - u - w, 0), place - 1]
                        + table[np.maximum(only_i + neither - (n - 1) + u + w, 0), k - place]
                    )
                    chances += first_weight * second_weight * np.exp(log - ways)
    chances[:, np.arange(m), np.arange(m)] = 0.0  # the sets have no sample in common
    return chances


def _ranks(procedure: Procedure) -> list[tuple[int, float]]:
    """The ranks that are kept at all, lowest first from 1, and how often."""
    return [(rank, share) for rank, share in enumerate(procedure.weights, start=1) if share > 0]


def _below(rewards: FloatArray) -> FloatArray:
    """(prompts, m, m): whether sample l ranks below sample i, equal ones by their order."""
    order = np.argsort(np.argsort(rewards, axis=1, kind="stable"), axis=1)
    return (order[:, None, :] < order[:, :, None]).astype(np.intp)


@lru_cache(maxsize=8)
def _log_choose(most: int) -> FloatArray:
    """log C(a, b) for 0 <= a, b <= most; -inf where b > a."""
    a, b = np.meshgrid(np.arange(most + 1), np.arange(most + 1), indexing="ij")
    inside = np.where(b <= a, b, 0)
    found = gammaln(a + 1) - gammaln(inside + 1) - gammaln(a - inside + 1)
    return np.where(b <= a, found, -np.inf)
