"""Transformations Phi of the calibrated reward, and what counts of references tell of them.

Families as in InfAlign (arXiv 2412.19792, section 4): identity u, log u, and the
exponential exp(t u) for t > 0, -exp(t u) for t < 0; beside them any non-decreasing
table and the optimal Phi of a procedure at a KL budget.

Reads spellings and calibrated rewards in [0, 1]; knows nothing of policies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, digamma, hyp1f1

from infalign.theory.checks import (
    FloatArray,
    Misspelled,
    positive_integer,
    positive_kl,
    spelled,
)
from infalign.theory.optimum import grid_for, optimum
from infalign.theory.procedures import Procedure, parse_procedure
from infalign.theory.quadrature import Grid
from infalign.theory.tilting import Tilt, tilt, win_rate

GRAMMAR = (
    "identity, log, exp:T (T not zero, from -100 to 100), table:v0,v1,... "
    "(values at equal steps from u = 0 to u = 1, never falling), optimal or auto"
)
MAX_EXPONENT = 100.0
TAYLOR_TERMS = 400  # of exp(MAX_EXPONENT): the rest is below a float's rounding
FLOOR_NATS = 8.0  # rewards further below the top, in units of beta, are all alike
TABLE_RISE = (1e-100, 1e100)  # beta, in the units of Phi, then stays a float
EXPONENTS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50)
FAMILY = ("identity", "log", *(f"exp:{sign}{t}" for sign in ("", "-") for t in EXPONENTS))


@dataclass(frozen=True)
class Transform:
    """A non-decreasing Phi on [0, 1].

    Attributes:
        name: canonical spelling, also `str(transform)`.
        kind: identity, log, exp or table.
        exponent: t of the exponential; 0 otherwise.
        distances: of a table, its knots as 1 - u, ascending from 0 to 1.
        regrets: of a table, Phi(1) - Phi(u) at those knots, never falling from 0.
        top: of a table, Phi(1).
    """

    name: str
    kind: str
    exponent: float = 0.0
    distances: tuple[float, ...] = field(default=(), repr=False)
    regrets: tuple[float, ...] = field(default=(), repr=False)
    top: float = 0.0

    def __str__(self) -> str:
        return self.name

    def __call__(self, u: ArrayLike) -> FloatArray:
        """Phi(u), elementwise; -inf for `log` at u = 0, where the posterior mean is finite."""
        c = np.asarray(u, dtype=np.float64)
        if self.kind == "identity":
            return c.copy()
        if self.kind == "log":
            with np.errstate(divide="ignore"):
                return np.log(c)
        if self.kind == "exp":
            return math.copysign(1.0, self.exponent) * np.exp(self.exponent * c)
        return self.top - np.interp(1.0 - c, self.distances, self.regrets)

    def log_regret(self, u: FloatArray, v: FloatArray) -> FloatArray:
        """log(Phi(1) - Phi(u)) at nodes u with their complements v = 1 - u."""
        with np.errstate(divide="ignore"):
            if self.kind == "identity":
                return np.log(v)
            if self.kind == "log":
                return np.log(np.where(u < 0.5, -np.log(u), -np.log1p(-np.minimum(v, 0.6))))
            if self.kind == "exp":
                t = self.exponent
                return t + np.log(np.abs(np.expm1(-t * v)))
            return np.log(np.interp(v, self.distances, self.regrets))

    @property
    def reachable_kl_nats(self) -> float:
        """The KL that this Phi can approach: infinite, or minus the log of its flat top."""
        if self.kind != "table":
            return math.inf
        flat = sum(1 for regret in self.regrets if regret <= 0.0)
        return -math.log(self.distances[flat - 1]) if flat > 1 else math.inf

    def posterior_mean(self, below: ArrayLike, n_reference: int) -> FloatArray:
        """E[Phi(C)] given that `below` of `n_reference` reference samples lie below.

        With C uniform a priori, C | s ~ Beta(s + 1, K - s + 1); ties add one half to s.

        Args:
            below: counts s in [0, K], half-integers where a reference sample ties.
            n_reference: K.

        Returns:
            Finite values of the shape of `below`.

        Raises:
            ValueError: for counts outside [0, K] or K below 1.
        """
        s, k = _counts(below, n_reference)
        distinct, place = np.unique(s, return_inverse=True)
        return self._beta_mean(distinct + 1.0, k - distinct + 1.0)[place].reshape(s.shape)

    def least_biased(self, below: ArrayLike, n_reference: int) -> FloatArray:
        """An estimate of Phi(C) whose mean over the reference samples is near to Phi(C).

        The count s of a response is binomial with K and C, and the mean of any function of it is a
        polynomial in C of degree K. For `identity` the estimate is s / K; for `exp` it is
        sum_j t^j / j! * s(s-1)...(s-j+1) / (K(K-1)...(K-j+1)), whose mean is the Taylor series of
        exp(t C) up to the power K (for t < 0, of exp(-|t|) exp(|t| (1 - C))), and which rises
        with s: both are unbiased. A table has the plug-in Phi(s / K), smoothed half as much as its
        posterior mean, and `log`, whose plug-in is infinite, the posterior mean.

        Arguments, shape and errors as `posterior_mean`; between whole counts, linear.
        """
        s, k = _counts(below, n_reference)
        if self.kind == "log":
            return self.posterior_mean(s, k)
        if self.kind != "exp":
            return self(s / k)
        t, counts, values = abs(self.exponent), np.arange(k + 1.0), np.ones(k + 1)
        for j in reversed(range(min(k, TAYLOR_TERMS))):  # Horner
            values = 1.0 + t / (j + 1) * np.maximum(counts - j, 0.0) / (k - j) * values
        if self.exponent < 0:
            values = -math.exp(-t) * values[::-1]
        return np.interp(s, counts, values)

    def _beta_mean(self, a: FloatArray, b: FloatArray) -> FloatArray:
        """E[Phi(C)] for C ~ Beta(a, b), each a 1-d array."""
        if self.kind == "identity":
            return a / (a + b)
        if self.kind == "log":
            return digamma(a) - digamma(a + b)
        if self.kind == "exp" and self.exponent > 0:
            return hyp1f1(a, a + b, self.exponent)
        if self.kind == "exp":  # Kummer's transformation: no cancellation for t < 0
            return -math.exp(self.exponent) * hyp1f1(b, a + b, -self.exponent)
        return self.top - _piecewise_beta_mean(
            np.array(self.distances), np.array(self.regrets), b, a
        )


def _counts(below: ArrayLike, n_reference: int) -> tuple[FloatArray, int]:
    """Counts of reference samples and their number, checked."""
    k = positive_integer("n_reference", n_reference)
    s = np.asarray(below, dtype=np.float64)
    if not np.all((s >= 0) & (s <= k)):
        raise ValueError(
            f"below must lie within 0 and n_reference = {k} but spans {np.min(s):g} to "
            f"{np.max(s):g}; pass the count of reference samples below, not a share."
        )
    return s, k


def _piecewise_beta_mean(
    knots: FloatArray, values: FloatArray, a: FloatArray, b: FloatArray
) -> FloatArray:
    """E of a piecewise linear function under Beta(a, b), exactly, by incomplete betas."""
    a, b = a[:, None], b[:, None]
    mass = np.diff(betainc(a, b, knots), axis=1)
    first_moment = np.diff(betainc(a + 1, b, knots), axis=1) * (a / (a + b))
    slopes = np.diff(values) / np.diff(knots)
    intercepts = values[:-1] - slopes * knots[:-1]
    return mass @ intercepts + first_moment @ slopes


def identity() -> Transform:
    """Phi(u) = u, the optimum for standard sampling."""
    return Transform("identity", "identity")


def log() -> Transform:
    """Phi(u) = log u, whose optimum at beta = 1/(N-1) is the best-of-N distribution."""
    return Transform("log", "log")


def exponential(exponent: float) -> Transform:
    """Phi(u) = exp(t u) for t > 0 and -exp(t u) for t < 0."""
    t = float(exponent)
    spelling = f"exp:{spelled(t)}"
    if not 0 < abs(t) <= MAX_EXPONENT:
        raise _misspelled(spelling, f"the exponent is {t:g}")
    return Transform(spelling, "exp", exponent=t)


def table(values: ArrayLike) -> Transform:
    """Phi given at equal steps from u = 0 to u = 1, linear in between.

    Raises:
        ValueError: for fewer than two values, NaN or infinite ones, a fall, or no rise at all.
    """
    phi = np.asarray(values, dtype=np.float64)
    name = "table:" + ",".join(map(spelled, phi.ravel().tolist()))
    shown = _shown(name)
    if phi.ndim != 1 or phi.size < 2 or not np.isfinite(phi).all():
        raise _misspelled(shown, "a table needs two or more finite values")
    falls = np.flatnonzero(phi[1:] < phi[:-1])
    if falls.size:
        at = int(falls[0])
        why = f"its values fall from {phi[at]:g} to {phi[at + 1]:g} at position {at + 1}"
        raise _misspelled(shown, why)
    if phi[0] == phi[-1]:
        raise _misspelled(shown, "its values never rise")
    if not TABLE_RISE[0] <= phi[-1] / 2 - phi[0] / 2 <= TABLE_RISE[1]:
        raise _misspelled(shown, "its values rise by too little or too much for a float; rescale")
    distances = np.linspace(0.0, 1.0, phi.size)
    regrets = (phi[-1] - phi)[::-1]
    return _tabulated(name, distances, regrets, float(phi[-1]))


def optimal(procedure: Procedure, kl_nats: float) -> Transform:
    """The optimal Phi of a procedure at a KL in nats, tabulated.

    In the units in which dW/dKL = beta.  Regrets beyond 745 beta, where the density
    underflows, are cut there, so that the values stay finite.
    """
    solved = optimum(procedure, float(kl_nats))
    nodes, level = solved.grid, solved.tilted.log_inverse_beta
    if level > 600:
        raise ValueError(
            f"the optimal transformation of {procedure} at {kl_nats:g} nats needs a beta of "
            f"exp(-{level:.0f}), below every float; choose a smaller KL or a family member."
        )
    regret = np.exp(np.minimum(solved.log_regret, math.log(745.0) - level)).ravel()
    distances = np.concatenate([[0.0], nodes.v.ravel()[::-1], [1.0]])
    regrets = np.maximum.accumulate(np.concatenate([[0.0], regret[::-1], regret[:1]]))
    keep = np.concatenate([[True], np.diff(distances) > 0])
    return _tabulated("optimal", distances[keep], regrets[keep], 0.0)


def _tabulated(name: str, distances: FloatArray, regrets: FloatArray, top: float) -> Transform:
    return Transform(
        name, "table", distances=tuple(distances.tolist()), regrets=tuple(regrets.tolist()), top=top
    )


def density_at(transform: Transform, nodes: Grid, kl_nats: float) -> Tilt:
    """The density exp(Phi/beta)/Z whose KL is `kl_nats`, with its beta.

    Raises:
        ValueError: if the KL cannot be reached, with the reachable range.
    """
    reachable = transform.reachable_kl_nats
    kl = positive_kl(kl_nats, reachable, "" if math.isinf(reachable) else _shown(transform.name))
    return tilt(nodes, transform.log_regret(nodes.u, nodes.v), kl)


def best_of_family(procedure: Procedure, kl_nats: float) -> Transform:
    """The member of `FAMILY` with the highest win rate for a procedure at a KL in nats."""
    nodes = grid_for(procedure)

    def reached(spelling: str) -> float:
        member = parse_transform(spelling)
        return win_rate(procedure, nodes, density_at(member, nodes, kl_nats))

    return parse_transform(max(FAMILY, key=reached))


def parse_transform(
    transform: str | Transform,
    procedure: str | Procedure | None = None,
    kl_nats: float | None = None,
) -> Transform:
    """Read a transformation's spelling; `optimal` and `auto` need a procedure and a KL.

    A `Transform` is returned as it is.

    Raises:
        ValueError: one sentence that shows the grammar.
    """
    if isinstance(transform, Transform):
        return transform
    spelling = str(transform).strip()
    if spelling in ("optimal", "auto"):
        if procedure is None or kl_nats is None:
            raise ValueError(
                f"transformation {spelling!r} depends on the procedure and the KL budget; give "
                f"both, or a member of the family such as exp:10."
            )
        choose = optimal if spelling == "optimal" else best_of_family
        return choose(parse_procedure(procedure), float(kl_nats))
    kind, separator, rest = spelling.partition(":")
    try:
        if spelling == "identity":
            return identity()
        if spelling == "log":
            return log()
        if kind == "exp" and separator:
            return exponential(float(rest))
        if kind == "table" and separator:
            return table([float(part) for part in rest.split(",")])
    except Misspelled:
        raise
    except ValueError as error:
        raise _misspelled(spelling, str(error)) from None
    raise _misspelled(spelling, "that word is unknown")


def _shown(name: str) -> str:
    """A table's name, cut to what a message has room for."""
    return name if len(name) < 80 else name[:77] + "..."


def _misspelled(spelling: str, why: str) -> Misspelled:
    return Misspelled("transformation", spelling, why, GRAMMAR)
