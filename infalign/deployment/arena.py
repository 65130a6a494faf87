"""Two systems against each other: `python -m infalign.deployment.arena --objective O A B OUT`.

Reads the packages of a candidate and of the champion (A and B: `deployed/`, `evidence/`, `judge/`)
and results/prepare. Both answer today's evaluation prompts with the same random numbers, each
keeps as it is deployed: by its own selecting reward, procedure and N. Today's selecting reward,
today's judge and the champion's own judge compare what is kept. Writes the folder OUT at once, as
`bouts.py` describes it.

Answers and rewards are kept in `.infalign/arena/parts`, by name of all that they depend on: a
killed arena goes on, and a champion that did not change is not asked again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infalign.deployment.bouts import (
    FORMER,
    Bouts,
    Field,
    answers_name,
    draws_of,
    open_field,
    write_bouts,
)
from infalign.deployment.evidence import Evidence, read_evidence
from infalign.errors import InputError
from infalign.files.squares import Array, Square
from infalign.files.tables import INDEPENDENT, SELECTING, Table, read_table, write_table
from infalign.files.tables import schema as columns
from infalign.files.workspace import Workspace
from infalign.settings.params import Params, load_params
from infalign.theory.rivals import head_to_head

AT_ONCE = 64  # prompts that are answered, or scored, before that is kept
PARTS = "parts"
ANSWERS = Table(
    "answers",
    columns(prompt_id=pa.string(), sample_index=pa.int32(), response=pa.string()),
    ("prompt_id", "sample_index"),
    {"sample_index": (0, float("inf"))},
)
SCORES = Table(
    "scores",
    columns(prompt_id=pa.string(), sample_index=pa.int32(), reward=pa.float64()),
    ("prompt_id", "sample_index"),
    {"sample_index": (0, float("inf")), "reward": (-float("inf"), float("inf"))},
)


@dataclass(frozen=True)
class System:
    """A packaged system.

    Attributes:
        word: `candidate` or `champion`.
        folder: its package.
        settings: how it is deployed.
    """

    word: str
    folder: Path
    evidence: Evidence
    settings: dict[str, Any]

    @staticmethod
    def open(word: str, folder: Path) -> System:
        """Read a package; its models wait."""
        path = folder / "deployed" / "settings.json"
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no packaged policy: {error}.") from None
        return System(word, folder, read_evidence(folder / "evidence"), settings)


def hold(root: Path, params: Params, objective: str, folders: tuple[Path, Path], out: Path) -> None:
    """Have both systems answer and be compared, and write what came of it, or nothing.

    Args:
        folders: the packages of the candidate and of the champion.
    """
    systems = [System.open(*pair) for pair in zip(("candidate", "champion"), folders, strict=True)]
    candidate, champion = systems
    evidence = [system.evidence for system in systems]
    field = open_field(root, params, objective, evidence)
    workspace = Workspace(params, root, f"arena@{objective}")
    with workspace.locked():
        taken, too_long = _taken(field, systems)
        draws = draws_of(params, *evidence)
        arena = _Arena(workspace, taken, draws)
        wins = arena.wins(candidate, champion) if taken.prompts else _none(systems)
    unknown = tuple(one.word for one in systems if one.evidence.trained is None)
    bouts = Bouts(tuple(taken.prompts), wins, draws, field.trained, too_long, unknown)
    staged = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        write_bouts(staged, bouts)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _taken(field: Field, systems: Sequence[System]) -> tuple[Field, int]:
    """The prompts that every system takes as it is deployed, and how many others there are."""
    from infalign.lm.models import load_format

    dialogues = list(field.prompts.values())
    fits = np.ones(len(dialogues), dtype=bool)
    for system in systems:
        ids = load_format(system.folder / "deployed" / "policy").encode_prompts(dialogues)
        fits &= np.array([len(one) <= system.settings["prompt_tokens"] for one in ids], dtype=bool)
    kept = dict(pair for pair, fit in zip(field.prompts.items(), fits, strict=True) if fit)
    return Field(kept, field.columns, field.trained), int((~fits).sum())


def _none(systems: Sequence[System]) -> dict[str, Array]:
    return {judge: np.empty(0) for judge in _judges(*systems)}


def _judges(candidate: System, champion: System) -> dict[str, Path]:
    """Who compares: today's selecting reward, today's judge, the champion's where it is another."""
    found = {SELECTING: candidate.folder / "deployed"}
    for judge, system in ((INDEPENDENT, candidate), (FORMER, champion)):
        if (system.folder / "judge").is_dir():
            found[judge] = system.folder / "judge"
    if candidate.evidence.facts.judged_by == champion.evidence.facts.judged_by:
        found.pop(FORMER, None)
    return found


@dataclass(frozen=True)
class _Arena:
    """Answers and rewards on the same prompts, kept in parts.

    Attributes:
        field: the prompts that both take.
        draws: a prompt, of each system.
    """

    workspace: Workspace
    field: Field
    draws: int

    def wins(self, candidate: System, champion: System) -> dict[str, Array]:
        """How often the candidate's kept answer beats the champion's, by judge [prompts]."""
        selecting = {
            system.word: self.rewards(system, system.folder / "deployed", f"{system.word}'s own")
            for system in (candidate, champion)
        }
        found = {}
        for judge, place in _judges(candidate, champion).items():
            judged = {
                system.word: selecting[system.word]
                if place == system.folder / "deployed"
                else self.rewards(system, place, judge)
                for system in (candidate, champion)
            }
            found[judge] = head_to_head(
                (candidate.settings["procedure"], champion.settings["procedure"]),
                (selecting["candidate"], selecting["champion"]),
                (judged["candidate"], judged["champion"]),
            )
        return found

    def rewards(self, system: System, source: Path, judge: str) -> Array:
        """What a packaged source says of a system's answers [prompts, draws]."""
        from infalign.deployment.package import source_digest

        answers = self.answers(system)
        name = f"{self._name(system)}-{source_digest(source)[:32]}"
        opened: list[Any] = []
        made = []
        for number, ids in enumerate(self._blocks()):
            path = self._part(name, number)
            if not path.exists():
                if not opened:
                    opened.append(self._open(system, source))
                asked = [self.field.prompts[i] for i in ids for _ in range(self.draws)]
                responses = answers[number]["response"].to_pylist()
                rewards = opened[0].rewards(asked, responses)
                write_table(path, self._keys(ids) | {"reward": rewards}, SCORES)
                print(f"arena: {system.word}, {judge} reward, part {number + 1}", flush=True)
            made.append(read_table(path, SCORES))
        return Square(pa.concat_tables(made), Path(name))["reward"].astype(np.float64)

    def answers(self, system: System) -> list[pa.Table]:
        """A system's answers, drawn where they are not known."""
        from infalign.lm.memory import Budget
        from infalign.lm.models import load_format, load_policy, pick_device
        from infalign.lm.sampling.randomness import derive_seed
        from infalign.lm.sampling.sampler import sample_responses

        params, folder = self.workspace.params, system.folder / "deployed" / "policy"
        policy, form, made = None, load_format(folder), []
        for number, ids in enumerate(self._blocks()):
            path = self._part(self._name(system), number)
            if not path.exists():
                if policy is None:
                    device = pick_device(params.run.device)
                    policy = load_policy(folder, device, _precision(system))
                drawn = sample_responses(
                    policy,
                    form,
                    [self.field.prompts[i] for i in ids],
                    ids,
                    np.tile(np.arange(self.draws), (len(ids), 1)),
                    seed=derive_seed(params.run.seed, "arena"),  # one for both: draws in common
                    longest=system.settings["response_tokens"],
                    batch_size=params.evaluate.batch_size,
                    budget=Budget(params.run.batch_tokens),
                )
                write_table(path, self._keys(ids) | {"response": drawn.text}, ANSWERS)
                print(f"arena: {system.word}, answers, part {number + 1}", flush=True)
            made.append(read_table(path, ANSWERS))
        return made

    def _open(self, system: System, source: Path) -> Any:
        from infalign.lm.memory import Budget
        from infalign.rewards.classifier import Passes
        from infalign.rewards.packaged import open_packaged

        params = self.workspace.params
        passes = Passes(params.evaluate.batch_size, Budget(params.run.batch_tokens))
        device, precision = params.run.device, _precision(system)
        return open_packaged(source, device, precision, passes, self.field.columns)

    def _blocks(self) -> Iterator[list[str]]:
        ids = list(self.field.prompts)
        return (ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE))

    def _keys(self, ids: list[str]) -> dict[str, Any]:
        return {
            "prompt_id": [name for name in ids for _ in range(self.draws)],
            "sample_index": np.tile(np.arange(self.draws, dtype=np.int32), len(ids)),
        }

    def _name(self, system: System) -> str:
        return answers_name(self.workspace.params, system.evidence, self.field, self.draws)

    def _part(self, name: str, number: int) -> Path:
        folder = self.workspace.root / ".infalign" / "arena" / PARTS
        return folder / f"{name}-{number:04d}.parquet"


def _precision(system: System) -> str:
    """As it was evaluated; older packages do not say."""
    return str(system.settings.get("precision", "float32"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Hold one arena in the project of the current folder; 2 is the user's input."""
    parser = argparse.ArgumentParser(
        prog="python -m infalign.deployment.arena", description=__doc__
    )
    parser.add_argument("--objective", required=True)
    for name in ("candidate", "champion", "out"):
        parser.add_argument(name, type=Path)
    chosen = parser.parse_args(arguments)
    from infalign.processes.one_stage import apply_threads

    try:
        apply_threads("params.yaml")
        params = load_params("params.yaml")
        folders = (chosen.candidate, chosen.champion)
        hold(Path.cwd(), params, chosen.objective, folders, chosen.out)
    except InputError as error:
        print(f"arena: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
