"""What is said of a policy near the reference, whose limit is near 1/2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infalign.measuring.contest import Contest, above_limit, scored
from infalign.theory.frontier import limit
from infalign.theory.levels import TiedLimit, solve_tied_limit
from infalign.theory.procedures import parse_procedure

BEST = parse_procedure("best_of:4")
CONTEST = Contest(BEST, (BEST,), {"ctrl": "exp:10"}, 0.5, 200, 0)


def row(
    win_rate: float, kl: float, noise: float = 0.05, tied: TiedLimit | None = None
) -> dict[str, Any]:
    """A policy's numbers; 48 prompts whose win rates differ by `noise`."""
    rng = np.random.default_rng(0)
    wins = rng.normal(0, noise, 48)
    wins += win_rate - wins.mean()
    return scored(wins, np.full(48, kl), BEST, CONTEST, tied)


def test_there_is_no_efficiency_where_chance_moves_a_win_rate_further_than_any_policy() -> None:
    assert limit(BEST, 1e-5) - 0.5 < 0.01
    found = row(0.505, 1e-5)
    assert (found["efficiency"], found["efficiency_low"], found["efficiency_high"]) == (None,) * 3
    found = row(0.8, 0.5)
    assert found["efficiency"] == pytest.approx(0.3 / (limit(BEST, 0.5) - 0.5))


def test_above_the_limit_is_above_it_without_an_efficiency_too() -> None:
    assert not above_limit(row(0.505, 1e-5) | {"judge": "selecting"})
    assert above_limit(row(0.6, 1e-5) | {"judge": "selecting"})
    assert above_limit(row(0.95, 0.1) | {"judge": "selecting"})
    assert not above_limit(row(0.8, 0.5) | {"judge": "selecting"})


def passes(certain: float) -> np.ndarray:
    """The rewards of a rule that a sixth of responses pass, but of some prompts none that is shown.

    Args:
        certain: share of the prompts of which some is shown.
    """
    rewards = np.zeros((48, 12))
    rewards[: round(48 * certain), :2] = 1.0
    return rewards


def test_of_few_levels_the_limit_is_the_bound_still_and_the_figure_with_ties_an_estimate() -> None:
    tied = solve_tied_limit(BEST, passes(1.0))
    found = row(0.6, 0.5, tied=tied)
    assert found["limit"] == pytest.approx(limit(BEST, 0.5))
    assert found["tied_limit"] == float(tied(0.5)) < found["limit"]
    assert found["efficiency"] == pytest.approx(0.1 / (found["tied_limit"] - 0.5))
    assert not above_limit(found | {"judge": "selecting"})


def test_a_policy_that_knows_levels_which_the_samples_do_not_show_is_no_bug() -> None:
    """The estimate is too low for it: then there is no efficiency, rather than one above 1."""
    tied = solve_tied_limit(BEST, passes(1.0))
    beyond = row(float(tied(0.5)) + 0.05, 0.5, tied=tied)
    assert beyond["low"] > beyond["tied_limit"]
    assert beyond["efficiency"] is beyond["efficiency_low"] is beyond["efficiency_high"] is None
    assert not above_limit(beyond | {"judge": "selecting"})
    assert above_limit(row(0.95, 0.1, tied=tied) | {"judge": "selecting"})
    many = solve_tied_limit(BEST, passes(0.6))
    assert many.alike == pytest.approx(0.4, abs=0.01)
    assert row(0.55, 0.5, tied=many)["efficiency"] is None
