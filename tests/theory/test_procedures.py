"""Procedures: spelling, the polynomial G, and selection among samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from theory_oracles import selection_by_enumeration

from infalign.theory.procedures import best_of, mixture, parse_procedure, ranked, worst_of

SPELLINGS = [
    "standard",
    "best_of:4",
    "worst_of:4",
    "rank:3/8",
    "ranks:0.25,0,0.75",
    "mix:best_of:1@0.5+best_of:8@0.5",
    "mix:ranks:0.5,0.5@0.25+worst_of:3@0.75",
    "best_of:256",
]


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_spelling_reads_back_as_itself(text):
    procedure = parse_procedure(text)
    assert str(procedure) == text
    assert parse_procedure(str(procedure)) == procedure
    assert parse_procedure(f"  {text} ") == procedure


def test_other_spellings_are_made_canonical():
    assert str(parse_procedure("best_of:04")) == "best_of:4"
    assert str(parse_procedure("ranks:.5,5e-1")) == "ranks:0.5,0.5"
    assert parse_procedure("mix:best_of:2@0+best_of:3@1").n == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("best_of", "not a whole number"),
        ("best_of:0", "N is 0"),
        ("worst_of:257", "N is 257"),
        ("best_of:2.5", "not a whole number"),
        ("best_of:-1", "not a whole number"),
        ("rank:9/8", "rank 9 is not one of 1 to 8"),
        ("rank:0/8", "rank 0"),
        ("rank:3", "not a whole number"),
        ("ranks:0.5,0.6", "add up to 1.1"),
        ("ranks:-0.5,1.5", "must be finite and not negative"),
        ("ranks:nan", "must be finite"),
        ("ranks:a", "could not convert"),
        ("ranks:1" + ",0" * 256, "257 ranks"),
        ("mix:best_of:2", "no @SHARE"),
        ("mix:best_of:2@0.5+best_of:3@0.4", "add up to 0.9"),
        ("mix:mix:best_of:2@1@1", "another mixture"),
        ("median", "that word is unknown"),
        ("", "that word is unknown"),
    ],
)
def test_a_bad_spelling_shows_the_grammar_in_one_sentence(text, why):
    with pytest.raises(ValueError, match="write standard, best_of:N") as caught:
        parse_procedure(text)
    message = str(caught.value)
    assert why in message
    assert "\n" not in message
    assert message.count("write standard") == 1


def test_g_of_best_and_worst_are_the_textbook_powers():
    u = np.linspace(0, 1, 101)
    for n in (1, 2, 7, 256):
        np.testing.assert_allclose(best_of(n).cdf(u), u**n, atol=1e-12)
        np.testing.assert_allclose(best_of(n).pdf(u), n * u ** (n - 1), rtol=1e-10)
        np.testing.assert_allclose(worst_of(n).cdf(u), 1 - (1 - u) ** n, atol=1e-12)
        np.testing.assert_allclose(worst_of(n).pdf(u), n * (1 - u) ** (n - 1), rtol=1e-9)


@pytest.mark.parametrize("text", SPELLINGS)
def test_g_runs_from_zero_to_one_and_the_density_is_its_slope(text):
    procedure = parse_procedure(text)
    u = np.linspace(0.02, 0.98, 97)
    step = 1e-6
    slope = (procedure.cdf(u + step) - procedure.cdf(u - step)) / (2 * step)
    np.testing.assert_allclose(procedure.pdf(u), slope, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(procedure.cdf([0.0, 1.0]), [0.0, 1.0], atol=1e-12)
    for _, part in procedure.parts:
        np.testing.assert_allclose(np.exp(part.log_pdf(u, 1 - u)), part.pdf(u), rtol=1e-9)


def test_log_density_survives_where_the_density_underflows():
    u = np.array([1 - 1e-10])
    value = worst_of(256).log_pdf(u, np.array([1e-10]))
    np.testing.assert_allclose(value, np.log(256) + 255 * np.log(1e-10), rtol=1e-12)


def test_the_largest_n_of_a_mixture_counts():
    assert parse_procedure("mix:best_of:1@0.5+best_of:8@0.5").n == 8
    assert mixture(((0.5, best_of(2)), (0.5, ranked(1, 3)))).n == 3


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["standard", "best_of:3", "worst_of:2", "rank:2/4", "ranks:0.2,0.3,0.5"])
    | st.just("mix:best_of:2@0.3+worst_of:3@0.7"),
    arrays(np.int64, st.integers(4, 6), elements=st.integers(0, 4)),
)
def test_selection_is_that_of_all_subsets_ties_shared(text, rewards):
    procedure = parse_procedure(text)
    weights = procedure.selection_weights(rewards.astype(float))
    np.testing.assert_allclose(weights, selection_by_enumeration(procedure, rewards), atol=1e-12)


def test_selection_works_on_any_leading_axes_and_large_samples():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(2, 3, 2000))
    weights = best_of(200).selection_weights(rewards)
    np.testing.assert_allclose(weights.sum(-1), 1.0)
    assert (weights.argmax(-1) == rewards.argmax(-1)).all()
    np.testing.assert_allclose(weights.max(-1), 200 / 2000)


def test_rank_weights_are_a_copy_that_callers_may_change():
    best_of(2).rank_weights(4)[:] = 0
    np.testing.assert_allclose(best_of(2).rank_weights(4), [0, 1 / 6, 2 / 6, 3 / 6])


def test_more_draws_than_samples_are_refused():
    with pytest.raises(ValueError, match="best_of:8 draws 8 responses but only 4 samples"):
        best_of(8).selection_weights(np.zeros((3, 4)))


def test_nan_rewards_are_refused():
    with pytest.raises(ValueError, match=r"rewards holds 1 NaN or infinite values.*\(0, 1\)"):
        best_of(2).selection_weights([[0.0, np.nan, 1.0]])
