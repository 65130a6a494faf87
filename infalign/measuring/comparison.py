"""Methods against each other at equal KL: curves, gains, reward hacking. Numpy; reads no files.

A contender is one policy: a variant, a KL budget, a seed. Seeds of one variant and budget are
averaged prompt by prompt; intervals resample prompts, the same ones for every method, so that
differences are paired. The spread over seeds stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infalign.files.squares import Array
from infalign.files.tables import REFERENCE, SELECTING
from infalign.measuring.contest import (
    Contest,
    PolicyResponses,
    method_limit,
    paired_difference,
    prompt_wins,
    scored,
    theory_curves,
)
from infalign.theory.winrates import bootstrap_interval

Key = tuple[str, float]  # variant, KL budget in nats


@dataclass(frozen=True)
class Contender:
    """One policy and its responses to the evaluation prompts."""

    variant: str
    kl_nats: float
    seed: int
    responses: PolicyResponses


@dataclass(frozen=True)
class Rivals:
    """The contenders of one objective, and how they are compared.

    Attributes:
        contenders: every one, seeds of a variant and budget side by side.
        reference: its responses, with the rewards of the same judges.
        contest: its methods are the variants; its budget is the largest one.
        blind: variants that know nothing of the inference-time procedure.
        judges: whose win rates are asked for, those that the responses have.
    """

    contenders: Sequence[Contender]
    reference: PolicyResponses
    contest: Contest
    blind: frozenset[str]
    judges: Sequence[str]

    @property
    def groups(self) -> dict[Key, list[PolicyResponses]]:
        """The seeds of every variant and budget."""
        found: dict[Key, list[PolicyResponses]] = {}
        for one in self.contenders:
            found.setdefault((one.variant, one.kl_nats), []).append(one.responses)
        return found

    @property
    def budgets(self) -> list[float]:
        """The KL budgets, rising."""
        return sorted({one.kl_nats for one in self.contenders})


def curve_rows(rivals: Rivals) -> list[dict[str, Any]]:
    """A row a variant, budget, judge and procedure: win rate, KL, limits, spread over seeds."""
    rows: list[dict[str, Any]] = []
    for (variant, budget), seeds in rivals.groups.items():
        at = replace(rivals.contest, kl_nats=budget)
        kls = np.mean([policy.kl.mean(1) for policy in seeds], axis=0)
        for procedure in at.procedures:
            best, _ = method_limit(rivals.reference, variant, procedure, at, float(kls.mean()))
            for judge in rivals.judges:
                each = [prompt_wins(procedure, p, rivals.reference, judge) for p in seeds]
                rows.append(
                    {
                        "variant": variant,
                        "kl_nats": budget,
                        "judge": judge,
                        "procedure": str(procedure),
                        "seeds": len(seeds),
                        "kl": float(kls.mean()),
                        "kl_se": float(kls.std(ddof=1) / np.sqrt(len(kls))),
                        **scored(np.mean(each, axis=0), kls, procedure, at),
                        "seed_spread": _spread([float(wins.mean()) for wins in each]),
                        "method_limit": best,
                    }
                )
    return rows


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds, where there are several."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def gain_rows(rivals: Rivals) -> list[dict[str, Any]]:
    """At every budget and judge, under the objective's procedure: each aware variant's gain.

    The rival is the blind variant with the highest win rate there, chosen on the same prompts,
    which flatters it: the gain is understated. `allowed` is the difference of the two methods'
    limits at the budget.
    """
    procedure, rows = rivals.contest.own, list[dict[str, Any]]()
    wins = {
        (key, judge): np.mean(
            [prompt_wins(procedure, policy, rivals.reference, judge) for policy in seeds], axis=0
        )
        for key, seeds in rivals.groups.items()
        for judge in rivals.judges
    }
    for budget in rivals.budgets:
        names = [variant for variant, at in rivals.groups if at == budget]
        for judge in rivals.judges:
            blind = [name for name in names if name in rivals.blind]
            if not blind:
                continue
            best = max(blind, key=lambda name: float(wins[(name, budget), judge].mean()))
            for name in names:
                if name in rivals.blind:
                    continue
                gap = wins[(name, budget), judge] - wins[(best, budget), judge]
                rows.append(
                    {
                        "variant": name,
                        "rival": best,
                        "kl_nats": budget,
                        "judge": judge,
                        "kl": _kl(rivals, name, budget),
                        "rival_kl": _kl(rivals, best, budget),
                        **paired_difference(gap, rivals.contest),
                        "allowed": _allowed(rivals, name, best, budget)
                        if judge == SELECTING
                        else None,
                    }
                )
    return rows


def _kl(rivals: Rivals, variant: str, budget: float) -> float:
    """Mean KL that was spent, nats a response."""
    return float(np.mean([policy.kl.mean() for policy in rivals.groups[variant, budget]]))


def _allowed(rivals: Rivals, first: str, second: str, budget: float) -> float | None:
    """Difference of two methods' limits at a budget."""
    at = replace(rivals.contest, kl_nats=budget)
    limits = [
        method_limit(rivals.reference, name, at.own, at, budget)[0] for name in (first, second)
    ]
    return None if None in limits else float(limits[0] - limits[1])  # type: ignore[operator]


def theory_rows(rivals: Rivals) -> list[dict[str, Any]]:
    """Win rate against KL in theory: the limit, and one curve for all variants of one reward.

    `curve` is `limit` or the reward's spelling.
    """
    spellings = dict.fromkeys(rivals.contest.methods.values())
    widest = max(rivals.contenders, key=lambda one: float(one.responses.kl.mean())).responses
    policies: Mapping[str, PolicyResponses] = {
        REFERENCE: rivals.reference,
        **dict.fromkeys(spellings, widest),
    }
    contest = replace(rivals.contest, methods={name: name for name in spellings})
    return [
        row | {"curve": str(row["curve"]).removeprefix("method ")}
        for row in theory_curves(policies, contest)
    ]


def phrase_rows(
    rivals: Rivals, said: Mapping[tuple[str, float, int], Sequence[str]], phrase: str
) -> list[dict[str, Any]]:
    """How many responses of every variant and budget have a phrase.

    Args:
        said: the texts of every contender, prompt-major.
    """
    rows: list[dict[str, Any]] = []
    n_prompts = len(rivals.reference.kl)
    for (variant, budget), seeds in rivals.groups.items():
        texts = [
            said[o.variant, o.kl_nats, o.seed]
            for o in rivals.contenders
            if (o.variant, o.kl_nats) == (variant, budget)
        ]
        shares = np.mean([phrase_share(text, phrase, n_prompts) for text in texts], axis=0)
        low, high = bootstrap_interval(
            shares, replicates=rivals.contest.replicates, seed=rivals.contest.seed
        )
        rows.append(
            {
                "variant": variant,
                "kl_nats": budget,
                "kl": float(np.mean([policy.kl.mean() for policy in seeds])),
                "share": float(shares.mean()),
                "low": low,
                "high": high,
            }
        )
    return rows


def phrase_share(texts: Sequence[str], phrase: str, n_prompts: int) -> Array:
    """Share of each prompt's responses that have a phrase [prompts]."""
    return np.array([phrase in text for text in texts], float).reshape(n_prompts, -1).mean(1)


def headline(
    curves: Sequence[Mapping[str, Any]], gains: Sequence[Mapping[str, Any]], procedure: str
) -> Any:
    """The numbers that `dvc metrics` shows: win rates and gains at every budget.

    Args:
        procedure: the objective's own, by which its win rates are.
    """
    found: dict[str, Any] = {}
    for row in curves:
        if (row["judge"], row["procedure"]) == (SELECTING, procedure):
            place = found.setdefault(f"kl {row['kl_nats']}", {})
            place[row["variant"]] = {n: row[n] for n in ("win_rate", "kl", "efficiency")}
    for row in gains:
        if row["judge"] == SELECTING:
            names = ("difference", "low", "high", "rival")
            place = found[f"kl {row['kl_nats']}"].setdefault("gain", {})
            place[row["variant"]] = {name: row[name] for name in names}
    return found
