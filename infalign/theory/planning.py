"""How many references, prompts and samples a wanted precision costs, before paying for them.

Continuous theory of InfAlign (arXiv 2412.19792): the sampling error of a win rate
follows from its influence functions, that of a calibrated reward from the binomial
law of its count, and what K references cost in win rate from the density that a
policy trained on estimated rewards has.  Nothing here reads data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.special import betaln, gammaln, ndtri, xlogy

from infalign.theory.calibration import expected_calibration_error
from infalign.theory.checks import FloatArray, positive_integer
from infalign.theory.limits import atom_win_rates, weights_at_kl
from infalign.theory.optimum import grid_for, log_regret_of
from infalign.theory.procedures import Procedure, parse_procedure
from infalign.theory.tilting import tilt, win_rate
from infalign.theory.transforms import Transform, density_at, parse_transform

SMALLEST_ERROR = 0.001
Estimate = Literal["plug_in", "posterior_mean", "least_biased"]


@dataclass(frozen=True)
class WinRateNoise:
    """Variance components of one prompt's estimated win rate.

    Attributes:
        policy, reference: what a single sample of that side contributes; divide by the
            number of samples of that side.
        n: draws of the procedure; the formula is of first order in n / samples.
    """

    policy: float
    reference: float
    n: int

    def standard_deviation(self, samples: int, between_prompts: float = 0.0) -> float:
        """Of one prompt's win rate from `samples` a side.

        Args:
            samples: per prompt and side, at least n.
            between_prompts: standard deviation of the prompts' true win rates; 0 in the
                continuous theory, where every prompt has the same one.
        """
        if positive_integer("samples", samples) < self.n:
            raise ValueError(
                f"samples is {samples} but the procedure draws {self.n}; plan for at least "
                f"{self.n}."
            )
        return math.sqrt((self.policy + self.reference) / samples + between_prompts**2)


def win_rate_noise(
    procedure: str | Procedure, transform: str | Transform, kl_nats: float
) -> WinRateNoise:
    """Sampling noise of the win rate of the policy that exact training would give.

    A policy sample at u moves W by Phi*(u) minus its mean, where Phi* is the one implied
    by the policy's own density; a reference sample at u by the integral from u to 1 of
    G'(v) G'(F(v)) f(v), minus its mean.
    """
    chosen = parse_procedure(procedure)
    phi = parse_transform(transform, chosen, kl_nats)
    nodes = grid_for(chosen)
    tilted = density_at(phi, nodes, kl_nats)
    moved = np.exp(log_regret_of(chosen, nodes, tilted.cdf, tilted.survival))
    beaten = np.zeros(nodes.u.shape)
    for share, part in chosen.parts:
        slope = part.pdf(nodes.u) * part.pdf(tilted.cdf) * tilted.density
        beaten += share * nodes.from_right(slope)

    def variance(values: FloatArray, density: FloatArray) -> float:
        mean = nodes.integrate(values * density)
        return nodes.integrate((values - mean) ** 2 * density)

    uniform = np.ones(nodes.u.shape)
    return WinRateNoise(variance(moved, tilted.density), variance(beaten, uniform), chosen.n)


def interval_width(
    noise: WinRateNoise,
    prompts: int,
    samples: int,
    *,
    between_prompts: float = 0.0,
    level: float = 0.95,
) -> float:
    """Full width of the interval of a mean win rate over `prompts`."""
    spread = noise.standard_deviation(samples, between_prompts)
    return 2 * _quantile(level) * spread / math.sqrt(positive_integer("prompts", prompts))


def prompts_needed(
    noise: WinRateNoise,
    width: float,
    samples: int,
    *,
    between_prompts: float = 0.0,
    level: float = 0.95,
) -> int:
    """Evaluation prompts for an interval no wider than `width`, at `samples` a side."""
    spread = noise.standard_deviation(samples, between_prompts)
    return max(1, math.ceil((2 * _quantile(level) * spread / _positive("width", width)) ** 2))


def samples_needed(
    noise: WinRateNoise,
    width: float,
    prompts: int,
    *,
    between_prompts: float = 0.0,
    level: float = 0.95,
) -> int:
    """Samples a prompt and side for an interval no wider than `width`, on `prompts`.

    Raises:
        ValueError: if the spread between prompts alone is wider, with the prompts needed.
    """
    count = positive_integer("prompts", prompts)
    allowed = (_positive("width", width) / (2 * _quantile(level))) ** 2 * count
    left = allowed - between_prompts**2
    if left <= 0:
        raise ValueError(
            f"width {width:g} cannot be reached on {count} prompts with any number of samples, "
            f"because prompts differ by {between_prompts:g}; use more than "
            f"{math.ceil(count * between_prompts**2 / allowed)} prompts."
        )
    return max(noise.n, math.ceil((noise.policy + noise.reference) / left))


def references_needed(error: float) -> int:
    """The smallest K whose expected calibration error E |C_hat - C| is at most `error`."""
    wanted = _positive("error", error)
    if wanted < SMALLEST_ERROR:
        raise ValueError(
            f"error is {error:g} but must be at least {SMALLEST_ERROR:g}, which already takes "
            f"98,000 references a prompt."
        )
    return _smallest(lambda k: expected_calibration_error(k) <= wanted)


def expected_disagreement(first: int, second: int) -> float:
    """E |C_hat_k - C_hat_l| of two independent estimates of one uniform C.

    The closed form to hold against a measurement without the truth: calibrate the same
    responses against two disjoint sets of k and l reference samples.  Sums over both
    beta-binomial counts.
    """
    k, other = positive_integer("first", first), positive_integer("second", second)
    s, t = np.arange(k + 1)[:, None], np.arange(other + 1)[None, :]
    log_mass = (
        _log_binomial(k, s) + _log_binomial(other, t) + betaln(s + t + 1, k + other - s - t + 1)
    )
    return float(np.sum(np.exp(log_mass) * np.abs(s / k - t / other)))


def win_rate_with_references(
    procedure: str | Procedure,
    transform: str | Transform,
    kl_nats: float,
    n_reference: int,
    *,
    estimate: Estimate = "plug_in",
    memorises: bool = False,
    prompts: int = 4000,
    seed: int = 0,
) -> float:
    """Win rate at this KL of exact training on an estimate of Phi(C) from K references.

    Args:
        n_reference: K reference samples a prompt.
        estimate: Phi(C_hat), or that of `Transform` with this name (`align` takes `least_biased`).
        memorises: False: the policy generalises across prompts and so maximises the mean
            of the estimate given C, a smoothed Phi.  True: it fits each prompt's own samples,
            whose steps lie at random places (averaged over `prompts` draws from `seed`).

    Raises:
        ValueError: for `log`, whose plug-in is minus infinity at C_hat = 0, and for an estimate
            of another name.
    """
    if estimate not in get_args(Estimate):
        raise ValueError(f"estimate is {estimate!r}; pass one of {', '.join(get_args(Estimate))}.")
    chosen = parse_procedure(procedure)
    phi = parse_transform(transform, chosen, kl_nats)
    k = positive_integer("n_reference", n_reference)
    counts = np.arange(k + 1)
    values = phi(counts / k) if estimate == "plug_in" else getattr(phi, estimate)(counts, k)
    if not np.isfinite(values).all():
        raise ValueError(
            f"transformation {phi} has no finite plug-in value at 0; train it on its posterior "
            f"mean."
        )
    if memorises:
        spacings = np.random.default_rng(seed).dirichlet(
            np.ones(k + 1), positive_integer("prompts", prompts)
        )
        weights, _ = weights_at_kl(np.broadcast_to(values, spacings.shape), spacings, kl_nats)
        return float(np.mean(atom_win_rates(chosen, weights, spacings, ties="broken")))
    nodes = grid_for(chosen)
    regret = np.zeros(nodes.u.shape)
    for s, value in enumerate(values):
        log_mass = _log_binomial(k, s) + xlogy(s, nodes.u) + xlogy(k - s, nodes.v)
        regret += (values[-1] - value) * np.exp(log_mass)
    with np.errstate(divide="ignore"):
        tilted = tilt(nodes, np.log(regret), kl_nats)
    return win_rate(chosen, nodes, tilted)


def _log_binomial(n: int, k: np.ndarray | int) -> FloatArray:
    return gammaln(n + 1) - gammaln(np.asarray(k) + 1) - gammaln(n - np.asarray(k) + 1)


def _smallest(enough: Callable[[int], bool]) -> int:
    """Smallest count for which a monotone condition holds, by doubling and bisection."""
    high = 1
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level is {level:g} but must lie between 0 and 1, such as 0.95.")
    return float(ndtri((1 + level) / 2))


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value:g} but must be positive, such as 0.01.")
    return float(value)
