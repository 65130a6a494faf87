"""Rewards of few levels: what can be won and spent, against a search over all policies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from infalign.theory.frontier import limit
from infalign.theory.levels import (
    alike_share,
    has_few_levels,
    solve_tied_limit,
    spendable,
    tied_share,
)
from infalign.theory.limits import atom_win_rates, tied_limit
from infalign.theory.procedures import parse_procedure
from infalign.theory.transforms import parse_transform

NAMES = ["standard", "best_of:4", "worst_of:4", "rank:2/3", "mix:standard@0.5+best_of:3@0.5"]


def rewards_with(*shares: float, samples: int = 20) -> np.ndarray:
    """One prompt's rewards 0, 1, …, of which each makes up its share."""
    counts = np.round(np.array(shares) * samples).astype(int)
    return np.repeat(np.arange(float(len(shares))), counts)[None]


def every_policy(shares: np.ndarray, procedure: str, steps: int) -> np.ndarray:
    """(KL, win rate) of every policy on the levels whose weights are multiples of 1 / steps."""
    whole = itertools.product(range(steps + 1), repeat=len(shares) - 1)
    weights = np.array([[*w, steps - sum(w)] for w in whole if sum(w) <= steps]) / steps
    spent = np.where(weights > 0, weights * np.log(np.maximum(weights, 1e-300) / shares), 0.0)
    held = np.tile(shares, (len(weights), 1))
    wins = atom_win_rates(parse_procedure(procedure), weights, held, ties="half")
    return np.stack([spent.sum(axis=1), wins], axis=1)


def best_at(points: np.ndarray, kl: float) -> float:
    """The best win rate at a mean KL, where prompts may have different ones of the policies."""
    points = points[np.argsort(points[:, 0], kind="stable")]
    points = points[points[:, 1] >= np.maximum.accumulate(points[:, 1])]  # none wins more for less
    below, above = points[points[:, 0] <= kl], points[points[:, 0] > kl]
    if not len(above):
        return float(below[:, 1].max())
    share = (kl - below[:, None, 0]) / (above[None, :, 0] - below[:, None, 0])
    mixed = below[:, None, 1] + share * (above[None, :, 1] - below[:, None, 1])
    return float(max(mixed.max(), below[:, 1].max()))


def test_what_ties() -> None:
    assert tied_share(np.array([[1.0, 2.0, 1.0, 3.0]])) == 0.5
    rng = np.random.default_rng(0)
    assert not has_few_levels(rng.normal(size=(8, 16)))
    assert has_few_levels(rng.integers(0, 3, size=(8, 16)).astype(float))
    assert alike_share(np.array([[1.0, 1.0], [1.0, 2.0], [0.0, 0.0], [2.0, 3.0]])) == 0.5


def test_the_best_level_and_nothing_else() -> None:
    rewards = np.array([[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    assert spendable(rewards) == pytest.approx(2 * np.log(4) / 3)


def test_one_level_alone_gives_nothing_to_win() -> None:
    found = solve_tied_limit(parse_procedure("best_of:4"), np.ones((4, 8)))
    assert found(np.array([0.0, 0.5, 3.0])).tolist() == [0.5] * 3
    assert found.alike == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_of_three_levels_no_policy_is_better_and_one_is_as_good(name: str) -> None:
    shares = np.array([0.5, 0.3, 0.2])
    found = solve_tied_limit(parse_procedure(name), rewards_with(*shares))
    policies = every_policy(shares, name, 200)
    for kl in (0.02, 0.2, 0.6, 1.2):
        best = best_at(policies, kl)
        assert float(found(kl)) == pytest.approx(best, abs=1e-3)
        assert best < float(limit(name, kl))


@pytest.mark.parametrize("name", NAMES[:3])
def test_the_kl_goes_to_the_prompts_where_it_wins_most(name: str) -> None:
    """Two prompts share a KL: no split of it among them does better."""
    both = np.array([[0.5, 0.5], [0.9, 0.1]])
    rewards = np.vstack([rewards_with(*shares) for shares in both])
    found = solve_tied_limit(parse_procedure(name), rewards)
    first, second = (every_policy(shares, name, 200) for shares in both)
    means = ((first[:, None] + second[None]) / 2).reshape(-1, 2)
    for kl in (0.05, 0.4, 1.0):
        best = best_at(means, kl)
        assert float(found(kl)) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("name", ["best_of:4", "worst_of:4"])
def test_no_transformation_of_the_calibrated_reward_is_better(name: str) -> None:
    """That of continuous rewards is not the best here either."""
    rewards = np.random.default_rng(3).integers(0, 4, size=(40, 24)).astype(float)
    procedure, kl = parse_procedure(name), 0.3
    best = float(solve_tied_limit(procedure, rewards)(kl))
    for spelling in ("optimal", "identity", "log", "exp:3", "exp:-3"):
        phi = parse_transform(spelling, procedure, kl)
        found = tied_limit(procedure, phi, rewards, kl, ties="half").win_rate
        assert found < best + 5e-4
    assert best < float(limit(procedure, kl)) - 0.02
