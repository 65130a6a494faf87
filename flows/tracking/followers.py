"""Follow the history files of running stages into the journal.

A live history lies in `.infalign/work/<instance>/`, a finished one among the stage's outputs. A
stage that resumes rewrites its history up to its checkpoint: what was sent already is not sent
again, since the same steps give the same numbers.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = tuple[str, float, int]  # metric, value, step
POLL_SECONDS = 1.0


@dataclass
class _Cursor:
    """How far one history has been read."""

    inode: int = -1
    offset: int = 0
    last_step: int = -1

    def read(self, path: Path) -> list[dict[str, Any]]:
        """The finished lines behind the cursor, of steps that have not been read yet."""
        try:
            with open(path, "rb") as stream:
                size, inode = path.stat().st_size, path.stat().st_ino
                if inode != self.inode or size < self.offset:
                    self.inode, self.offset = inode, 0
                stream.seek(self.offset)
                chunk = stream.read()
        except FileNotFoundError:
            return []
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self.offset += len(whole)
        rows = [row for row in _parsed(whole) if row["step"] > self.last_step]
        self.last_step = max([self.last_step, *(row["step"] for row in rows)])
        return rows


def _parsed(lines: bytes) -> Iterator[dict[str, Any]]:
    for line in lines.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the stage itself refuses a broken history; following must not stop
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row


@dataclass
class _Followed:
    send: Callable[[list[Row]], None]
    cursors: dict[str, _Cursor] = field(default_factory=dict)


class Followers:
    """One thread that looks at the histories of all running stages once a second."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._followed: dict[str, _Followed] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="histories", daemon=True)
        self._thread.start()

    def follow(self, instance: str, send: Callable[[list[Row]], None]) -> None:
        """Begin to send the instance's metrics as they are written."""
        with self._lock:
            self._followed[instance] = _Followed(send)

    def finish(self, instance: str, outputs: list[Path]) -> None:
        """Send what is left, from the finished files, and forget the instance."""
        with self._lock:
            followed = self._followed.pop(instance, None)
            if followed is not None:
                self._send(followed, finished_histories(outputs))

    def leave(self, instance: str) -> None:
        """Send what is left of an instance that failed, and forget it."""
        with self._lock:
            followed = self._followed.pop(instance, None)
            if followed is not None:
                self._send(followed, self._live(instance))

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            with self._lock:
                for instance, followed in self._followed.items():
                    self._send(followed, self._live(instance))

    def _live(self, instance: str) -> dict[str, Path]:
        work = self._root / ".infalign" / "work" / instance
        walk = os.walk(work)  # which passes over a folder that is gone meanwhile
        found = [Path(folder, name) for folder, _, names in walk for name in names]
        live = [p for p in found if p.name == "history.jsonl" and work / "out" not in p.parents]
        return {prefix(path, work): path for path in sorted(live)}

    def _send(self, followed: _Followed, histories: Mapping[str, Path]) -> None:
        for name, path in histories.items():
            rows = followed.cursors.setdefault(name, _Cursor()).read(path)
            metrics = [metric for row in rows for metric in row_metrics(row, name)]
            if metrics:
                followed.send(metrics)


def prefix(path: Path, base: Path) -> str:
    """`helpful/train/` for both base/helpful/train/history.jsonl and base/helpful/train.jsonl."""
    parts = path.relative_to(base).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "history" else parts
    return "".join(f"{part}/" for part in parts)


def finished_histories(outputs: list[Path]) -> dict[str, Path]:
    """The histories among a stage's outputs."""
    found: dict[str, Path] = {}
    for output in outputs:
        if output.is_dir():
            found |= {prefix(path, output): path for path in sorted(output.rglob("*.jsonl"))}
        elif output.suffix == ".jsonl":
            found[prefix(output, output.parent)] = output
    return found


def row_metrics(row: Mapping[str, Any], name: str) -> list[Row]:
    """The finite numbers of one line of a history."""
    return [
        (name + key, float(value), row["step"])
        for key, value in row.items()
        if key != "step"
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    ]
