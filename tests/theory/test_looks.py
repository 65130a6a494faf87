"""A bound for many looks: against numbers by hand, and against chance."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.years import SPREADS, simulate, tilted
from infalign.settings.operating import Promotion
from infalign.theory.looks import BETS, log_evidence, look_level, lower_bound


def test_the_capital_is_the_mean_over_the_bets_of_a_product():
    values = np.array([0.2, 0.9, 1.0, 0.4])
    capital = np.mean([np.prod(1 + bet * (values / 0.49 - 1)) for bet in BETS])
    assert log_evidence(values, 0.49) == pytest.approx(np.log(capital), abs=1e-12)
    assert log_evidence(values[::-1], 0.49) == pytest.approx(np.log(capital), abs=1e-12)


def test_the_expected_capital_is_one_where_the_mean_is_what_is_bet_against():
    coins = np.array(np.meshgrid(*[[0.0, 1.0]] * 8)).reshape(8, -1).T  # every outcome
    chances = np.prod(np.where(coins == 1, 0.3, 0.7), axis=1)
    assert np.sum(chances * np.exp(log_evidence(coins, 0.3))) == pytest.approx(1.0, abs=1e-12)


def test_the_bound_is_where_the_capital_reaches_what_the_level_asks():
    values = np.random.default_rng(0).beta(6, 4, 200)
    bound = lower_bound(values, 1e-4)
    assert 0.5 < bound < values.mean()
    assert log_evidence(values, bound) == pytest.approx(-np.log(1e-4), abs=1e-6)
    assert lower_bound(values, 1e-2) > bound
    assert lower_bound(values[:3], 1e-6) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("shape", [(0.4, 0.6), (9.0, 13.5), (0.02, 0.03)])
def test_the_bound_is_too_high_as_seldom_as_it_says(shape):
    rng, level = np.random.default_rng(5), 0.05
    mean = shape[0] / sum(shape)
    over = log_evidence(rng.beta(*shape, (4000, 30)), mean) > -np.log(level)
    assert over.mean() <= level


def test_looks_share_the_level():
    assert look_level(0.05, 365) == pytest.approx(0.05 / 365)
    with pytest.raises(ValueError, match="between 0 and 1"):
        look_level(1.0, 3)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        lower_bound([0.2, 1.2], 0.05)


@pytest.mark.soak
@pytest.mark.parametrize("procedure", list(SPREADS))
def test_simulated_years_are_as_promotion_looks_says(procedure):
    """256 prompts a night, spread as in a real run: see docs/production.md."""
    bounds, years = Promotion(), 60
    worse = {
        gap: simulate(SPREADS[procedure], gap, bounds, years, seed=1)
        for gap in (-bounds.champion_margin, -0.02)
    }
    assert worse[-bounds.champion_margin].ever <= bounds.looks_level
    assert worse[-0.02].ever <= worse[-bounds.champion_margin].ever
    better = simulate(SPREADS[procedure], 0.03, bounds, years, seed=1)
    assert better.soon >= 0.8


def test_a_tilted_spread_has_the_mean_that_is_asked_for():
    for spread in SPREADS.values():
        values = np.asarray(spread)
        for mean in (0.48, 0.53):
            weights = tilted(values, mean)
            assert weights.sum() == pytest.approx(1.0)
            assert weights @ values == pytest.approx(mean, abs=1e-9)
