"""Drift: no alarm without it, an alarm with it, and the tests' level over many repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infalign.deployment.drift import (
    NEIGHBOURS,
    USUAL,
    Drift,
    hidden_drift,
    novel_drift,
    reward_drift,
    win_rate_drift,
)
from infalign.theory.looks import look_level

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


def slow_energy(before: np.ndarray, now: np.ndarray) -> float:
    """Energy distance over twice the mean distance between the groups, pair by pair."""

    def mean(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.mean([np.linalg.norm(a - b) for a in first for b in second]))

    between = mean(before, now)
    return (2 * between - mean(before, before) - mean(now, now)) / (2 * between)


def test_hidden_means_are_compared_by_their_energy_distance() -> None:
    generator = np.random.default_rng(1)
    before, now = generator.normal(size=(30, 6)), generator.normal(size=(20, 6))
    same = hidden_drift(before, now, threshold=0.0, **SETTINGS)
    assert same.size == pytest.approx(slow_energy(before, now))
    assert same.p_value > 0.05
    spread = hidden_drift(before, 3 * now, threshold=0.05, **SETTINGS)  # means alike, not the law
    assert spread.alarm
    assert spread.now > spread.before


def test_lengths_are_compared_as_rewards_are() -> None:
    before, now = np.array([3, 4, 4, 5, 6, 7, 8, 9] * 4)[:, None], np.full((24, 1), 12)
    found = reward_drift(before, now, threshold=0.2, **SETTINGS)
    assert (found.size, found.alarm) == (1.0, True)
    assert (found.before, found.now) == (5.75, 12)
    assert not reward_drift(before, before[:16], threshold=0.2, **SETTINGS).alarm


def test_a_prompt_is_novel_that_is_far_from_its_neighbours_in_training() -> None:
    generator = np.random.default_rng(2)

    def near(place: int, many: int) -> np.ndarray:
        return generator.normal(size=(many, 12)) * 0.1 + 3.0 * np.eye(12)[place]

    trained, before = near(0, 200), near(0, 60)
    now = np.concatenate([near(0, 30), 5.0 * near(1, 30)])
    found = novel_drift(trained, before, now, threshold=0.1, level=1e-5)
    assert found.alarm
    assert found.now == pytest.approx(0.5, abs=0.1)
    assert found.before == pytest.approx(1 - USUAL, abs=0.08)
    longer = novel_drift(trained, before, 7.0 * near(0, 60), threshold=0.1, level=1e-5)
    assert not longer.alarm  # the direction is what counts
    few = novel_drift(trained[: NEIGHBOURS + 1], before, before, threshold=0.1, level=0.5)
    assert (few.size, few.alarm) == (0.0, False)


def test_permutations_end_early_where_chance_explains_it_and_the_p_value_holds() -> None:
    settings = {"threshold": 0.0, "level": 0.05, "replicates": 100_000}
    found = [
        win_rate_drift(*np.random.default_rng(seed).random((2, 20)), **settings, seed=seed)
        for seed in range(200)
    ]
    below = np.mean([drift.p_value <= 0.05 for drift in found])
    assert below <= 0.1  # binomial(200, 0.05): two in a thousand above
    middle = np.mean([drift.p_value <= 0.5 for drift in found])
    assert 0.38 <= middle <= 0.62


def look(world: np.random.Generator, old: dict[str, np.ndarray], level: float) -> list[Drift]:
    """One look: all six tests of fresh draws against one evaluation, thresholds so low as to miss
    nothing."""
    new = quiet(world, len(old["wins"]))
    common: dict[str, Any] = {
        "threshold": -1.0,
        "level": level,
        "replicates": round(3 / level),
        "seed": int(world.integers(2**31)),
    }
    short = {"threshold": -1.0, "level": level}
    return [
        win_rate_drift(old["wins"], new["wins"], **common),
        reward_drift(old["rewards"], new["rewards"], **common),
        reward_drift(-old["rewards"], -new["rewards"], **common),
        reward_drift(old["lengths"], new["lengths"], **common),
        hidden_drift(old["hidden"], new["hidden"], **common),
        novel_drift(old["trained"], old["hidden"], new["hidden"], **short),
    ]


def quiet(world: np.random.Generator, many: int) -> dict[str, np.ndarray]:
    """Prompts of a world that does not change; what is measured of one prompt goes together."""
    level = world.normal(size=(many, 1))
    return {
        "wins": 1 / (1 + np.exp(-2 - 2 * level[:, 0])),
        "rewards": level + world.normal(size=(many, 4)),
        "lengths": np.round(10 + 4 * level),
        "hidden": level + world.normal(size=(many, 4)),
        "trained": world.normal(size=(40, 1)) + world.normal(size=(40, 4)),
    }


def alarmed(seed: int, looks: int, p_value: float, prompts: int) -> bool:
    """Whether anything is ever alarmed in so many looks at a world that does not change."""
    world = np.random.default_rng(seed)
    old, level = quiet(world, prompts), look_level(p_value, looks) / 6
    return any(d.alarm for _ in range(looks) for d in look(world, old, level))


def test_looking_every_day_raises_no_more_false_alarms_than_stated() -> None:
    years = sum(alarmed(seed, looks=10, p_value=0.4, prompts=14) for seed in range(30))
    assert years <= 19  # binomial(30, 0.4): one in a hundred above


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_false_alarms_of_365_looks_with_the_default_settings() -> None:
    years = [alarmed(seed, looks=365, p_value=0.05, prompts=64) for seed in range(20)]
    assert sum(years) <= 4  # binomial(20, 0.05): three in a thousand above
