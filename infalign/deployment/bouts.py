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
from dataclasses import asdict, dataclass, field
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
    """

    prompt_ids: tuple[str, ...]
    wins: Mapping[str, Array]
    draws: int = 0
    trained: int = 0
    too_long: int = 0
    unknown: tuple[str, ...] = ()


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


def draws_of(params: Params, candidate: Evidence, champion: Evidence) -> int:
    """Draws of each system a prompt: both procedures need samples of their own."""
    needed = sum(parse_procedure(one.facts.procedure).n for one in (candidate, champion))
    return max(params.promotion.arena_samples, needed)


def identity(evidence: Evidence) -> str:
    """One name for a system, by content; older evidence names it by what it scored."""
    return evidence.facts.system or _sha(
        [asdict(evidence.facts), _hash(evidence.policy.selecting), *evidence.prompt_ids]
    )


def answers_name(params: Params, system: Evidence, field: Field, draws: int) -> str:
    """One name for a system's answers: all that they depend on."""
    prompts = {name: dialogue.text for name, dialogue in field.prompts.items()}
    return _sha([identity(system), prompts, draws, params.run.seed, _passes(params), _code()])


def bouts_name(params: Params, candidate: Evidence, champion: Evidence, field: Field) -> str:
    """One name for an arena: both systems, their judges, the prompts, the draws, the code."""
    draws, both = draws_of(params, candidate, champion), (candidate, champion)
    names = [answers_name(params, one, field, draws) for one in both]
    judges = [(one.facts.reward, one.facts.judged_by) for one in both]
    return _sha([names, judges, field.trained])


def bouts_folder(root: Path, objective: str, name: str) -> Path:
    """Where an arena of that name is kept."""
    return root / ".infalign" / "arena" / objective / name


def _passes(params: Params) -> list[Any]:
    """What may change the last bits of models' outputs."""
    run, evaluate = params.run, params.evaluate
    return [run.device, run.threads, run.precision, run.batch_tokens, evaluate.batch_size]


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
    facts = asdict(bouts)
    del facts["wins"]
    write_json(folder / "facts.json", facts | {"judges": list(bouts.wins)})


def read_bouts(folder: Path) -> Bouts:
    """Read and check the folder."""
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        ids, judges = tuple(facts.pop("prompt_ids")), facts.pop("judges")
        facts["unknown"] = tuple(facts["unknown"])
        table = read_table(folder / "bouts.parquet", BOUTS)
        by = table["judge"].to_numpy(zero_copy_only=False)
        values = table["win_rate"].to_numpy()
        return Bouts(ids, {judge: values[by == judge] for judge in judges}, **facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} does not say what came of the arena ({error}): remove it and try again."
        ) from None
