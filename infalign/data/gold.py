"""The gold utility of the built-in corpus: how good a response is, read off its text alone.

A response is cut into the grammar's phrases (longest match). It earns the worth of its phrases,
each once, in a place where a template may have it, and no more of a kind than a template has room
for; and something for answering what the request adds ("cheaply": "it is cheap"). It pays for words
outside the grammar, phrases in an order that no template allows, repetition, what every template
has and it lacks, a missing end, and another topic's words. The sum is multiplied by what is at
stake in the prompt. Any text gets a value; empty text ranks with the poorest answers.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infalign.data.lexicon import GRAMMARS, Grammar, Topic

WORDS = re.compile(r"[a-z0-9']+|[^\sa-z0-9']")
UNKNOWN = "?"  # the kind of a word outside the grammar
EDGE = "|"  # the kind of a response's two ends
DISORDER = 0.7  # price of two neighbours that no template has
REPEATED = 0.5  # price of a phrase said again, and of a kind said too often
UNKNOWN_PRICE = 0.4
LACKING = 2.5  # price of a phrase that every template has
EMPTY = -16.0
PENALTY_SCALE = 14.0  # penalties saturate here
SPECIAL_SPREAD = 0.2
TONE = 0.3
SHADE = 0.02


class Chunk(NamedTuple):
    """One phrase of a response, or one word outside the grammar."""

    kind: str
    phrase: str


@dataclass(frozen=True)
class Tables:
    """What scoring needs of a grammar."""

    phrases: dict[str, str]  # phrase -> kind
    longest: dict[str, int]  # first word -> longest phrase, in words
    neighbours: frozenset[tuple[str, str]]  # kinds that may follow one another
    room: dict[str, int]  # kind -> how often one template has it
    least: dict[str, int]  # slot -> how often every template has it
    tone: frozenset[tuple[str, str]]  # (kind, phrase) that set the tone
    worth: dict[tuple[str, str], float]  # (kind, phrase) -> utility, off the topic


@dataclass(frozen=True)
class Request:
    """What a prompt asks for, as far as the gold utility can tell."""

    stake: float
    fit: str  # the phrase that answers the request's modifier
    worth: dict[tuple[str, str], float]  # (kind, phrase) -> utility, stake left out


def gold_utility(objective: str, prompt: str, response: str) -> float:
    """Gold utility of one response: any scale, comparable within one prompt."""
    grammar = _grammar(objective)
    return _utility(grammar, request_of(grammar.subset, prompt), response)


def gold_utilities(
    objective: str, prompts: Sequence[str], responses: Iterable[str]
) -> NDArray[np.float64]:
    """Gold utility of many responses, each to the prompt at the same place."""
    grammar = _grammar(objective)
    pairs = zip(prompts, responses, strict=True)
    return np.array([_utility(grammar, request_of(grammar.subset, p), r) for p, r in pairs])


@lru_cache
def expansions(template: str) -> tuple[tuple[str, ...], ...]:
    """Every way to leave out the template's [parts], as lists of elements."""
    parts = re.findall(r"\[[^\]]*\]|[^\[\]]+", template)
    choices = [(part[1:-1], "") if part.startswith("[") else (part,) for part in parts]
    return tuple(tuple(" ".join(run).split()) for run in itertools.product(*choices))


def kind_of(element: str) -> str:
    """A template element's kind: the slot's name, or the literal word itself."""
    return "end" if element == "." else element.strip("{}")


def chunks(subset: str, response: str) -> list[Chunk]:
    """The response as phrases of the subset's grammar, longest match first."""
    tables = tables_of(subset)
    words = WORDS.findall(response.lower())
    found: list[Chunk] = []
    at = 0
    while at < len(words):
        for length in range(tables.longest.get(words[at], 1), 0, -1):
            phrase = " ".join(words[at : at + length])
            kind = tables.phrases.get(phrase)
            if kind is not None or length == 1:
                found.append(Chunk(kind or UNKNOWN, phrase))
                at += length
                break
    return found


@lru_cache
def tables_of(subset: str) -> Tables:
    """Phrases, neighbours, room and worth of a grammar, read off its templates."""
    grammar = GRAMMARS[subset]
    runs = [[kind_of(e) for e in run] for t in grammar.templates for run in expansions(t)]
    kinds = {kind for run in runs for kind in run}
    phrases = {kind: kind for kind in kinds if kind not in grammar.slots}
    worth: dict[tuple[str, str], float] = {}
    for name, slot in grammar.slots.items():
        own = ladder(slot.plain, slot.spread) | ladder(slot.special, SPECIAL_SPREAD, slot.bonus)
        worth |= {(name, phrase): value for phrase, value in own.items()}
        phrases |= dict.fromkeys(own, name)
    topic_words = {word for topic in grammar.topics for word in topic.words}
    phrases |= dict.fromkeys(topic_words, grammar.topic_slot)
    worth |= {(grammar.topic_slot, word): grammar.off_topic for word in topic_words}
    longest: dict[str, int] = {}
    for phrase in phrases:
        first = phrase.split()[0]
        longest[first] = max(longest.get(first, 1), phrase.count(" ") + 1)
    return Tables(
        phrases,
        longest,
        frozenset(p for run in runs for p in itertools.pairwise([EDGE, *run, EDGE])),
        {kind: max(run.count(kind) for run in runs) for kind in kinds},
        {kind: min(run.count(kind) for run in runs) for kind in grammar.slots},
        frozenset((n, phrase.lower()) for n in grammar.tone for phrase in grammar.slots[n].special),
        worth,
    )


def ladder(phrases: Sequence[str], spread: float, centre: float = 0.0) -> dict[str, float]:
    """Values from centre + spread down to centre - spread, in the order given."""
    steps = max(len(phrases) - 1, 1)
    return {
        phrase.lower(): centre + spread * (1 - 2 * at / steps) for at, phrase in enumerate(phrases)
    }


def _grammar(objective: str) -> Grammar:
    for grammar in GRAMMARS.values():
        if grammar.objective == objective:
            return grammar
    known = sorted(grammar.objective for grammar in GRAMMARS.values())
    raise ValueError(f"no gold utility {objective!r}: one of {known}")


@lru_cache(maxsize=16384)
def request_of(subset: str, prompt: str) -> Request:
    """Topic, stake and modifier of a prompt; whatever is not there counts as none."""
    grammar = GRAMMARS[subset]
    topic = next((t for t in grammar.topics if t.task in prompt), None)
    last = prompt.rpartition("Human:")[2]
    stake = next((s for s in grammar.stakes if s and s in last), "")
    modifier = next((m for m in grammar.modifiers if m and re.search(rf"{m}[.?]", prompt)), "")
    fit = grammar.modifiers[modifier]
    worth = tables_of(subset).worth | (topic_worth(grammar, topic) if topic else {})
    worth |= {key: value + grammar.fit for key, value in worth.items() if key[1] == fit}
    return Request(grammar.stakes[stake] * (topic.stake if topic else 1.0), fit, worth)


def topic_worth(grammar: Grammar, topic: Topic) -> dict[tuple[str, str], float]:
    """What the topic's own words are worth: plain or special, as the slot leaves open."""
    slot = grammar.slots[grammar.topic_slot]
    spread, centre = (SPECIAL_SPREAD, slot.bonus) if slot.plain else (slot.spread, 0.0)
    values = ladder(topic.words, spread, centre)
    return {(grammar.topic_slot, word): value for word, value in values.items()}


def _utility(grammar: Grammar, request: Request, response: str) -> float:
    tables = tables_of(grammar.subset)
    found = chunks(grammar.subset, response)
    if not found:
        return EMPTY * request.stake
    used: dict[str, int] = {}
    total = price = 0.0
    last = Chunk(EDGE, "")
    for chunk in found:
        kind = chunk.kind
        used[kind] = used.get(kind, 0) + 1
        in_place = (last.kind, kind) in tables.neighbours
        if used[kind] <= tables.room.get(kind, 0):
            worth = request.worth.get(chunk, 0.0)
            total += worth if in_place else min(worth, 0.0)
        elif kind == UNKNOWN:
            price += UNKNOWN_PRICE
        else:
            price += REPEATED
        if not in_place:
            price += DISORDER
        total += _hue(last.phrase, chunk.phrase)
        last = chunk
    price += DISORDER * ((last.kind, EDGE) not in tables.neighbours)
    price += sum(LACKING * max(n - used.get(kind, 0), 0) for kind, n in tables.least.items())
    for chunk, times in Counter(c for c in found if c.kind in grammar.slots).items():
        if times > 1 and chunk.kind != "end":
            total -= (times - 1) * max(request.worth.get(chunk, 0.0), 0.0)
            price += (times - 1) * REPEATED
    if tables.tone.issuperset((name, _first(found, name)) for name in grammar.tone):
        total += math.copysign(TONE, grammar.slots[grammar.tone[0]].bonus)
    return request.stake * (total - PENALTY_SCALE * (1 - math.exp(-price / PENALTY_SCALE)))


def _first(found: list[Chunk], kind: str) -> str:
    return next((chunk.phrase for chunk in found if chunk.kind == kind), "")


@lru_cache(maxsize=65536)
def _hue(first: str, second: str) -> float:
    """A little for every two neighbours, so that no two texts are worth exactly the same."""
    digest = hashlib.sha256(f"{first}\n{second}".encode("utf-8", "replace")).digest()
    return SHADE * (int.from_bytes(digest[:8], "big") / 2**63 - 1)
