"""Win rates from samples: exact over subsets, symmetric, with honest intervals."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from theory_oracles import win_rate_by_enumeration

from infalign.theory import (
    bootstrap_interval,
    efficiency,
    judged_win_rates,
    kl_estimate,
    limit,
    parse_procedure,
    win_rates,
)

PROCEDURES = ["standard", "best_of:3", "worst_of:2", "rank:2/3", "ranks:0.5,0.0,0.5"]
PROCEDURES += ["mix:best_of:1@0.5+best_of:3@0.5"]
levels = st.integers(0, 4).map(float)
rows = arrays(float, (2, 5), elements=levels)
fewer = arrays(float, (2, 4), elements=levels)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PROCEDURES), rows, fewer, rows, fewer)
def test_exact_against_every_subset(text, policy, reference, policy_judge, reference_judge):
    procedure = parse_procedure(text)
    own = [
        win_rate_by_enumeration(procedure, p, r, p, r)
        for p, r in zip(policy, reference, strict=True)
    ]
    np.testing.assert_allclose(win_rates(text, policy, reference), own, atol=1e-12)
    judged = judged_win_rates(procedure, policy, reference, policy_judge, reference_judge)
    for p, found in enumerate(judged):
        slow = win_rate_by_enumeration(
            procedure, policy[p], reference[p], policy_judge[p], reference_judge[p]
        )
        assert found == pytest.approx(slow, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PROCEDURES), rows, rows, rows, rows)
def test_both_sides_add_up_to_one(text, a, b, judge_a, judge_b):
    np.testing.assert_allclose(win_rates(text, a, b) + win_rates(text, b, a), 1.0)
    forth = judged_win_rates(text, a, b, judge_a, judge_b)
    back = judged_win_rates(text, b, a, judge_b, judge_a)
    np.testing.assert_allclose(forth + back, 1.0)


@settings(max_examples=60, deadline=None)
@given(rows, rows, st.integers(1, 5))
def test_worst_of_n_is_best_of_n_upside_down(a, b, n):
    worst = win_rates(f"worst_of:{n}", a, b)
    np.testing.assert_allclose(worst, 1 - win_rates(f"best_of:{n}", -a, -b), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(rows, rows)
def test_best_of_one_is_standard_and_a_judge_who_agrees_changes_nothing(a, b):
    np.testing.assert_allclose(win_rates("best_of:1", a, b), win_rates("standard", a, b))
    np.testing.assert_allclose(
        judged_win_rates("best_of:3", a, b, a, b), win_rates("best_of:3", a, b), atol=1e-12
    )


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PROCEDURES), rows, rows)
def test_increasing_maps_change_nothing(text, a, b):
    np.testing.assert_allclose(
        win_rates(text, np.exp(a), np.exp(b)), win_rates(text, a, b), atol=1e-12
    )


def test_thousands_of_samples_and_hundreds_of_draws():
    rng = np.random.default_rng(0)
    found = win_rates("best_of:200", rng.random((4, 3000)) ** 0.5, rng.random((4, 3000)))
    # The maximum of 200 draws with CDF u^2 beats that of 200 with CDF u two times in three.
    assert found.mean() == pytest.approx(2 / 3, abs=0.1)


def test_unbiased_for_the_probability_it_estimates():
    rng = np.random.default_rng(1)
    policy, reference = rng.random((20_000, 6)) ** 0.5, rng.random((20_000, 6))
    rates = win_rates("best_of:3", policy, reference)
    assert rates.mean() == pytest.approx(2 / 3, abs=4 * rates.std() / 20_000**0.5)


@pytest.mark.parametrize(
    ("policy", "reference", "why"),
    [
        (np.zeros((1, 3)), np.zeros((1, 4)), "draws 4 responses but only 3"),
        (np.zeros((1, 4)), np.zeros((1, 3)), "draws 4 responses but only 3"),
        (np.full((1, 4), np.nan), np.zeros((1, 4)), "policy_rewards holds 4 NaN"),
        (np.zeros((2, 4)), np.zeros((1, 4)), "same prompts"),
        (np.zeros(4), np.zeros((1, 4)), "2 axes"),
    ],
)
def test_bad_input_is_one_sentence(policy, reference, why):
    with pytest.raises(ValueError, match=why):
        win_rates("best_of:4", policy, reference)


def test_a_judge_must_score_the_same_responses():
    four = np.zeros((1, 4))
    with pytest.raises(ValueError, match="policy_selection has shape"):
        judged_win_rates("best_of:2", four, four, np.zeros((1, 3)), four)


def test_the_interval_of_a_mean_is_that_of_a_plain_bootstrap():
    values = np.random.default_rng(0).normal(size=300)
    fast = bootstrap_interval(values, replicates=4000, seed=1)
    slow = bootstrap_interval(values, statistic=lambda v: v.mean(), replicates=4000, seed=2)
    half = 1.96 * values.std() / 300**0.5
    np.testing.assert_allclose(fast, [values.mean() - half, values.mean() + half], atol=0.01)
    np.testing.assert_allclose(fast, slow, atol=0.01)
    assert fast == bootstrap_interval(values, replicates=4000, seed=1)


def test_columns_of_a_prompt_are_drawn_together():
    values = np.random.default_rng(0).normal(size=(200, 1)) + np.array([0.0, 1.0])
    low, high = bootstrap_interval(values, replicates=200)
    np.testing.assert_allclose(high - low, (high - low)[0])
    np.testing.assert_allclose(low[1] - low[0], 1.0)
    gap = bootstrap_interval(values, statistic=lambda v: (v[:, 1] - v[:, 0]).mean())
    np.testing.assert_allclose(gap, 1.0)


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = bootstrap_interval(rng.normal(size=100), replicates=300, seed=trial, level=0.9)
        covered += low <= 0 <= high
    assert 0.84 < covered / 300 < 0.95


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"level": 1.0}, "level is 1"),
        ({"replicates": 0}, "replicates"),
        ({"values": [[[1.0]]]}, "must be"),
        ({"values": [np.nan]}, "values holds 1 NaN"),
    ],
)
def test_bad_bootstraps_are_one_sentence(options, why):
    with pytest.raises(ValueError, match=why):
        bootstrap_interval(**{"values": [1.0, 2.0], **options})


def test_efficiency_of_an_optimal_policy_is_one():
    rng = np.random.default_rng(0)
    kls = np.full(400, 0.5)
    wins = 0.8733 + rng.normal(0, 0.05, 400)
    value, low, high = efficiency(wins, kls, partial(limit, "best_of:4"), seed=3)
    assert low < 1 < high
    assert value == pytest.approx((wins.mean() - 0.5) / 0.37325, abs=1e-4)
    assert high - low < 0.04


def test_efficiency_resamples_win_rate_and_kl_together():
    rng = np.random.default_rng(0)
    kls = rng.gamma(4.0, 0.125, 400)
    wins = np.asarray(limit("best_of:4", kls))
    _, low, high = efficiency(wins, kls, partial(limit, "best_of:4"))
    shuffled = rng.permutation(kls)
    _, wide_low, wide_high = efficiency(wins, shuffled, partial(limit, "best_of:4"))
    assert high - low < 0.6 * (wide_high - wide_low)


def test_efficiency_at_no_kl_is_undefined_not_infinite():
    value, _, _ = efficiency([0.5, 0.6], [0.0, -1e-6], partial(limit, "standard"), replicates=5)
    assert np.isnan(value)


def test_two_estimates_of_the_kl_agree_and_the_exact_one_is_less_noisy():
    """Three tokens, each a Bernoulli of 0.7 under the policy and 0.5 under the reference."""
    rng = np.random.default_rng(0)
    drawn = rng.random((300, 8, 3)) < 0.7
    ratios = np.where(drawn, np.log(0.7 / 0.5), np.log(0.3 / 0.5)).sum(-1)
    exact = 3 * (0.7 * np.log(1.4) + 0.3 * np.log(0.6))
    found = kl_estimate(exact + 0 * ratios, ratios)
    assert found.exact == pytest.approx(exact)
    assert found.exact_error < 1e-12
    assert found.log_ratio == pytest.approx(exact, abs=4 * found.log_ratio_error)
    assert found.disagreement < 4
    assert kl_estimate(exact + 0 * ratios, ratios + 0.1).disagreement > 4


def test_at_step_zero_the_kl_is_exactly_zero():
    zeros = np.zeros((3, 4))
    found = kl_estimate(zeros, zeros)
    assert (found.exact, found.log_ratio, found.disagreement) == (0.0, 0.0, 0.0)
    assert kl_estimate(zeros, zeros + 0.5).disagreement == np.inf


@pytest.mark.parametrize("other", [np.zeros((3, 3)), np.full((3, 4), np.nan)])
def test_kls_of_different_responses_are_refused(other):
    with pytest.raises(ValueError, match="log_ratio"):
        kl_estimate(np.zeros((3, 4)), other)
    with pytest.raises(ValueError, match="at least 2 prompts"):
        kl_estimate(np.zeros((1, 4)), np.zeros((1, 4)))
