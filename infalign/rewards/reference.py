"""The reference's samples under a source: rewards, what a sum is made of, and what is odd of them.

The scales of a sum's parts are found here, from samples of training prompts, and hold from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.files.squares import Array
from infalign.rewards.opening import columns_used
from infalign.rewards.source import RewardSource
from infalign.rewards.total import Sum, contributions, measured_scale
from infalign.settings.rewards import AnyReward, SumReward


@dataclass(frozen=True)
class Samples:
    """Samples of the reference, those of a prompt in a row.

    Attributes:
        dialogues: a sample's prompt each.
        train: which samples are of training prompts, bool [samples].
        sizes: samples a training and an evaluation prompt.
    """

    dialogues: Sequence[Dialogue]
    responses: Sequence[str]
    train: np.ndarray
    sizes: tuple[int, int]

    def by_prompt(self, values: Array) -> list[Array]:
        """Values [samples] of training and of evaluation prompts, [prompts, samples] each."""
        sides = (values[self.train], values[~self.train])
        return [side.reshape(-1, k) for side, k in zip(sides, self.sizes, strict=True)]


@dataclass(frozen=True)
class Rewarded:
    """What a source makes of samples.

    Attributes:
        rewards: float64 [samples].
        parts: each part's own rewards, by its name; of no sum there are none.
        about: for calibrate's rewards.json.
    """

    rewards: Array
    parts: dict[str, Array]
    about: dict[str, Any]


def reward_samples(
    source: RewardSource, settings: AnyReward, samples: Samples, place: str
) -> tuple[RewardSource, Rewarded]:
    """Reward the reference's samples; the source with the scales of a sum's parts fixed.

    Args:
        place: where the settings stand in params.yaml.

    Raises:
        InputError: where no prompt's samples differ in their reward.
    """
    parts: dict[str, Array] = {}
    about: dict[str, Any] = {}
    if isinstance(source, Sum) and isinstance(settings, SumReward):
        each = source.each(samples.dialogues, samples.responses)
        source = _scaled(source, settings, each, samples, place)
        rewards = source.total(each, samples.responses)
        parts = dict(zip((part.name for part in source.parts), each, strict=True))
        about["parts"] = _about(source, each, samples)
    else:
        rewards = source.rewards(samples.dialogues, samples.responses)
    if used := columns_used(source):
        about["columns"] = used
    about["alike_share"] = alike_share(samples.by_prompt(rewards))
    if about["alike_share"] == 1.0:
        raise InputError(
            f"{place}: all responses of the reference to a prompt have the same reward, whatever "
            "the prompt, so that there is nothing to choose by: correct it, or name another."
        )
    return source, Rewarded(rewards, parts, about)


def alike_share(sides: Sequence[Array]) -> float:
    """The share of prompts whose samples all have one reward."""
    alike = np.concatenate([side.max(1) == side.min(1) for side in sides])
    return float(alike.mean())


def _scaled(
    source: Sum, settings: SumReward, each: Sequence[Array], samples: Samples, place: str
) -> Sum:
    parts = [
        replace(
            part, scale=measured_scale(samples.by_prompt(rewards)[0], f"{place}.parts.{number}")
        )
        if settings.parts[number].standardise
        else part
        for number, (part, rewards) in enumerate(zip(source.parts, each, strict=True))
    ]
    return Sum(parts)


def _about(source: Sum, each: Sequence[Array], samples: Samples) -> list[dict[str, Any]]:
    """Every part's scale, and its share of what the sum tells apart, on evaluation prompts."""
    scaled = [part.scaled(rewards) for part, rewards in zip(source.parts, each, strict=True)]
    shares = contributions([samples.by_prompt(values)[1] for values in scaled])
    return [
        {
            "name": part.name,
            "weight": part.weight,
            "mean": part.scale.mean,
            "std": part.scale.std,
            "contribution": share,
        }
        for part, share in zip(source.parts, shares, strict=True)
    ]
