"""A run on a terminal: its stages with their state, a bar and the time left, in one place.

Lines of single stages are shown beside their stage; what is printed otherwise goes above. Where
output is no terminal there is no view, and every line is printed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.runs.progress import Instance, Progress

REFRESHES = 4  # a second
BAR = 24  # characters
MARKS = {"waiting": "·", "running": "▶", "made": "✓", "failed": "✗"}


class View:
    """What is on the terminal while a run is at work. Until it knows the run it shows a sentence.

    Args:
        what: the command, and what it begins with.
    """

    def __init__(self, what: str) -> None:
        self._what, self._begun = what, time.monotonic()
        self._progress: Progress | None = None
        self._live: Any = None

    @property
    def on(self) -> bool:
        """Whether anything is shown."""
        return self._live is not None

    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._begun

    def start(self) -> None:
        """Show the first sentence, if there is a terminal to show it on."""
        if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
            return
        from rich.live import Live

        self._live = Live(get_renderable=self._drawn, refresh_per_second=REFRESHES, transient=True)
        self._live.start(refresh=True)

    def follow(self, progress: Progress) -> None:
        """Show a run from now on."""
        self._progress = progress
        progress.shown = self.on

    def stop(self) -> None:
        """Leave the terminal to what is printed from now on."""
        if self._progress is not None:
            self._progress.shown = False
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _drawn(self) -> RenderableType:
        from rich.text import Text

        seconds = self.seconds()
        progress = self._progress
        if progress is None or not progress.instances:
            phase = progress.phase if progress is not None else ""
            return Text(f"{phase or self._what} … {clock(seconds)}")
        return drawn(progress, seconds)


@contextlib.contextmanager
def viewing(what: str) -> Iterator[View]:
    """A view that is gone at the end, however that comes."""
    view = View(what)
    view.start()
    try:
        yield view
    finally:
        view.stop()


def drawn(progress: Progress, seconds: float) -> RenderableType:
    """The run as a table: a row a stage, all of its instances in it, and the whole on top."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for justify in ("left", "left", "left", "right", "left"):
        table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
    stages: dict[str, dict[str, Instance]] = {}
    for name, one in list(progress.instances.items()):
        stages.setdefault(name.split("@")[0], {})[name] = one
    left = progress.left()
    rest = "time left unknown yet" if left is None else f"about {clock(left)} left"
    table.add_row("", "[bold]all[/]", _bar(list(progress.instances.values())), clock(seconds), rest)
    for word, instances in stages.items():
        table.add_row(*_row(word, instances))
    return table


def _row(word: str, instances: dict[str, Instance]) -> tuple[str, str, str, str, str]:
    from rich.markup import escape

    ones = list(instances.values())
    states = [one.state for one in ones]
    state = next((s for s in ("failed", "running", "waiting") if s in states), states[0])
    busy = {name: one for name, one in instances.items() if one.state == "running"}
    took = max((one.elapsed() for one in busy.values()), default=0.0)
    said = "; ".join(f"{name.partition('@')[2]} {one.said}".strip() for name, one in busy.items())
    count = f" {sum(s not in ('waiting', 'running') for s in states)}/{len(ones)}"
    words = said or ("" if state in ("waiting", "running") else _done(states))
    return (
        MARKS.get(state, "="),
        word + (count if len(ones) > 1 else ""),
        _bar(ones),
        clock(took) if busy else "",
        escape(words),
    )


def _done(states: list[str]) -> str:
    """What was done with the instances of a stage."""
    words = dict.fromkeys(states)
    return ", ".join(w if len(words) == 1 else f"{states.count(w)} {w}" for w in words)


def _bar(ones: list[Instance]) -> str:
    """How much of the work is done; instances of unknown length count alike."""
    known = [one.expected for one in ones if one.expected]
    usual = sum(known) / len(known) if known else 1.0
    whole = done = 0.0
    for one in ones:
        size = one.expected or usual
        whole += size
        if one.state not in ("waiting", "running"):
            done += size
        elif one.expected:
            done += min(one.elapsed(), 0.95 * size)
    filled = round(BAR * done / whole) if whole else BAR
    return f"[cyan]{'━' * filled}[/][dim]{'─' * (BAR - filled)}[/]"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
