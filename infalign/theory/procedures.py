"""Inference-time procedures that draw N responses and keep one by the rank of its reward.

A procedure that keeps the j-th lowest of N draws with probability a_j turns the
CDF F of a policy's calibrated reward into G(F), with

    G(p) = sum_j a_j I_p(j, N - j + 1)        (regularised incomplete beta),

which is all the mathematics needs to know about it (InfAlign, arXiv 2412.19792,
section 3).  Best-of-N is a_N = 1, worst-of-N is a_1 = 1.  A mixture stands for an
N that is unknown when the policy is trained but equal on both sides of a
comparison, so its win rate averages the members' win rates.

Reads text and rewards; knows nothing of policies, KL or transformations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, gammaln, xlog1py, xlogy

from infalign.theory.checks import FloatArray, Misspelled, finite_rewards, spelled

MAX_N = 256
GRAMMAR = (
    "standard, best_of:N, worst_of:N, rank:J/N (the J-th lowest of N), "
    "ranks:a1,...,aN (probability of keeping each rank, lowest first) or "
    "mix:PROCEDURE@SHARE+PROCEDURE@SHARE (shares adding up to 1), with N from 1 to 256"
)


@dataclass(frozen=True)
class Procedure:
    """Draw N, keep one by rank; or a mixture of such procedures.

    Attributes:
        name: canonical spelling, also `str(procedure)`.
        weights: probability of keeping each rank, lowest reward first; empty for a mixture.
        members: (share, procedure) pairs of a mixture; empty otherwise.
    """

    name: str
    weights: tuple[float, ...] = ()
    members: tuple[tuple[float, Procedure], ...] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def n(self) -> int:
        """Number of responses drawn (the largest one of a mixture)."""
        return max(len(part.weights) for _, part in self.parts)

    @property
    def parts(self) -> tuple[tuple[float, Procedure], ...]:
        """(share, simple procedure) pairs; a simple procedure is its own only part."""
        return self.members or ((1.0, self),)

    def cdf(self, u: ArrayLike) -> FloatArray:
        """G(u), elementwise: the CDF of the kept draw when each draw has CDF u.

        For a mixture this is the law of the kept response when N itself is random.
        It must not enter a win rate, which needs the same N on both sides: use `parts`.
        """
        p = np.clip(np.asarray(u, dtype=np.float64), 0.0, 1.0)
        total = np.zeros_like(p)
        for share, part in self.parts:
            n = len(part.weights)
            for rank, weight in _ranks_in_use(part.weights):
                total = total + share * weight * betainc(rank, n - rank + 1, p)
        return np.minimum(total, 1.0)

    def pdf(self, u: ArrayLike) -> FloatArray:
        """G'(u), elementwise; for a mixture the average over its members, as `cdf`."""
        p = np.clip(np.asarray(u, dtype=np.float64), 0.0, 1.0)
        total = np.zeros_like(p)
        for share, part in self.parts:
            n = len(part.weights)
            for rank, weight in _ranks_in_use(part.weights):
                log_kernel = xlogy(rank - 1, p) + xlog1py(n - rank, -p)
                total = total + share * weight * np.exp(_log_scale(rank, n) + log_kernel)
        return total

    def log_pdf(self, u: FloatArray, complement: FloatArray) -> FloatArray:
        """log G' of a simple procedure where u is known with its complement 1 - u.

        Stays exact where G' itself would underflow (worst-of-256 near u = 1).
        """
        n = len(self.weights)
        log_u, log_complement = _log_pair(u, complement)
        terms = []
        for rank, weight in _ranks_in_use(self.weights):
            term = np.full(np.shape(u), _log_scale(rank, n) + math.log(weight))
            if rank > 1:
                term = term + (rank - 1) * log_u
            if rank < n:
                term = term + (n - rank) * log_complement
            terms.append(term)
        return reduce(np.logaddexp, terms)

    def rank_weights(self, samples: int) -> FloatArray:
        """Probability, per rank, that this sample of `samples` is the one kept.

        N of the samples are drawn as a uniform subset; the sample of rank c is its j-th
        lowest with probability C(c-1, j-1) C(m-c, N-j) / C(m, N).

        Returns:
            (samples,) probabilities, lowest reward first, adding up to 1.

        Raises:
            ValueError: if N exceeds the number of samples.
        """
        return _rank_weights(self, int(samples)).copy()

    def selection_weights(self, rewards: ArrayLike) -> FloatArray:
        """Probability that each sample is the one kept, ties sharing equally.

        Args:
            rewards: (..., samples), the scores the procedure ranks by.

        Returns:
            Probabilities of the same shape, adding up to 1 along the last axis.

        Raises:
            ValueError: for NaN or infinite rewards, or N above the number of samples.
        """
        values = finite_rewards("rewards", rewards)
        samples = values.shape[-1]
        kept = np.concatenate([[0.0], np.cumsum(_rank_weights(self, samples))])
        order = np.argsort(values, axis=-1)
        ordered = np.take_along_axis(values, order, axis=-1)
        below, upto = _tie_bounds(ordered)
        shares = (kept[upto] - kept[below]) / (upto - below)
        weights = np.empty_like(values)
        np.put_along_axis(weights, order, shares, axis=-1)
        return weights


def _log_pair(u: FloatArray, complement: FloatArray) -> tuple[FloatArray, FloatArray]:
    """log u and log(1 - u), each from whichever of the two is small and so exact."""
    low = u < 0.5
    small = np.where(low, u, complement)
    with np.errstate(divide="ignore"):
        log_small, log_large = np.log(small), np.log1p(-small)
    return np.where(low, log_small, log_large), np.where(low, log_large, log_small)


def _ranks_in_use(weights: tuple[float, ...]) -> list[tuple[int, float]]:
    return [(rank, weight) for rank, weight in enumerate(weights, start=1) if weight > 0]


def _log_scale(rank: int, n: int) -> float:
    """log of n C(n-1, rank-1), the constant of the order statistic's density."""
    return math.lgamma(n + 1) - math.lgamma(rank) - math.lgamma(n - rank + 1)


@lru_cache(maxsize=64)
def _rank_weights(procedure: Procedure, samples: int) -> FloatArray:
    if procedure.n > samples:
        raise ValueError(
            f"procedure {procedure} draws {procedure.n} responses but only {samples} samples a "
            f"prompt are given; sample more or choose a smaller N."
        )
    position = np.arange(1, samples + 1)
    total = np.zeros(samples)
    for share, part in procedure.parts:
        n = len(part.weights)
        for rank, weight in _ranks_in_use(part.weights):
            log_ways = (
                _log_choose(position - 1, rank - 1)
                + _log_choose(samples - position, n - rank)
                - _log_choose(np.asarray(samples), n)
            )
            total += share * weight * np.exp(log_ways)
    return total / total.sum()


def _log_choose(items: np.ndarray, taken: int) -> FloatArray:
    """log C(items, taken), minus infinity where taken exceeds items."""
    possible = items >= taken
    left = np.where(possible, items - taken, 0)
    ways = gammaln(items + 1) - gammaln(taken + 1) - gammaln(left + 1)
    return np.where(possible, ways, -np.inf)


def _tie_bounds(ordered: FloatArray) -> tuple[np.ndarray, np.ndarray]:
    """How many samples lie strictly below, and at or below, each one of an ascending row."""
    samples = ordered.shape[-1]
    index = np.arange(samples)
    rises = ordered[..., 1:] > ordered[..., :-1]
    edge = np.ones((*ordered.shape[:-1], 1), dtype=bool)
    starts = np.concatenate([edge, rises], axis=-1)
    ends = np.concatenate([rises, edge], axis=-1)
    below = np.maximum.accumulate(np.where(starts, index, 0), axis=-1)
    last = np.where(ends, index, samples)[..., ::-1]
    upto = np.minimum.accumulate(last, axis=-1)[..., ::-1] + 1
    return below, upto


def best_of(n: int) -> Procedure:
    """Best-of-N: keep the draw with the highest reward."""
    return Procedure(f"best_of:{n}", _single_rank(n, n, f"best_of:{n}"))


def worst_of(n: int) -> Procedure:
    """Worst-of-N: keep the lowest reward, the best-of-N jailbreak as the defender sees it."""
    return Procedure(f"worst_of:{n}", _single_rank(1, n, f"worst_of:{n}"))


def ranked(rank: int, n: int) -> Procedure:
    """Keep the `rank`-th lowest of n draws."""
    return Procedure(f"rank:{rank}/{n}", _single_rank(rank, n, f"rank:{rank}/{n}"))


def weighted_ranks(weights: tuple[float, ...]) -> Procedure:
    """Keep each rank, lowest first, with the given probability."""
    spelling = "ranks:" + ",".join(map(spelled, weights))
    _check_probabilities(weights, spelling, "rank probabilities")
    if not 1 <= len(weights) <= MAX_N:
        raise _misspelled(spelling, f"it has {len(weights)} ranks")
    total = math.fsum(weights)
    return Procedure(spelling, tuple(float(weight) / total for weight in weights))


def mixture(members: tuple[tuple[float, Procedure], ...]) -> Procedure:
    """An N unknown at deployment: member i, on both sides, with its share."""
    spelling = "mix:" + "+".join(f"{part}@{spelled(share)}" for share, part in members)
    shares = tuple(share for share, _ in members)
    _check_probabilities(shares, spelling, "shares")
    if any(part.members for _, part in members):
        raise _misspelled(spelling, "a mixture may not hold another mixture")
    total = math.fsum(shares)
    kept = tuple((float(share) / total, part) for share, part in members if share > 0)
    return Procedure(spelling, members=kept)


def parse_procedure(procedure: str | Procedure) -> Procedure:
    """Read a procedure's spelling, the same in params, command line, tables and reports.

    A `Procedure` is returned as it is.

    Raises:
        ValueError: one sentence that shows the grammar.
    """
    if isinstance(procedure, Procedure):
        return procedure
    spelling = str(procedure).strip()
    kind, _, rest = spelling.partition(":")
    try:
        if spelling == "standard":
            return Procedure("standard", (1.0,))
        if kind == "best_of":
            return best_of(_whole(rest))
        if kind == "worst_of":
            return worst_of(_whole(rest))
        if kind == "rank":
            rank, _, n = rest.partition("/")
            return ranked(_whole(rank), _whole(n))
        if kind == "ranks":
            return weighted_ranks(tuple(float(part) for part in rest.split(",")))
        if kind == "mix":
            return mixture(tuple(_member(part) for part in rest.split("+")))
    except Misspelled:
        raise
    except ValueError as error:
        raise _misspelled(spelling, str(error)) from None
    raise _misspelled(spelling, "that word is unknown")


def _misspelled(spelling: str, why: str) -> Misspelled:
    return Misspelled("procedure", spelling, why, GRAMMAR)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _member(text: str) -> tuple[float, Procedure]:
    spelling, separator, share = text.rpartition("@")
    if not separator:
        raise ValueError(f"{text!r} has no @SHARE")
    return float(share), parse_procedure(spelling)


def _single_rank(rank: int, n: int, spelling: str) -> tuple[float, ...]:
    if not 1 <= n <= MAX_N:
        raise _misspelled(spelling, f"N is {n}")
    if not 1 <= rank <= n:
        raise _misspelled(spelling, f"rank {rank} is not one of 1 to {n}")
    return tuple(1.0 if position == rank else 0.0 for position in range(1, n + 1))


def _check_probabilities(values: tuple[float, ...], spelling: str, what: str) -> None:
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise _misspelled(spelling, f"the {what} must be finite and not negative")
    total = math.fsum(values)
    if abs(total - 1.0) > 1e-6:
        raise _misspelled(spelling, f"the {what} add up to {total:g}")
