"""Calibration: against plain loops, its invariances, its error in closed form."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.stats import binom
from theory_oracles import calibrated_by_loops

from infalign.theory import (
    calibrate,
    calibrate_below,
    calibration_error,
    expected_calibration_error,
)

levels = st.integers(-5, 5).map(float)


def test_by_hand():
    assert calibrate([[2.0, 0.0, 9.0]], [[3.0, 2.0, 1.0, 2.0]]).tolist() == [[0.5, 0.0, 1.0]]
    assert calibrate_below([[2.0, 2.5]], [[3.0, 2.0, 1.0, 1.0]]).tolist() == [[2.5, 3.0]]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(2, 7))
def test_agrees_with_loops(data, prompts, k):
    reference = data.draw(arrays(float, (prompts, k), elements=levels))
    candidates = data.draw(arrays(float, (prompts, 3), elements=levels))
    np.testing.assert_allclose(
        calibrate(candidates, reference), calibrated_by_loops(candidates, reference), atol=1e-15
    )
    np.testing.assert_allclose(
        calibrate(reference, reference, leave_one_out=True),
        calibrated_by_loops(reference, reference, leave_one_out=True),
        atol=1e-15,
    )


@settings(max_examples=60, deadline=None)
@given(arrays(float, (3, 6), elements=levels), arrays(float, (3, 4), elements=levels))
def test_any_increasing_map_of_the_reward_changes_nothing(reference, candidates):
    before = calibrate(candidates, reference)
    for mapped in (np.exp, lambda r: 1e3 * r - 7, lambda r: r**3):
        np.testing.assert_array_equal(before, calibrate(mapped(candidates), mapped(reference)))


@settings(max_examples=60, deadline=None)
@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(2, 9)), elements=levels))
def test_leaving_oneself_out_the_mean_is_one_half(rewards):
    own = calibrate(rewards, rewards, leave_one_out=True)
    np.testing.assert_allclose(own.mean(axis=1), 0.5, atol=1e-14)
    assert ((own >= 0) & (own <= 1)).all()


@pytest.mark.parametrize("k", [1, 2, 5, 32])
def test_expected_error_is_the_mean_deviation_of_a_binomial(k):
    def deviation(c: float) -> float:
        s = np.arange(k + 1)
        return float(binom.pmf(s, k, c) @ np.abs(s / k - c))

    pieces = np.linspace(0, 1, k + 1)
    total = sum(quad(deviation, a, b)[0] for a, b in pairwise(pieces))
    assert expected_calibration_error(k) == pytest.approx(total, rel=1e-9)


def test_expected_error_is_what_calibrate_measures():
    rng = np.random.default_rng(0)
    truth = rng.random((20_000, 1))
    measured = calibration_error(calibrate(truth, rng.random((20_000, 16))), truth)
    assert measured == pytest.approx(expected_calibration_error(16), rel=0.02)


def test_expected_error_of_very_many_references_stays_exact():
    assert expected_calibration_error(10**4) == pytest.approx(0.31333 / 100, rel=1e-3)


@pytest.mark.parametrize(
    ("candidates", "reference", "options", "why"),
    [
        ([[np.nan]], [[1.0]], {}, "candidates holds 1 NaN"),
        ([[1.0]], [[np.inf]], {}, "reference holds 1 NaN or infinite"),
        ([1.0], [[1.0]], {}, "candidates must have 2 axes"),
        ([[1.0]], [[1.0], [2.0]], {}, r"same prompts but have \[1, 2\] rows"),
        ([[1.0]], np.empty((1, 0)), {}, "reference is empty"),
        ([[1.0]], [[1.0]], {"leave_one_out": True}, "needs at least 2"),
        ([[1.0, 2.0]], [[2.0, 1.0]], {"leave_one_out": True}, "pass the same array twice"),
    ],
)
def test_bad_input_is_one_sentence(candidates, reference, options, why):
    with pytest.raises(ValueError, match=why):
        calibrate(candidates, reference, **options)


def test_errors_of_different_responses_are_not_compared():
    with pytest.raises(ValueError, match="compare the same"):
        calibration_error([0.5], [0.5, 0.5])


@pytest.mark.parametrize("k", [0, -1, 2.5, True, np.inf, np.nan])
def test_a_count_must_be_whole(k):
    with pytest.raises(ValueError, match=r"n_reference is .* but must be a whole number"):
        expected_calibration_error(k)
