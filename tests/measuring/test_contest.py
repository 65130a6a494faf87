"""What is said of a policy near the reference, whose limit is near 1/2."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from infalign.measuring.contest import Contest, above_limit, scored
from infalign.theory.frontier import limit
from infalign.theory.procedures import parse_procedure

BEST = parse_procedure("best_of:4")
CONTEST = Contest(BEST, (BEST,), {"ctrl": "exp:10"}, 0.5, 200, 0)


def row(win_rate: float, kl: float, noise: float = 0.05) -> dict[str, float | None]:
    """A policy's numbers; 48 prompts whose win rates differ by `noise`."""
    rng = np.random.default_rng(0)
    wins = rng.normal(0, noise, 48)
    wins += win_rate - wins.mean()
    return scored(wins, np.full(48, kl), partial(limit, BEST), CONTEST)


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
