"""How far a run is, for whoever shows it: what each stage does, and the time that is left.

A run keeps how long each instance took in `.infalign/durations.json`, so that the next one knows
what to expect. Nothing here draws: `flows.commands.live` does, on a terminal.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infalign.files.workspace import write_json

WAITING, RUNNING, FAILED = "waiting", "running", "failed"  # or what was done: made, unchanged, …


@dataclass
class Instance:
    """One stage instance of a run.

    Attributes:
        state: waiting, running, failed, or what was done.
        needs: the instances that it waits for.
        expected: seconds that it took before, or that another of its stage took; None: unknown.
        begun: when it began, by the monotonic clock.
        said: its last line.
    """

    state: str = WAITING
    needs: tuple[str, ...] = ()
    expected: float | None = None
    begun: float = 0.0
    said: str = ""

    def elapsed(self) -> float:
        """Seconds at work so far."""
        return time.monotonic() - self.begun if self.state == RUNNING else 0.0


@dataclass
class Progress:
    """A run as it goes on. One thread writes it, another one may read.

    Attributes:
        shown: somebody shows it: lines of single stages need not be printed.
        phase: what the run does while no stage is at work.
    """

    root: Path
    shown: bool = False
    phase: str = ""
    slots: int = 1
    begun: float = field(default_factory=time.monotonic)
    instances: dict[str, Instance] = field(default_factory=dict)

    def plan(
        self, upstream: Mapping[str, tuple[str, ...]], stale: Mapping[str, str], slots: int
    ) -> None:
        """What there is to do."""
        known = read_durations(self.root)
        self.slots = slots
        self.instances = {
            name: Instance(WAITING if name in stale else "unchanged", needs, expected(known, name))
            for name, needs in upstream.items()
        }

    def begins(self, name: str) -> None:
        """An instance is at work."""
        one = self.instances.setdefault(name, Instance())
        one.state, one.begun, one.said = RUNNING, time.monotonic(), ""

    def says(self, name: str, line: str) -> None:
        """What an instance says of itself."""
        if name in self.instances:
            self.instances[name].said = line

    def ends(self, name: str, state: str) -> None:
        """An instance is done; how long it took helps to say how long others will take."""
        one = self.instances.setdefault(name, Instance())
        took = one.elapsed()
        one.state = state
        if state != "made":
            return
        note_duration(self.root, name, took)
        for other, unknown in self.instances.items():
            if unknown.expected is None and _word(other) == _word(name):
                unknown.expected = took

    def left(self) -> float | None:
        """Seconds that the rest will take, `slots` instances side by side; None: unknown."""
        now, free = 0.0, self.slots
        ends: dict[str, float] = {}
        waiting: list[str] = []
        for name, one in self.instances.items():
            if one.state == RUNNING:
                if one.expected is None:
                    return None
                ends[name] = max(one.expected - one.elapsed(), 1.0)
                free -= 1
            elif one.state == WAITING:
                if one.expected is None:
                    return None
                waiting.append(name)
        last = max(ends.values(), default=0.0)
        while waiting or ends:
            for name in list(waiting):
                one = self.instances[name]
                if free > 0 and not any(need in ends or need in waiting for need in one.needs):
                    waiting.remove(name)
                    ends[name] = now + (one.expected or 0.0)
                    free -= 1
            if not ends:  # they wait for what failed
                break
            name = min(ends, key=lambda other: ends[other])
            now = last = ends.pop(name)
            free += 1
        return last


_WATCHED: dict[Path, Progress] = {}


@contextlib.contextmanager
def watching(root: Path) -> Iterator[Progress]:
    """The progress of a project's runs in this process, to be shown."""
    key = root.resolve()
    try:
        yield _WATCHED.setdefault(key, Progress(key))
    finally:
        _WATCHED.pop(key, None)


def progress_of(root: Path) -> Progress:
    """What a run writes to: what somebody watches, or one that nobody does."""
    return _WATCHED.get(root.resolve()) or Progress(root.resolve())


def _durations(root: Path) -> Path:
    return root / ".infalign" / "durations.json"


def read_durations(root: Path) -> dict[str, float]:
    """Seconds that each instance took when it was last made here."""
    try:
        tree = json.loads(_durations(root).read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in tree.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # it only helps to guess


def note_duration(root: Path, name: str, seconds: float) -> None:
    """Keep how long an instance took."""
    write_json(_durations(root), read_durations(root) | {name: round(seconds, 1)})


def expected(known: Mapping[str, float], name: str) -> float | None:
    """How long an instance will take, by its last time, or by others of its stage."""
    if name in known:
        return known[name]
    alike = [seconds for other, seconds in known.items() if _word(other) == _word(name)]
    return sum(alike) / len(alike) if alike else None


def _word(instance: str) -> str:
    return instance.split("@")[0]
