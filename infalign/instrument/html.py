"""A measurement as HTML: tables and figures, for notebooks and for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from infalign.files.names import SELECTING
from infalign.instrument.charts import Axis, Line, Point, colour, drawn, ticks
from infalign.instrument.numbers import Numbers
from infalign.instrument.text import interval, needed_words, number
from infalign.page.markup import Html, join, key, measured, table, tag
from infalign.page.words import JUDGES, decimal, percent, percent_range, points, points_range


def as_html(found: Numbers) -> str:
    """The answer as a notebook shows it: the table and the figures."""
    notes = (tag("p", note) for note in found.notes)
    parts = (win_rates(found, found.procedure), *figures_of(found), *notes)
    return tag("div", *parts, class_="infalign")


def policy_key(found: Numbers, policy: str) -> Html:
    """A policy's name behind its colour."""
    return key(policy, colour(found.policies.index(policy)))


def judge_words(judge: str) -> str:
    """A judge's name as a table says it."""
    return JUDGES.get(judge, judge)


def win_rate(row: Mapping[str, Any]) -> Html:
    """A win rate in percent with its interval."""
    return measured(percent(row["win_rate"]), percent_range(row["low"], row["high"]))


def win_rates(found: Numbers, procedure: str) -> Html:
    """The first table: every policy under a procedure, judge by judge."""
    rows = []
    for row in found.of(found.rows, procedure=procedure):
        limit, tied = percent(row["limit"]), row["tied_limit"]
        known = row["kl"] is not None
        rows.append(
            [
                policy_key(found, row["policy"]),
                judge_words(row["judge"]),
                win_rate(row),
                limit if tied is None else f"{limit} ({percent(tied)} with ties)",
                percent(row["efficiency"], 0),
                measured(decimal(row["kl"], 3), f"± {row['kl_se']:.3f}" if known else ""),
            ]
        )
    head = ("policy", "judged by", "win rate, %", "limit, %", "efficiency, %", "KL, nats")
    caption = f"Win rate over the reference under {procedure}, 95 % intervals"
    return table(head, rows, caption, (1,))


def differences(found: Numbers) -> Html:
    """Every pair of policies under the procedure; empty for a single policy."""
    rows = [
        [
            f"{row['first']} − {row['second']}",
            judge_words(row["judge"]),
            measured(points(row["difference"]), points_range(row["low"], row["high"])),
        ]
        for row in found.of(found.differences, procedure=found.procedure)
    ]
    caption = f"Differences under {found.procedure}, points, paired on the prompts"
    head = ("pair", "judged by", "difference")
    return table(head, rows, caption, (1,)) if rows else Html("")


def figures_of(found: Numbers, live: bool = False) -> list[Html]:
    """Win rate against KL, where one is known, and against N for every judge.

    Args:
        live: with the values that a page's script shows.
    """
    several = len({row["n"] for row in found.by_n}) > 1
    sized = [_against_n(found, judge, live) if several else Html("") for judge in found.judges]
    return [_against_kl(found, live), *sized] if found.limits else sized


def _rate_axis(lines: Sequence[Line]) -> Axis:
    ends = [
        value
        for line in lines
        for point in line.points
        for value in (point.y, point.low, point.high)
        if value is not None
    ]
    return Axis("win rate over the reference", ticks(min([0.5, *ends]), max([0.6, *ends])))


def _against_kl(found: Numbers, live: bool) -> Html:
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
    return drawn(title, lines, across, _rate_axis(lines), live)


def _against_n(found: Numbers, judge: str, live: bool) -> Html:
    lines = []
    for position, policy in enumerate(found.policies):
        of_it = found.of(found.by_n, judge=judge, policy=policy)
        sized = [
            Point(
                math.log2(row["n"]),
                row["win_rate"],
                row["low"],
                row["high"],
                f"{row['win_rate']:.3f} ({interval(row)}) at N = {row['n']}",
            )
            for row in of_it
        ]
        lines.append(Line(policy, sized, position))
    sizes = sorted({row["n"] for row in found.by_n})
    kind = found.by_n[0]["procedure"].partition(":")[0]
    title = f"Win rate under {kind}:N, judged by {judge_words(judge)}"
    across = Axis("N, responses drawn", [(math.log2(n), str(n)) for n in sizes], few=True)
    return drawn(title, lines, across, _rate_axis(lines), live)


def sizes(found: Numbers, judge: str) -> Html:
    """Win rate against N as a table."""
    rows = found.of(found.by_n, judge=judge)
    every = sorted({row["n"] for row in rows})
    lines = []
    for policy in found.policies:
        of_it = {row["n"]: row for row in rows if row["policy"] == policy}
        lines.append([policy_key(found, policy), *(_within(of_it[n]) for n in every)])
    kind = rows[0]["procedure"].partition(":")[0]
    caption = f"Win rate, %, under {kind}:N, judged by {judge_words(judge)}"
    return table(["policy", *(f"N = {n}" for n in every)], lines, caption)


def _within(row: Mapping[str, Any]) -> Html:
    """A win rate in percent, and half the width of its interval."""
    return measured(percent(row["win_rate"]), f"± {50 * (row['high'] - row['low']):.1f}")


def peaks(found: Numbers) -> Html:
    """Where each judge's win rate is highest."""
    rows = [
        [
            policy_key(found, row["policy"]),
            judge_words(row["judge"]),
            str(row["n"]),
            percent(row["win_rate"]),
            measured(points(-row["fall"]), points_range(-row["high"], -row["low"])),
        ]
        for row in found.peaks
    ]
    last = found.peaks[0]["largest_n"]
    head = ["policy", "judged by", "highest at N", "win rate, %"]
    return table([*head, f"from there to N = {last}, points"], rows, "Where win rates peak", (1,))


def quality(found: Numbers) -> Html:
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
    ties = ", ".join(f"{name} {percent(share)} %" for name, share in found.ties.items())
    wanted = (tag("li", f"{row['policy']}: {needed_words(row)}.") for row in found.needed)
    tied = tag("p", f"Samples that tie with another of their prompt: {ties}.")
    return join([tag("p", told), tied, tag("ul", *wanted)])
