"""What `infalign frontier` is asked, the answer of the theory, and what a finished run adds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infalign.errors import InputError

if TYPE_CHECKING:
    from infalign.theory.frontier import FrontierPoint


SHOWN = ("identity", "log", "exp:5", "exp:10", "exp:-5", "exp:-10", "auto", "optimal")


SUMMARY_KEYS = {"objective", "policy", "judge", "procedure", "kl", "win_rate"}
SUMMARY_KEYS |= {"low", "high", "limit", "efficiency"}


CURVE_KEYS = {"procedure", "curve", "kl", "win_rate"}


@dataclass(frozen=True)
class Question:
    """Procedures, KL budgets in nats, and the transformations asked for under each procedure."""

    procedures: tuple[str, ...]
    kls: tuple[float, ...]
    transforms: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class FinishedRun:
    """What a results folder adds: summary rows, theory curves, limits of raw rewards."""

    policies: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)


def ask(
    procedures: Sequence[str], kls: Sequence[float], transforms: Sequence[str], path: Path
) -> Question:
    """Complete the options from params.yaml, which is read only if they leave something open.

    Raises:
        ValueError: for a bad spelling, or if params.yaml is needed but missing or wrong.
    """
    from infalign.theory.procedures import parse_procedure

    transforms = list(dict.fromkeys(_canonical(text) for text in transforms))
    wanted: dict[str, tuple[str, ...]] = {
        str(parse_procedure(text)): tuple(transforms or SHOWN) for text in procedures
    }
    budgets = tuple(dict.fromkeys(kls))
    if not wanted or not budgets:
        from infalign.settings.params import load_params

        if not path.is_file():
            raise InputError(
                f"There is no file {path}: give --procedure and --kl, or run from a project's root."
            )
        settings = load_params(path)
        budgets = budgets or (settings.align.kl_nats,)
        for name in settings.run.objectives if not wanted else ():
            spellings = [settings.reward_spelling(name, v) for v in settings.run.variants]
            trained = [_canonical(text) for text in spellings if text != "raw"]
            shown = transforms or [*SHOWN[:-2], *trained, *SHOWN[-2:]]
            key = settings.objectives[name].procedure
            wanted[key] = tuple(dict.fromkeys((*wanted.get(key, ()), *shown)))
    return Question(tuple(wanted), budgets, wanted)


def _canonical(transform: str) -> str:
    from infalign.theory.transforms import parse_transform

    chosen_later = transform.strip() in ("optimal", "auto")
    return transform.strip() if chosen_later else str(parse_transform(transform))


def answer(question: Question) -> list[FrontierPoint]:
    """Every point asked for; a transformation that `auto` chose again is not repeated."""
    from infalign.theory.frontier import frontier_point

    points: dict[tuple[str, str, float], FrontierPoint] = {}
    for procedure in question.procedures:
        for kl in question.kls:
            for transform in question.transforms[procedure]:
                point = frontier_point(procedure, transform, kl)
                points[point.procedure, point.transform, point.kl] = point
    return list(points.values())


def read_run(folder: Path, question: Question) -> FinishedRun:
    """Policies and methods of a finished run, for the procedures asked about.

    Under a procedure that some objectives train for, theirs only: others would be judged by what
    they were not made for. Under one that none trains for, all.

    Raises:
        InputError: if the folder has no summary, or a file in it is not what a run leaves.
    """
    from infalign.files.tables import REFERENCE, SELECTING

    summary = folder / "report" / "summary.json"
    if not summary.is_file():
        raise InputError(f"{summary} does not exist: give the results folder of a finished run.")
    curves: list[dict[str, Any]] = []
    for path in sorted(folder.glob("evaluate/*/curves.json")):
        named = {"objective": path.parent.name}
        curves += [named | row for row in _read_rows(path, CURVE_KEYS)]
    own = own_procedures(curves)

    def wanted(objective: str, procedure: str) -> bool:
        meant_for = {name for name, its in own.items() if its == procedure}
        return procedure in question.procedures and (not meant_for or objective in meant_for)

    def answerable(objective: str) -> Question:
        chosen = tuple(name for name in question.procedures if wanted(objective, name))
        return replace(question, procedures=chosen)

    policies = [
        row
        for row in _read_rows(summary, SUMMARY_KEYS)
        if row["judge"] == SELECTING
        and row["policy"] != REFERENCE
        and wanted(row["objective"], row["procedure"])
    ]
    raw = [
        row
        for path in sorted(folder.glob("calibrate/*/calibrated.parquet"))
        for row in _raw_limits(path, answerable(path.parent.name))
    ]
    curves = [row for row in curves if wanted(row["objective"], row["procedure"])]
    return FinishedRun(policies, curves, raw)


def own_procedures(curves: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The procedure that each objective trains for: its curves show that one, and `standard`."""
    own: dict[str, str] = {}
    for row in curves:
        if row["objective"] not in own or row["procedure"] != "standard":
            own[row["objective"]] = row["procedure"]
    return own


def _read_rows(path: Path, keys: set[str]) -> list[dict[str, Any]]:
    """A JSON array of objects that have at least these keys."""
    rows: Any = None
    with contextlib.suppress(ValueError):
        rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and keys <= row.keys() for row in rows
    ):
        raise InputError(
            f"{path} is not what a finished run leaves there: run the pipeline again, or give "
            "another folder."
        )
    return rows


def missing_procedures(question: Question, run: FinishedRun) -> list[str]:
    """The procedures asked about under which the finished run evaluated nothing."""
    evaluated = {row["procedure"] for row in run.policies}
    return [name for name in question.procedures if name not in evaluated]


def _raw_limits(path: Path, question: Question) -> Iterable[dict[str, Any]]:
    """The limit of RLHF on raw rewards, from the evaluation prompts' reference samples."""
    from infalign.files.squares import reference_rewards
    from infalign.files.tables import SELECTING
    from infalign.theory.limits import raw_limit

    rewards = reference_rewards(path, "test")[1][SELECTING]
    for procedure in question.procedures:
        for kl in question.kls:
            try:
                found = raw_limit(procedure, rewards, kl)
            except ValueError as error:
                raise InputError(f"Raw rewards of {path}: {error}") from None
            yield {
                "procedure": procedure,
                "transform": "raw",
                "kl": kl,
                "win_rate": found.win_rate,
                "beta": found.beta,
                "objective": path.parent.name,
                "uncertainty": found.uncertainty,
            }
