"""What is read of anybody's data: preference pairs and prompts alone, split by prompt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError

SPLITS = ("train", "test")
DROP_REASONS = {
    "broken_line": "rows that are not of the file's form",
    "prompt_differs": "the two sides answer different prompts",
    "identical_pair": "the two sides are the same response",
    "empty_response": "a side has no words",
    "prompt_in_test": "the prompt is in the test split as well",
    "prompt_in_suite": "the prompt is pinned in a suite, which trains nobody",
    "tie": "neither side is preferred",
    "response_not_one_turn": "a side is not one turn of the assistant",
    "tool_calls_only": "a turn of the assistant calls tools and says nothing",
    "content_not_text": "a message holds something other than text",
    "unknown_role": "a message is of none of the roles system, user, assistant, tool",
    "system_not_first": "a system turn follows another turn",
    "no_question": "the prompt ends with neither a user's nor a tool's turn",
    "empty_prompt": "the prompt's last turn has no words",
    "ambiguous_prompt": "a text that serving would refuse: markers within it, or a NUL",
    "prompt_too_long": "even the prompt's last exchange is longer than model.prompt_tokens",
    "repeated_pair": "the same pair is there before",
    "repeated_prompt": "the same prompt is there before",
    "over_limit": "more than data.kept_bytes or data.most_pairs",
}


class Unsuitable(InputError):
    """Data that is sound, but not of a form, or with splits, that can be read as it is asked."""


class Pair(NamedTuple):
    """One preference: a prompt and two stripped responses."""

    prompt: Dialogue
    chosen: str
    rejected: str
    source: str  # `<name>/<file>`, the place it was read from


class Prompt(NamedTuple):
    """A prompt without responses, for rewards that need no pairs."""

    prompt: Dialogue
    source: str
    columns: str  # its row's other columns, as a JSON object


Entry = TypeVar("Entry", Pair, Prompt)


class Limits(NamedTuple):
    """What is read and kept at most: the settings of the same names in `data`."""

    file_bytes: int  # of one file, unpacked
    line_bytes: int  # of one row
    kept_bytes: int = 400_000_000  # of what is kept, about
    most_pairs: int | None = None  # kept, both splits together, prompts alone counted as well


class Options(NamedTuple):
    """How data is read: the settings of the same names in `data` and of an objective."""

    limits: Limits
    test_share: float = 0.2
    columns: Mapping[str, str] = {}  # role to column, where a column has another name
    splits: Mapping[str, Sequence[str]] = {}  # `train` and `test` to names of splits


@dataclass
class FileRead:
    """One file as it was read."""

    path: Path
    form: str
    columns: dict[str, str]  # role to column
    seen: list[str]  # all columns of the first rows
    rows: int = 0


@dataclass
class Subset:
    """What was read of one folder or file, split by prompt, and what was dropped on the way."""

    name: str
    train: list[Pair] = field(default_factory=list)
    test: list[Pair] = field(default_factory=list)
    prompts: dict[str, list[Prompt]] = field(default_factory=lambda: {s: [] for s in SPLITS})
    lines: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_broken: str | None = None
    files: list[FileRead] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)  # files of splits that are not wanted
    test_share: float | None = None  # by which prompts were divided; None: the files say

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of a split."""
        return self.train if split == "train" else self.test


def quantile(lengths: Iterable[int], share: float) -> int:
    """The smallest length that the share of them does not exceed."""
    ordered = sorted(lengths)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def side_of(prompt: Dialogue, test_share: float) -> str:
    """The split of a prompt, where no file says it: by what it says alone."""
    return "test" if prompt.share("test") < test_share else "train"


def without_prompts(rows: Iterable[Entry], prompts: Set[Dialogue]) -> tuple[list[Entry], int]:
    """The rows whose prompt is not in `prompts`, and how many were left out."""
    rows = list(rows)
    kept = [row for row in rows if row.prompt not in prompts]
    return kept, len(rows) - len(kept)
