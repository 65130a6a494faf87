"""Samples as arrays [prompts, samples]: the one reader of what is stored a row a sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infalign.errors import InputError
from infalign.files.tables import CALIBRATED, GOLD, INDEPENDENT, SELECTING, read_table

Array = NDArray[np.float64]


class Square:
    """Rows of a table, one a sample, by prompt and sample; every prompt has as many.

    Attributes:
        prompt_ids: in the order of the rows of every array.
    """

    def __init__(self, table: pa.Table, source: Path) -> None:
        """Sort the rows by prompt id and sample index.

        Args:
            source: the file that they come from, to speak of it.

        Raises:
            InputError: if there is no row, or a prompt has more samples than another.
        """
        order = [("prompt_id", "ascending"), ("sample_index", "ascending")]
        self._rows = table.sort_by(order)
        ids, counts = np.unique(self._rows["prompt_id"].to_numpy(), return_counts=True)
        self.prompt_ids: list[str] = ids.tolist()
        if not len(ids) or (counts != counts[0]).any():
            few = f": {ids[counts.argmin()]} has {counts.min()} samples" if len(ids) else ""
            raise InputError(
                f"{source} must hold as many samples for every prompt{few}. Run its stage again."
            )

    def __getitem__(self, column: str) -> Any:
        """One column [prompts, samples]: numbers as numbers, texts and lists as objects."""
        values = self._rows[column]
        if pa.types.is_list(values.type) or pa.types.is_string(values.type):
            flat = np.empty(len(values), dtype=object)
            flat[:] = values.to_pylist()
        else:
            flat = values.to_numpy()
        return flat.reshape(len(self.prompt_ids), -1)


def reference_rewards(path: Path, split: str) -> tuple[list[str], dict[str, Array]]:
    """Prompt ids, and the reference's rewards by judge [prompts, samples], of calibrate's table."""
    table = read_table(path, CALIBRATED)
    square = Square(table.filter(pc.field("split") == split), path)
    columns = {SELECTING: "reward", INDEPENDENT: "independent_reward"}
    there = {judge: name for judge, name in columns.items() if name in table.column_names}
    return square.prompt_ids, {judge: square[name] for judge, name in there.items()}


def policy_rewards(rewards: pa.Table, source: Path) -> dict[str, Array]:
    """One policy's rewards by judge [prompts, samples], of evaluate's table of rewards."""
    there = set(rewards["judge"].unique().to_pylist())
    return {
        judge: Square(rewards.filter(pc.field("judge") == judge), source)["reward"]
        for judge in (SELECTING, INDEPENDENT, GOLD)
        if judge in there
    }
