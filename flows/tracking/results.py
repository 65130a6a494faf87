"""What a run found, as rows: the headline of the report, the gains of a comparison.

Reads results/report/summary.json and results/compare/O/comparison.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infalign.files.tables import SELECTING
from infalign.settings.params import Params


def gains(root: Path, params: Params) -> list[dict[str, Any]]:
    """The rows of the gain table of every compared objective."""
    rows: list[dict[str, Any]] = []
    for objective in params.compare.objectives:
        path = root / "results" / "compare" / objective / "comparison.json"
        found = json.loads(path.read_text(encoding="utf-8"))["gains"] if path.exists() else []
        rows += [{"objective": objective} | row for row in found]
    return rows


def summary(root: Path) -> list[dict[str, Any]]:
    """The rows of results/report/summary.json, none if there is no report."""
    path = root / "results" / "report" / "summary.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [row for row in tree if isinstance(row, dict)] if isinstance(tree, list) else []


def headline(root: Path, params: Params) -> list[dict[str, Any]]:
    """Each policy under its objective's own procedure, by the selecting reward."""
    own = {name: objective.procedure for name, objective in params.objectives.items()}
    return [
        row
        for row in summary(root)
        if row.get("judge") == SELECTING
        and row.get("procedure") == own.get(str(row.get("objective")))
    ]
