"""Calibrated rewards: the win rate of a response against reference samples of its prompt.

    C_hat(x, y) = (#{r_i < r(y)} + 1/2 #{r_i = r(y)}) / K

(InfAlign, arXiv 2412.19792, section 4.1).  Reads rewards with one row per prompt;
keeps no state; what any increasing map of the rewards leaves unchanged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc

from infalign.theory.checks import FloatArray, finite_rewards, positive_integer, same_prompts


def calibrate(
    candidates: ArrayLike, reference: ArrayLike, *, leave_one_out: bool = False
) -> FloatArray:
    """Calibrated reward of every candidate, in [0, 1].

    Args:
        candidates: (prompts, candidates) rewards.
        reference: (prompts, K) rewards of reference samples, in any order.
        leave_one_out: the candidates are the reference samples themselves, in the same
            order; each is compared with the K - 1 others, so that a row's mean is 1/2.

    Returns:
        (prompts, candidates) float64.

    Raises:
        ValueError: for NaN or infinite rewards, rows that do not match, or K < 2 with
            leave_one_out.
    """
    below = calibrate_below(candidates, reference, leave_one_out=leave_one_out)
    return below / (np.shape(reference)[-1] - (1 if leave_one_out else 0))


def calibrate_below(
    candidates: ArrayLike, reference: ArrayLike, *, leave_one_out: bool = False
) -> FloatArray:
    """The count s of reference samples below each candidate, ties one half.

    What a `Transform` estimates from, together with K (K - 1 with leave_one_out).
    Arguments and errors as `calibrate`.
    """
    scores = finite_rewards("candidates", candidates, ndim=2)
    samples = finite_rewards("reference", reference, ndim=2)
    same_prompts("candidates and reference", scores, samples)
    if leave_one_out:
        _check_own_samples(scores, samples)
    less, upto = count_below(np.sort(samples, axis=1), scores)
    below = (less + upto) / 2.0
    # A sample ties with itself once; without it, half a count less.
    return below - 0.5 if leave_one_out else below


def _check_own_samples(scores: FloatArray, samples: FloatArray) -> None:
    if samples.shape[1] < 2:
        raise ValueError(
            "reference has one sample a prompt but leave_one_out needs at least 2; sample more."
        )
    if not np.array_equal(scores, samples):
        raise ValueError(
            "candidates differ from reference but leave_one_out compares a reference sample with "
            "the others; pass the same array twice."
        )


def count_below(reference_sorted: FloatArray, values: FloatArray) -> tuple[np.ndarray, np.ndarray]:
    """Per row, how many reference values lie strictly below, and at or below, each value.

    Args:
        reference_sorted: (prompts, K), each row ascending.
        values: (prompts, values).

    Returns:
        Two integer arrays (prompts, values).
    """
    less = np.empty(values.shape, dtype=np.intp)
    upto = np.empty(values.shape, dtype=np.intp)
    for row, (samples, queries) in enumerate(zip(reference_sorted, values, strict=True)):
        less[row] = samples.searchsorted(queries, side="left")
        upto[row] = samples.searchsorted(queries, side="right")
    return less, upto


def calibration_error(estimate: ArrayLike, truth: ArrayLike) -> float:
    """Mean absolute difference of two arrays of calibrated rewards of the same shape."""
    first = finite_rewards("estimate", estimate)
    second = finite_rewards("truth", truth)
    if first.shape != second.shape:
        raise ValueError(
            f"estimate has shape {first.shape} but truth {second.shape}; compare the same "
            f"responses."
        )
    return float(np.mean(np.abs(first - second)))


def expected_calibration_error(n_reference: int) -> float:
    """E |C_hat - C| over fresh reference responses, whose C is uniform, in closed form.

    De Moivre's mean absolute deviation of a binomial, integrated over C in [0, 1]:
    2 / (K (K+1) (K+2)) * sum_j (j+1) (K-j) [I_p(j+2, K-j+1)] from p = j/K to (j+1)/K.
    """
    k = positive_integer("n_reference", n_reference)
    j = np.arange(k)
    upper = betainc(j + 2, k - j + 1, (j + 1) / k)
    lower = betainc(j + 2, k - j + 1, j / k)
    total = np.sum((j + 1.0) * (k - j) * (upper - lower))
    return float(2.0 * total / (k * (k + 1.0) * (k + 2.0)))
