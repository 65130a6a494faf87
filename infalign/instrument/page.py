"""The report of a measurement: one HTML file that opens from disk, in the style of the reports."""

from __future__ import annotations

import os
from pathlib import Path

from infalign.errors import InputError
from infalign.files.names import SELECTING
from infalign.instrument import html
from infalign.instrument.numbers import Numbers
from infalign.instrument.text import range_of
from infalign.page.markup import Chapter, Html, document, facts, join, tag
from infalign.page.words import percent, percent_range, points, points_range

READING = (
    "The win rate is how often the policy’s kept response beats the reference’s, both sides "
    "drawing N responses to the same prompt and keeping one by the selecting reward; ties count "
    "half. It is exact over all subsets of the samples; brackets are 95 % intervals from "
    "resampling prompts.",
    "The limit is the win rate that no policy with the same KL can exceed, efficiency the share "
    "of the way from 50 % to the limit that was reached. Under another judge than the selecting "
    "reward the limit is a yardstick and no bound.",
    "Where a judge’s win rate peaks at a smaller N than the selecting reward’s, more draws select "
    "for what only the selecting reward likes.",
)


def write_page(found: Numbers, path: Path) -> None:
    """Write the report.

    Raises:
        InputError: if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(page(found), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None


def page(found: Numbers) -> str:
    """The report as text."""
    chapters = (
        Chapter("results", "Results", _results(found)),
        Chapter("sizes", "Win rate against N", _sizes(found)),
        Chapter("samples", "The samples", html.quality(found)),
        Chapter("reading", "How to read this page", join(tag("p", text) for text in READING)),
    )
    told = [("Procedure", found.procedure), ("Prompts", str(found.prompts))]
    told += [(f"Samples of {name}", range_of(*many)) for name, many in found.samples.items()]
    lead = f"{', '.join(found.policies)} against the reference, under {found.procedure}."
    header = join([tag("p", lead, class_="lead"), facts(told)])
    return document("Measured samples", header, chapters)


def _results(found: Numbers) -> Html:
    verdict = tag("p", _verdict(found), class_="verdict")
    tables = (html.win_rates(found, procedure) for procedure in found.procedures)
    figures = html.figures_of(found, live=True)[:1] if found.limits else []
    notes = (tag("p", note, class_="note") for note in found.notes)
    return join([verdict, *tables, html.differences(found), *figures, *notes])


def _verdict(found: Numbers) -> str:
    """Which policy wins most, and whether that is clear of the next one."""
    rows = found.of(found.rows, procedure=found.procedure, judge=SELECTING)
    best = max(rows, key=lambda row: float(row["win_rate"]))
    text = (
        f"Under {found.procedure}, {best['policy']} wins {percent(best['win_rate'])} % "
        f"{percent_range(best['low'], best['high'])} of the comparisons with the reference."
    )
    ahead = []
    for gap in found.of(found.differences, procedure=found.procedure, judge=SELECTING):
        if best["policy"] in (gap["first"], gap["second"]):
            turned = 1 if gap["first"] == best["policy"] else -1
            low, high = sorted((turned * gap["low"], turned * gap["high"]))
            other = gap["second"] if turned == 1 else gap["first"]
            ahead.append(
                f"{points(turned * gap['difference'])} points {points_range(low, high)} over "
                f"{other}"
            )
    return text + (f" Paired on the prompts: {', '.join(ahead)}." if ahead else "")


def _sizes(found: Numbers) -> Html:
    figures = html.figures_of(found, live=True)[1 if found.limits else 0 :]
    parts = [
        join([figure, html.sizes(found, judge)])
        for judge, figure in zip(found.judges, figures, strict=True)
    ]
    return join([*parts, html.peaks(found)])
