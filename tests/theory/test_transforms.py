"""Transformations: spelling, values, posterior means, monotone tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta as beta_law
from scipy.stats import binom

from infalign.theory import frontier_point, parse_procedure, parse_transform, solve_beta
from infalign.theory.optimum import optimum
from infalign.theory.transforms import FAMILY, Transform, best_of_family, optimal, table

SPELLINGS = ["identity", "log", "exp:10", "exp:-10", "exp:0.5", "table:0,0.25,1"]


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_spelling_reads_back_as_itself(text):
    transform = parse_transform(text)
    assert str(transform) == text
    assert parse_transform(str(transform)) == transform


def test_other_spellings_are_made_canonical():
    assert str(parse_transform(" exp:10.0 ")) == "exp:10"
    assert str(parse_transform("table:0.0,1.0")) == "table:0,1"
    assert str(parse_transform("exp:1.23456789")) == "exp:1.23456789"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raw", "that word is unknown"),
        ("exp", "that word is unknown"),
        ("exp:", "could not convert"),
        ("exp:0", "the exponent is 0"),
        ("exp:nan", "the exponent is nan"),
        ("exp:-101", "the exponent is -101"),
        ("table:1", "two or more finite values"),
        ("table:0,inf", "two or more finite values"),
        ("table:0,1,0.5", "fall from 1 to 0.5 at position 2"),
        ("table:1,1", "never rise"),
        ("table:-1e308,1e308", "rise by too little or too much"),
        ("table:0,1e-200", "rise by too little or too much"),
        ("table:" + ",".join(str(v) for v in range(99, 0, -1)), r"\.\.\.'"),
    ],
)
def test_a_bad_spelling_shows_the_grammar_in_one_sentence(text, why):
    with pytest.raises(ValueError, match="write identity, log, exp:T") as caught:
        parse_transform(text)
    with pytest.raises(ValueError, match=why):
        parse_transform(text)
    assert "\n" not in str(caught.value)


def test_a_table_has_one_axis():
    with pytest.raises(ValueError, match="two or more finite values"):
        table([[0.0, 1.0]])


@pytest.mark.parametrize("text", ["optimal", "auto"])
def test_what_depends_on_procedure_and_kl_asks_for_them(text):
    with pytest.raises(ValueError, match="depends on the procedure and the KL budget"):
        parse_transform(text)
    with pytest.raises(ValueError, match="depends on the procedure and the KL budget"):
        parse_transform(text, parse_procedure("best_of:4"))


def test_values_by_hand():
    u = np.array([0.0, 0.25, 0.5, 1.0])
    assert parse_transform("identity")(u).tolist() == u.tolist()
    assert parse_transform("log")(u).tolist() == [-math.inf, math.log(0.25), math.log(0.5), 0.0]
    np.testing.assert_allclose(parse_transform("exp:2")(u), np.exp(2 * u))
    np.testing.assert_allclose(parse_transform("exp:-2")(u), -np.exp(-2 * u))
    np.testing.assert_allclose(parse_transform("table:0,1,4")(u), [0.0, 0.5, 1.0, 4.0])
    assert parse_transform("identity")(0.5).shape == ()


@pytest.mark.parametrize("text", SPELLINGS)
def test_the_regret_is_what_is_missing_to_the_top(text):
    transform = parse_transform(text)
    u = np.linspace(0.001, 0.999, 57)
    np.testing.assert_allclose(
        np.exp(transform.log_regret(u, 1 - u)), transform(1.0) - transform(u), rtol=1e-9
    )


@pytest.mark.parametrize("text", SPELLINGS)
@pytest.mark.parametrize(("below", "k"), [(0, 8), (3, 8), (3.5, 8), (8, 8), (1, 1)])
def test_the_posterior_mean_is_an_integral_over_beta(text, below, k):
    transform = parse_transform(text)
    law = beta_law(below + 1, k - below + 1)
    slow, _ = quad(lambda c: float(transform(c)) * law.pdf(c), 0, 1, points=[0.5])
    assert transform.posterior_mean(below, k) == pytest.approx(slow, rel=1e-7)


def test_the_posterior_mean_of_the_optimal_one():
    transform = optimal(parse_procedure("best_of:4"), 0.5)
    draws = np.random.default_rng(0).beta(29, 5, 400_000)
    values = transform(draws)
    error = values.std() / 400_000**0.5
    assert transform.posterior_mean([28], 32)[0] == pytest.approx(values.mean(), abs=4 * error)


@pytest.mark.parametrize("estimate", [Transform.posterior_mean, Transform.least_biased])
@pytest.mark.parametrize("text", ["log", "identity", "exp:10", "exp:-10", "table:0,1,4"])
def test_estimates_keep_the_shape_of_the_counts_and_rise_with_them(text, estimate):
    counts = np.array([[0, 1.5], [2, 4]])
    found = estimate(parse_transform(text), counts, 4)
    assert found.shape == (2, 2)
    assert np.isfinite(found).all()
    assert (np.diff(found.ravel()) > 0).all()


@pytest.mark.parametrize(
    ("text", "k"), [("identity", 1), ("exp:10", 31), ("exp:-10", 32), ("exp:100", 500)]
)
def test_the_mean_of_the_unbiased_estimate_is_the_transformation(text, k):
    transform = parse_transform(text)
    u = np.linspace(0, 1, 21)
    counts = np.arange(k + 1)
    mean = binom.pmf(counts, k, u[:, None]) @ transform.least_biased(counts, k)
    assert mean == pytest.approx(transform(u), rel=2e-3 if k < 40 else 1e-9)


def test_few_references_show_a_polynomial():
    """Two references: the Taylor series of exp(10 u) up to the square."""
    found = parse_transform("exp:10").least_biased([0, 0.5, 1, 2], 2)
    assert found == pytest.approx([1, 3.5, 6, 61])


def test_what_has_no_unbiased_estimate_has_the_plug_in_where_that_is_finite():
    transform, steps = parse_transform("log"), parse_transform("table:0,0.25,1")
    assert transform.least_biased([0, 3], 8) == pytest.approx(transform.posterior_mean([0, 3], 8))
    assert steps.least_biased([0, 3], 8) == pytest.approx(steps([0, 3 / 8]))


@pytest.mark.parametrize(("below", "k"), [([-1], 4), ([5], 4), ([np.nan], 4), ([0], 0)])
@pytest.mark.parametrize("estimate", [Transform.posterior_mean, Transform.least_biased])
def test_impossible_counts_are_refused(below, k, estimate):
    with pytest.raises(ValueError, match="n_reference"):
        estimate(parse_transform("exp:10"), below, k)


@pytest.mark.parametrize("text", ["best_of:4", "worst_of:4", "best_of:32", "rank:3/8"])
@pytest.mark.parametrize("kl", [0.1, 1.0])
def test_the_optimal_table_gives_the_optimal_density_back(text, kl):
    procedure = parse_procedure(text)
    transform = parse_transform("optimal", procedure, kl)
    solved = optimum(procedure, kl)
    assert str(transform) == "optimal"
    values = transform(np.linspace(0, 1, 1001))
    assert np.isfinite(values).all()
    assert (np.diff(values) >= 0).all()
    assert solve_beta(transform, kl) == pytest.approx(solved.tilted.beta, rel=2e-3)
    reached = frontier_point(procedure, transform, kl).win_rate
    assert reached == pytest.approx(solved.win_rate, abs=1e-7)


def test_standard_sampling_wants_the_identity():
    transform = parse_transform("optimal", parse_procedure("standard"), 0.5)
    u = np.linspace(0, 1, 50)
    np.testing.assert_allclose(transform(u), u - 1, atol=1e-12)


def test_an_optimal_phi_below_every_float_is_refused():
    with pytest.raises(ValueError, match="below every float"):
        optimal(parse_procedure("worst_of:256"), 5.0)


@pytest.mark.parametrize("text", ["best_of:4", "worst_of:4", "standard"])
def test_auto_is_the_best_of_the_family(text):
    procedure = parse_procedure(text)
    chosen = parse_transform("auto", procedure, 0.5)
    reached = {name: frontier_point(procedure, name, 0.5).win_rate for name in FAMILY}
    assert str(chosen) == max(reached, key=reached.get)
    assert best_of_family(procedure, 0.5) == chosen


def test_a_flat_top_bounds_the_kl():
    transform = parse_transform("table:0,0.5,1,1,1")
    assert transform.reachable_kl_nats == pytest.approx(math.log(2))
    assert frontier_point("best_of:4", transform, 0.69).kl == 0.69
    with pytest.raises(ValueError, match=r"reachable range 1e-08 to 0\.6931 nats"):
        frontier_point("best_of:4", transform, 0.7)
