"""What every source of rewards is: a number for each response, or one sentence about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.files.squares import Array
from infalign.processes.ranks import Ranks
from infalign.settings.reading import shown


class RewardSource(Protocol):
    """Rewards of responses: any scale, comparable only within one prompt."""

    def rewards(self, dialogues: Sequence[Dialogue], responses: Sequence[str]) -> Array:
        """One reward a response, float64 [responses].

        Args:
            dialogues: a response's prompt each.

        Raises:
            InputError: naming the source, and the response where there is one to name.
        """
        ...


def as_rewards(values: Iterable[object], responses: Sequence[str], source: str) -> Array:
    """What a source gave, as finite numbers, one a response.

    Args:
        source: what gave them, to begin a sentence with.
    """
    given = list(values)
    if len(given) != len(responses):
        raise InputError(
            f"{source} gave {len(given)} rewards for {len(responses)} responses: it must give one "
            "for each, in their order."
        )
    for place, value in enumerate(given):
        if not isinstance(value, int | float | np.number | np.bool_):
            raise InputError(
                f"{source} gave {shown(value)} for response {place}, {shown(responses[place])}: a "
                "reward is a number."
            )
    rewards = np.array([_as_float(value) for value in given], dtype=np.float64)
    finite = np.isfinite(rewards)
    if not finite.all():
        place = int(np.argmin(finite))
        raise InputError(
            f"{source} gave {rewards[place]} for response {place}, {shown(responses[place])}: a "
            "reward is a finite number."
        )
    return rewards


def _as_float(value: Any) -> float:
    """A number as a float; a whole number beyond every float is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value > 0 or -1)


@dataclass(frozen=True)
class Once:
    """A source that the first of several processes asks for all of them."""

    source: RewardSource
    ranks: Ranks

    def rewards(self, dialogues: Sequence[Dialogue], responses: Sequence[str]) -> Array:
        found = self.source.rewards(dialogues, responses) if self.ranks.main else np.empty(0)
        return self.ranks.first(found)


def once(source: RewardSource, ranks: Ranks) -> RewardSource:
    """The source, asked once for all processes that work on the same responses."""
    return source if ranks.size == 1 else Once(source, ranks)
