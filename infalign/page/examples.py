"""The same prompts answered by the reference and every policy: several draws, the kept one marked.

Equal numbers of draws share random numbers, so that win rates are paired; policies that differ
little would then say the same. Every policy therefore shows draws of other numbers.
"""

from __future__ import annotations

import re

import numpy as np

from infalign.files.names import REFERENCE
from infalign.page.data import ObjectiveData
from infalign.page.markup import Html, join, tag
from infalign.page.results import flag, policy_key
from infalign.page.words import decimal
from infalign.theory.procedures import parse_procedure

SHOWN = 4  # draws of a policy, the kept one among them


def examples(data: ObjectiveData, count: int) -> Html:
    """The first `count` prompts in the order of their ids, which are hashes: nobody picked them."""
    return join(
        tag(
            "div",
            tag("div", dialogue(data.prompts[position]), class_="prompt"),
            tag(
                "div",
                *(_draws(data, name, position) for name in (REFERENCE, *data.variants)),
                class_="draws",
            ),
            class_="example",
        )
        for position in range(min(count, len(data.prompts)))
    )


def dialogue(prompt: str) -> str:
    """A prompt as a reader sees it: a turn a line, without the cue for the answer."""
    return re.sub(r"\n{2,}", "\n", prompt.strip().removesuffix("Assistant:").strip())


def _draws(data: ObjectiveData, policy: str, position: int) -> Html:
    own = own_draws(data, policy)
    kept = own[kept_of(data, policy, position, own)]
    items = (_draw(data, policy, position, draw, draw == kept) for draw in shown(own, kept))
    return tag("div", tag("h4", policy_key(data, policy)), tag("ol", *items))


def _draw(data: ObjectiveData, policy: str, position: int, draw: int, is_kept: bool) -> Html:
    spot = position, draw
    reward, calibrated = data.rewards[policy][spot], data.calibrated[policy][spot]
    said = f"reward {decimal(float(reward))}, C {decimal(float(calibrated))}"
    marks = [flag("kept")] if is_kept else []
    marks += [] if data.finished[policy][spot] else [flag("cut")]
    return tag(
        "li",
        str(data.responses[policy][spot]),
        tag("small", said, " " if marks else "", join(marks, " ")),
        class_="kept" if is_kept else None,
    )


def own_draws(data: ObjectiveData, policy: str) -> list[int]:
    """Numbers of the N draws that a policy shows: others than any other policy's, while they last.

    A procedure of fewer draws than SHOWN keeps the first N of them.
    """
    names = [REFERENCE, *data.variants]
    samples = data.rewards[policy].shape[1]
    many = min(max(SHOWN, parse_procedure(data.procedure).n), samples)
    first = many * names.index(policy)
    return [number % samples for number in range(first, first + many)]


def kept_of(data: ObjectiveData, policy: str, position: int, draws: list[int]) -> int:
    """Which of the first N draws the procedure keeps: its likeliest, if several."""
    procedure = parse_procedure(data.procedure)
    rewards = data.rewards[policy][position, draws[: procedure.n]]
    return int(np.argmax(procedure.selection_weights(rewards)))


def shown(draws: list[int], kept: int) -> list[int]:
    """At most SHOWN draws, in their order, the kept one among them."""
    first = draws[:SHOWN]
    return first if kept in first else [*first[:-1], kept]
