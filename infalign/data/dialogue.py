"""Dialogues: the only form that a prompt has between what is read and what a model sees.

A prompt is turns of a system, a user, an assistant and tools that end with the user's or a tool's.
On disk it is canonical JSON. How a model sees it is its format's business (`lm/formats.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from infalign.files.tables import PROMPTS, read_table

ROLES = ("system", "user", "assistant", "tool")
MARKERS = {
    "system": "\n\nSystem:",
    "user": "\n\nHuman:",
    "assistant": "\n\nAssistant:",
    "tool": "\n\nTool:",
}
HUMAN, ASSISTANT = MARKERS["user"], MARKERS["assistant"]


class Turn(NamedTuple):
    """What one side says."""

    role: str
    content: str


@dataclass(frozen=True, order=True)
class Dialogue:
    """A prompt: turns, of which the last is the user's or a tool's."""

    turns: tuple[Turn, ...]

    @staticmethod
    def of(turns: Iterable[tuple[str, str]]) -> Dialogue:
        """From (role, content) pairs.

        Raises:
            ValueError: for what is no prompt, as the rest of a sentence about it.
        """
        dialogue = Dialogue(tuple(Turn(*turn) for turn in turns))
        for number, turn in enumerate(dialogue.turns):
            if turn.role not in ROLES:
                raise ValueError(
                    f"has a turn of {turn.role[:40]!r}, which is none of {list(ROLES)}"
                )
            if turn.role == "system" and number:
                raise ValueError("has a system turn behind another: it may only be the first")
        if not dialogue.turns or dialogue.turns[-1].role not in ("user", "tool"):
            raise ValueError("does not end with a turn of the user or of a tool")
        return dialogue

    @staticmethod
    def parse(text: str) -> Dialogue:
        """From its canonical JSON."""
        return Dialogue(tuple(Turn(turn["role"], turn["content"]) for turn in json.loads(text)))

    @property
    def messages(self) -> list[dict[str, str]]:
        """As chat templates take it."""
        return [turn._asdict() for turn in self.turns]

    @property
    def text(self) -> str:
        """Its canonical JSON."""
        return json.dumps(self.messages, ensure_ascii=False, separators=(",", ":"), sort_keys=True)

    @property
    def marked(self) -> str:
        """With markers before the turns, ending in the assistant's: the format `plain`."""
        turns = (f"{MARKERS[turn.role]} {turn.content}" for turn in self.turns)
        return "".join(turns) + ASSISTANT

    @property
    def id(self) -> str:
        """Its identity in every table: 16 hex digits of a SHA-256.

        Of its canonical JSON, or of its text with markers where that is the same dialogue read
        back, so that a prompt's random numbers do not depend on the form it was read from.
        """
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """What its id is the hash of: no two dialogues have one."""
        return _name(self)

    def share(self, purpose: str) -> float:
        """A number in [0, 1) that depends on the dialogue and the purpose alone."""
        return hash_share(self.name, purpose)

    def exchanges(self) -> list[tuple[Turn, ...]]:
        """Its turns in groups, each from a user's on; a system turn is in none."""
        groups: list[tuple[Turn, ...]] = []
        for turn in self.turns:
            if turn.role == "system":
                continue
            if turn.role == "user" or not groups:
                groups.append(())
            groups[-1] += (turn,)
        return groups

    def last(self, exchanges: int) -> Dialogue:
        """The same without its first exchanges; the system turn stays."""
        system = tuple(turn for turn in self.turns[:1] if turn.role == "system")
        kept = self.exchanges()[-exchanges:]
        return Dialogue(system + tuple(turn for group in kept for turn in group))


@lru_cache(maxsize=4096)  # the pairs of a prompt stand together
def _name(dialogue: Dialogue) -> str:
    marked = dialogue.marked
    simple = {turn.role for turn in dialogue.turns} <= {"user", "assistant"}
    return marked if simple and read_marked(marked) == dialogue else dialogue.text


def read_marked(text: str) -> Dialogue | None:
    """A text of human and assistant turns that ends in the assistant's marker; None for another."""
    if not text.startswith(HUMAN) or not text.endswith(ASSISTANT):
        return None
    turns = []
    for part in text[: -len(ASSISTANT)].split(HUMAN)[1:]:
        said, *answers = part.split(ASSISTANT)
        turns.append(Turn("user", said.strip()))
        turns += [Turn("assistant", answer.strip()) for answer in answers]
    return Dialogue(tuple(turns)) if turns[-1].role == "user" else None


def hash_share(text: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the text and the purpose alone."""
    digest = hashlib.sha256(f"{purpose}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def read_prompts(path: Path, objective: str, split: str | None = None) -> dict[str, Dialogue]:
    """The prompts of an objective, of one split or both: id to dialogue."""
    rows: list[dict[str, Any]] = read_table(path, PROMPTS).to_pylist()
    return {
        row["prompt_id"]: Dialogue.parse(row["dialogue"])
        for row in rows
        if row["objective"] == objective and split in (None, row["split"])
    }
