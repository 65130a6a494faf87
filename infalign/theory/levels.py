"""Rewards of few levels, where most of a prompt's samples tie: what can be won with them.

A policy that chooses among tied responses gains nothing. So less can be won than `frontier.limit`
says, which still bounds every policy, and only so much KL can be spent on it at all. How much less
is estimated here, from the levels that the reference's samples happen to show: where they show one
level alone, a policy may well know another. It is no bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infalign.theory.checks import FloatArray
from infalign.theory.limits import atom_win_rates, atoms, running
from infalign.theory.procedures import Procedure

FEW_LEVELS = 0.5  # share of samples that tie, above which every tie is taken as real
MANY_ALIKE = 0.25  # share of the prompts whose samples all have one reward that is worth a word
LOWEST = 50.0  # log-weight of what is as good as left out
STEPS = 30  # of an ascent
DEPTH, WORTH, SMALLEST_STEP = 5, 3e-4, 1e-5  # of the hull: corners, what one adds, nats between


def tied_shares(rewards: FloatArray) -> FloatArray:
    """Share of a prompt's samples whose reward another of its samples has [prompts].

    Args:
        rewards: [prompts, samples].
    """
    ordered = np.sort(rewards, axis=1)
    same = ordered[:, 1:] == ordered[:, :-1]
    edge = np.zeros((len(rewards), 1), dtype=bool)
    tied: FloatArray = (np.hstack([edge, same]) | np.hstack([same, edge])).mean(axis=1)
    return tied


def tied_share(rewards: FloatArray) -> float:
    """The same of all samples together."""
    return float(tied_shares(rewards).mean())


def has_few_levels(rewards: FloatArray) -> bool:
    """Whether ties are what the reward is like, and not a response that was drawn twice."""
    return tied_share(rewards) > FEW_LEVELS


def alike_share(rewards: FloatArray) -> float:
    """Share of the prompts whose samples all have one reward; rewards [prompts, samples]."""
    return float((rewards == rewards[:, :1]).all(axis=1).mean())


def spendable(rewards: FloatArray) -> float:
    """The KL, nats, of a policy that gives the best level of every prompt and nothing else."""
    best = (rewards == rewards.max(axis=1, keepdims=True)).mean(axis=1)
    return float(np.log(1.0 / best).mean())


@dataclass(frozen=True)
class TiedLimit:
    """The best win rate over the levels that samples show, at every KL: an estimate, no bound.

    Attributes:
        kls, win_rates: of the best policies, both rising.
        alike: share of the prompts that show one level alone.
    """

    kls: FloatArray
    win_rates: FloatArray
    alike: float

    def __call__(self, kl_nats: FloatArray | float) -> FloatArray:
        """The win rate at a mean KL, nats, or many; past the top a policy only spends."""
        return np.asarray(np.interp(kl_nats, self.kls, self.win_rates))


def solve_tied_limit(procedure: Procedure, rewards: FloatArray) -> TiedLimit:
    """The best policies over the levels of the reference's samples, ties counting half.

    Levels i = 1..L have shares s_i, whose running sum is R_i, and the policy's F_i. Kept, level i
    is worth c_i = (G(R_{i-1}) + G(R_i)) / 2, so that the win rate is
    W = c_L - sum_{i<L} G(F_i) (c_{i+1} - c_i), and W - beta KL is stationary at

        w_j ∝ s_j exp(Phi_j / beta),   Phi_j = -sum_{j<=i<L} G'(F_i) (c_{i+1} - c_i):

    the optimal transformation, with levels in place of an integral. W is convex in parts for
    Worst-of-N: there are several such points, and sharing the KL out unevenly among prompts wins
    most. So the limit is the concave hull, whose corners are found one between two others, at the
    beta that is the slope from the one to the other.

    Args:
        rewards: the reference's, [prompts, samples].
    """
    shares, counts = _patterns(rewards)
    solver = _Solver(procedure, shares)
    reference = solver.at(np.zeros_like(shares))
    top = solver.at(np.where(_best(shares), 0.0, -LOWEST))

    def mean(policies: _Policies) -> tuple[float, float]:
        kl, wins = np.average(policies.found, axis=1, weights=counts)
        return float(kl), float(wins)

    corners = [mean(reference), mean(top)]

    def between(left: _Policies, right: _Policies, depth: int) -> None:
        (kl, low), (more, high) = mean(left), mean(right)
        if depth == 0 or more - kl < SMALLEST_STEP:
            return
        beta = max((high - low) / (more - kl), 1e-6)
        middle = solver.best(beta, left, right)
        spent, wins = mean(middle)
        if wins - beta * spent > low - beta * kl + WORTH:
            corners.append((spent, wins))
            between(left, middle, depth - 1)
            between(middle, right, depth - 1)

    between(reference, top, DEPTH)
    kls, win_rates = np.maximum.accumulate(np.array(sorted(corners)), axis=0).T
    return TiedLimit(kls, win_rates, alike_share(rewards))


@dataclass(frozen=True)
class _Policies:
    """One a pattern of levels: log w / s up to a constant; `found` is KL and win rate of each."""

    tilts: FloatArray
    weights: FloatArray
    found: FloatArray


class _Solver:
    """Policies on the levels of patterns that maximise W - beta KL."""

    def __init__(self, procedure: Procedure, shares: FloatArray) -> None:
        self._procedure, self._shares = procedure, shares
        self._rises = []
        for _, part in procedure.parts:
            kept = part.cdf(running(shares))
            self._rises.append(np.diff((kept[:, 1:] + kept[:, :-1]) / 2, axis=1))

    def at(self, tilts: FloatArray) -> _Policies:
        """The policies with these tilts."""
        held = np.where(self._shares > 0, tilts, -np.inf)
        held = held - held.max(axis=1, keepdims=True)
        weights = self._shares * np.exp(held)
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / total
        kl = np.sum(weights * np.where(weights > 0, held, 0.0), axis=1) - np.log(total[:, 0])
        wins = atom_win_rates(self._procedure, weights, self._shares, ties="half")
        return _Policies(tilts, weights, np.stack([kl, wins]))

    def best(self, beta: float, *starts: _Policies) -> _Policies:
        """The best that an ascent in log w finds, for each pattern from the best of the starts."""
        return _better(beta, *(self._climbed(beta, start) for start in starts))[0]

    def _climbed(self, beta: float, now: _Policies) -> _Policies:
        steps = np.ones((len(self._shares), 1))
        for _ in range(STEPS):
            tilts = (1 - steps) * now.tilts + steps * self._phi(now.weights) / beta
            now, lifted = _better(beta, now, self.at(tilts))
            steps = np.where(lifted[:, None], np.minimum(1.0, 1.5 * steps), steps / 2)
        return now

    def _phi(self, weights: FloatArray) -> FloatArray:
        inner = running(weights)[:, 1:-1]
        slopes = np.zeros_like(inner)
        for (share, part), rise in zip(self._procedure.parts, self._rises, strict=True):
            slopes += share * part.pdf(inner) * rise
        above = np.cumsum(slopes[:, ::-1], axis=1)[:, ::-1]
        return np.hstack([-above, np.zeros((len(weights), 1))])


def _better(
    beta: float, first: _Policies, second: _Policies
) -> tuple[_Policies, NDArray[np.bool_]]:
    """For each pattern the policy with the higher W - beta KL, and where it is the second one."""
    second_wins = (second.found - first.found)[1] > beta * (second.found - first.found)[0]
    chosen = second_wins[:, None]
    tilts = np.where(chosen, second.tilts, first.tilts)
    weights = np.where(chosen, second.weights, first.weights)
    return _Policies(tilts, weights, np.where(second_wins, second.found, first.found)), second_wins


def _patterns(rewards: FloatArray) -> tuple[FloatArray, NDArray[np.intp]]:
    """The shares of levels that prompts show [patterns, levels], rising, and how many show each."""
    _, shares = atoms(rewards)
    order = np.argsort(shares <= 0, axis=1, kind="stable")  # levels that are none go last
    packed = np.take_along_axis(shares, order, axis=1)
    return np.unique(packed[:, : int((shares > 0).sum(axis=1).max())], axis=0, return_counts=True)


def _best(shares: FloatArray) -> NDArray[np.bool_]:
    """Where the best level of each row is."""
    places = np.arange(shares.shape[1])
    return places == (shares > 0).sum(axis=1, keepdims=True) - 1
