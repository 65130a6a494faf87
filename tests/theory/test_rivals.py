"""Head to head: every pair of disjoint sets against plain loops; no bias under common draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from infalign.theory.procedures import parse_procedure
from infalign.theory.rivals import head_to_head, kept_mean


def slow(procedures, selections, judged):
    """The mean over all disjoint sets, one pair after another."""
    first, second = map(parse_procedure, procedures)
    m = len(selections[0])
    total, ways = 0.0, 0
    for ours in itertools.combinations(range(m), first.n):
        rest = [i for i in range(m) if i not in ours]
        for theirs in itertools.combinations(rest, second.n):
            ways += 1
            mine = sorted(ours, key=lambda i: (selections[0][i], i))
            other = sorted(theirs, key=lambda i: (selections[1][i], i))
            for i, a in zip(mine, first.weights, strict=True):
                for j, b in zip(other, second.weights, strict=True):
                    gap = judged[0][i] - judged[1][j]
                    total += a * b * ((gap > 0) + 0.5 * (gap == 0))
    return total / ways


@pytest.mark.parametrize(
    "procedures",
    [
        ("standard", "standard"),
        ("best_of:2", "best_of:2"),
        ("best_of:3", "best_of:4"),
        ("best_of:4", "standard"),
        ("worst_of:3", "best_of:2"),
        ("rank:2/3", "worst_of:2"),
        ("ranks:0.5,0,0.5", "ranks:0.2,0.8"),
    ],
)
def test_every_pair_of_disjoint_sets_is_counted(procedures):
    rng = np.random.default_rng(1)
    selections = rng.integers(0, 4, (2, 5, 7)).astype(float)  # ties
    judged = rng.integers(0, 5, (2, 5, 7)).astype(float)
    found = head_to_head(procedures, tuple(selections), tuple(judged))
    for prompt in range(5):
        wanted = slow(procedures, selections[:, prompt], judged[:, prompt])
        assert found[prompt] == pytest.approx(wanted, abs=1e-12)


def test_mixtures_meet_as_they_are_deployed():
    rng = np.random.default_rng(2)
    pair = (rng.normal(size=(3, 6)), rng.normal(size=(3, 6)))
    mixed = "mix:standard@0.25+best_of:2@0.75"

    def meet(first, second):
        return head_to_head((first, second), pair, pair)

    one, two = meet("standard", "standard"), meet("best_of:2", "best_of:2")
    np.testing.assert_allclose(meet(mixed, mixed), 0.25 * one + 0.75 * two, atol=1e-12)
    apart = 0.25 * meet("standard", "best_of:2") + 0.75 * two
    np.testing.assert_allclose(meet(mixed, "best_of:2"), apart, atol=1e-12)


@pytest.mark.parametrize("procedure", ["best_of:4", "worst_of:4"])
def test_common_random_numbers_leave_no_bias(procedure):
    """Sample k of both is nearly the same response: all pairs of sets would be drawn to one half.

    The judge's gain is so small that most pairs of equal number tie; the truth is taken from
    samples that share nothing.
    """
    rng = np.random.default_rng(3)
    base = rng.normal(size=(20_000, 10))
    changed = rng.random(base.shape) < 0.2
    ours = np.where(changed, rng.normal(0.8, 1, base.shape), base)
    common = head_to_head((procedure,) * 2, (ours, base), (ours, base))
    fresh = rng.normal(size=base.shape)
    apart = head_to_head((procedure,) * 2, (ours, fresh), (ours, fresh))
    error = np.hypot(common.std(), apart.std()) / len(base) ** 0.5
    assert abs(common.mean() - apart.mean()) < 4 * error
    assert apart.mean() > 0.5 + 10 * error


def test_a_system_ties_with_itself_and_the_sides_add_up_to_one():
    rng = np.random.default_rng(4)
    ours, theirs = rng.normal(size=(2, 9, 12))
    judged = rng.normal(size=(2, 9, 12))
    same = head_to_head(("best_of:4", "best_of:4"), (ours, ours), (judged[0], judged[0]))
    np.testing.assert_allclose(same, 0.5, atol=1e-12)
    there = head_to_head(("best_of:2", "best_of:4"), (ours, theirs), tuple(judged))
    back = head_to_head(("best_of:4", "best_of:2"), (theirs, ours), tuple(judged[::-1]))
    np.testing.assert_allclose(there + back, 1.0, atol=1e-12)


def test_too_few_samples_and_other_shapes_are_one_sentence():
    values = np.zeros((3, 6))
    with pytest.raises(ValueError, match="draw at least 8"):
        head_to_head(("best_of:4", "best_of:4"), (values, values), (values, values))
    with pytest.raises(ValueError, match="draw as many for both"):
        head_to_head(("standard", "standard"), (values, values), (values, values[:, :5]))


def test_the_mean_of_what_is_kept_is_over_all_sets():
    rng = np.random.default_rng(6)
    selection, values = rng.normal(size=(2, 4, 6))
    found = kept_mean("best_of:3", selection, values)
    for prompt in range(4):
        sets = itertools.combinations(range(6), 3)
        kept = [values[prompt, max(chosen, key=lambda i: selection[prompt, i])] for chosen in sets]
        assert found[prompt] == pytest.approx(np.mean(kept), abs=1e-12)
    with pytest.raises(ValueError, match="score the same responses"):
        kept_mean("standard", selection, values[:, :5])
