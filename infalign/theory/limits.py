"""What exact maximisation of a method's own E[R] - beta KL would reach.

Not an upper bound for a trained policy (that is `frontier.limit`): it tells how much
of a shortfall is the method's and how much the training's.  Reads reference samples
of the evaluation prompts; the optimum reweights them by exp(R/beta), with one beta
for all prompts (InfAlign, arXiv 2412.19792, section 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from infalign.theory.checks import MIN_KL_NATS, FloatArray, finite_rewards, positive_kl
from infalign.theory.procedures import Procedure, parse_procedure
from infalign.theory.transforms import Transform, parse_transform

SAMPLES_AT_LEAST = 4
LOG_BETA_SPAN = 60.0  # bisection range of beta on either side of the rewards' own scale


@dataclass(frozen=True)
class MethodLimit:
    """Win rate of a method's exact optimum.

    Attributes:
        win_rate: at the wanted mean KL.
        uncertainty: of the finite-sample correction; 0 where none was needed.
        beta: KL weight that spends the KL on these samples.
    """

    win_rate: float
    uncertainty: float
    beta: float


def raw_limit(procedure: str | Procedure, rewards: ArrayLike, kl_nats: float) -> MethodLimit:
    """Limit of ordinary RLHF on raw rewards of any scale and mixture of prompts.

    Atoms tie with themselves, so m samples understate (or, for worst-of-N, overstate)
    the limit by about a constant over m; 2 L(m) - L(m/2) removes that, and the removed
    amount is reported as the uncertainty.  L(m/2) averages both halves of the samples.
    More remains, up to 0.02 too high at 64 samples and one nat, where prompts' scales
    differ so much that some would spend more than log m: draw more samples there.

    Args:
        rewards: (prompts, m) raw rewards of reference samples, m at least 4 and N.
        kl_nats: KL averaged over prompts.

    Raises:
        ValueError: for NaN or infinite rewards, too few samples, an unreachable KL.
    """
    chosen = parse_procedure(procedure)
    samples = finite_rewards("rewards", rewards, ndim=2)
    m, least = samples.shape[1], max(SAMPLES_AT_LEAST, chosen.n)
    if m < least:
        raise ValueError(
            f"rewards has {m} samples a prompt but {chosen} needs at least {least} for "
            f"extrapolation; draw more reference samples or choose a smaller N."
        )
    whole, beta = _empirical(chosen, samples, kl_nats)
    halves = [_empirical(chosen, half, kl_nats)[0] for half in _halves(samples)]
    half = sum(halves) / len(halves)
    win_rate = min(max(2 * whole - half, 0.0), 1.0)
    return MethodLimit(win_rate, abs(whole - half), beta)


def raw_beta(rewards: ArrayLike, kl_nats: float) -> float:
    """The beta with which RLHF on raw rewards spends a mean KL: where to start training.

    Arguments and errors as `raw_limit`; not extrapolated.
    """
    samples = finite_rewards("rewards", rewards, ndim=2)
    levels = np.sort(samples, axis=1)
    return weights_at_kl(levels, np.full(levels.shape, 1.0 / levels.shape[1]), kl_nats)[1]


def tied_limit(
    procedure: str | Procedure,
    transform: str | Transform,
    rewards: ArrayLike,
    kl_nats: float,
    *,
    ties: str = "broken",
) -> MethodLimit:
    """What exact maximisation of Phi reaches where equal rewards share one calibrated value.

    Each prompt's distinct rewards are atoms with the share of samples that have them;
    the atom's calibrated reward is its share below plus half its own.

    Args:
        transform: Phi. The word `optimal` is refused: Phi of continuous rewards is not the best
            on atoms, which `levels.solve_tied_limit` finds; as a `Transform` it may be given.
        rewards: (prompts, m); every tie is taken as real, so rewards with few levels.
        ties: "broken" spreads each atom over its rank cell, W = integral of
            (1 - G(F)) G', as if ties were broken at random once and for all; "half"
            counts a tie between the two kept responses one half, as `win_rates` does.

    Raises:
        ValueError: as `raw_limit`, for `optimal`, and for another word for `ties`.
    """
    chosen = parse_procedure(procedure)
    if transform == "optimal":
        raise ValueError(
            "transform is 'optimal', which is that of continuous rewards and not of atoms: take "
            "levels.solve_tied_limit, or pass parse_transform('optimal', procedure, kl_nats)."
        )
    phi = parse_transform(transform, chosen, kl_nats)
    _, shares = atoms(finite_rewards("rewards", rewards, ndim=2))
    calibrated = np.cumsum(shares, axis=1) - shares / 2
    weights, beta = weights_at_kl(phi(np.clip(calibrated, 0.0, 1.0)), shares, kl_nats)
    rates = atom_win_rates(chosen, weights, shares, ties=ties)
    return MethodLimit(float(np.mean(rates)), 0.0, beta)


def _halves(samples: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Two random halves of each row, always the same ones: rows may come sorted by reward."""
    shuffled = np.random.default_rng(0).permuted(samples, axis=1)
    size = samples.shape[1] // 2
    return shuffled[:, :size], shuffled[:, size : 2 * size]


def _empirical(procedure: Procedure, samples: FloatArray, kl_nats: float) -> tuple[float, float]:
    """Win rate and beta on the samples as they are, every one an atom."""
    levels, shares = atoms(samples)
    weights, beta = weights_at_kl(levels, shares, kl_nats)
    return float(np.mean(atom_win_rates(procedure, weights, shares, ties="half"))), beta


def atoms(samples: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Distinct rewards per prompt, ascending, with their shares; empty atoms pad with 0.

    Returns:
        levels, shares: (prompts, m); an atom sits at its first sample's position.
    """
    levels = np.sort(samples, axis=1)
    prompts, m = levels.shape
    starts = np.concatenate([np.ones((prompts, 1), bool), np.diff(levels, axis=1) > 0], axis=1)
    first = np.maximum.accumulate(np.where(starts, np.arange(m), 0), axis=1)
    flat = (first + m * np.arange(prompts)[:, None]).ravel()
    counts = np.bincount(flat, minlength=prompts * m).reshape(prompts, m)
    return levels, counts / m


def weights_at_kl(
    values: FloatArray, shares: FloatArray, kl_nats: float
) -> tuple[FloatArray, float]:
    """Weights proportional to shares * exp(values/beta) with the wanted mean KL, and beta.

    Args:
        values, shares: (prompts, atoms); shares of 0 are left out.

    Raises:
        ValueError: if no beta spends the KL, with the reachable range.
    """
    occupied = shares > 0
    top = np.max(np.where(occupied, values, -np.inf), axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        regret = np.where(occupied, top - values, np.inf)
    _check_reachable(regret, shares, kl_nats)
    scale = regret[(regret > 0) & np.isfinite(regret)].mean()
    regret = regret / scale
    low, high = -LOG_BETA_SPAN, LOG_BETA_SPAN
    while high - low > 1e-12:
        log_beta = (low + high) / 2
        weights, kl = _reweighted(regret, shares, math.exp(log_beta))
        low, high = (log_beta, high) if kl > kl_nats else (low, log_beta)
    return weights, math.exp(log_beta) * float(scale)


def _check_reachable(regret: FloatArray, shares: FloatArray, kl_nats: float) -> None:
    best = np.sum(np.where(regret <= 0, shares, 0.0), axis=1)
    reachable = float(np.mean(-np.log(best)))
    if reachable < MIN_KL_NATS:
        raise ValueError(
            "rewards do not differ within any prompt, so no policy can be told from the "
            "reference; use a reward that separates the samples."
        )
    positive_kl(kl_nats, reachable)


def _reweighted(regret: FloatArray, shares: FloatArray, beta: float) -> tuple[FloatArray, float]:
    cost = regret / beta
    weights = shares * np.exp(-cost)
    total = weights.sum(axis=1, keepdims=True)
    weights /= total
    spent = np.where(weights > 0, weights * np.where(np.isfinite(cost), cost, 0.0), 0.0)
    return weights, float(np.mean(-spent.sum(axis=1) - np.log(total[:, 0])))


def atom_win_rates(
    procedure: Procedure, weights: FloatArray, shares: FloatArray, *, ties: str
) -> FloatArray:
    """Win rate per prompt of a policy on atoms against the reference on the same atoms.

    Args:
        weights, shares: (prompts, atoms) probabilities of policy and reference, by
            ascending reward.
        ties: "broken" or "half", as in `tied_limit`.
    """
    if ties not in ("broken", "half"):
        raise ValueError(f"ties is {ties!r} but must be 'broken' or 'half'.")
    judge = _broken_ties if ties == "broken" else _half_ties
    return judge(procedure, weights, shares)


def _half_ties(procedure: Procedure, weights: FloatArray, shares: FloatArray) -> FloatArray:
    """Per prompt, P(kept policy atom above kept reference atom) + half P(equal)."""
    policy, reference = running(weights), running(shares)
    total = np.zeros(len(weights))
    for share, part in procedure.parts:
        kept, beaten = np.diff(part.cdf(policy), axis=1), part.cdf(reference)
        total += share * np.sum(kept * (beaten[:, 1:] + beaten[:, :-1]), axis=1) / 2
    return total


def _broken_ties(procedure: Procedure, weights: FloatArray, shares: FloatArray) -> FloatArray:
    """Per prompt, the integral of (1 - G(F)) G' with F linear across each atom's cell."""
    points, gauss = np.polynomial.legendre.leggauss(min(procedure.n, 24))
    policy, reference = running(weights), running(shares)
    total = np.zeros(len(weights))
    for point, weight in zip((points + 1) / 2, gauss / 2, strict=True):
        at_policy = policy[:, :-1] + point * weights
        at_reference = reference[:, :-1] + point * shares
        for share, part in procedure.parts:
            inside = (1.0 - part.cdf(at_policy)) * part.pdf(at_reference)
            total += share * weight * np.sum(inside * shares, axis=1)
    return total


def running(shares: FloatArray) -> FloatArray:
    """Sums of the shares before each atom and after the last one: (prompts, atoms + 1)."""
    start = np.zeros((len(shares), 1))
    return np.minimum(np.concatenate([start, np.cumsum(shares, axis=1)], axis=1), 1.0)
