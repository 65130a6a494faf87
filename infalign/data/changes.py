"""What changed between two versions of some data: rows, prompts, lengths, language, likeness.

Near-duplicates: two prompts are alike where their sets of three consecutive words (lower case) have
a Jaccard index of `ALIKE` or more. Language: cosine distance between the counts of three
consecutive characters of the responses, beyond what as many old pairs show by chance.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from scipy.stats import ks_2samp

from infalign.data.dialogue import Dialogue
from infalign.data.pairs import SPLITS, Pair, Subset

ALIKE = 0.7
SOUND = ("tie", "prompt_in_test", "over_limit")  # reasons to drop a row with which nothing is wrong
_WORDS = re.compile(r"\w+")


def changes(before: Subset | None, now: Subset) -> dict[str, Any]:
    """The numbers; those that need an old version are null where there is none."""
    old = [] if before is None else pairs_of(before)
    fresh = new_pairs(before, now)
    lengths, language = None, None
    if old and fresh:
        test = ks_2samp(_lengths(old), _lengths(fresh), method="asymp")
        lengths = {"distance": float(test.statistic), "p_value": float(test.pvalue)}
        language = language_shift(old, fresh)
    lost = sum(n for reason, n in now.dropped.items() if reason not in SOUND)
    return {
        "rows": {"before": None if before is None else before.lines, "now": now.lines},
        "pairs": {"before": None if before is None else len(old), "now": len(pairs_of(now))},
        "prompts": {
            "before": None if before is None else len(prompts_of(before)),
            "now": len(prompts_of(now)),
        },
        "new_pairs": len(fresh),
        "kept": {"before": None if before is None else _kept(before), "now": _kept(now)},
        "dropped_share": lost / now.lines if now.lines else 0.0,
        "characters": {"before": _mean(_lengths(old)), "new": _mean(_lengths(fresh))},
        "length_shift": lengths,
        "language_shift": language,
        "near_duplicates": near_duplicates(before, now),
    }


def _kept(read: Subset) -> int:
    """Pairs, and prompts without any."""
    return len(pairs_of(read)) + sum(len(read.prompts[split]) for split in SPLITS)


def pairs_of(read: Subset) -> list[Pair]:
    """Those of both splits."""
    return [pair for split in SPLITS for pair in read.pairs(split)]


def prompts_of(read: Subset, *splits: str) -> set[Dialogue]:
    """The prompts of some splits, or of both."""
    found = {pair.prompt for split in splits or SPLITS for pair in read.pairs(split)}
    return found | {row.prompt for split in splits or SPLITS for row in read.prompts[split]}


def new_pairs(before: Subset | None, now: Subset) -> list[Pair]:
    """The pairs that the old version does not have."""
    old = set() if before is None else {pair[:3] for pair in pairs_of(before)}
    return [pair for pair in pairs_of(now) if pair[:3] not in old]


def language_shift(old: Sequence[Pair], fresh: Sequence[Pair]) -> float:
    """How far the language of the new pairs is from that of the old ones, 0 to 1."""
    ordered = sorted(old, key=lambda pair: _hash(*pair[1:3]))
    many = max(1, min(len(fresh), len(old) // 2))  # a fair comparison is one of as many
    beside, known = ordered[:many], _grams(ordered[many:])
    fresh = sorted(fresh, key=lambda pair: _hash(*pair[1:3]))[:many]
    return max(0.0, _distance(_grams(fresh), known) - _distance(_grams(beside), known))


def near_duplicates(before: Subset | None, now: Subset) -> float | None:
    """The share of new training prompts that are like some evaluation prompt; None: none is new."""
    old = set() if before is None else prompts_of(before, "train")
    fresh = sorted(prompts_of(now, "train") - old)
    if not fresh:
        return None
    held_out = [_shingles(prompt) for prompt in sorted(prompts_of(now, "test"))]
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, shingles in enumerate(held_out):
        for shingle in shingles:
            places[shingle].append(number)
    alike = 0
    for prompt in fresh:
        own = _shingles(prompt)
        shared = Counter(number for shingle in own for number in places.get(shingle, ()))
        alike += any(
            n >= ALIKE * (len(own) + len(held_out[other]) - n) for other, n in shared.items()
        )
    return alike / len(fresh)


def _shingles(prompt: Dialogue) -> set[tuple[str, ...]]:
    """Three consecutive words each; of fewer, all of them."""
    words = _WORDS.findall(" ".join(turn.content for turn in prompt.turns).lower())
    return {tuple(words[n : n + 3]) for n in range(max(1, len(words) - 2))}


def _lengths(pairs: Sequence[Pair]) -> list[int]:
    return [len(text) for pair in pairs for text in (pair.chosen, pair.rejected)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _grams(pairs: Sequence[Pair]) -> Counter[str]:
    texts = (text.lower() for pair in pairs for text in (pair.chosen, pair.rejected))
    return Counter(text[n : n + 3] for text in texts for n in range(len(text) - 2))


def _distance(first: Counter[str], second: Counter[str]) -> float:
    """1 - the cosine of two vectors of counts; 1 where one of them is empty."""
    norms = [math.sqrt(sum(n * n for n in counts.values())) for counts in (first, second)]
    if not all(norms):
        return 1.0
    return 1 - sum(n * second[gram] for gram, n in first.items()) / (norms[0] * norms[1])


def _hash(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
