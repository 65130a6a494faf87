"""The same prompts answered by the reference and every policy, under the objective's procedure."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from infalign.files.tables import REFERENCE
from infalign.page.data import ObjectiveData
from infalign.page.results import Policy, policy_of
from infalign.page.words import decimal
from infalign.theory.procedures import parse_procedure


class Answer(NamedTuple):
    """The response a policy's procedure kept."""

    policy: Policy
    response: str
    cut: bool
    calibrated: str


class Example(NamedTuple):
    """A prompt and every policy's answer."""

    prompt: str
    answers: list[Answer]


def examples(data: ObjectiveData, count: int) -> list[Example]:
    """The first `count` prompts in the order of their ids, which are hashes: nobody picked them."""
    return [
        Example(
            dialogue(data.prompts[position]),
            [_answer(data, name, position) for name in (REFERENCE, *data.variants)],
        )
        for position in range(min(count, len(data.prompts)))
    ]


def dialogue(prompt: str) -> str:
    """A prompt as a reader sees it: a turn a line, without the cue for the answer."""
    return re.sub(r"\n{2,}", "\n", prompt.strip().removesuffix("Assistant:").strip())


def _answer(data: ObjectiveData, policy: str, position: int) -> Answer:
    kept = kept_sample(data, policy, position)
    return Answer(
        policy_of(data, policy),
        str(data.responses[policy][position, kept]),
        not data.finished[policy][position, kept],
        decimal(float(data.calibrated[policy][position, kept])),
    )


def kept_sample(data: ObjectiveData, policy: str, position: int) -> int:
    """Index of the sample that the procedure keeps of the first N (its likeliest, if several)."""
    procedure = parse_procedure(data.procedure)
    drawn = data.rewards[policy][position, : procedure.n]
    return int(np.argmax(procedure.selection_weights(drawn)))
