"""A measurement as HTML: tables and figures, for notebooks and for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from infalign.files.names import SELECTING
from infalign.instrument import text
from infalign.instrument.charts import Axis, Line, Point, chart, colour, ticks
from infalign.instrument.numbers import Numbers
from infalign.instrument.text import interval, needed_words, number

JUDGED = {SELECTING: "selecting reward"}
NAME = "white-space: nowrap; vertical-align: baseline; font-size: inherit; color: inherit"
SWATCH = (
    "display: inline-block; width: 0.72em; height: 0.72em; border-radius: 2px; margin-right: 0.5em"
)


def as_html(found: Numbers) -> str:
    """The answer as a notebook shows it: the table and the figures."""
    notes = "".join(f"<p>{escape(note)}</p>" for note in found.notes)
    figures = "".join(figures_of(found))
    return f'<div class="infalign">{win_rates(found, found.procedure)}{figures}{notes}</div>'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", left: int = 1
) -> str:
    """A table with scoped headers in a box that scrolls; cells are HTML already.

    Args:
        left: columns that are words and not numbers.
    """

    def aligned(i: int) -> str:
        return "text-align: left" if i < left else "text-align: right"

    top = "".join(
        f'<th scope="col" style="{aligned(i)}">{name}</th>' for i, name in enumerate(head)
    )
    lines = []
    for row in rows:
        first = f'<th scope="row" style="{aligned(0)}; {NAME}">{row[0]}</th>'
        rest = (f'<td style="{aligned(i)}">{cell}</td>' for i, cell in enumerate(row[1:], 1))
        lines.append(f"<tr>{first}{''.join(rest)}</tr>")
    said = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption or "table"}">'
        f"<table>{said}<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def key(found: Numbers, policy: str) -> str:
    """A policy's name behind its colour."""
    ink = colour(found.policies.index(policy))
    return f'<span style="{SWATCH}; background: {ink}"></span>{escape(policy)}'


def points(value: float) -> str:
    """A share as percentage points with a true minus sign."""
    return text.points(value).replace("-", "−")


def judge_words(judge: str) -> str:
    """A judge's name as a table says it."""
    return escape(JUDGED.get(judge, judge))


def percent(row: Mapping[str, Any]) -> str:
    """A win rate in percent with its interval."""
    return (
        f"<b>{100 * row['win_rate']:.1f}</b> <span class='range'>[{interval(row, 100, 1)}]</span>"
    )


def win_rates(found: Numbers, procedure: str) -> str:
    """The first table: every policy under a procedure, judge by judge."""
    rows = []
    for row in found.of(found.rows, procedure=procedure):
        kl = "–" if row["kl"] is None else f"{row['kl']:.3f} ± {row['kl_se']:.3f}"
        limit = "–" if row["limit"] is None else f"{100 * row['limit']:.1f}"
        limit += "" if row["tied_limit"] is None else f" ({100 * row['tied_limit']:.1f} with ties)"
        share = "–" if row["efficiency"] is None else f"{100 * row['efficiency']:.0f}"
        cells = [key(found, row["policy"]), judge_words(row["judge"]), percent(row)]
        rows.append([*cells, limit, share, kl])
    head = ("policy", "judged by", "win rate, %", "limit, %", "efficiency, %", "KL, nats")
    caption = f"Win rate over the reference under {escape(procedure)}, 95 % intervals"
    return table(head, rows, caption, 2)


def differences(found: Numbers) -> str:
    """Every pair of policies under the procedure; empty for a single policy."""
    rows = [
        [
            f"{escape(row['first'])} − {escape(row['second'])}",
            judge_words(row["judge"]),
            f"<b>{points(row['difference'])}</b>",
            f"{points(row['low'])} to {points(row['high'])}",
        ]
        for row in found.of(found.differences, procedure=found.procedure)
    ]
    caption = f"Differences under {escape(found.procedure)}, points, paired on the prompts"
    return (
        table(("pair", "judged by", "difference", "95 % interval"), rows, caption, 2)
        if rows
        else ""
    )


def figures_of(found: Numbers) -> list[str]:
    """Win rate against KL, where one is known, and against N for every judge."""
    several = len({row["n"] for row in found.by_n}) > 1
    drawn = [_against_n(found, judge) if several else "" for judge in found.judges]
    return [_against_kl(found), *drawn] if found.limits else drawn


def _rate_axis(lines: Sequence[Line]) -> Axis:
    ends = [
        value
        for line in lines
        for point in line.points
        for value in (point.y, point.low, point.high)
        if value is not None
    ]
    return Axis("win rate over the reference", ticks(min([0.5, *ends]), max([0.6, *ends])))


def _against_kl(found: Numbers) -> str:
    limits = [Point(row["kl"], row["win_rate"]) for row in found.limits]
    lines = [Line("limit of any policy", limits, None)]
    for row in found.of(found.rows, procedure=found.procedure, judge=SELECTING):
        if row["kl"] is not None:
            says = f"{row['win_rate']:.3f} ({interval(row)}) at {row['kl']:.3f} nats"
            point = Point(row["kl"], row["win_rate"], row["low"], row["high"], says)
            lines.append(
                Line(row["policy"], [point], found.policies.index(row["policy"]), joined=False)
            )
    title = f"Win rate against KL under {found.procedure}"
    across = Axis("KL from the reference, nats", ticks(0.0, limits[-1].x))
    return _figure(chart(title, lines, across, _rate_axis(lines)))


def _against_n(found: Numbers, judge: str) -> str:
    lines = []
    for position, policy in enumerate(found.policies):
        of_it = found.of(found.by_n, judge=judge, policy=policy)
        drawn = [
            Point(
                math.log2(row["n"]),
                row["win_rate"],
                row["low"],
                row["high"],
                f"{row['win_rate']:.3f} ({interval(row)}) at N = {row['n']}",
            )
            for row in of_it
        ]
        lines.append(Line(policy, drawn, position))
    sizes = sorted({row["n"] for row in found.by_n})
    kind = found.by_n[0]["procedure"].partition(":")[0]
    title = f"Win rate under {kind}:N, judged by {JUDGED.get(judge, judge)}"
    across = Axis("N, responses drawn", [(math.log2(n), str(n)) for n in sizes])
    return _figure(chart(title, lines, across, _rate_axis(lines)))


def _figure(svg: str) -> str:
    return f"<figure>{svg}</figure>"


def sizes(found: Numbers, judge: str) -> str:
    """Win rate against N as a table."""
    rows = found.of(found.by_n, judge=judge)
    every = sorted({row["n"] for row in rows})
    lines = []
    for policy in found.policies:
        of_it = {row["n"]: row for row in rows if row["policy"] == policy}
        lines.append([key(found, policy), *(_within(of_it[n]) for n in every)])
    kind = rows[0]["procedure"].partition(":")[0]
    caption = f"Win rate, %, under {kind}:N, judged by {judge_words(judge)}"
    return table(["policy", *(f"N = {n}" for n in every)], lines, caption)


def _within(row: Mapping[str, Any]) -> str:
    """A win rate in percent, and half the width of its interval."""
    half = 50 * (row["high"] - row["low"])
    return f"<b>{100 * row['win_rate']:.1f}</b> <span class='range'>± {half:.1f}</span>"


def peaks(found: Numbers) -> str:
    """Where each judge's win rate is highest."""
    rows = [
        [
            key(found, row["policy"]),
            judge_words(row["judge"]),
            str(row["n"]),
            f"{100 * row['win_rate']:.1f}",
            f"{points(-row['fall'])} [{points(-row['high'])} to {points(-row['low'])}]",
        ]
        for row in found.peaks
    ]
    last = found.peaks[0]["largest_n"]
    head = (
        "policy",
        "judged by",
        "highest at N",
        "win rate, %",
        f"from there to N = {last}, points",
    )
    return table(head, rows, "Where win rates peak", 2)


def quality(found: Numbers) -> str:
    """References, calibration error and ties in sentences, and what a narrower interval takes."""
    said = found.calibration
    told = (
        f"Calibrated rewards of K = {said['references']} references a prompt are off by "
        f"{number(said['expected_error'])} on average."
    )
    if said["groups_of"]:
        told += (
            f" Two disjoint groups of {said['groups_of']} disagree by "
            f"{number(said['disagreement'])}; {number(said['expected_disagreement'])} is expected "
            "of a continuous reward."
        )
    ties = ", ".join(f"{name} {100 * share:.1f} %" for name, share in found.ties.items())
    wanted = "".join(
        f"<li>{escape(row['policy'])}: {escape(needed_words(row))}.</li>" for row in found.needed
    )
    return (
        f"<p>{escape(told)}</p><p>Samples that tie with another of their prompt: {escape(ties)}."
        f"</p><ul>{wanted}</ul>"
    )
