"""What the checks of an objective's champions found, over time: a page, and a table for Prefect.

The page is `.infalign/drift/O.html`, one file that opens from disk; it is made anew from MLflow's
runs with every check.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infalign.files.workspace import write_text
from infalign.instrument.charts import Axis, Line, Point, drawn, ticks
from infalign.page.markup import Chapter, Html, document, join, table, tag

CHECKED = {  # quantities of a check, in words
    "win_rate": "win rate",
    "reference_reward": "the reference's rewards are apart by",
    "policy_reward": "the policy's rewards are apart by",
    "prompt_length": "lengths of prompts are apart by",
    "prompt_hidden": "hidden means of prompts are apart by",
    "prompt_novel": "the share of prompts unlike training has risen by",
}
TITLES = {
    "win_rate": "Win rate over the reference",
    "reference_reward": "Distance of the reference's rewards",
    "policy_reward": "Distance of the policy's rewards",
    "prompt_length": "Distance of the prompts' lengths",
    "prompt_hidden": "Distance of the prompts' hidden means",
    "prompt_novel": "Rise of the share of prompts unlike any in training",
}
SHOWN = 30  # checks in Prefect's table
DAY = 86400.0


@dataclass(frozen=True)
class Past:
    """One check.

    Attributes:
        when: seconds since 1970.
        version: of the champion.
        source: of its prompts.
        numbers: `win_rate.now`, …, as MLflow has them.
    """

    when: float
    version: str
    source: str
    numbers: Mapping[str, float]

    @property
    def day(self) -> str:
        """UTC."""
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(self.when))

    def value(self, name: str) -> float | None:
        """What is followed of a quantity: a win rate or a suite's number itself, else how far."""
        end = "now" if name == "win_rate" or name.startswith("suite.") else "size"
        return self.numbers.get(f"{name}.{end}")

    def bound(self, name: str) -> float | None:
        """Beyond which the alarm is raised, if chance does not explain it."""
        if name.startswith("suite."):
            return self.numbers.get(f"{name}.bound")
        threshold = self.numbers.get(f"{name}.threshold")
        if name == "win_rate" and threshold is not None:
            return self.numbers["win_rate.before"] - threshold
        return threshold

    def alarm(self, name: str) -> bool:
        """Whether it was raised."""
        return bool(self.numbers.get(f"{name}.alarm"))


def page_path(root: Path, objective: str) -> Path:
    """Where an objective's page is."""
    return root / ".infalign" / "drift" / f"{objective}.html"


def write_page(root: Path, objective: str, checks: Sequence[Past]) -> Path:
    """Write the page; its path."""
    path = page_path(root, objective)
    write_text(path, page(objective, checks))
    return path


def page(objective: str, checks: Sequence[Past]) -> str:
    """The page as text."""
    chapters = [
        Chapter(source, f"{source} prompts", join([*_figures(source, own), _table(source, own)]))
        for source, own in _by_source(checks).items()
    ]
    title = f"Checks of the champions of {objective}"
    return document(title, tag("p", f"{len(checks)} checks.", class_="lead"), chapters)


def _by_source(checks: Sequence[Past]) -> dict[str, list[Past]]:
    found: dict[str, list[Past]] = {}
    for check in checks:
        found.setdefault(check.source, []).append(check)
    return found


def followed(checks: Sequence[Past]) -> list[str]:
    """The quantities that any of the checks has, in their order."""
    suites = {
        key.rpartition(".")[0]
        for check in checks
        for key in check.numbers
        if key.startswith("suite.")
    }
    named = [*CHECKED, *sorted(suites)]
    return [name for name in named if any(check.value(name) is not None for check in checks)]


def _figures(source: str, checks: Sequence[Past]) -> list[Html]:
    return [_figure(source, checks, name) for name in followed(checks)]


def _figure(source: str, checks: Sequence[Past], name: str) -> Html:
    """One quantity over days, with the bound beyond which the alarm is raised."""
    first = checks[0].when
    seen, bounds = [], []
    for check in checks:
        value, bound = check.value(name), check.bound(name)
        at = (check.when - first) / DAY
        if value is not None:
            low, high = (check.numbers.get(f"{name}.{end}") for end in ("low", "high"))
            words = f"{value:.3f} on {check.day}, version {check.version}"
            words += ", alarm" if check.alarm(name) else ""
            seen.append(Point(at, value, low, high, words))
        if bound is not None:
            bounds.append(Point(at, bound))
    title = TITLES.get(name, f"Suite {name.removeprefix('suite.')}")
    heights = [
        end
        for point in (*seen, *bounds)
        for end in (point.y, point.low, point.high)
        if end is not None
    ]
    lines = [Line("alarm beyond", bounds, None)] if bounds else []
    lines.append(Line("checks", seen, 0))
    across = Axis(
        f"days since {time.strftime('%Y-%m-%d', time.gmtime(first))}",
        _days((checks[-1].when - first) / DAY),
    )
    up = Axis(title, ticks(min(heights), max(heights)))
    return drawn(f"{title}, {source} prompts", lines, across, up, live=True)


def _days(last: float) -> list[tuple[float, str]]:
    step = max(1, round(last / 6))
    marks = [float(n) for n in range(0, max(int(last) + step, 1) + 1, step)]
    return [(mark, f"{mark:.0f}") for mark in marks]


def _cells(check: Past, names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        value = check.value(name)
        shown = "–" if value is None else f"{value:.3f}"
        found.append(f"{shown}, alarm" if check.alarm(name) else shown)
    return found


def _table(source: str, checks: Sequence[Past]) -> Html:
    head, *rows = _rows(checks)
    return table(head, rows, f"Checks on {source} prompts, the newest first")


def _rows(checks: Sequence[Past]) -> list[list[str]]:
    """The head of a table, then its rows, the newest check first."""
    names = followed(checks)
    shown = [name.removeprefix("suite.").replace("_", " ") for name in names]
    rows = [
        [check.day, check.version, f"{check.numbers.get('prompts', 0):.0f}", *_cells(check, names)]
        for check in reversed(checks)
    ]
    return [["check, UTC", "version", "prompts", *shown], *rows]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_markdown(objective: str, checks: Sequence[Past]) -> str:
    """The newest checks as tables, one a kind of prompts."""
    lines = [f"Checks of the champions of {objective}; all of them: .infalign/drift."]
    for source, own in _by_source(checks).items():
        head, *rows = _rows(own)
        lines += ["", f"**{source} prompts**", "", _line(head), f"|{' --- |' * len(head)}"]
        lines += [_line(cells) for cells in rows[:SHOWN]]
    return "\n".join(lines) + "\n"
