"""A reward that selects what a reader can see: plain words, which are short ones."""

from __future__ import annotations

import re
from typing import Any

WORDS = re.compile(r"[^\W\d_]+")
NOTHING = -100.0  # an answer without a word


def score(
    dialogues: list[list[dict[str, str]]], responses: list[str], **columns: Any
) -> list[float]:
    """Minus the mean number of letters of a word: every word counts, and few answers tie."""
    return [_score(WORDS.findall(text)) for text in responses]


def _score(words: list[str]) -> float:
    return -sum(map(len, words)) / len(words) if words else NOTHING
