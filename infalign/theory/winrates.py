"""Inference-time win rates from samples, exact over all N-subsets, with intervals.

Instead of resampling best-of-N, every subset of N of the m samples is counted in
closed form: a U-statistic, unbiased for the win rate that InfAlign maximises
(arXiv 2412.19792, section 2).  Ties count one half.  Intervals resample prompts,
the unit that is independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from infalign.theory.calibration import count_below
from infalign.theory.checks import FloatArray, finite_rewards, positive_integer, same_prompts
from infalign.theory.procedures import Procedure, parse_procedure

RESAMPLED_AT_ONCE = 2_000_000  # indices held in memory by a bootstrap


def win_rates(
    procedure: str | Procedure, policy_rewards: ArrayLike, reference_rewards: ArrayLike
) -> FloatArray:
    """Per prompt, how often the policy's kept response beats the reference's.

    Args:
        policy_rewards: (prompts, m), the scores the procedure selects and compares by.
        reference_rewards: (prompts, m'); m and m' at least N.

    Returns:
        (prompts,) win rates.

    Raises:
        ValueError: for NaN or infinite rewards, rows that do not match, N above m or m'.
    """
    return win_rates_under([procedure], policy_rewards, reference_rewards)[0]


def win_rates_under(
    procedures: Sequence[str | Procedure], policy_rewards: ArrayLike, reference_rewards: ArrayLike
) -> FloatArray:
    """`win_rates` under several procedures, the samples being ordered once.

    Returns:
        (procedures, prompts) win rates.
    """
    policy = np.sort(finite_rewards("policy_rewards", policy_rewards, ndim=2), axis=1)
    reference = np.sort(finite_rewards("reference_rewards", reference_rewards, ndim=2), axis=1)
    same_prompts("policy_rewards and reference_rewards", policy, reference)
    less, upto = count_below(reference, policy)
    found = np.zeros((len(procedures), len(policy)))
    for total, chosen in zip(found, map(parse_procedure, procedures), strict=True):
        for share, part in chosen.parts:
            kept = part.rank_weights(policy.shape[1])
            beaten = np.concatenate([[0.0], np.cumsum(part.rank_weights(reference.shape[1]))])
            total += share * ((beaten[less] + beaten[upto]) @ kept) / 2
    return found


def judged_win_rates(
    procedure: str | Procedure,
    policy_selection: ArrayLike,
    reference_selection: ArrayLike,
    policy_judge: ArrayLike,
    reference_judge: ArrayLike,
) -> FloatArray:
    """Win rates by another judge, the procedure selecting by its own reward as deployed.

    With selection probabilities p_i and q_j: sum_ij p_i q_j w_judge(i, j).

    Args:
        policy_selection, policy_judge: (prompts, m), the same responses in the same order.
        reference_selection, reference_judge: (prompts, m'), likewise.

    Returns:
        (prompts,) win rates.

    Raises:
        ValueError: as `win_rates`, and if selection and judge differ in shape.
    """
    return judged_win_rates_under(
        [procedure], policy_selection, reference_selection, policy_judge, reference_judge
    )[0]


def judged_win_rates_under(
    procedures: Sequence[str | Procedure],
    policy_selection: ArrayLike,
    reference_selection: ArrayLike,
    policy_judge: ArrayLike,
    reference_judge: ArrayLike,
) -> FloatArray:
    """`judged_win_rates` under several procedures, the judge's samples being ordered once.

    Returns:
        (procedures, prompts) win rates.
    """
    policy = _pair("policy", policy_selection, policy_judge)
    reference = _pair("reference", reference_selection, reference_judge)
    same_prompts("policy and reference rewards", policy[0], reference[0])
    order = np.argsort(reference[1], axis=1)
    judged = np.take_along_axis(reference[1], order, axis=1)
    less, upto = count_below(judged, policy[1])
    found = np.zeros((len(procedures), len(judged)))
    for total, chosen in zip(found, map(parse_procedure, procedures), strict=True):
        for share, part in chosen.parts:
            kept = part.selection_weights(policy[0])
            ordered = np.take_along_axis(part.selection_weights(reference[0]), order, axis=1)
            mass = np.concatenate([np.zeros((len(ordered), 1)), np.cumsum(ordered, axis=1)], axis=1)
            beaten = np.take_along_axis(mass, less, axis=1) + np.take_along_axis(mass, upto, axis=1)
            total += share * np.sum(kept * beaten, axis=1) / 2
    return found


def _pair(side: str, selection: ArrayLike, judge: ArrayLike) -> tuple[FloatArray, FloatArray]:
    selects = finite_rewards(f"{side}_selection", selection, ndim=2)
    judges = finite_rewards(f"{side}_judge", judge, ndim=2)
    if selects.shape != judges.shape:
        raise ValueError(
            f"{side}_selection has shape {selects.shape} but {side}_judge {judges.shape}; score "
            f"the same responses with both."
        )
    return selects, judges


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[FloatArray], Any] = np.mean,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Any, Any]:
    """Percentile interval of a statistic over resampled prompts.

    Pair policies by passing their differences, or one column each and a statistic of the
    columns: every column of a prompt is drawn together.

    Args:
        values: (prompts,) or (prompts, k).
        statistic: takes resampled values of the same shape; `numpy.mean` is vectorised and
            averages over prompts only, one interval a column.
        replicates: number of resamples.
        seed: of the generator.
        level: coverage.

    Returns:
        (low, high): floats, or arrays where the statistic returns arrays.

    Raises:
        ValueError: for NaN or infinite values, or a level outside (0, 1).
    """
    data = finite_rewards("values", values)
    if data.ndim > 2:
        raise ValueError(f"values must be (prompts,) or (prompts, k) but have shape {data.shape}.")
    if statistic is np.mean:
        draws = _resampled_means(data, replicates, seed)
    else:
        rng = np.random.default_rng(seed)
        picks = (rng.integers(0, len(data), len(data)) for _ in range(_replicates(replicates)))
        draws = np.array([statistic(data[pick]) for pick in picks])
    return _interval(draws, level)


def bootstrap_intervals(
    columns: ArrayLike, replicates: int = 1000, seed: int = 0, level: float = 0.95
) -> FloatArray:
    """The percentile interval of the mean of many columns, every prompt's drawn together.

    The resamples are those of `bootstrap_interval`, counted instead of gathered: the same
    intervals but for rounding, at the price of one.

    Args:
        columns: (k, prompts).

    Returns:
        (k, 2): low and high.
    """
    data = finite_rewards("columns", columns, ndim=2)
    rng, (_, prompts) = np.random.default_rng(seed), data.shape
    total, block = _replicates(replicates), max(1, RESAMPLED_AT_ONCE // prompts)
    means = []
    for start in range(0, total, block):
        size = min(block, total - start)
        picks = rng.integers(0, prompts, (size, prompts), dtype=np.int32)
        flat = (picks + prompts * np.arange(size)[:, None]).reshape(-1)
        counts = np.bincount(flat, minlength=size * prompts).reshape(size, prompts)
        means.append(data @ counts.T.astype(np.float64) / prompts)
    low, high = _interval(np.concatenate(means, axis=1).T, level)
    return np.stack([low, high], axis=1)


def efficiency(
    win_rates: ArrayLike,
    kls: ArrayLike,
    limit_fn: Callable[[FloatArray], Any],
    seed: int = 0,
    *,
    replicates: int = 1000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Share (W - 1/2) / (limit(KL) - 1/2) of the possible gain, with its interval.

    Win rate and KL are resampled together, because a policy that spends more KL wins more.
    Not clipped at 1; unstable as the KL goes to 0, and NaN where it is 0.

    Args:
        win_rates: (prompts,).
        kls: (prompts,) KL in nats; negative means are taken as 0.
        limit_fn: KL array -> win rate, such as `partial(limit, procedure)`.

    Returns:
        (value, low, high).
    """
    wins = finite_rewards("win_rates", win_rates)
    spent = finite_rewards("kls", kls)
    same_prompts("win_rates and kls", wins, spent)
    joint = np.stack([wins, spent], axis=1)
    resampled = _resampled_means(joint, replicates, seed)
    points = np.concatenate([joint.mean(0, keepdims=True), resampled])
    possible = np.asarray(limit_fn(np.maximum(points[:, 1], 0.0))) - 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(possible > 0, (points[:, 0] - 0.5) / possible, np.nan)
    low, high = _interval(shares[1:], level)
    return float(shares[0]), low, high


@dataclass(frozen=True)
class KlEstimate:
    """Mean KL of a policy from the reference, in nats a response, two ways.

    Attributes:
        exact, exact_error: from token-exact KLs, with its standard error over prompts.
        log_ratio, log_ratio_error: from log-ratios of the sampled responses.
        disagreement: their difference in standard errors of it; beyond 4 is a bug.
    """

    exact: float
    exact_error: float
    log_ratio: float
    log_ratio_error: float
    disagreement: float


def kl_estimate(exact: ArrayLike, log_ratio: ArrayLike) -> KlEstimate:
    """Average both estimators of the KL, clustered by prompt.

    Args:
        exact: (prompts, m) sums over tokens of KL(pi(.|s_t) || ref(.|s_t)) along responses
            sampled from pi; usually the less noisy one.
        log_ratio: (prompts, m) log pi(y|x) - log ref(y|x) of the same responses.

    Raises:
        ValueError: for NaN or infinite values, shapes that differ, fewer than 2 prompts.
    """
    first = finite_rewards("exact", exact, ndim=2)
    second = finite_rewards("log_ratio", log_ratio, ndim=2)
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"exact has shape {first.shape} and log_ratio {second.shape} but both must cover the "
            f"same responses of at least 2 prompts."
        )
    means = np.stack([first.mean(1), second.mean(1), first.mean(1) - second.mean(1)])
    (kl, ratio, gap), errors = means.mean(1), means.std(1, ddof=1) / len(first) ** 0.5
    apart = abs(gap) / errors[2] if errors[2] > 0 else (0.0 if gap == 0 else np.inf)
    return KlEstimate(float(kl), float(errors[0]), float(ratio), float(errors[1]), float(apart))


def _resampled_means(data: FloatArray, replicates: int, seed: int) -> FloatArray:
    """(replicates, ...) means over prompts drawn with replacement, a block at a time."""
    rng = np.random.default_rng(seed)
    prompts, total = len(data), _replicates(replicates)
    block = max(1, RESAMPLED_AT_ONCE // prompts)
    means = []
    for start in range(0, total, block):
        picks = rng.integers(0, prompts, (min(block, total - start), prompts), dtype=np.int32)
        means.append(data[picks].mean(axis=1))
    return np.concatenate(means)


def _replicates(replicates: int) -> int:
    return positive_integer("replicates", replicates)


def _interval(draws: FloatArray, level: float) -> tuple[Any, Any]:
    if not 0 < level < 1:
        raise ValueError(f"level is {level:g} but must lie between 0 and 1, such as 0.95.")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)
