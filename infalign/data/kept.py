"""What is kept of each objective's data: split by prompt, cut to a length, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from infalign.data.dialogue import Dialogue
from infalign.data.pairs import SPLITS, Entry, Pair, Prompt, Subset, side_of, without_prompts

Encode = Callable[[Sequence[Dialogue]], list[list[int]]]  # prompts to token ids


@dataclass
class Kept:
    """The pairs of one objective on their way to the tables, and what became of the others."""

    subset: Subset
    splits: dict[str, list[Pair]]
    alone: dict[str, list[Prompt]]  # prompts without responses
    dropped: Counter[str] = field(default_factory=Counter)
    dialogues_cut: int = 0
    too_long: list[Dialogue] = field(default_factory=list)  # prompts, one a pair

    @property
    def pairs(self) -> list[Pair]:
        """Those of both splits."""
        return [pair for split in SPLITS for pair in self.splits[split]]

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts alone, of both splits."""
        return [prompt for split in SPLITS for prompt in self.alone[split]]

    def dialogues(self, *splits: str) -> set[Dialogue]:
        """Every prompt of these splits."""
        pairs = {pair.prompt for split in splits for pair in self.splits[split]}
        return pairs | {row.prompt for split in splits for row in self.alone[split]}


def separate(kept: dict[str, Kept], pinned: Set[Dialogue] = frozenset()) -> None:
    """Take every test prompt, of any objective, and every pinned one out of every training split.

    Args:
        pinned: prompts that train nobody.
    """
    held_out = {prompt for part in kept.values() for prompt in part.dialogues("test")}
    for part in kept.values():
        for reason, prompts in (("prompt_in_suite", pinned), ("prompt_in_test", held_out)):
            part.splits["train"], shared = without_prompts(part.splits["train"], prompts)
            part.alone["train"], alone = without_prompts(part.alone["train"], prompts)
            part.dropped[reason] += shared + alone


def shortened(prompts: Set[Dialogue], encode: Encode, longest: int) -> set[Dialogue]:
    """Prompts as they are after a cut to `longest` tokens; without those that stay longer."""
    ordered = sorted(prompts)
    fits = (len(ids) <= longest for ids in encode(ordered))
    cuts = (
        prompt if fit else last_exchanges(prompt, encode, longest)
        for prompt, fit in zip(ordered, fits, strict=True)
    )
    return {prompt for prompt in cuts if prompt is not None}


def cut(part: Kept, encode: Encode, longest: int) -> None:
    """Cut whole exchanges off the front, to `longest` tokens; drop what stays longer."""

    prompts = sorted(part.dialogues(*SPLITS))
    short: dict[Dialogue, Dialogue | None] = {prompt: prompt for prompt in prompts}
    for prompt, ids in zip(prompts, encode(prompts), strict=True):
        if len(ids) > longest:
            short[prompt] = last_exchanges(prompt, encode, longest)
    for split in SPLITS:
        part.splits[split] = _shortened(part, part.splits[split], short)
        part.alone[split] = _shortened(part, part.alone[split], short)


def divide(part: Kept) -> None:
    """Put what was cut on the side that it has by itself, where prompts are divided by their hash.

    Whatever it was cut from, and whatever other data comes, it is always there.
    """
    share = part.subset.test_share
    if share is None:
        return
    pairs = part.pairs
    part.splits = {s: [row for row in pairs if side_of(row.prompt, share) == s] for s in SPLITS}
    alone = part.prompts
    part.alone = {s: [row for row in alone if side_of(row.prompt, share) == s] for s in SPLITS}


def _shortened(
    part: Kept, rows: Sequence[Entry], short: Mapping[Dialogue, Dialogue | None]
) -> list[Entry]:
    left = []
    for row in rows:
        kept = short[row.prompt]
        if kept is None:
            part.dropped["prompt_too_long"] += 1
            part.too_long.append(row.prompt)
            continue
        part.dialogues_cut += kept != row.prompt
        left.append(row._replace(prompt=kept))
    return left


def last_exchanges(prompt: Dialogue, encode: Encode, longest: int) -> Dialogue | None:
    """The dialogue with as many of its last exchanges as fit; None if even the last does not."""
    tails = (prompt.last(count) for count in range(len(prompt.exchanges()) - 1, 0, -1))
    return next((d for d in tails if len(encode([d])[0]) <= longest), None)


def unrepeat(part: Kept) -> None:
    """Keep one of several equal pairs, and of several equal prompts alone."""
    for split, pairs in part.splits.items():
        once = {pair[:3]: pair for pair in reversed(pairs)}
        part.splits[split] = list(reversed(once.values()))
        part.dropped["repeated_pair"] += len(pairs) - len(once)
        alone = {row.prompt: row for row in reversed(part.alone[split])}
        part.dropped["repeated_prompt"] += len(part.alone[split]) - len(alone)
        part.alone[split] = list(reversed(alone.values()))
