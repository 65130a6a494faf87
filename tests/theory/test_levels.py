"""Rewards of few levels: what can be won and spent, against a search over all policies."""

from __future__ import annotations

import numpy as np
import pytest

from infalign.theory.frontier import limit
from infalign.theory.levels import has_few_levels, limit_of, spendable, tied_share
from infalign.theory.limits import atom_win_rates
from infalign.theory.procedures import parse_procedure


def test_what_ties() -> None:
    assert tied_share(np.array([[1.0, 2.0, 1.0, 3.0]])) == 0.5
    rng = np.random.default_rng(0)
    assert not has_few_levels(rng.normal(size=(8, 16)))
    assert has_few_levels(rng.integers(0, 3, size=(8, 16)).astype(float))


def test_continuous_rewards_have_the_limit_of_the_theory() -> None:
    rewards = np.random.default_rng(1).normal(size=(8, 16))
    best = parse_procedure("best_of:4")
    assert limit_of(best, rewards)(0.3) == limit(best, 0.3)


def test_one_level_alone_gives_nothing_to_win() -> None:
    bound = limit_of(parse_procedure("best_of:4"), np.ones((4, 8)))
    assert bound(np.array([0.0, 0.5, 3.0])).tolist() == [0.5] * 3


@pytest.mark.parametrize("name", ["standard", "best_of:4", "worst_of:4"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_of_two_levels_the_limit_is_the_only_policy_there_is(name: str, share: float) -> None:
    """With two levels and a KL, one weight of the better level is left: found here by bisection."""
    n = 16
    rewards = np.tile(np.r_[np.ones(int(share * n)), np.zeros(n - int(share * n))], (3, 1))
    procedure = parse_procedure(name)
    bound = limit_of(procedure, rewards)
    most = spendable(rewards)
    assert most == pytest.approx(-np.log(share))
    for kl in (0.1, 0.5 * most):
        low, high = share, 1.0
        for _ in range(60):
            p = (low + high) / 2
            spent = p * np.log(p / share) + (1 - p) * np.log((1 - p) / (1 - share))
            low, high = (low, p) if spent > kl else (p, high)
        weights, shares = np.array([[1 - p, p]]), np.array([[1 - share, share]])
        [wins] = atom_win_rates(procedure, weights, shares, ties="half")
        assert float(bound(kl)) == pytest.approx(wins, abs=2e-3)
        assert float(bound(kl)) < float(limit(procedure, kl))
    assert float(bound(5.0)) == pytest.approx(float(bound(most)))
