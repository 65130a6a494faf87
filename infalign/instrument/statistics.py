"""The statistics of a measurement: sides on the same prompts in, rows out.

They are the pipeline's (`infalign.measuring.contest`, `infalign.theory`): on the same numbers the
same ones. Win rates are exact over all subsets of a prompt's samples; intervals resample prompts,
the same ones for every policy. Every prompt weighs the same, however many samples it has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infalign.files.names import REFERENCE, SELECTING
from infalign.instrument.divergence import Divergence, divergence
from infalign.instrument.measurement import Measurement
from infalign.instrument.samples import Samples, alike, largest_rectangle
from infalign.instrument.wanted import needed
from infalign.measuring.contest import (
    Contest,
    PolicyResponses,
    kl_disagrees,
    method_limit,
    scored,
    tied_limit_of,
)
from infalign.theory.calibration import calibrate, calibration_error, expected_calibration_error
from infalign.theory.checks import FloatArray
from infalign.theory.frontier import limit
from infalign.theory.levels import FEW_LEVELS, TiedLimit, tied_share
from infalign.theory.planning import expected_disagreement
from infalign.theory.procedures import MAX_N, Procedure, parse_procedure
from infalign.theory.winrates import bootstrap_intervals, judged_win_rates_under, win_rates_under

LARGEST_GROUP = 256  # of references, for the error of calibrated rewards that is measured
_Wins = dict[tuple[str, str], dict[Procedure, FloatArray]]  # (policy, judge) to rates by procedure


@dataclass(frozen=True)
class Measuring:
    """Sides on the same prompts, and everything that is measured of them."""

    reference: Samples
    policies: Sequence[Samples]
    contest: Contest
    width: float
    said: Sequence[str]

    def all(self) -> Measurement:
        """The whole measurement."""
        family = self._family()
        judges = list(self.reference.rewards)
        under = tuple(dict.fromkeys((*self.contest.procedures, *family.values())))
        wins = {
            (policy.name, judge): dict(zip(under, self._wins(policy, judge, under), strict=True))
            for policy in self.policies
            for judge in judges
        }
        spent = {policy.name: divergence(policy, self.reference) for policy in self.policies}
        rows = self._rows(wins, spent)
        return Measurement(
            procedure=str(self.contest.own),
            procedures=[str(one) for one in self.contest.procedures],
            judges=judges,
            policies=[policy.name for policy in self.policies],
            prompts=len(self.reference.prompts),
            samples={side.name: _spread(side) for side in (self.reference, *self.policies)},
            rows=rows,
            differences=self._differences(wins),
            by_n=self._by_n(wins, family),
            peaks=self._peaks(wins, family),
            calibration=self._calibration(),
            ties=self._ties(),
            needed=[self._needed(policy, wins[policy.name, SELECTING]) for policy in self.policies],
            limits=self._limits(rows),
            notes=self._notes(spent, family),
        )

    def _wins(self, policy: Samples, judge: str, under: Sequence[Procedure]) -> FloatArray:
        """Win rates [procedures, prompts]."""
        found = np.empty((len(under), len(policy.prompts)))
        for chosen, m, other in alike(policy, self.reference):
            ours, theirs = (
                {j: side.rectangle(side.rewards[j], chosen, many) for j in {SELECTING, judge}}
                for side, many in ((policy, m), (self.reference, other))
            )
            if judge == SELECTING:
                found[:, chosen] = win_rates_under(under, ours[judge], theirs[judge])
            else:
                found[:, chosen] = judged_win_rates_under(
                    under, ours[SELECTING], theirs[SELECTING], ours[judge], theirs[judge]
                )
        return np.clip(found, 0.0, 1.0)

    def _family(self) -> dict[int, Procedure]:
        """N = 1, 2, 4, … of the procedure's own kind, as far as every prompt's samples go."""
        fewest = min(int(side.counts.min()) for side in (self.reference, *self.policies))
        word = "worst_of" if str(self.contest.own).startswith("worst_of") else "best_of"
        sizes = [2**k for k in range(MAX_N.bit_length()) if 2**k <= min(fewest, MAX_N)]
        if str(self.contest.own).startswith(f"{word}:"):
            sizes = sorted({*sizes, self.contest.own.n})
        return {n: parse_procedure(f"{word}:{n}") for n in sizes}

    def _intervals(self, columns: Sequence[FloatArray]) -> list[dict[str, float]]:
        """Mean and interval of each column [prompts], all on the same resamples."""
        if not columns:
            return []
        stacked = np.stack(columns)
        bounds = bootstrap_intervals(stacked, self.contest.replicates, self.contest.seed)
        return [
            {"mean": float(column.mean()), "low": float(low), "high": float(high)}
            for column, (low, high) in zip(stacked, bounds, strict=True)
        ]

    def _rows(self, wins: _Wins, spent: Mapping[str, Divergence]) -> list[dict[str, Any]]:
        """A row a procedure, judge and policy: the columns of the pipeline's summary."""
        table = largest_rectangle(self.reference)
        reference = _as_responses(table)
        rows: list[dict[str, Any]] = []
        kls = {name: _spent(found) for name, found in spent.items()}
        for procedure in self.contest.procedures:
            known = any(found.best is not None for found in spent.values())
            tied = tied_limit_of(procedure, reference) if known else None
            limits = {
                policy.name: self._method(reference, policy.name, procedure, kls[policy.name]["kl"])
                for policy in self.policies
            }
            for judge, policy in itertools.product(self.reference.rewards, self.policies):
                name, mine = policy.name, wins[policy.name, judge][procedure]
                key = {"policy": name, "judge": judge, "procedure": str(procedure)}
                row = (
                    key | _scored(mine, spent[name].best, procedure, self.contest, tied) | kls[name]
                )
                row |= limits[name]
                lengths = policy.numbers.get("n_tokens")
                row["response_tokens"] = None if lengths is None else float(lengths.mean())
                rows.append(row | {"n_prompts": len(mine)})
        return rows

    def _method(
        self, reference: PolicyResponses, name: str, procedure: Procedure, kl: float | None
    ) -> dict[str, float | None]:
        """The limit of what a policy maximised, where that is told and the KL known."""
        best, error = None, None
        if name in self.contest.methods and kl is not None:
            best, error = method_limit(reference, name, procedure, self.contest, kl)
        return {"method_limit": best, "method_limit_error": error}

    def _differences(self, wins: _Wins) -> list[dict[str, Any]]:
        """Every pair of policies under every procedure asked for, paired on the prompts."""
        keys = [
            (first.name, second.name, judge, procedure)
            for procedure in self.contest.procedures
            for judge in self.reference.rewards
            for first, second in itertools.combinations(self.policies, 2)
        ]
        gaps = [wins[a, judge][p] - wins[b, judge][p] for a, b, judge, p in keys]
        return [
            {
                "first": first,
                "second": second,
                "judge": judge,
                "procedure": str(procedure),
                "difference": found.pop("mean"),
                **found,
            }
            for (first, second, judge, procedure), found in zip(
                keys, self._intervals(gaps), strict=True
            )
        ]

    def _by_n(self, wins: _Wins, family: Mapping[int, Procedure]) -> list[dict[str, Any]]:
        """Win rate against N for every policy and judge."""
        keys = [
            (policy.name, judge, n)
            for policy in self.policies
            for judge in self.reference.rewards
            for n in family
        ]
        found = self._intervals([wins[name, judge][family[n]] for name, judge, n in keys])
        return [
            {
                "policy": name,
                "judge": judge,
                "procedure": str(family[n]),
                "n": n,
                "win_rate": each.pop("mean"),
                **each,
            }
            for (name, judge, n), each in zip(keys, found, strict=True)
        ]

    def _peaks(self, wins: _Wins, family: Mapping[int, Procedure]) -> list[dict[str, Any]]:
        """The N at which each judge's win rate is highest, and how far it falls behind it."""
        last = max(family)
        keys, falls = [], []
        for (name, judge), under in wins.items():
            means = {n: float(under[one].mean()) for n, one in family.items()}
            best = max(means, key=means.__getitem__)
            keys.append((name, judge, best, means[best]))
            falls.append(under[family[best]] - under[family[last]])
        return [
            {
                "policy": name,
                "judge": judge,
                "n": best,
                "win_rate": rate,
                "largest_n": last,
                "fall": each.pop("mean"),
                **each,
            }
            for (name, judge, best, rate), each in zip(keys, self._intervals(falls), strict=True)
        ]

    def _calibration(self) -> dict[str, Any]:
        """How far off calibrated rewards are with as many references, expected and measured.

        Measured: of a third of each prompt's samples, calibrated against either of the other two.
        """
        table = largest_rectangle(self.reference)
        shuffled = np.random.default_rng(self.contest.seed).permuted(table, axis=1)
        third = min(shuffled.shape[1] // 3, LARGEST_GROUP)
        found: dict[str, Any] = {
            "references": int(np.median(self.reference.counts)),
            "expected_error": sum(
                share * expected_calibration_error(k) for k, share in self._shares()
            ),
            "groups_of": third or None,
            "disagreement": None,
            "expected_disagreement": None,
        }
        if third:
            own, first, second = (shuffled[:, i * third : (i + 1) * third] for i in range(3))
            apart = calibration_error(calibrate(own, first), calibrate(own, second))
            found["disagreement"] = apart
            found["expected_disagreement"] = expected_disagreement(third, third)
        return found

    def _shares(self) -> list[tuple[int, float]]:
        """Numbers of references, and the share of prompts that has each."""
        counts, many = np.unique(self.reference.counts, return_counts=True)
        return list(zip(counts.tolist(), (many / many.sum()).tolist(), strict=True))

    def _ties(self) -> dict[str, float]:
        """Share of each side's samples whose reward another sample of the prompt has."""
        found = {}
        for side in (self.reference, *self.policies):
            share = sum(
                tied_share(side.rectangle(side.rewards[SELECTING], chosen, m)) * len(chosen) * m
                for chosen, m, _ in alike(side, side)
            )
            found[side.name] = float(share) / len(side.rewards[SELECTING])
        return found

    def _needed(self, policy: Samples, wins: Mapping[Procedure, FloatArray]) -> dict[str, Any]:
        """Prompts and samples for an interval of the wanted width."""
        return needed(policy, self.reference, self.contest.own, wins[self.contest.own], self.width)

    def _limits(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        """The limit of the own procedure over the KLs that were spent, to draw."""
        spent = [row["kl"] for row in rows if row["kl"] is not None]
        if not spent:
            return []
        grid = 1.3 * max(0.02, *spent) * np.linspace(0.0, 1.0, 25) ** 2
        best = np.minimum(1.0, np.asarray(limit(self.contest.own, grid)))
        return [{"kl": float(kl), "win_rate": float(w)} for kl, w in zip(grid, best, strict=True)]

    def _notes(self, spent: Mapping[str, Divergence], family: Mapping[int, Procedure]) -> list[str]:
        """What a reader has to know, a sentence each."""
        notes = [*self.said, *(found.unknown for found in spent.values() if found.unknown)]
        for name, found in spent.items():
            both = _spent(found)
            if found.exact is not None and found.log_ratio is not None and kl_disagrees(both):
                notes.append(
                    f"the two estimates of {name}'s KL, {both['kl']:.3f} and "
                    f"{both['log_ratio']:.3f} nats, differ by more than four standard errors: one "
                    "of kl and log_ratio is wrong."
                )
        share = self._ties()[REFERENCE]
        if share > FEW_LEVELS:
            notes.append(
                f"{100 * share:.0f} % of the reference's samples tie with another of their prompt: "
                "less can be won than the limit, and efficiencies go by an estimate with ties."
            )
        return notes


def _spread(side: Samples) -> list[int]:
    """Fewest, median and most samples a prompt."""
    return [int(side.counts.min()), int(np.median(side.counts)), int(side.counts.max())]


def _as_responses(table: FloatArray) -> PolicyResponses:
    """The reference's selecting rewards as the contest takes them."""
    none = np.zeros(table.shape)
    return PolicyResponses({SELECTING: table}, none, none, none, none == 0)


def _spent(found: Divergence) -> dict[str, Any]:
    """KL with its standard error over prompts; from log-ratios where there is nothing better."""
    known: dict[str, Any] = {}
    for name, means in (("kl", found.best), ("log_ratio", found.log_ratio)):
        many = 1 if means is None else len(means)
        known[name] = None if means is None else float(means.mean())
        spread = 0.0 if means is None or many < 2 else float(means.std(ddof=1))
        known[f"{name}_se"] = None if means is None else spread / math.sqrt(many)
    return known


def _scored(
    wins: FloatArray,
    kls: FloatArray | None,
    procedure: Procedure,
    contest: Contest,
    tied: TiedLimit | None,
) -> dict[str, Any]:
    """Win rate with its interval; limit and efficiency where the KL is known."""
    nothing = dict.fromkeys(
        ("limit", "tied_limit", "efficiency", "efficiency_low", "efficiency_high")
    )
    if kls is not None:
        return nothing | scored(wins, kls, procedure, contest, tied)
    ((low, high),) = bootstrap_intervals(wins[None], contest.replicates, contest.seed)
    return {"win_rate": float(wins.mean()), "low": float(low), "high": float(high), **nothing}
