"""The report of a measurement: one HTML file that opens from disk, in the style of the reports."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from infalign.errors import InputError
from infalign.files.names import SELECTING
from infalign.instrument import html
from infalign.instrument.html import points
from infalign.instrument.numbers import Numbers
from infalign.instrument.text import range_of
from infalign.page.style import STYLE

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
    sections = (
        ("results", "Results", _results(found)),
        ("sizes", "Win rate against N", _sizes(found)),
        ("samples", "The samples", html.quality(found)),
        ("reading", "How to read this page", "".join(f"<p>{text}</p>" for text in READING)),
    )
    contents = "".join(f'<li><a href="#{a}">{title}</a></li>' for a, title, _ in sections)
    body = "".join(f'<section id="{a}"><h2>{t}</h2>{text}</section>' for a, t, text in sections)
    facts = [("Procedure", found.procedure), ("Prompts", str(found.prompts))]
    facts += [(f"Samples of {name}", range_of(*many)) for name, many in found.samples.items()]
    listed = "".join(f"<li>{escape(name)} <b>{escape(value)}</b></li>" for name, value in facts)
    lead = f"{', '.join(found.policies)} against the reference, under {found.procedure}."
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Measured samples</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
        f'<div class="page">\n<header><h1>Measured samples</h1>'
        f'<p class="lead">{escape(lead)}</p><ul class="facts">{listed}</ul></header>\n'
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n<main>\n{body}\n</main>\n'
        "</div>\n</body>\n</html>\n"
    )


def _results(found: Numbers) -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in found.notes)
    tables = "".join(html.win_rates(found, procedure) for procedure in found.procedures)
    figure = html.figures_of(found)[0] if found.limits else ""
    verdict = f'<p class="verdict">{escape(_verdict(found))}</p>'
    return f"{verdict}{tables}{html.differences(found)}{figure}{notes}"


def _verdict(found: Numbers) -> str:
    """Which policy wins most, and whether that is clear of the next one."""
    rows = found.of(found.rows, procedure=found.procedure, judge=SELECTING)
    best = max(rows, key=lambda row: float(row["win_rate"]))
    text = (
        f"Under {found.procedure}, {best['policy']} wins {100 * best['win_rate']:.1f} % of the "
        f"comparisons with the reference ({100 * best['low']:.1f} to {100 * best['high']:.1f})."
    )
    ahead = []
    for gap in found.of(found.differences, procedure=found.procedure, judge=SELECTING):
        if best["policy"] in (gap["first"], gap["second"]):
            turned = 1 if gap["first"] == best["policy"] else -1
            low, high = sorted((turned * gap["low"], turned * gap["high"]))
            other = gap["second"] if turned == 1 else gap["first"]
            ahead.append(
                f"{points(turned * gap['difference'])} points over {other} "
                f"({points(low)} to {points(high)})"
            )
    return text + (f" Paired on the prompts: {', '.join(ahead)}." if ahead else "")


def _sizes(found: Numbers) -> str:
    figures = html.figures_of(found)[1 if found.limits else 0 :]
    parts = [
        figure + html.sizes(found, judge)
        for judge, figure in zip(found.judges, figures, strict=True)
    ]
    return "".join(parts) + html.peaks(found)
