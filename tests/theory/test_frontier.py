"""The continuous theory: golden numbers, closed forms, simulation, the optimum."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from theory_oracles import simulated_win_rate

from infalign.theory import frontier_point, limit, parse_procedure, parse_transform, solve_beta
from infalign.theory.optimum import TOLERANCE_NATS, optimum
from infalign.theory.quadrature import grid
from infalign.theory.tilting import tilt, win_rate
from infalign.theory.transforms import FAMILY

COLUMNS = ["identity", "log", "exp:5", "exp:10", "exp:-5", "exp:-10", "optimal"]
GOLDEN = """
best_of:1  0.5 0.7737 0.7682 0.7461 0.7117 0.7539 0.7358 0.7737
best_of:1  1.0 0.8646 0.8631 0.8390 0.8010 0.8567 0.8479 0.8646
best_of:2  0.5 0.7917 0.7682 0.8154 0.8031 0.7348 0.7041 0.8156
best_of:2  1.0 0.8733 0.8631 0.8964 0.8905 0.8436 0.8247 0.8969
best_of:4  0.5 0.7998 0.7682 0.8566 0.8715 0.7230 0.6859 0.8733
best_of:4  1.0 0.8770 0.8631 0.9192 0.9351 0.8352 0.8095 0.9411
best_of:8  0.5 0.8036 0.7682 0.8747 0.9037 0.7164 0.6766 0.9299
best_of:8  1.0 0.8787 0.8631 0.9268 0.9482 0.8304 0.8007 0.9760
worst_of:2 0.5 0.8403 0.8559 0.7529 0.6936 0.8587 0.8509 0.8603
worst_of:2 1.0 0.9368 0.9441 0.8585 0.7891 0.9482 0.9475 0.9486
worst_of:4 0.5 0.8860 0.9270 0.7465 0.6763 0.9439 0.9476 0.9479
worst_of:4 1.0 0.9745 0.9859 0.8572 0.7712 0.9912 0.9927 0.9929
worst_of:8 0.5 0.9116 0.9710 0.7397 0.6667 0.9871 0.9920 0.9929
worst_of:8 1.0 0.9884 0.9980 0.8520 0.7599 0.9996 0.9998 0.9999
"""
PROCEDURES = ["standard", "best_of:2", "best_of:4", "best_of:16", "worst_of:3", "worst_of:16"]
PROCEDURES += ["rank:3/8", "ranks:0.2,0.3,0.5", "mix:best_of:1@0.5+best_of:8@0.5"]


@pytest.mark.parametrize(
    "row", GOLDEN.strip().splitlines(), ids=lambda row: " ".join(row.split()[:2])
)
def test_golden_numbers(row):
    procedure, kl, *expected = row.split()
    for name, value in zip(COLUMNS, expected, strict=True):
        point = frontier_point(procedure, name, float(kl))
        assert point.win_rate == pytest.approx(float(value), abs=1e-4), name
        assert point.residual < 1e-8
        assert (point.procedure, point.transform, point.kl) == (procedure, name, float(kl))


def test_golden_numbers_at_best_of_16():
    found = [frontier_point("best_of:16", t, 0.5).win_rate for t in ("optimal", "exp:10")]
    np.testing.assert_allclose(found, [0.972, 0.915], atol=6e-4)


@pytest.mark.parametrize("beta", [0.1, 1 / 3, 1.0, 4.0])
def test_closed_form_of_log(beta):
    a = 1 + 1 / beta
    kl = math.log(a) - 1 + 1 / a
    assert solve_beta("log", kl) == pytest.approx(beta, rel=1e-7)
    for n in (1, 4, 64):
        reached = frontier_point(f"best_of:{n}", "log", kl).win_rate
        assert reached == pytest.approx(a / (a + 1), abs=1e-9)


def test_log_at_beta_one_third_is_the_best_of_four_distribution():
    assert frontier_point("standard", "log", 0.6362943611).win_rate == pytest.approx(0.8, abs=1e-9)


@pytest.mark.parametrize("t", [0.5, 4.0, 30.0])
def test_closed_form_of_identity_under_standard_sampling(t):
    w = 1 / (1 - math.exp(-t)) - 1 / t
    kl = t * w - math.log(math.expm1(t) / t)
    point = frontier_point("standard", "identity", kl)
    assert (point.win_rate, point.beta) == (pytest.approx(w, abs=1e-9), pytest.approx(1 / t))


def _random_cases():
    rng = np.random.default_rng(7)
    transforms = ["identity", "log", "exp:3", "exp:10", "exp:-4", "exp:-10", "table:0,0.1,1,3"]
    for case in range(20):
        procedure = PROCEDURES[case % len(PROCEDURES)]
        yield case, procedure, str(rng.choice(transforms)), float(rng.uniform(0.05, 2.5))


@pytest.mark.parametrize(("seed", "procedure", "transform", "kl"), list(_random_cases()))
def test_agrees_with_simulation(seed, procedure, transform, kl):
    mean, error = simulated_win_rate(
        parse_procedure(procedure), parse_transform(transform), kl, 10**6, seed
    )
    point = frontier_point(procedure, transform, kl)
    assert point.win_rate == pytest.approx(mean, abs=4 * error)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(PROCEDURES), st.sampled_from(FAMILY), st.floats(0.02, 3.0))
def test_the_optimum_is_never_below_the_family(procedure, transform, kl):
    best = frontier_point(procedure, "optimal", kl).win_rate
    assert best >= frontier_point(procedure, transform, kl).win_rate - 1e-9


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(PROCEDURES),
    st.sampled_from([0.05, 0.5, 2.0]),
    st.floats(0.5, 20.0),
    st.floats(0, 2 * math.pi),
    st.floats(1e-3, 0.5),
)
def test_no_perturbation_at_the_same_kl_improves_the_optimum(name, kl, waves, phase, size):
    procedure = parse_procedure(name)
    best = optimum(procedure, kl)
    cost = np.exp(best.log_regret + best.tilted.log_inverse_beta)
    moved = cost + size * np.sin(waves * best.grid.u + phase)
    with np.errstate(divide="ignore"):
        other = tilt(best.grid, np.log(moved - moved.min()), kl)
    assert other.kl == pytest.approx(kl, rel=1e-6)
    assert win_rate(procedure, best.grid, other) <= best.win_rate + 1e-9


@pytest.mark.parametrize("family", ["best_of", "worst_of"])
@pytest.mark.parametrize("n", [2, 8, 64, 256])
def test_the_solver_converges(family, n):
    reached = []
    for kl in (0.01, 0.1, 0.5, 1.0, 5.0):
        point = frontier_point(f"{family}:{n}", "optimal", kl)
        assert point.residual <= TOLERANCE_NATS
        assert 0.5 < point.win_rate <= 1
        reached.append(point.win_rate)
    assert (np.diff(reached) >= -1e-12).all()


def test_a_beta_below_every_float_is_zero():
    assert frontier_point("worst_of:256", "optimal", 5.0).beta == 0.0


def test_shorter_steps_take_over_where_the_fast_ones_fail(monkeypatch):
    import infalign.theory.optimum as module

    procedure = parse_procedure("best_of:9")
    exact = module.optimum(procedure, 0.77).win_rate
    module.optimum.cache_clear()
    module.optimum(procedure, 0.77 / 2)
    monkeypatch.setattr(module, "FAST", (1, 0.3, 2))
    monkeypatch.setattr(module, "CAREFUL", ((1, 0.3, 2), (5, 0.1, 250)))
    assert module.optimum(procedure, 0.77).win_rate == pytest.approx(exact, abs=1e-8)


def test_an_extrapolation_that_is_no_cdf_ends_the_attempt(monkeypatch):
    import infalign.theory.optimum as module

    monkeypatch.setattr(module, "_anderson", lambda history, _: np.zeros_like(history[-1][0]))
    with pytest.raises(ValueError, match="was not found"):
        module.optimum(parse_procedure("best_of:13"), 0.019)
    nodes = module.grid_for(parse_procedure("best_of:13"))
    nothing = np.zeros((2, *nodes.u.shape))
    assert not list(
        module._iterate(parse_procedure("best_of:13"), nodes, 0.5, nothing, module.FAST)
    )


def test_a_start_that_cannot_spend_the_kl_leaves_the_error_to_the_question_asked(monkeypatch):
    import infalign.theory.optimum as module

    monkeypatch.setattr(module, "_starts", lambda _, nodes, __: [np.zeros((2, *nodes.u.shape))])
    module.optimum.cache_clear()
    with pytest.raises(ValueError, match=r"best_of:13 at 0.66 nats was not found \(residual inf"):
        module.optimum(parse_procedure("best_of:13"), 0.66)
    module.optimum.cache_clear()


def test_a_phi_that_was_optimal_elsewhere_is_evaluated_as_it_is():
    phi = parse_transform("optimal", parse_procedure("best_of:4"), 0.5)
    assert frontier_point("best_of:4", phi, 0.5).win_rate == pytest.approx(0.87325, abs=1e-4)
    elsewhere = frontier_point("worst_of:4", phi, 0.5)
    assert elsewhere.win_rate < frontier_point("worst_of:4", "identity", 0.5).win_rate
    assert elsewhere.beta == pytest.approx(0.2166, abs=1e-4)


def test_what_is_not_solved_is_said(monkeypatch):
    import infalign.theory.optimum as module

    procedure = parse_procedure("best_of:11")
    module.optimum(procedure, 0.5)
    monkeypatch.setattr(module, "FAST", (1, 0.3, 2))
    monkeypatch.setattr(module, "CAREFUL", ((1, 0.3, 2),))
    for kl in (1.0, 0.019):  # with and without a second attempt
        with pytest.raises(ValueError, match=r"best_of:11 at .* nats was not found \(residual"):
            module.optimum(procedure, kl)


@pytest.mark.parametrize("name", ["best_of:4", "worst_of:4", "rank:3/8"])
def test_beta_is_the_slope_of_the_frontier(name):
    low, middle, high = (frontier_point(name, "optimal", kl) for kl in (0.499, 0.5, 0.501))
    assert middle.beta == pytest.approx((high.win_rate - low.win_rate) / 0.002, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(FAMILY), st.floats(0.05, 2.0), st.integers(1, 12))
def test_best_of_n_mirrors_worst_of_n(transform, kl, n):
    """W_worst[f(u)] = 1 - W_best[f(1 - u)]."""
    nodes = grid()
    phi = parse_transform(transform)
    tilted = tilt(nodes, phi.log_regret(nodes.u, nodes.v), kl)
    worst = frontier_point(f"worst_of:{n}", transform, kl).win_rate
    best = parse_procedure(f"best_of:{n}")
    mirrored = nodes.integrate((1 - best.cdf(tilted.survival)) * best.pdf(nodes.v))
    assert worst == pytest.approx(1 - mirrored, abs=1e-8)


def test_a_mixture_averages_its_members_at_the_same_density():
    mixed = frontier_point("mix:best_of:2@0.25+worst_of:3@0.75", "exp:2", 0.4).win_rate
    parts = [frontier_point(p, "exp:2", 0.4).win_rate for p in ("best_of:2", "worst_of:3")]
    assert mixed == pytest.approx(0.25 * parts[0] + 0.75 * parts[1], abs=1e-9)


@pytest.mark.parametrize("name", PROCEDURES)
def test_many_draws_leave_the_density_at_the_ends(name):
    assert frontier_point(name, "identity", 1e-6).win_rate == pytest.approx(0.5, abs=0.01)


def test_as_n_grows_the_density_at_one_decides():
    beta = 1.0 / 3.0
    a = 1 + 1 / beta
    kl = math.log(a) - 1 + 1 / a
    assert frontier_point("best_of:256", "log", kl).win_rate == pytest.approx(a / (1 + a))
    t = 2.0
    w = 1 / (1 - math.exp(-t)) - 1 / t
    kl = t * w - math.log(math.expm1(t) / t)
    at_one, at_zero = t / (1 - math.exp(-t)), t / math.expm1(t)
    best = frontier_point("best_of:256", "identity", kl).win_rate
    worst = frontier_point("worst_of:256", "identity", kl).win_rate
    assert best == pytest.approx(at_one / (1 + at_one), abs=3e-3)
    assert worst == pytest.approx(1 / (1 + at_zero), abs=3e-3)


@pytest.mark.parametrize("name", ["standard", "best_of:4", "worst_of:4", "best_of:16"])
def test_the_limit_is_the_optimal_frontier(name):
    rng = np.random.default_rng(0)
    kls = np.concatenate([10 ** rng.uniform(-6, 0.5, 8), rng.uniform(0.1, 3, 8)])
    exact = [frontier_point(name, "optimal", kl).win_rate for kl in kls]
    np.testing.assert_allclose(limit(name, kls), exact, atol=5e-6)


def test_the_limit_rises_is_concave_and_starts_at_one_half():
    kls = np.linspace(0, 30, 3001)
    values = limit("best_of:4", kls)
    assert values[0] == 0.5
    assert values.max() <= 1.0
    assert (np.diff(values) >= 0).all()
    assert (np.diff(values, 2) <= 1e-7).all()
    assert limit(parse_procedure("best_of:4"), 0.5) == pytest.approx(0.87325, abs=1e-5)


def test_the_limit_keeps_any_shape():
    assert limit("best_of:4", np.full((2, 3), 0.5)).shape == (2, 3)
    assert isinstance(limit("best_of:4", 0), float)


@pytest.mark.parametrize("kl", [-0.1, np.nan, np.inf])
def test_the_limit_of_no_kl_at_all_is_refused(kl):
    with pytest.raises(ValueError, match="at least 0"):
        limit("best_of:4", [0.5, kl])


@pytest.mark.parametrize("kl", [0.0, -1.0, 1e-12, 20.5, math.nan, math.inf])
@pytest.mark.parametrize("transform", ["exp:10", "optimal"])
def test_an_unreachable_kl_names_the_reachable_range(kl, transform):
    with pytest.raises(ValueError, match="reachable range 1e-08 to 20 nats"):
        frontier_point("best_of:4", transform, kl)


def test_a_constant_regret_cannot_spend_kl():
    nodes = grid()
    with pytest.raises(ValueError, match="constant"):
        tilt(nodes, np.full(nodes.u.shape, -np.inf), 0.5)
    flat_half = np.where(nodes.u < 0.5, 0.0, -np.inf)
    with pytest.raises(ValueError, match=r"reaches 0\.69\d+ nats at most"):
        tilt(nodes, flat_half, 0.8)


def test_integration_is_exact_to_rounding():
    nodes = grid()
    assert nodes.integrate(nodes.u**3) == pytest.approx(0.25, abs=1e-14)
    np.testing.assert_allclose(nodes.from_left(nodes.u), nodes.u**2 / 2, atol=1e-14)
    np.testing.assert_allclose(nodes.from_right(nodes.v), nodes.v**2 / 2, atol=1e-14)
    inside = nodes.v > 1e-12  # closer to 1 the integral misses what lies beyond the grid
    found = nodes.log_from_right(np.log(nodes.v))[inside]
    np.testing.assert_allclose(found, np.log(nodes.v[inside] ** 2 / 2), atol=1e-6)


def test_importing_the_theory_is_light():
    heavy = "('torch', 'pandas', 'matplotlib', 'pyarrow', 'transformers', 'pydantic')"
    code = f"import sys, infalign.theory; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
