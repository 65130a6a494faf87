"""The copy of a report that is published: with what differs from run to run, and the whole gate.

`results/report/index.html` keeps its bytes from run to run. Date, commit, hashes, duration,
versions, links and the registry's verdict are put into a copy of it, at places that the page holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from infalign.page.markup import Html, facts, html, tag
from infalign.page.verdict import answer_line, framed

RUN = Html("<!--run-->")  # where the facts of a run go


class Fact(NamedTuple):
    """Something about a run: its name, its value, and where more of it is to be seen."""

    name: str
    value: str
    link: str = ""


class Ruling(NamedTuple):
    """What the gate said of a candidate, champion and all: yes or no, in short and in words."""

    yes: bool
    answer: str
    reasons: str


def published(page: str, shown: Sequence[Fact], rulings: Mapping[str, Ruling]) -> str:
    """A copy of a report.

    Args:
        page: results/report/index.html.
        shown: of the run, in this order.
        rulings: objective to the gate's word, where it was asked.
    """
    linked = (
        (fact.name, tag("a", fact.value, href=fact.link) if fact.link else fact.value)
        for fact in shown
    )
    page = page.replace(RUN, facts(linked), 1)
    for objective, ruling in rulings.items():
        said = answer_line(ruling.answer, ruling.yes, html(ruling.reasons))
        page = _replaced(page, framed(objective, Html("\0")), framed(objective, said))
    return page


def _replaced(page: str, frame: str, part: str) -> str:
    """The page with other words between the two ends of a frame."""
    start, end = frame.split("\0")
    before, found, rest = page.partition(start)
    after = rest.partition(end)[2]
    return before + part + after if found else page
