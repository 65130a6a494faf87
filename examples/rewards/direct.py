"""A reward that selects what a reader can see: answers that come to the point."""

from __future__ import annotations

import re
from typing import Any

END = re.compile(r"[.!?:](?=\s|$)|\n")
NOTHING = -1000.0  # a first sentence without a word


def score(
    dialogues: list[list[dict[str, str]]], responses: list[str], **columns: Any
) -> list[float]:
    """Minus the characters of the first sentence: of one that is cut, what there is of it."""
    return [_score(END.split(text.strip(), maxsplit=1)[0]) for text in responses]


def _score(sentence: str) -> float:
    return -float(len(sentence)) if any(map(str.isalpha, sentence)) else NOTHING
