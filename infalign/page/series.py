"""The numbers of a run as data that DVC compares: a flat file a policy, curves that plots overlay.

Written by the stage report: results/report/headline/O-V.json for `dvc metrics`,
results/report/data/NAME/O.json for `dvc plots`, which draws them by `.dvc/plots/series.json`: a
row with an interval is a point, every other one belongs to the curve of its series. DVC wants the
same keys in every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infalign.files.names import HEADLINE, SELECTING
from infalign.page.data import ObjectiveData

TRAINING = ("kl", "calibrated")  # of a step: nats a response; mean calibrated reward
Rows = list[dict[str, Any]]


def headlines(data: ObjectiveData) -> dict[str, dict[str, float]]:
    """The headline numbers of every policy, under the objective's own procedure."""
    rows = {name: data.row(name, SELECTING, data.procedure) for name in data.variants}
    return {
        f"{data.name}-{name}": {key: row[key] for key in HEADLINE if row[key] is not None}
        for name, row in rows.items()
    }


def overlays(data: ObjectiveData) -> dict[str, Rows]:
    """The rows of each plot: win rate against KL, training curves, calibration error."""
    training = {f"training_{key}": _training(data.histories, key) for key in TRAINING}
    return {
        "win_rate": _win_rate(data),
        **training,
        "calibration_error": _calibration(data.calibration_errors),
    }


def _win_rate(data: ObjectiveData) -> Rows:
    """The limit as a curve, and a point with its interval a policy."""
    limit = [
        {"series": "limit", "kl": row["kl"], "win_rate": row["win_rate"], "low": None, "high": None}
        for row in data.curves
        if row["curve"] == "limit" and row["procedure"] == data.procedure
    ]
    rows = {name: data.row(name, SELECTING, data.procedure) for name in data.variants}
    keys = ("kl", "win_rate", "low", "high")
    return limit + [{"series": name} | {k: row[k] for k in keys} for name, row in rows.items()]


def _training(histories: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> Rows:
    """One number of every policy's training; baselines do not have all of them."""
    return [
        {"series": name, "step": row["step"], key: row[key]}
        for name, history in histories.items()
        for row in history
        if row.get(key) is not None
    ]


def _calibration(errors: Sequence[Mapping[str, float]]) -> Rows:
    """Calibration error against the number of references, measured and expected."""
    return [
        {"series": kind, "references": row["references"], "error": row[kind]}
        for kind in ("measured", "expected")
        for row in errors
    ]
