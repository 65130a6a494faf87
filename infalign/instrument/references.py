"""The reference's rewards of every prompt, found by a prompt's id, its text or its messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infalign.errors import InputError
from infalign.files.names import SELECTING
from infalign.instrument.reading import KEYS, Source, canonical, read_columns
from infalign.instrument.samples import read_side
from infalign.theory.checks import FloatArray


@dataclass(frozen=True)
class References:
    """Reference rewards by prompt.

    Attributes:
        place: where they were read.
        rewards: prompt (id, text or canonical messages) to rewards, ascending; a prompt may be
            there under several names.
        prompts: how many there are.
    """

    place: str
    rewards: Mapping[str, FloatArray]
    prompts: int

    def __len__(self) -> int:
        return self.prompts

    def of(self, prompt: Any) -> FloatArray:
        """The rewards of the reference's samples of a prompt, ascending.

        Raises:
            InputError: for a prompt that it has none of.
        """
        name = prompt if isinstance(prompt, str) else canonical(prompt)
        found = self.rewards.get(name)
        if found is None:
            shown = name if len(name) <= 80 else name[:77] + "..."
            raise InputError(
                f"{self.place} has no rewards of the prompt {shown!r} among its {self.prompts}: "
                "sample the reference for every training prompt, score those samples with the same "
                "reward and add them."
            )
        return found


def read_references(source: Source, column: str, objective: str | None) -> References:
    """From a finished `results/`, or from samples of the reference.

    Args:
        source: the folder, or whatever `infalign.measure` takes as a reference.
        column: the rewards' column; of samples only.
        objective: whose rewards, of a results folder with several.

    Raises:
        InputError: naming file, row, column and remedy.
    """
    if isinstance(source, str | Path) and (Path(source) / "calibrate").is_dir():
        return _of_results(Path(source), objective)
    side = read_side(source, "references", column, ())
    parts = np.split(side.rewards[SELECTING], np.cumsum(side.counts)[:-1])
    rewards = {name: np.sort(part) for name, part in zip(side.prompts, parts, strict=True)}
    if side.key == KEYS[0]:  # by its text as well, where the file has it
        texts = read_columns(source, KEYS, (), "references").texts
        if KEYS[1] in texts:
            (ids, names), (codes, said) = texts[KEYS[0]], texts[KEYS[1]]
            pairs = set(zip(ids.tolist(), codes.tolist(), strict=True))
            rewards |= {said[text]: rewards[names[i]] for i, text in pairs}
    return References(side.place, rewards, len(side.prompts))


def _of_results(folder: Path, objective: str | None) -> References:
    """The rewards that calibrate stored, by id, by the text with markers and by messages."""
    from infalign.data.dialogue import read_prompts
    from infalign.files.tables import CALIBRATION, read_table

    known = sorted(path.name for path in (folder / "calibrate").iterdir() if path.is_dir())
    if objective is None and len(known) == 1:
        objective = known[0]
    if objective not in known:
        raise InputError(
            f"{folder} holds the objectives {', '.join(known)}: name one of them as `objective`."
        )
    path = folder / "calibrate" / objective / "calibration.parquet"
    rows = read_table(path, CALIBRATION).to_pylist()
    rewards = {row["prompt_id"]: np.array(row["rewards"], dtype=np.float64) for row in rows}
    prompts = read_prompts(folder / "prepare" / "prompts.parquet", objective)
    for name in list(rewards):
        if name in prompts:
            rewards[prompts[name].marked] = rewards[prompts[name].text] = rewards[name]
    return References(str(path), rewards, len(rows))
