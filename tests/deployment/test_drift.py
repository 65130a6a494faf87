"""Drift: no alarm without it, an alarm with it, and the tests' level over many repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infalign.deployment.drift import reward_drift, win_rate_drift

SETTINGS: dict[str, Any] = {"level": 0.01, "replicates": 1000, "seed": 5}


def prompts(seed: int, n: int, samples: int, shift: float = 0.0) -> np.ndarray:
    """Rewards with a level of each prompt's own, as real ones have."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, 1)) + generator.normal(size=(n, samples)) + shift


def slow_distance(before: np.ndarray, now: np.ndarray) -> float:
    """Largest difference of two distribution functions, prompt by prompt, value by value."""
    values = np.concatenate([before.ravel(), now.ravel()])
    gaps = [
        abs(np.mean([np.mean(r <= v) for r in before]) - np.mean([np.mean(r <= v) for r in now]))
        for v in values
    ]
    return float(max(gaps))


def test_the_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    before, now = prompts(1, 7, 5), prompts(2, 9, 3, shift=0.5)
    found = reward_drift(before, now, threshold=0.2, **SETTINGS)
    assert found.size == pytest.approx(slow_distance(before, now))
    assert found.before == pytest.approx(before.mean())


def test_the_same_measured_twice_is_no_drift() -> None:
    rewards, wins = prompts(3, 40, 8), np.linspace(0, 1, 40)
    same = reward_drift(rewards, rewards[::-1], threshold=0.2, **SETTINGS)
    assert (same.size, same.p_value, same.alarm) == (0.0, 1.0, False)
    won = win_rate_drift(wins, wins[::-1], threshold=0.05, **SETTINGS)
    assert won.size == pytest.approx(0.0, abs=1e-12)
    assert won.p_value > 0.4
    assert not won.alarm


def test_drift_is_found() -> None:
    found = reward_drift(prompts(1, 60, 8), prompts(2, 60, 8, 1.5), threshold=0.2, **SETTINGS)
    assert found.alarm
    assert found.p_value == pytest.approx(1 / 1001)
    generator = np.random.default_rng(7)
    before, now = generator.beta(8, 2, 60), generator.beta(5, 5, 60)
    lost = win_rate_drift(before, now, threshold=0.05, **SETTINGS)
    assert lost.alarm
    assert lost.size == pytest.approx(before.mean() - now.mean())
    assert not win_rate_drift(now, before, threshold=0.05, **SETTINGS).alarm  # a gain is none


def test_a_large_change_of_few_prompts_or_a_small_sure_one_is_no_alarm() -> None:
    few = reward_drift(prompts(1, 3, 50), prompts(4, 3, 50, 0.8), threshold=0.05, **SETTINGS)
    assert few.size > 0.05
    assert not few.alarm
    small = reward_drift(prompts(1, 500, 8), prompts(2, 500, 8, 0.4), threshold=0.5, **SETTINGS)
    assert small.p_value <= 0.01
    assert not small.alarm


def test_false_alarms_are_as_rare_as_promised() -> None:
    alarms = 0
    for seed in range(200):
        before, now = prompts(2 * seed, 24, 4), prompts(2 * seed + 1, 16, 4)
        found = reward_drift(before, now, threshold=0.001, level=0.1, replicates=199, seed=seed)
        alarms += found.alarm
    assert 6 <= alarms <= 36  # binomial(200, 0.1): five in a thousand outside


@pytest.mark.parametrize("bad", [[[1.0, np.nan], [1.0, 2.0]], [[1.0, 2.0]], [1.0, 2.0]])
def test_what_cannot_be_compared_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="finite numbers of at least two prompts"):
        reward_drift(bad, prompts(1, 4, 2), threshold=0.2, **SETTINGS)
