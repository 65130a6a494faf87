"""The page's first answer: one table an objective, paired differences, a sentence; summary rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from infalign.files.tables import REFERENCE, SELECTING
from infalign.measuring.contest import above_limit, off_budget
from infalign.page.data import ObjectiveData
from infalign.page.palette import NEUTRAL, series_name
from infalign.page.words import Value, decimal, percent, percent_range, points, procedure_words

SUMMARY_COLUMNS = (
    "policy",
    "judge",
    "procedure",
    "win_rate",
    "low",
    "high",
    "limit",
    "tied_limit",
    "method_limit",
    "efficiency",
    "kl",
    "kl_se",
    "response_tokens",
)


class Policy(NamedTuple):
    """A policy's name and the CSS variable of its colour."""

    name: str
    color: str


class Row(NamedTuple):
    """A policy's line in the first table, as text."""

    policy: Policy
    win_rate: Value
    limit: str
    method_limit: str
    efficiency: Value
    method_efficiency: str
    kl: Value
    flags: list[str]


class Gap(NamedTuple):
    """A paired difference under one judge, as text, and whether its interval leaves out 0."""

    text: str
    spread: str
    tone: str
    verdict: str


class Gain(NamedTuple):
    """A pair of policies and their difference under every judge."""

    first: str
    second: str
    cells: list[Gap]


def policy_of(data: ObjectiveData, name: str) -> Policy:
    """A policy with its colour."""
    known = name in data.methods
    return Policy(name, series_name(data.variants.index(name)) if known else NEUTRAL.name)


def summary_rows(objectives: Sequence[ObjectiveData]) -> list[dict[str, Any]]:
    """One row per objective, policy, judge and procedure, numbers unrounded.

    `tied_limit` is there for rewards of few levels alone.
    """
    return [
        {"objective": data.name, **{name: row[name] for name in SUMMARY_COLUMNS if name in row}}
        for data in objectives
        for row in data.rows
    ]


def headline(data: ObjectiveData, budget: float | None) -> list[Row]:
    """Every policy under the objective's own procedure, judged by the selecting reward."""
    return [_row(data, data.row(name, SELECTING, data.procedure), budget) for name in data.variants]


def _row(data: ObjectiveData, row: Mapping[str, Any], budget: float | None) -> Row:
    flags = ["above the limit"] if above_limit(row) else []
    flags += ["off the KL budget"] if off_budget(row["kl"], budget) else []
    error, tied = row["method_limit_error"], row.get("tied_limit")
    return Row(
        policy_of(data, row["policy"]),
        Value(percent(row["win_rate"]), percent_range(row["low"], row["high"])),
        percent(row["limit"]) + (f" (≈ {percent(tied)} with ties)" if tied is not None else ""),
        percent(row["method_limit"]) + (f" ± {percent(error)}" if error else ""),
        Value(
            percent(row["efficiency"]),
            percent_range(row["efficiency_low"], row["efficiency_high"]),
        ),
        percent(row["method_efficiency"]),
        Value(decimal(row["kl"], 3), f"± {decimal(row['kl_se'], 3)}"),
        flags,
    )


def leader(data: ObjectiveData) -> str:
    """The policy that was aligned for the objective's own procedure: the first one of params."""
    return data.variants[0]


def gains(data: ObjectiveData) -> list[Gain]:
    """Every pair of variants under the objective's own procedure, judge by judge."""
    found: dict[tuple[str, str], list[Gap]] = {}
    for row in data.differences:
        if row["procedure"] == data.procedure:
            found.setdefault((row["first"], row["second"]), []).append(_gap(row))
    return [Gain(first, second, cells) for (first, second), cells in found.items()]


def _gap(row: Mapping[str, Any]) -> Gap:
    spread = f"[{points(row['low'])}, {points(row['high'])}]"
    if row["low"] > 0:
        tone, verdict = "ok", "better"
    elif row["high"] < 0:
        tone, verdict = "look", "worse"
    else:
        tone, verdict = "note-flag", "unclear"
    return Gap(points(row["difference"]), spread, tone, verdict)


def verdict(data: ObjectiveData) -> str:
    """One sentence: what the leading policy wins, and by how much it beats the others."""
    best = leader(data)
    row = data.row(best, SELECTING, data.procedure)
    text = (
        f"Under {procedure_words(data.procedure)}, {best} wins {percent(row['win_rate'])} % "
        f"{percent_range(row['low'], row['high'])} of comparisons with the reference at "
        f"{decimal(row['kl'])} nats; the limit there is {percent(row['limit'])} %"
    )
    tied = row.get("tied_limit")
    text += "." if tied is None else f", and with the reward’s ties about {percent(tied)} %."
    compared = [
        f"{points(gap['difference'])} points [{points(gap['low'])}, {points(gap['high'])}] "
        f"against {gap['second']} (at {decimal(_kl(data, gap['second']))} nats)"
        for gap in data.differences
        if gap["first"] == best and gap["judge"] == SELECTING and gap["procedure"] == data.procedure
    ]
    return text + (f" Paired difference: {'; '.join(compared)}." if compared else "")


def _kl(data: ObjectiveData, policy: str) -> float:
    return float(data.row(policy, SELECTING, data.procedure)["kl"])


def reference_policy(data: ObjectiveData) -> Policy:
    """The reference's own entry."""
    return policy_of(data, REFERENCE)
