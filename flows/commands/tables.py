"""The tables at the end of a run and of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Column, Table


def win_rate_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Win rate over the reference under each objective's own procedure."""
    numbers = ("win rate", "95 % interval", "limit", "efficiency", "KL (nats)")
    table = Table(
        *("objective", "policy", "procedure"),
        *(Column(name, justify="right") for name in numbers),
        title="Win rate over the reference at inference time (selecting reward)",
    )
    for row in rows:
        table.add_row(
            str(row["objective"]),
            str(row["policy"]),
            str(row["procedure"]),
            _number(row.get("win_rate")),
            f"{_number(row.get('low'))} to {_number(row.get('high'))}",
            _number(row.get("limit")),
            _number(row.get("efficiency"), 2),
            _number(row.get("kl"), 2),
        )
    return table


def _number(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "–"


def gain_table(rows: Sequence[dict[str, Any]]) -> Table:
    """What methods that know the procedure win over the best that does not, at equal KL."""
    numbers = ("KL budget", "judge", "gain", "95 % interval", "allowed")
    table = Table(
        *("objective", "method", "best rival"),
        *(Column(name, justify="right") for name in numbers),
        title="Gain in win rate over the best method blind to the procedure, points",
    )
    for row in rows:
        table.add_row(
            str(row["objective"]),
            str(row["variant"]),
            str(row["rival"]),
            str(row["kl_nats"]),
            str(row["judge"]),
            _points(row["difference"]),
            f"{_points(row['low'])} to {_points(row['high'])}",
            _points(row["allowed"]),
        )
    return table


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"
