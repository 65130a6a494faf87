"""What a procedure allows before any training, as a table and a figure for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from infalign.errors import InputError
from infalign.instrument.charts import Axis, Line, Point, drawn, ticks
from infalign.instrument.text import aligned
from infalign.page.markup import Html, table, tag
from infalign.theory.frontier import FrontierPoint, frontier_point, limit
from infalign.theory.procedures import Procedure, parse_procedure
from infalign.theory.transforms import Transform

SHOWN = ("identity", "log", "exp:5", "exp:10", "exp:-5", "exp:-10", "auto", "optimal")
HEAD = ("transform", "KL (nats)", "win rate", "beta")


@dataclass(frozen=True)
class Frontier:
    """Win rates that transformations reach under one procedure, best first at every KL.

    Attributes:
        procedure: its spelling.
        points: one a transformation and KL budget.
    """

    procedure: str
    points: list[FrontierPoint]

    def best(self, kl_nats: float | None = None) -> FrontierPoint:
        """The best transformation to train with (`optimal` is the bound) at a budget of these.

        Raises:
            InputError: if the frontier was not asked for that budget.
        """
        budget = self.points[0].kl if kl_nats is None else float(kl_nats)
        members = [p for p in self.points if p.kl == budget and p.transform != "optimal"]
        if not members:
            raise InputError(f"the frontier was not asked for {budget:g} nats.")
        return max(members, key=lambda point: point.win_rate)

    def to_dict(self) -> list[dict[str, Any]]:
        """A mapping a point, as JSON takes it."""
        return [asdict(point) for point in self.points]

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (p.transform, f"{p.kl:g}", f"{p.win_rate:.4f}", f"{p.beta:.4g}") for p in self.points
        ]

    def __str__(self) -> str:
        return "\n".join([self.procedure, *aligned([HEAD, *self._cells()])])

    def _repr_html_(self) -> str:
        caption = f"What exact training reaches under {self.procedure}"
        shown = table(HEAD, self._cells(), caption)
        return tag("div", shown, self._figure(), class_="infalign")

    def _figure(self) -> Html:
        top = 1.5 * max(point.kl for point in self.points)
        kls = top * np.linspace(0.0, 1.0, 25) ** 2
        best = limit(self.procedure, kls)
        over = [Point(float(kl), float(w)) for kl, w in zip(kls, np.asarray(best), strict=True)]
        lines = [Line("limit of any policy", over, None)]
        names = dict.fromkeys(p.transform for p in self.points if p.transform != "optimal")
        for position, name in enumerate(names):
            own = [
                Point(p.kl, p.win_rate, says=f"{p.win_rate:.4f} at {p.kl:g} nats")
                for p in sorted(self.points, key=lambda p: p.kl)
                if p.transform == name
            ]
            lines.append(Line(name, own, position))
        lowest = min(0.5, *(p.win_rate for p in self.points))
        rates = Axis("win rate over the reference", ticks(lowest, max(p.y for p in over)))
        across = Axis("KL from the reference, nats", ticks(0.0, top))
        return drawn(f"Win rate against KL under {self.procedure}", lines, across, rates)


def frontier(
    procedure: str | Procedure,
    kl_nats: float | Sequence[float] = 0.5,
    transforms: Sequence[str | Transform] = SHOWN,
) -> Frontier:
    """What win rate each transformation reaches under a procedure at a KL budget, with its β.

    Args:
        procedure: `best_of:4`, `worst_of:4`, `standard`, …
        kl_nats: budget or budgets, nats a response.
        transforms: spellings; what `auto` chooses is named, and not repeated.

    Raises:
        InputError: for a spelling that cannot be read, or a KL that cannot be spent.
    """
    budgets = [float(kl) for kl in np.atleast_1d(np.asarray(kl_nats, dtype=np.float64))]
    try:
        chosen = parse_procedure(procedure)
        points: dict[tuple[str, float], FrontierPoint] = {}
        for kl in budgets:
            for transform in transforms:
                point = frontier_point(chosen, transform, kl)
                points[point.transform, point.kl] = point
    except ValueError as error:
        raise InputError(str(error)) from None
    ordered = sorted(points.values(), key=lambda p: (budgets.index(p.kl), -p.win_rate))
    return Frontier(str(chosen), ordered)
