"""Limits of methods: raw rewards against a solvable case, ties by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from infalign.theory import (
    frontier_point,
    parse_procedure,
    parse_transform,
    raw_beta,
    raw_limit,
    tied_limit,
)
from infalign.theory.limits import atom_win_rates, weights_at_kl


def _gaussian_truth(name: str, kl: float) -> float:
    """Raw rewards N(m, s^2): the optimum is shifted by d = s / beta deviations, KL d^2 / 2."""
    procedure, shift = parse_procedure(name), math.sqrt(2 * kl)
    x = np.linspace(-9, 12, 20_001)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return float(
        np.trapezoid((1 - procedure.cdf(ndtr(x - shift))) * procedure.pdf(ndtr(x)) * density, x)
    )


@pytest.mark.parametrize("name", ["standard", "best_of:4", "worst_of:4"])
@pytest.mark.parametrize("kl", [0.25, 0.5, 1.0])
def test_raw_rewards_against_the_gaussian_case(name, kl):
    rewards = np.random.default_rng(0).normal(size=(1500, 64))
    found = raw_limit(name, rewards, kl)
    assert found.win_rate == pytest.approx(_gaussian_truth(name, kl), abs=0.005)
    assert abs(found.win_rate - _gaussian_truth(name, kl)) < found.uncertainty + 0.003
    # On samples beta is lower than in the continuum, 1 / sqrt(2 KL): their tail is cut.
    assert found.beta == pytest.approx(1 / math.sqrt(2 * kl), rel=0.1)


def test_raw_limits_follow_scale_and_shift_in_beta_only():
    rewards = np.random.default_rng(0).normal(size=(50, 32))
    plain = raw_limit("best_of:4", rewards, 0.5)
    shifted = rewards * 1e6 + np.arange(50)[:, None] * 1e7
    scaled = raw_limit("best_of:4", shifted, 0.5)
    assert scaled.win_rate == pytest.approx(plain.win_rate, abs=1e-6)
    assert scaled.beta == pytest.approx(plain.beta * 1e6, rel=1e-6)
    assert raw_beta(rewards, 0.5) == pytest.approx(plain.beta, rel=1e-9)
    for extreme in (1e-300, 1e300):
        assert raw_beta(rewards * extreme, 0.5) == pytest.approx(plain.beta * extreme, rel=1e-9)


@pytest.mark.parametrize("name", ["standard", "best_of:4", "worst_of:4"])
def test_raw_rewards_of_prompts_on_different_scales_against_the_gaussian_case(name):
    rng = np.random.default_rng(7)
    scales = np.exp(rng.normal(0, 0.25, 300))
    rewards = rng.normal(0, 3, (300, 1)) + scales[:, None] * rng.normal(size=(300, 64))
    spent = 0.3 * scales**2 / np.mean(scales**2)
    exact = np.mean([_gaussian_truth(name, kl) for kl in spent])
    assert raw_limit(name, rewards, 0.3).win_rate == pytest.approx(exact, abs=0.004)


def test_one_beta_serves_prompts_of_different_scales_badly():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(200, 64))
    even = raw_limit("best_of:4", rewards, 0.5).win_rate
    uneven = raw_limit("best_of:4", rewards * rng.lognormal(0, 1, (200, 1)), 0.5).win_rate
    assert uneven < even - 0.03


def test_halves_are_fair_for_sorted_samples():
    rewards = np.random.default_rng(0).normal(size=(400, 33))
    loose = raw_limit("worst_of:2", rewards, 0.5)
    ordered = raw_limit("worst_of:2", np.sort(rewards, axis=1), 0.5)
    assert loose.win_rate == pytest.approx(ordered.win_rate, abs=0.005)


def test_two_levels_by_hand():
    """Rewards 0, 0, 0, 1: weights 1 - p and p on two atoms of shares 3/4 and 1/4."""
    kl = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    rewards = [[0.0, 1.0, 0.0, 0.0]]
    half = tied_limit("best_of:2", "identity", rewards, kl, ties="half")
    # The policy's best is the high atom with 3/4, the reference's with 7/16.
    assert half.win_rate == pytest.approx(0.75 * 9 / 16 + 0.5 * (0.75 * 7 / 16 + 0.25 * 9 / 16))
    # Calibrated values 3/8 and 7/8, so p / (1 - p) = exp(1 / (2 beta)) / 3.
    assert half.beta == pytest.approx(0.5 / math.log(3))
    assert half.uncertainty == 0.0
    broken = tied_limit("best_of:2", "identity", rewards, kl)
    u = (np.arange(200_000) + 0.5) / 200_000
    cdf = np.interp(u, [0, 0.75, 1], [0, 0.5, 1])
    assert broken.win_rate == pytest.approx(float(np.mean((1 - cdf**2) * 2 * u)), abs=1e-6)


def test_ten_levels_hold_best_of_four_to_four_fifths():
    rewards = np.tile(np.arange(10.0), (3, 4))
    assert tied_limit("best_of:4", "exp:10", rewards, 0.5, ties="half").win_rate == pytest.approx(
        0.7987, abs=5e-4
    )


@pytest.mark.parametrize("name", ["standard", "best_of:4", "worst_of:4", "rank:2/3"])
@pytest.mark.parametrize("transform", ["identity", "exp:10", "log", "optimal", "auto"])
def test_without_ties_it_is_the_continuous_theory(name, transform):
    rewards = np.random.default_rng(0).normal(size=(2, 4000))
    phi = parse_transform(transform, parse_procedure(name), 0.5)
    found = tied_limit(name, phi, rewards, 0.5)
    exact = frontier_point(name, transform, 0.5)
    assert found.win_rate == pytest.approx(exact.win_rate, abs=1e-3)
    assert found.beta == pytest.approx(exact.beta, rel=0.01)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 0.4))
def test_the_mean_kl_is_met_and_policies_and_references_swap(seed, kl):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(7), 5)
    weights, beta = weights_at_kl(rng.normal(size=(5, 7)), shares, kl)
    spent = np.sum(weights * np.log(np.maximum(weights, 1e-300) / shares), axis=1)
    assert spent.mean() == pytest.approx(kl, rel=1e-6)
    assert beta > 0
    for name in ("best_of:3", "mix:standard@0.5+worst_of:2@0.5"):
        for ties in ("half", "broken"):
            forth = atom_win_rates(parse_procedure(name), weights, shares, ties=ties)
            back = atom_win_rates(parse_procedure(name), shares, weights, ties=ties)
            np.testing.assert_allclose(forth + back, 1.0, atol=1e-9)


@pytest.mark.parametrize(
    ("rewards", "kl", "why"),
    [
        (np.zeros((2, 8)), 0.5, "do not differ within any prompt"),
        ([[0.0, 0.0, 1.0, 1.0]], 0.7, r"reachable range 1e-08 to 0\.6931 nats"),
        ([[0.0, 0.0, 1.0, 1.0]], 0.0, "reachable range"),
        ([[0.0, 1.0, np.inf, 2.0]], 0.5, "rewards holds 1 NaN or infinite"),
        ([[0.0, 1.0, 2.0]], 0.5, "3 samples a prompt but best_of:2 needs at least 4"),
    ],
)
def test_bad_input_is_one_sentence(rewards, kl, why):
    with pytest.raises(ValueError, match=why):
        raw_limit("best_of:2", rewards, kl)


def test_n_beyond_the_samples_is_refused():
    with pytest.raises(ValueError, match="6 samples a prompt but best_of:8 needs at least 8"):
        raw_limit("best_of:8", np.random.default_rng(0).normal(size=(3, 6)), 0.1)


def test_the_optimal_transformation_of_continuous_rewards_is_not_called_that_of_atoms():
    with pytest.raises(ValueError, match="solve_tied_limit"):
        tied_limit("best_of:2", "optimal", [[0.0, 1.0, 0.0, 1.0]], 0.1)


def test_ties_are_broken_or_half():
    with pytest.raises(ValueError, match="'broken' or 'half'"):
        tied_limit("best_of:2", "identity", [[0.0, 1.0]], 0.1, ties="maybe")
