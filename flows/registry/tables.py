"""Verdicts, versions and moves as tables: in the terminal, and as markdown for Prefect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from flows.registry.champions import Move
from flows.registry.promotion import Decision
from flows.registry.registry import GATE

RULE_COLUMNS = ("rule", "", "number", "bound", "short by", "what")


def rule_rows(decision: Decision) -> list[tuple[str, ...]]:
    """A row a rule: name, passed or failed, number, bound, by how much it is missed, words."""
    if decision.verdict is None:
        return []
    return [
        (
            rule.name,
            "passed" if rule.passed else "failed",
            "–" if rule.number is None else f"{rule.number:.4g}",
            rule.bound,
            "" if rule.short is None else f"{rule.short:.3g}",
            rule.words + (f"; {rule.wanted}" if rule.wanted and not rule.passed else ""),
        )
        for rule in decision.verdict.rules
    ]


def verdict_table(decision: Decision) -> Table:
    """Every rule with its number and bound."""
    against = f"version {decision.champion}" if decision.champion else "no champion yet"
    table = Table(title=f"Gate: {decision.objective}, against {against}")
    for column in RULE_COLUMNS:
        table.add_column(column, justify="right" if column == "number" else "left")
    for row in rule_rows(decision):
        table.add_row(*row, style="" if row[1] == "passed" else "bold red")
    return table


def verdict_markdown(decision: Decision) -> str:
    """The same for a page."""
    lines = [decision.sentence(), "", "| " + " | ".join(RULE_COLUMNS) + " |"]
    lines.append("|" + " --- |" * len(RULE_COLUMNS))
    lines += ["| " + " | ".join(row) + " |" for row in rule_rows(decision)]
    return "\n".join(lines) + "\n"


def version_table(objective: str, versions: Sequence[Any], aliases: Mapping[str, str]) -> Table:
    """Every version of an objective's model with its aliases and numbers."""
    columns = ("version", "alias", "variant", "win rate ≥", "KL", "last gate", "commit", "made")
    table = Table(*columns, title=f"infalign-{objective}")
    for version in reversed(versions):
        tags = version.tags
        names = sorted(name for name, number in aliases.items() if number == str(version.version))
        commit = tags.get("infalign.commit", "–")[:10]
        table.add_row(
            str(version.version),
            ", ".join(names),
            tags.get("infalign.variant", "–"),
            tags.get("infalign.number.win_rate", "–"),
            tags.get("infalign.number.kl", "–"),
            _gate(tags.get(GATE)),
            commit + (" (dirty)" if tags.get("infalign.dirty") == "true" else ""),
            datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).strftime("%F %H:%M"),
        )
    return table


def _gate(text: str | None) -> str:
    if text is None:
        return "not judged"
    tree = json.loads(text)
    return "passed" if tree["passed"] else f"failed: {', '.join(tree['failed'])}"


def history_table(objective: str, history: Sequence[Move]) -> Table:
    """Every move, the newest last."""
    columns = ("#", "when (UTC)", "move", "from", "to", "who", "gate", "why")
    table = Table(*columns, title=f"Champions of infalign-{objective}")
    for place, move in enumerate(history, start=1):
        gate = "" if not move.gate else "passed" if move.gate["passed"] else "failed"
        table.add_row(
            str(place),
            move.when.removesuffix("+00:00").replace("T", " "),
            move.move + (" (forced)" if move.forced else ""),
            move.source or "–",
            move.to,
            move.who,
            gate,
            move.why,
        )
    return table
