"""Two systems' kept answers against each other: what is compared, and what came of it, in a folder.

A system is what is deployed: policy, selecting reward, procedure, N. `arena.py` draws and judges;
this file says on which prompts, under which name by content, and reads and writes the folder:
`bouts.parquet`, how often the candidate's kept answer beats the champion's, by judge and prompt,
and `facts.json`. Numpy and pyarrow alone: a gate needs no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infalign.data.dialogue import Dialogue
from infalign.deployment.evidence import Evidence
from infalign.errors import InputError
from infalign.files.code import ROOT, imported_files
from infalign.files.squares import Array
from infalign.files.tables import INDEPENDENT, PROMPTS, SELECTING, Table, read_table, write_table
from infalign.files.tables import schema as columns
from infalign.files.workspace import write_json
from infalign.settings.params import Params
from infalign.theory.procedures import parse_procedure

FORMER = "former"  # the judge under which the champion was promoted, where it is another one
BOUTS = Table(
    "bouts",
    columns(judge=pa.string(), prompt_id=pa.string(), win_rate=pa.float64()),
    ("judge", "prompt_id"),
    {"win_rate": (0.0, 1.0)},
    {"judge": frozenset({SELECTING, INDEPENDENT, FORMER})},
)


@dataclass(frozen=True)
class Suited:
    """One suite's number of a candidate.

    Attributes:
        prompts: how many both systems take.
        candidate: its win rate over its reference, or the mean or share of its kept answers.
        champion: the same of the champion; None where there is none, or it is not compared.
        against: how often the candidate's kept answer beats the champion's, for a win rate.
    """

    prompts: int
    candidate: float
    champion: float | None = None
    against: float | None = None


@dataclass(frozen=True)
class Bouts:
    """What came of an arena.

    Attributes:
        prompt_ids: those that both systems answered.
        wins: judge to how often the candidate's kept answer beats the champion's [prompts]:
            `selecting` and `independent` are today's, `former` is the champion's own judge.
        draws: of each system, a prompt.
        trained: prompts that were left out because either system was trained on them.
        too_long: prompts that were left out because either system does not take them.
        unknown: systems that do not say what they were trained on, of older versions.
        suites: what was measured on pinned prompts, by suite.
    """

    prompt_ids: tuple[str, ...] = ()
    wins: Mapping[str, Array] = field(default_factory=dict)
    draws: int = 0
    trained: int = 0
    too_long: int = 0
    unknown: tuple[str, ...] = ()
    suites: Mapping[str, Suited] = field(default_factory=dict)


@dataclass(frozen=True)
class Field:
    """The prompts of an arena, in the order of their ids.

    Attributes:
        prompts: id to dialogue.
        columns: the other columns of prompts' rows, where there are any.
        trained: how many were left out because either system was trained on them.
    """

    prompts: Mapping[str, Dialogue]
    columns: Mapping[Dialogue, Mapping[str, Any]] = field(default_factory=dict)
    trained: int = 0


def open_field(root: Path, params: Params, objective: str, systems: list[Evidence]) -> Field:
    """Today's evaluation prompts, without those that any of the systems was trained on."""
    path = root / "results" / "prepare" / "prompts.parquet"
    if not path.exists():
        raise InputError(f"{path} does not exist: run `infalign run` first.")
    rows = sorted(
        (
            row
            for row in read_table(path, PROMPTS).to_pylist()
            if row["objective"] == objective and row["split"] == "test"
        ),
        key=lambda row: str(row["prompt_id"]),
    )
    known = frozenset().union(*(one.trained or frozenset() for one in systems))
    fresh = [row for row in rows if row["prompt_id"] not in known]
    chosen = {
        row["prompt_id"]: Dialogue.parse(row["dialogue"])
        for row in fresh[: params.promotion.arena_prompts]
    }
    more = {
        chosen[row["prompt_id"]]: json.loads(row["columns"])
        for row in fresh[: params.promotion.arena_prompts]
        if row["columns"] != "{}"
    }
    return Field(chosen, more, len(rows) - len(fresh))


def draws_of(params: Params, candidate: Evidence, champion: Evidence | None) -> int:
    """Draws of each system a prompt: both procedures need samples of their own.

    In a suite, and without a champion, each meets its own reference by its own procedure.
    """
    most = [parse_procedure(one.facts.procedure).n for one in (candidate, champion or candidate)]
    return max(params.promotion.arena_samples, 2 * max(most))  # a suite's is its reference


def identity(evidence: Evidence) -> str:
    """One name for a system, by content; older evidence names it by what it scored."""
    return evidence.facts.system or _sha(
        [asdict(evidence.facts), _hash(evidence.policy.selecting), *evidence.prompt_ids]
    )


def answers_name(params: Params, system: Evidence, field: Field, draws: int) -> str:
    """One name for a system's answers: all that they depend on."""
    prompts = {name: dialogue.text for name, dialogue in field.prompts.items()}
    return _sha([identity(system), prompts, draws, params.run.seed, _passes(params), _code()])


def columns_name(field: Field) -> str:
    """One name for the other columns of the prompts, which rewards may read."""
    return _sha({dialogue.id: dict(more) for dialogue, more in field.columns.items()})


def bouts_name(root: Path, params: Params, candidate: Evidence, champion: Evidence | None) -> str:
    """One name for an arena: both systems, their judges, the prompts, the draws, the code."""
    objective = candidate.facts.objective
    both = [one for one in (candidate, champion) if one is not None]
    field = open_field(root, params, objective, both)
    draws = draws_of(params, candidate, champion)
    names = [answers_name(params, one, field, draws) for one in both]
    judges = [(one.facts.reward, one.facts.judged_by) for one in both]
    columns = columns_name(field)
    return _sha([names, judges, columns, field.trained, _suites(root, params, objective)])


def _suites(root: Path, params: Params, objective: str) -> list[Any]:
    """All that the suites' numbers depend on, beside the systems."""
    found = []
    for name, suite in params.promotion.suites_of(objective).items():
        measured = suite.model_dump(include={"rule", "above", "reward"}, mode="json")
        files = [params.data.suites[name], *([suite.reward.file] if suite.reward else [])]
        known = [_content(root / path) for path in files]
        found.append([name, measured, known])
    return found


def _content(path: Path) -> list[str]:
    """What a file holds, or every file of a folder; nothing where neither is there."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.exists()]


def bouts_folder(root: Path, objective: str, name: str) -> Path:
    """Where an arena of that name is kept."""
    return root / ".infalign" / "arena" / objective / name


def _passes(params: Params) -> list[Any]:
    """What may change the last bits of models' outputs, or who draws."""
    run, evaluate, engine = params.run, params.evaluate, params.generation
    passes = [run.device, run.threads, run.precision, run.batch_tokens, evaluate.batch_size]
    return [*passes, engine.engine, engine.start]


def _code() -> list[str]:
    names = sorted(imported_files("infalign.deployment.arena"))
    return [hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in names]


def _hash(values: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _sha(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:32]


def write_bouts(folder: Path, bouts: Bouts) -> None:
    """Write the folder; `facts.json` comes last and says that it is whole."""
    rows = [
        (judge, name, float(won))
        for judge, wins in bouts.wins.items()
        for name, won in zip(bouts.prompt_ids, wins, strict=True)
    ]
    names = BOUTS.schema.names
    table = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    write_table(folder / "bouts.parquet", table, BOUTS)
    facts = asdict(replace(bouts, wins={}))
    del facts["wins"]
    write_json(folder / "facts.json", facts | {"judges": list(bouts.wins)})


def read_bouts(folder: Path) -> Bouts:
    """Read and check the folder."""
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        ids, judges = tuple(facts.pop("prompt_ids")), facts.pop("judges")
        facts["unknown"] = tuple(facts["unknown"])
        facts["suites"] = {name: Suited(**about) for name, about in facts["suites"].items()}
        table = read_table(folder / "bouts.parquet", BOUTS)
        by = table["judge"].to_numpy(zero_copy_only=False)
        values = table["win_rate"].to_numpy()
        return Bouts(ids, {judge: values[by == judge] for judge in judges}, **facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} does not say what came of the arena ({error}): remove it and try again."
        ) from None
