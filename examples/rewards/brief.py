"""A reward that selects what a reader can see: short answers."""

from __future__ import annotations

from typing import Any


def score(
    dialogues: list[list[dict[str, str]]], responses: list[str], **columns: Any
) -> list[float]:
    """Minus the number of words; an empty answer is the worst."""
    return [-float(len(text.split()) or 1000) for text in responses]
