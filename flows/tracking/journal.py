"""What is to be logged, in order, on disk until it has been: `.infalign/tracking/<key>.jsonl`.

An entry is a JSON object. A state file beside it holds how many have been applied and which
run ids the tracking server gave out, so that an outage, or a kill, loses nothing.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from infalign.files.workspace import write_text


class Journal:
    """Entries that one thread writes and another one applies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._state_path = path.with_suffix(".state")
        self.entries: list[dict[str, Any]] = _read(path)
        state = json.loads(self._state_path.read_text()) if self._state_path.exists() else {}
        self.applied: int = state.get("applied", 0)
        self.run_ids: dict[str, str] = state.get("run_ids", {})
        # Whether the pending entry may have been applied without our knowing.
        self.doubtful = bool(self.entries)

    def append(self, entry: dict[str, Any]) -> None:
        """Write one entry; it is on disk when this returns."""
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")
            self.entries.append(entry)

    def pending(self) -> dict[str, Any] | None:
        """The first entry that has not been applied."""
        with self._lock:
            return self.entries[self.applied] if self.applied < len(self.entries) else None

    def waiting(self) -> int:
        """How many entries have not been applied."""
        with self._lock:
            return len(self.entries) - self.applied

    def advance(self) -> None:
        """The first pending entry has been applied."""
        with self._lock:
            self.applied += 1
            self.entries[self.applied - 1] = {}  # metrics of long runs need not stay in memory
            write_text(
                self._state_path,
                json.dumps({"applied": self.applied, "run_ids": self.run_ids}),
            )

    def unfinished(self) -> list[str]:
        """Keys of runs that began and did not end, children first."""
        entries = _read(self.path)  # those that were applied are no longer in memory
        began = [entry["key"] for entry in entries if entry["op"] == "begin"]
        ended = {entry["key"] for entry in entries if entry["op"] == "end"}
        return [key for key in reversed(began) if key not in ended]

    def remove(self) -> None:
        """Forget a journal that has been applied to its end."""
        self.path.unlink(missing_ok=True)
        self._state_path.unlink(missing_ok=True)


def _read(path: Path) -> list[dict[str, Any]]:
    """The entries of a journal; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if len(whole) < len(text):
        write_text(path, whole)
    return [json.loads(line) for line in whole.splitlines()]
