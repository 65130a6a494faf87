"""A weighted sum of sources, and what each of them adds to it.

A part's own scale is its spread within a prompt: rewards compare only there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.files.squares import Array
from infalign.rewards.source import RewardSource, as_rewards
from infalign.settings.rewards import SumReward


@dataclass(frozen=True)
class Scale:
    """What a part's reward is shifted and divided by."""

    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Part:
    """One source of a sum.

    Attributes:
        name: in tables, such as `0 function`.
        scale: fixed before the first policy is trained.
    """

    name: str
    source: RewardSource
    weight: float
    scale: Scale = Scale()

    def scaled(self, rewards: Array) -> Array:
        """What the part adds to the sum."""
        return self.weight * (rewards - self.scale.mean) / self.scale.std


@dataclass(frozen=True)
class Sum:
    """A source of rewards."""

    parts: Sequence[Part]

    def rewards(self, dialogues: Sequence[Dialogue], responses: Sequence[str]) -> Array:
        """As every source of rewards."""
        return self.total(self.each(dialogues, responses), responses)

    def each(self, dialogues: Sequence[Dialogue], responses: Sequence[str]) -> list[Array]:
        """Every part's own rewards, neither scaled nor weighted."""
        return [part.source.rewards(dialogues, responses) for part in self.parts]

    def total(self, each: Sequence[Array], responses: Sequence[str]) -> Array:
        """The sum, of every part's own rewards."""
        for part, own in zip(self.parts, each, strict=True):
            as_rewards(own, responses, f"part {part.name!r} of a sum")
        with np.errstate(over="ignore", invalid="ignore"):
            added = np.sum([p.scaled(r) for p, r in zip(self.parts, each, strict=True)], axis=0)
        return as_rewards(added, responses, "a sum of rewards")


def summed(settings: SumReward, sources: Sequence[RewardSource], scales: Sequence[Scale]) -> Sum:
    """The sum that params.yaml asks for, of its opened parts."""
    each = enumerate(zip(settings.parts, sources, scales, strict=True))
    return Sum([Part(f"{n} {p.kind}", source, p.weight, s) for n, (p, source, s) in each])


def measured_scale(rewards: Array, name: str) -> Scale:
    """Mean, and standard deviation within a prompt, of the reference's rewards [prompts, samples].

    Args:
        name: of the part, to speak of it.
    """
    std = float(np.sqrt(rewards.var(axis=1).mean()))
    if not std > 1e-12 * (1.0 + float(np.abs(rewards).max())):
        raise InputError(
            f"{name} gives all responses of the reference to a prompt the same reward, so that it "
            "cannot be standardised: correct it, or set its standardise to false."
        )
    return Scale(float(rewards.mean()), std)


def contributions(scaled: Sequence[Array]) -> list[float]:
    """The share of the sum's variance within prompts that each part makes up; together 1.

    Args:
        scaled: what each part adds [prompts, samples].
    """
    centred = [values - values.mean(axis=1, keepdims=True) for values in scaled]
    whole = np.sum(centred, axis=0)
    variance = float((whole * whole).mean())
    return [float((own * whole).mean()) / variance if variance else 0.0 for own in centred]
