"""Policies against the reference: win rates, limits, efficiencies, differences, health.

Numpy over the rewards of sampled responses, arrays [prompts, samples]; reads no files and needs
no model. Win rates are exact over all subsets of the samples; intervals resample prompts, the same
ones for every policy, so that differences are paired.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infalign.files.names import REFERENCE, SELECTING
from infalign.theory.checks import FloatArray as Array
from infalign.theory.frontier import frontier_point, limit
from infalign.theory.levels import MANY_ALIKE, TiedLimit, has_few_levels, solve_tied_limit
from infalign.theory.limits import raw_limit, tied_limit
from infalign.theory.procedures import Procedure, parse_procedure
from infalign.theory.transforms import Transform, parse_transform
from infalign.theory.winrates import bootstrap_interval, efficiency, judged_win_rates, win_rates

Bound: TypeAlias = Callable[[Any], Any]  # the limit at a KL, nats, or many
SMALLEST_KL = 1e-6  # nats: where the limit of a method starts
CURVE_POINTS = 33
BUDGET_TOLERANCE = 0.1  # share of the budget by which a measured KL may miss it


@dataclass(frozen=True)
class PolicyResponses:
    """One policy's responses to the evaluation prompts; every array is [prompts, samples].

    Attributes:
        rewards: judge (`selecting`, `independent`, `gold`) to rewards.
        kl: token-exact KL from the reference along each response, nats.
        log_ratio: log policy - log reference of each response, nats.
        n_tokens: length, EOS included.
        finished: whether the response ended by itself.
    """

    rewards: Mapping[str, Array]
    kl: Array
    log_ratio: Array
    n_tokens: Array
    finished: NDArray[np.bool_]


@dataclass(frozen=True)
class Contest:
    """How policies are compared with the reference.

    Attributes:
        own: the procedure that the objective is aligned for.
        procedures: every procedure to evaluate, `own` among them.
        methods: variant to what it maximises: `raw` or a transformation's spelling.
        kl_nats: the KL budget, at which `optimal` and `auto` were chosen.
        replicates: of the bootstrap over prompts.
        seed: of the bootstrap; one for all, so that intervals are paired.
        kept: whether training kept to the budget; it does not where it was given a beta.
    """

    own: Procedure
    procedures: tuple[Procedure, ...]
    methods: Mapping[str, str]
    kl_nats: float
    replicates: int
    seed: int
    kept: bool = True


@dataclass(frozen=True)
class Measured:
    """Rows of the evaluation and the differences tables."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)


def measure(policies: Mapping[str, PolicyResponses], contest: Contest) -> Measured:
    """Every policy against the reference, under every procedure and judge.

    The procedure selects by the selecting reward on both sides, whoever judges. The limit is the
    best win rate at the policy's KL for a judge that agrees with the selecting reward; for another
    judge it is a yardstick, not a bound. Of a reward of few levels the rows have `tied_limit` too,
    an estimate of how much less can be won with its ties, which the efficiency then goes by.
    """
    reference = policies[REFERENCE]
    measured = Measured()
    spent = {name: _spent(policies[name]) for name in contest.methods}
    for procedure in contest.procedures:
        tied = tied_limit_of(procedure, reference)
        own_limits = {
            name: method_limit(reference, name, procedure, contest, spent[name]["kl"])
            for name in contest.methods
        }
        for judge in reference.rewards:
            key = {"judge": judge, "procedure": str(procedure)}
            wins = {
                name: prompt_wins(procedure, policies[name], reference, judge)
                for name in contest.methods
            }
            for name in contest.methods:
                row = {"policy": name, **key, **spent[name]}
                row |= scored(wins[name], policies[name].kl.mean(1), procedure, contest, tied)
                told = row["efficiency"] is not None
                measured.rows.append(row | _method(row["win_rate"], own_limits[name], told))
            for first, second in itertools.combinations(contest.methods, 2):
                gap = paired_difference(wins[first] - wins[second], contest)
                measured.differences.append({"first": first, "second": second, **key, **gap})
    return measured


def paired_difference(gap: Array, contest: Contest) -> dict[str, float]:
    """Mean and interval of a difference of win rates [prompts]."""
    low, high = bootstrap_interval(gap, replicates=contest.replicates, seed=contest.seed)
    return {"difference": float(gap.mean()), "low": low, "high": high}


def prompt_wins(
    procedure: Procedure, policy: PolicyResponses, reference: PolicyResponses, judge: str
) -> Array:
    """Win rate of every prompt [prompts], exact over the subsets of its samples."""
    ours, theirs = policy.rewards, reference.rewards
    if judge == SELECTING:
        wins = win_rates(procedure, ours[judge], theirs[judge])
    else:
        wins = judged_win_rates(
            procedure, ours[SELECTING], theirs[SELECTING], ours[judge], theirs[judge]
        )
    return np.clip(wins, 0.0, 1.0)


def tied_limit_of(procedure: Procedure, reference: PolicyResponses) -> TiedLimit | None:
    """What can be won with the ties of a reward of few levels; None: it has many."""
    rewards = reference.rewards[SELECTING]
    return solve_tied_limit(_canonical(procedure), rewards) if has_few_levels(rewards) else None


def scored(
    wins: Array, kls: Array, procedure: Procedure, contest: Contest, tied: TiedLimit | None = None
) -> dict[str, Any]:
    """Win rate with its interval, the limit at the policy's KL, and the efficiency.

    There is no efficiency where what can be won is as near to 1/2 as the win rate is uncertain, and
    none by an estimate that is too low: where many prompts show one level alone, or a policy has
    won more.

    Args:
        wins, kls: win rate and KL, nats, of every prompt [prompts].
        tied: of a reward of few levels.
    """
    settings: dict[str, Any] = {"replicates": contest.replicates, "seed": contest.seed}
    low, high = bootstrap_interval(wins, **settings)
    spent, win_rate = max(0.0, float(kls.mean())), float(wins.mean())
    bound: Bound = partial(limit, _canonical(procedure))
    row = {"win_rate": win_rate, "low": low, "high": high, "limit": min(1.0, float(bound(spent)))}
    best = row["limit"]
    if tied is not None:
        bound, best = tied, float(tied(spent))
        row["tied_limit"] = best
    # Where no policy could win more than chance moves a win rate, a share of that is chance.
    told = best - 0.5 > (high - low) / 2
    if tied is not None and (tied.alike > MANY_ALIKE or win_rate > best):
        told = False
    share = efficiency(wins, kls, bound, **settings) if told else (math.nan,) * 3
    names = ("efficiency", "efficiency_low", "efficiency_high")
    return row | {name: _finite(value) for name, value in zip(names, share, strict=True)}


def _canonical(procedure: Procedure) -> Procedure:
    """Procedures that draw one response are the same one: its limit is solved once."""
    return parse_procedure("standard") if procedure.n == 1 else procedure


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _method(
    win_rate: float, limited: tuple[float | None, float | None], told: bool
) -> dict[str, float | None]:
    """The method's limit, its uncertainty, and, where it can be told, how much was reached."""
    best, error = limited
    gain = 0.0 if best is None else best - 0.5
    return {
        "method_limit": best,
        "method_limit_error": error,
        "method_efficiency": (win_rate - 0.5) / gain if told and gain > 0 else None,
    }


def method_limit(
    reference: PolicyResponses, variant: str, procedure: Procedure, contest: Contest, kl: float
) -> tuple[float | None, float | None]:
    """Win rate of a variant's exact optimum at a KL in nats, and its uncertainty.

    Calibrated rewards: continuous theory, exact, or estimated with their ties where most tie. Raw
    rewards: from the reference's own rewards on these prompts. (None, None) where the method
    cannot spend that much KL.
    """
    spelling = contest.methods[variant]
    if kl < SMALLEST_KL:
        return 0.5, 0.0
    try:
        if spelling == "raw":
            found = raw_limit(procedure, reference.rewards[SELECTING], kl)
            # Extrapolated from few samples it may pass the limit, which no exact optimum does.
            bound = float(limit(_canonical(procedure), kl))
            return min(found.win_rate, bound), found.uncertainty
        rewards = reference.rewards[SELECTING]
        if has_few_levels(rewards):
            transform = _transform(spelling, contest)
            return tied_limit(procedure, transform, rewards, kl, ties="half").win_rate, 0.0
        point = frontier_point(_canonical(procedure), _transform(spelling, contest), kl)
    except ValueError:
        return None, None
    return min(1.0, point.win_rate), 0.0


def _transform(spelling: str, contest: Contest) -> Transform:
    """What was trained: `optimal` and `auto` were chosen for the objective and its budget."""
    return parse_transform(spelling, contest.own, contest.kl_nats)


def _spent(policy: PolicyResponses) -> dict[str, Any]:
    """KL and log-ratio with standard errors clustered by prompt, length, share cut."""
    kl, kl_se = _mean_and_error(policy.kl)
    log_ratio, log_ratio_se = _mean_and_error(policy.log_ratio)
    return {
        "kl": kl,
        "kl_se": kl_se,
        "log_ratio": log_ratio,
        "log_ratio_se": log_ratio_se,
        "response_tokens": float(policy.n_tokens.mean()),
        "truncated": float(1.0 - policy.finished.mean()),
        "n_prompts": len(policy.kl),
    }


def _mean_and_error(values: Array) -> tuple[float, float]:
    means = values.mean(1)
    spread = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    return float(means.mean()), spread / float(np.sqrt(len(means)))


def theory_curves(
    policies: Mapping[str, PolicyResponses], contest: Contest
) -> list[dict[str, str | float]]:
    """Win rate against KL in theory, for the objective's procedure and standard sampling."""
    spent = [policies[name].kl.mean() for name in contest.methods]
    top = max(1.6 * contest.kl_nats, 1.25 * float(max(spent)))
    grid = top * np.linspace(0.0, 1.0, CURVE_POINTS) ** 2
    rows: list[dict[str, str | float]] = []
    for procedure in dict.fromkeys((contest.own, parse_procedure("standard"))):
        curves = {"limit": list(np.minimum(1.0, limit(_canonical(procedure), grid)))}
        for name in contest.methods:
            points = (
                method_limit(policies[REFERENCE], name, procedure, contest, float(kl))[0]
                for kl in grid
            )
            curves[f"method {name}"] = list(points)
        rows += [
            {"procedure": str(procedure), "curve": curve, "kl": float(kl), "win_rate": float(value)}
            for curve, values in curves.items()
            for kl, value in zip(grid, values, strict=True)
            if value is not None
        ]
    return rows


def summarise(
    measured: Measured, policies: Mapping[str, PolicyResponses], contest: Contest
) -> dict[str, Any]:
    """The objective's own procedure, a mapping a policy, and health in numbers."""
    numbers: dict[str, Any] = {}
    for row in measured.rows:
        if row["procedure"] != str(contest.own):
            continue
        policy = numbers.setdefault(row["policy"], {})
        if row["judge"] == SELECTING:
            left_out = ("policy", "judge", "procedure", "n_prompts")
            policy |= {name: value for name, value in row.items() if name not in left_out}
        else:
            policy[f"win_rate_{row['judge']}"] = row["win_rate"]
    numbers["health"] = _health(measured, policies[REFERENCE], contest)
    return numbers


def _health(measured: Measured, reference: PolicyResponses, contest: Contest) -> dict[str, int]:
    spent = [
        row
        for row in measured.rows
        if row["procedure"] == str(contest.own) and row["judge"] == SELECTING
    ]
    budget = contest.kl_nats if contest.kept else None
    return {
        "prompts": len(reference.kl),
        "samples": reference.kl.shape[1],
        "above_limit": sum(above_limit(row) for row in measured.rows),
        "off_budget": sum(off_budget(row["kl"], budget) for row in spent),
        "kl_disagrees": sum(kl_disagrees(row) for row in spent),
    }


def above_limit(row: Mapping[str, Any]) -> bool:
    """Whether a policy is above its limit by more than win rate and KL leave open: a bug.

    Only the reward that the procedure selects by has a limit that nothing may exceed. The estimate
    with ties is none.
    """
    if row["judge"] != SELECTING:
        return False
    low = None if "tied_limit" in row else row["efficiency_low"]
    return bool(row["low"] > row["limit"] if low is None else low > 1.0)


def off_budget(kl: float, budget: float | None) -> bool:
    """Whether a measured KL misses its budget, if there was one, by more than a tenth."""
    return budget is not None and bool(abs(kl - budget) > BUDGET_TOLERANCE * budget)


def kl_disagrees(row: Mapping[str, Any]) -> bool:
    """Whether the two estimates of one KL differ by more than four standard errors."""
    error = float(np.hypot(row["kl_se"], row["log_ratio_se"]))
    return bool(abs(row["kl"] - row["log_ratio"]) > 4 * error + 1e-4)
