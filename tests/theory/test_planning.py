"""Planning: predicted noise and losses against simulations of the same experiments."""

from __future__ import annotations

import numpy as np
import pytest

from infalign.theory import (
    bootstrap_interval,
    calibrate,
    calibration_error,
    expected_calibration_error,
    expected_disagreement,
    frontier_point,
    interval_width,
    parse_procedure,
    parse_transform,
    prompts_needed,
    references_needed,
    samples_needed,
    win_rate_noise,
    win_rate_with_references,
    win_rates,
)
from infalign.theory.quadrature import grid
from infalign.theory.transforms import density_at

CASES = [("standard", "identity"), ("best_of:4", "exp:10"), ("worst_of:4", "exp:-10")]
CASES += [("mix:best_of:1@0.5+best_of:4@0.5", "optimal")]


def _samples(transform: str, procedure: str, prompts: int, m: int) -> tuple:
    rng = np.random.default_rng(0)
    nodes = grid()
    phi = parse_transform(transform, parse_procedure(procedure), 0.5)
    cdf = density_at(phi, nodes, 0.5).cdf.ravel()
    policy = np.interp(rng.random((prompts, m)), cdf, nodes.u.ravel())
    return policy, rng.random((prompts, m))


@pytest.mark.parametrize(("procedure", "transform"), CASES)
def test_predicted_noise_is_the_noise_of_the_estimator(procedure, transform):
    rates = win_rates(procedure, *_samples(transform, procedure, 3000, 64))
    noise = win_rate_noise(procedure, transform, 0.5)
    assert noise.standard_deviation(64) == pytest.approx(rates.std(), rel=0.06)
    low, high = bootstrap_interval(rates)
    assert interval_width(noise, 3000, 64) == pytest.approx(high - low, rel=0.15)


def test_what_is_needed_gives_the_width_and_one_less_does_not():
    noise = win_rate_noise("best_of:4", "exp:10", 0.5)
    prompts = prompts_needed(noise, 0.02, 64, between_prompts=0.03)
    assert interval_width(noise, prompts, 64, between_prompts=0.03) <= 0.02
    assert interval_width(noise, prompts - 1, 64, between_prompts=0.03) > 0.02
    samples = samples_needed(noise, 0.02, 200, between_prompts=0.03)
    assert interval_width(noise, 200, samples, between_prompts=0.03) <= 0.02
    assert interval_width(noise, 200, samples - 1, between_prompts=0.03) > 0.02
    assert samples_needed(noise, 0.9, 200) == 4
    assert prompts_needed(noise, 10.0, 64) == 1


def test_references_needed_is_the_smallest_number():
    for error in (0.2, 0.05, 0.03, 0.6):
        k = references_needed(error)
        assert expected_calibration_error(k) <= error
        assert k == 1 or expected_calibration_error(k - 1) > error


@pytest.mark.parametrize(("k", "other"), [(1, 1), (4, 9), (32, 31)])
def test_disagreement_of_two_estimates_is_what_calibrate_measures(k, other):
    rng = np.random.default_rng(0)
    truth = rng.random((40_000, 1))
    first, second = (calibrate(truth, rng.random((40_000, n))) for n in (k, other))
    measured = calibration_error(first, second)
    assert measured == pytest.approx(expected_disagreement(k, other), rel=0.02)


def test_disagreement_with_very_many_references_is_the_calibration_error():
    assert expected_disagreement(8, 2000) == pytest.approx(expected_calibration_error(8), rel=0.01)


@pytest.mark.parametrize(("memorises", "expected"), [(True, 0.848), (False, 0.870)])
def test_what_thirty_two_references_cost(memorises, expected):
    found = win_rate_with_references("best_of:4", "exp:10", 0.5, 32, memorises=memorises)
    assert found == pytest.approx(expected, abs=6e-4)


def test_an_unbiased_estimate_costs_a_generalising_policy_nothing():
    """Of best-of-4's win rate the posterior mean loses most: it is flat where Phi is steep."""
    exact = frontier_point("best_of:4", "exp:10", 0.5).win_rate
    reached = [
        win_rate_with_references("best_of:4", "exp:10", 0.5, 32, estimate=estimate)
        for estimate in ("posterior_mean", "plug_in", "least_biased")
    ]
    assert reached[0] < reached[1] - 0.001
    assert reached[1] < reached[2] - 0.001
    assert reached[2] == pytest.approx(exact, abs=1e-4)


def test_many_references_cost_nothing():
    exact = frontier_point("worst_of:4", "exp:-10", 0.5).win_rate
    for memorises in (True, False):
        found = win_rate_with_references(
            "worst_of:4", "exp:-10", 0.5, 1500, memorises=memorises, prompts=200
        )
        assert found == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda noise: noise.standard_deviation(3), "samples is 3 but the procedure draws 4"),
        (lambda noise: noise.standard_deviation(0), "whole number"),
        (lambda noise: interval_width(noise, 0, 8), "prompts"),
        (lambda noise: interval_width(noise, 9, 8, level=1.5), "level is 1.5"),
        (lambda noise: prompts_needed(noise, 0.0, 8), "width is 0"),
        (
            lambda noise: samples_needed(noise, 0.01, 100, between_prompts=0.1),
            r"use more than 1537 prompts",
        ),
        (lambda noise: references_needed(-0.1), "error is -0.1"),
        (lambda noise: references_needed(1e-5), "at least 0.001"),
        (lambda noise: win_rate_with_references("standard", "log", 0.5, 8), "posterior mean"),
        (
            lambda noise: win_rate_with_references("standard", "log", 0.5, 8, estimate="mean"),
            "estimate is 'mean'",
        ),
    ],
)
def test_bad_plans_are_one_sentence(call, why):
    with pytest.raises(ValueError, match=why):
        call(win_rate_noise("best_of:4", "exp:10", 0.5))
