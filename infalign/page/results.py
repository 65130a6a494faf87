"""The page's results: one table an objective, paired differences, a sentence; summary rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infalign.files.names import REFERENCE, SELECTING
from infalign.measuring.contest import above_limit, off_budget
from infalign.page.data import ObjectiveData
from infalign.page.markup import Html, join, key, measured, table, tag
from infalign.page.palette import NEUTRAL, series_name
from infalign.page.words import (
    JUDGES,
    decimal,
    percent,
    percent_range,
    points,
    points_range,
    procedure_words,
)

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


COLUMNS = (
    "policy",
    "win rate, %",
    "limit, %",
    "method’s limit, %",
    "efficiency, %",
    "KL, nats",
    "gate",
)


def policy_key(data: ObjectiveData, name: str) -> Html:
    """A policy's name behind its colour."""
    known = name in data.methods
    ink = series_name(data.variants.index(name)) if known else NEUTRAL.name
    return key(name, f"var(--{ink})")


def flag(text: str, tone: str = "note-flag") -> Html:
    """A word in a box; tone `ok` or `look` where it is good or bad news."""
    return tag("span", text, class_=f"flag {tone}")


def summary_rows(objectives: Sequence[ObjectiveData]) -> list[dict[str, Any]]:
    """One row per objective, policy, judge and procedure, numbers unrounded.

    `tied_limit` is there for rewards of few levels alone.
    """
    return [
        {"objective": data.name, **{name: row[name] for name in SUMMARY_COLUMNS if name in row}}
        for data in objectives
        for row in data.rows
    ]


def headline(data: ObjectiveData, budget: float | None) -> Html:
    """Every policy under the objective's own procedure, judged by the selecting reward."""
    reference = [policy_key(data, REFERENCE), "50.0", "", "", "", "0", ""]
    rows = [_row(data, data.row(name, SELECTING, data.procedure), budget) for name in data.variants]
    caption = f"{data.name}: win rates over the reference under {procedure_words(data.procedure)}"
    return table(COLUMNS, [reference, *rows], caption)


def _row(data: ObjectiveData, row: Mapping[str, Any], budget: float | None) -> list[str]:
    flags = ["above the limit"] if above_limit(row) else []
    flags += ["off the KL budget"] if off_budget(row["kl"], budget) else []
    error, tied = row["method_limit_error"], row.get("tied_limit")
    share = percent_range(row["efficiency_low"], row["efficiency_high"])
    failed = data.gate[row["policy"]].failed
    asked = flag(f"fails {', '.join(failed)}", "look") if failed else flag("passes", "ok")
    return [
        policy_key(data, row["policy"]),
        measured(percent(row["win_rate"]), percent_range(row["low"], row["high"])),
        percent(row["limit"]) + (f" (≈ {percent(tied)} with ties)" if tied is not None else ""),
        percent(row["method_limit"]) + (f" ± {percent(error)}" if error else ""),
        measured(percent(row["efficiency"]), share),
        measured(decimal(row["kl"], 3), f"± {decimal(row['kl_se'], 3)}"),
        join([*(flag(text, "look") for text in flags), asked], " "),
    ]


def gains(data: ObjectiveData) -> Html:
    """Every pair of variants under the objective's own procedure, judge by judge."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in data.differences:
        if row["procedure"] == data.procedure:
            found.setdefault((row["first"], row["second"]), []).append(_gap(row))
    if not found:
        return Html("")
    rows = [[f"{first} − {second}", *cells] for (first, second), cells in found.items()]
    caption = f"{data.name}: differences of the win rate, paired on the prompts, points"
    return table(["pair", *(f"judged by {JUDGES[j]}" for j in data.judges)], rows, caption)


def _gap(row: Mapping[str, Any]) -> Html:
    number = measured(points(row["difference"]), points_range(row["low"], row["high"]))
    if row["low"] > 0:
        return join([number, flag(f"{row['first']} ahead")], " ")
    if row["high"] < 0:
        return join([number, flag(f"{row['second']} ahead")], " ")
    return join([number, flag("may be chance")], " ")


def verdict(data: ObjectiveData) -> str:
    """One sentence: what the leading policy wins, and by how much it beats the others."""
    best = data.leader
    row = data.row(best, SELECTING, data.procedure)
    text = (
        f"Under {procedure_words(data.procedure)}, {best} wins {percent(row['win_rate'])} % "
        f"{percent_range(row['low'], row['high'])} of comparisons with the reference at "
        f"{decimal(row['kl'])} nats; the limit there is {percent(row['limit'])} %"
    )
    tied = row.get("tied_limit")
    text += "." if tied is None else f", and with the reward’s ties about {percent(tied)} %."
    compared = [
        f"{points(mean)} points {points_range(low, high)} against {other} "
        f"(at {decimal(data.row(other, SELECTING, data.procedure)['kl'])} nats)"
        for other in data.variants
        if other != best
        for mean, low, high in [data.gap(best, other, SELECTING, data.procedure)]
    ]
    return text + (f" Paired difference: {'; '.join(compared)}." if compared else "")
