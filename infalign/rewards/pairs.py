"""Preference pairs, and how often a source of rewards is right about them."""

from __future__ import annotations

import math

import numpy as np

from infalign.data.dialogue import read_prompts
from infalign.files.squares import Array
from infalign.files.tables import PREFERENCES, read_table
from infalign.files.workspace import Workspace
from infalign.lm.formats import Format
from infalign.rewards.source import RewardSource


class Pairs:
    """The preference pairs of an objective and split (and half): parallel lists."""

    def __init__(
        self,
        workspace: Workspace,
        objective: str,
        split: str,
        half: str | None,
        most: int | None = None,
    ) -> None:
        """Read them.

        Args:
            most: of them, in the order of their ids where there are more.
        """
        prompts = read_prompts(workspace.results("prepare", "prompts.parquet"), objective)
        pairs = read_table(workspace.results("prepare", "preferences.parquet"), PREFERENCES)
        rows = [
            row
            for row in pairs.to_pylist()
            if row["objective"] == objective
            and row["split"] == split
            and (half is None or row["half"] == half)
        ]
        if most is not None and len(rows) > most:
            rows = sorted(rows, key=lambda row: row["pair_id"])[:most]
        self.prompts = [prompts[row["prompt_id"]] for row in rows]
        self.chosen = [row["chosen"] for row in rows]
        self.rejected = [row["rejected"] for row in rows]
        self._longest = workspace.lengths.response

    def cut(self, form: Format) -> Pairs:
        """The same pairs with responses as long as a policy, whose format it is, may write."""
        self.chosen, self.rejected = (
            form.cut_responses(side, self._longest) for side in (self.chosen, self.rejected)
        )
        return self


def held_out_pairs(workspace: Workspace, objective: str) -> Pairs:
    """The pairs on which accuracy is measured."""
    return Pairs(workspace, objective, "test", None, workspace.params.reward.held_out_pairs)


def accuracy(margin: np.ndarray) -> dict[str, float]:
    """Accuracy on pairs with its 95 % interval (Wilson 1927), ties half; log-loss, nats.

    Args:
        margin: reward of the chosen less that of the rejected response [pairs].
    """
    n = len(margin)
    share = float(((margin > 0) + 0.5 * (margin == 0)).mean())
    z = 1.959963984540054
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return {
        "held_out_pairs": n,
        "accuracy": share,
        "accuracy_low": centre - half,
        "accuracy_high": centre + half,
        "held_out_loss": float(np.logaddexp(0, -margin).mean()),
        "margin_std": float(margin.std()),
    }


def margins(source: RewardSource, pairs: Pairs) -> Array:
    """The reward of the chosen less that of the rejected response [pairs]."""
    chosen, rejected = (
        source.rewards(pairs.prompts, side) for side in (pairs.chosen, pairs.rejected)
    )
    return chosen - rejected
