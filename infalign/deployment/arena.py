"""Two systems against each other: `python -m infalign.deployment.arena --objective O A [B] OUT`.

Reads the packages of a candidate and of the champion (A and B: `deployed/`, `evidence/`, `judge/`,
`reference/`) and results/prepare. Both answer today's evaluation prompts with the same random
numbers, each as it is deployed: by its own temperature, selecting reward, procedure and N. Today's
selecting reward, today's judge and the champion's own judge compare what is kept. The suites of
`promotion` are measured as well, and alone where there is no champion. Writes the folder OUT at
once, as `bouts.py` describes it.

Answers and rewards are kept in `.infalign/arena/parts`, by name of all that they depend on: a
killed arena goes on, and a champion that did not change is not asked again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infalign.data.suites import read_suite
from infalign.deployment import command
from infalign.deployment.bouts import (
    FORMER,
    Bouts,
    Field,
    Suited,
    answers_name,
    columns_name,
    draws_of,
    open_field,
    write_bouts,
)
from infalign.deployment.drawing import open_packaged_sampler
from infalign.deployment.systems import System
from infalign.errors import InputError
from infalign.files.squares import Array, Square
from infalign.files.tables import INDEPENDENT, SELECTING, Table, read_table, write_table
from infalign.files.tables import schema as columns
from infalign.files.workspace import Workspace
from infalign.settings.operating import Suite
from infalign.settings.params import Params
from infalign.theory.rivals import head_to_head, kept_mean

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


def hold(
    root: Path,
    params: Params,
    objective: str,
    folders: tuple[Path, Path | None],
    out: Path,
) -> None:
    """Have both systems answer and be compared, and write what came of it, or nothing.

    Args:
        folders: the packages of the candidate and of the champion, if there is one.
    """
    pairs = zip(("candidate", "champion"), folders, strict=True)
    systems = [System.open(word, folder) for word, folder in pairs if folder is not None]
    evidence = [system.evidence for system in systems]
    field = open_field(root, params, objective, evidence)
    workspace = Workspace(params, root, f"arena@{objective}")
    with workspace.locked():
        draws = draws_of(params, evidence[0], evidence[1] if len(evidence) > 1 else None)
        arena = Arena(workspace, field, draws)
        bouts = _bouts(arena, systems) if len(systems) > 1 else Bouts()
        suites = measure_suites(arena, objective, systems)
    staged = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        write_bouts(staged, replace(bouts, suites=suites))
        shutil.rmtree(out, ignore_errors=True)
        os.replace(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _bouts(arena: Arena, systems: Sequence[System]) -> Bouts:
    """The two on today's evaluation prompts."""
    arena, too_long = arena.taken(systems)
    wins = arena.wins(*systems) if arena.field.prompts else _none(systems)
    unknown = tuple(one.word for one in systems if one.evidence.trained is None)
    ids, trained = tuple(arena.field.prompts), arena.field.trained
    return Bouts(ids, wins, arena.draws, trained, too_long, unknown)


def measure_suites(arena: Arena, objective: str, systems: Sequence[System]) -> dict[str, Suited]:
    """Every suite of an objective: the candidate's number, and the champion's beside it."""
    params, found = arena.workspace.params, {}
    for name, suite in params.promotion.suites_of(objective).items():
        prompts = read_suite(arena.workspace.root, params.data, name)
        here, _ = replace(arena, field=Field(prompts)).taken(systems)
        if not here.field.prompts:
            raise InputError(
                f"data.suites.{name}: every prompt is longer than the "
                f"{min(one.settings['prompt_tokens'] for one in systems)} tokens that a policy "
                "takes: shorten them."
            )
        found[name] = here.suited(suite, systems)
    return found


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
class Arena:
    """Answers and rewards on the same prompts, kept in parts.

    Attributes:
        field: the prompts that both take.
        draws: a prompt, of each system.
    """

    workspace: Workspace
    field: Field
    draws: int

    def taken(self, systems: Sequence[System]) -> tuple[Arena, int]:
        """With the prompts that every system takes, and how many others there are."""
        from infalign.lm.models import load_format

        dialogues = list(self.field.prompts.values())
        fits = np.ones(len(dialogues), dtype=bool)
        for system in systems:
            ids, most = load_format(system.policy).encode_prompts(dialogues), system.settings
            fits &= np.array([len(one) <= most["prompt_tokens"] for one in ids], dtype=bool)
        pairs = zip(self.field.prompts.items(), fits, strict=True)
        field = replace(self.field, prompts=dict(pair for pair, fit in pairs if fit))
        return replace(self, field=field), int((~fits).sum())

    def suited(self, suite: Suite, systems: Sequence[System]) -> Suited:
        """One suite's numbers, as its rule has them."""
        many, candidate = len(self.field.prompts), systems[0]
        champion = systems[1] if len(systems) > 1 else None
        if suite.rule == "win_rate":
            over = float(self.against(candidate, candidate.reference(), candidate.judge).mean())
            if champion is None:
                return Suited(many, over)
            own = None  # of an older version, which holds no reference
            if champion.has_reference:
                own = float(self.against(champion, champion.reference(), candidate.judge).mean())
            return Suited(
                many, over, own, float(self.against(candidate, champion, candidate.judge).mean())
            )
        numbers = [self.kept(system, suite, candidate) for system in systems]
        return Suited(many, *numbers)

    def against(self, first: System, second: System, judge: Path) -> Array:
        """How often the first one's kept answer beats the second's, by a judge [prompts]."""
        return head_to_head(
            (first.settings["procedure"], second.settings["procedure"]),
            (self.rewards(first, first.source), self.rewards(second, second.source)),
            (self.rewards(first, judge), self.rewards(second, judge)),
        )

    def kept(self, system: System, suite: Suite, candidate: System) -> float:
        """Mean of a function of a system's kept answers, or the share of it above a number."""
        values = self._of_suite(system, suite, candidate)
        if suite.above is not None:
            values = (values > suite.above).astype(np.float64)
        selecting = self.rewards(system, system.source)
        return float(kept_mean(system.settings["procedure"], selecting, values).mean())

    def _of_suite(self, system: System, suite: Suite, candidate: System) -> Array:
        if suite.reward is None:
            return self.rewards(system, candidate.source)
        from infalign.rewards.function import load_function

        function = load_function(self.workspace.root / suite.reward.file, suite.reward.name)
        responses = [text for part in self.answers(system) for text in part["response"].to_pylist()]
        asked = [prompt for prompt in self.field.prompts.values() for _ in range(self.draws)]
        return function.rewards(asked, responses).reshape(-1, self.draws)

    def wins(self, candidate: System, champion: System) -> dict[str, Array]:
        """How often the candidate's kept answer beats the champion's, by judge [prompts]."""
        return {
            judge: self.against(candidate, champion, place)
            for judge, place in _judges(candidate, champion).items()
        }

    def rewards(self, system: System, source: Path) -> Array:
        """What a packaged source says of a system's answers [prompts, draws]."""
        from infalign.deployment.package import source_digest

        answers = self.answers(system)
        about = [source_digest(source)[:32], _precision_of(source), columns_name(self.field)]
        name = "-".join([self._name(system), *about])
        opened: list[Any] = []
        made = []
        for number, ids in enumerate(self._blocks()):
            path = self._part(name, number)
            if not path.exists():
                if not opened:
                    opened.append(self._open(source))
                asked = [self.field.prompts[i] for i in ids for _ in range(self.draws)]
                responses = answers[number]["response"].to_pylist()
                rewards = opened[0].rewards(asked, responses)
                write_table(path, self._keys(ids) | {"reward": rewards}, SCORES)
                print(f"arena: {system.word}, rewards, part {number + 1}", flush=True)
            made.append(read_table(path, SCORES))
        return Square(pa.concat_tables(made), Path(name))["reward"].astype(np.float64)

    def answers(self, system: System) -> list[pa.Table]:
        """A system's answers, drawn where they are not known."""
        from infalign.lm.memory import Budget
        from infalign.lm.sampling.randomness import derive_seed

        params, sampler, made = self.workspace.params, None, []
        with contextlib.ExitStack() as stack:
            for number, ids in enumerate(self._blocks()):
                path = self._part(self._name(system), number)
                if not path.exists():
                    if sampler is None:
                        about = (system.policy, _precision(system), system.word)
                        budget = Budget(params.run.batch_tokens)
                        opened = open_packaged_sampler(params, *about, budget)
                        sampler = stack.enter_context(opened)
                    drawn = sampler.draw(
                        [self.field.prompts[i] for i in ids],
                        ids,
                        np.tile(np.arange(self.draws), (len(ids), 1)),
                        seed=derive_seed(params.run.seed, "arena"),  # one for both
                        longest=system.settings["response_tokens"],
                        temperature=system.temperature,
                    )
                    write_table(path, self._keys(ids) | {"response": drawn.text}, ANSWERS)
                    print(f"arena: {system.word}, answers, part {number + 1}", flush=True)
                made.append(read_table(path, ANSWERS))
        return made

    def _open(self, source: Path) -> Any:
        from infalign.lm.memory import Budget
        from infalign.rewards.classifier import Passes
        from infalign.rewards.packaged import open_packaged

        params = self.workspace.params
        passes = Passes(params.evaluate.batch_size, Budget(params.run.batch_tokens))
        device, precision = params.run.device, _precision_of(source)
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


def _precision_of(source: Path) -> str:
    """A packaged source computes alike for all whom it scores: as its own package is deployed."""
    package = source if source.name == "deployed" else source.parent / "deployed"
    settings = json.loads((package / "settings.json").read_text(encoding="utf-8"))
    return str(settings.get("precision", "float32"))


def _precision(system: System) -> str:
    """As it was evaluated; older packages do not say."""
    return str(system.settings.get("precision", "float32"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Hold one arena in the project of the current folder; 2 is the user's input."""
    parser = command.parser_of("arena", __doc__)
    parser.add_argument("candidate", type=Path)
    parser.add_argument("champion", type=Path, nargs="?")
    parser.add_argument("out", type=Path)

    def work(params: Params, chosen: Namespace) -> None:
        folders = (chosen.candidate, chosen.champion)
        hold(Path.cwd(), params, chosen.objective, folders, chosen.out)

    return command.run("arena", parser, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
