"""history.jsonl: one flushed JSON object a line, rising step, readable while a stage runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infalign.errors import InputError
from infalign.files.workspace import write_text


class History:
    """Append metrics of a step to a file; after a resume, continue behind the checkpoint's step.

    Args:
        path: the live file, in the instance's work folder.
        last_step: the step of the checkpoint resumed from; later lines are cut off (-1: all).
    """

    def __init__(self, path: Path, last_step: int = -1) -> None:
        kept = [row for row in read_history(path) if row["step"] <= last_step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the run
        self._last = kept[-1]["step"] if kept else -1

    def append(self, step: int, **metrics: float) -> None:
        """Write one line; `step` must exceed the last one."""
        if step <= self._last:
            raise ValueError(f"history: step {step} follows step {self._last}")
        self._last = step
        self._stream.write(json.dumps({"step": step, **metrics}, allow_nan=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_history(path: Path) -> list[dict[str, Any]]:
    """The finished lines of a history; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise InputError(f"{path}, line {number}: not JSON: remove the file.") from None
    return rows
