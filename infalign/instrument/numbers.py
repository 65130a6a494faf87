"""What was measured, in numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Numbers:
    """What samples say of policies over their reference.

    Attributes:
        procedure: the one that the policies are deployed with.
        procedures, judges, policies: what was measured, `selecting` the first judge.
        prompts: how many prompts every number is over.
        samples: side to its fewest, median and most samples a prompt.
        rows: a row a procedure, judge and policy: `win_rate` with `low` and `high` (95 %), `limit`,
            `efficiency` and `kl` (nats a response, with `kl_se`), None where no KL is known; of a
            reward of few levels `tied_limit` estimates what can be won with its ties.
        differences: pairs of policies, paired on the prompts.
        by_n: win rates for N = 1, 2, 4, … of the procedure's own kind.
        peaks: for every policy and judge the N of the highest win rate, and the `fall` from there
            to the largest N.
        calibration: expected error of calibrated rewards with as many references, and what two
            disjoint groups of references disagree by, measured and expected.
        ties: side to the share of its samples whose reward another sample of the prompt has.
        needed: for every policy what an interval of the wanted width takes.
        limits: KL, nats, and the highest win rate there, under the procedure.
        notes: what a reader has to know, a sentence each.
    """

    procedure: str
    procedures: list[str]
    judges: list[str]
    policies: list[str]
    prompts: int
    samples: dict[str, list[int]]
    rows: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    by_n: list[dict[str, Any]]
    peaks: list[dict[str, Any]]
    calibration: dict[str, Any]
    ties: dict[str, float]
    needed: list[dict[str, Any]]
    limits: list[dict[str, float]]
    notes: list[str]

    def row(self, policy: str, judge: str = "selecting", procedure: str | None = None) -> Row:
        """The one row of a policy under a judge and a procedure, by default its own.

        Raises:
            KeyError: if there is none.
        """
        wanted = (policy, judge, procedure or self.procedure)
        for row in self.rows:
            if (row["policy"], row["judge"], row["procedure"]) == wanted:
                return row
        raise KeyError(wanted)

    def of(self, rows: Sequence[Row], **wanted: Any) -> list[Row]:
        """Those of some rows that have these values."""
        return [row for row in rows if all(row[name] == value for name, value in wanted.items())]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return asdict(self)

    def to_json(self) -> str:
        """Everything as JSON, numbers unrounded."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)
