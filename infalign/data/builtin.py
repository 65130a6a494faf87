"""The built-in preference corpus: prompts, responses and labels drawn from a seed.

Two responses are drawn independently for a prompt and labelled by Bradley-Terry on their gold
utility, so the labels are as noisy as people's and the best possible accuracy is known.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from infalign.data.dialogue import ASSISTANT, HUMAN, read_marked
from infalign.data.gold import expansions, gold_utilities, gold_utility, kind_of, request_of
from infalign.data.lexicon import GRAMMARS, Grammar, Slot, Topic
from infalign.data.pairs import Pair
from infalign.errors import InputError

__all__ = [
    "GENERATOR",
    "SUBSETS",
    "Corpus",
    "draw_response",
    "gold_utilities",
    "gold_utility",
    "make_corpus",
    "prompts_of",
]

GENERATOR = "infalign-builtin-5"
SUBSETS = tuple(GRAMMARS)
SINGLE_TURN_SHARE = 0.7
LONGEST_RESPONSE = 16  # words and punctuation marks
MOST_SPECIAL = 0.4  # highest chance of a special phrase


@dataclass(frozen=True)
class Corpus:
    """The pairs of one subset and what is known about their labels."""

    train: list[Pair]
    test: list[Pair]
    ceiling: dict[str, float]  # split -> best possible mean accuracy


def make_corpus(
    subset: str, seed: int, train_prompts: int, test_prompts: int, pairs_per_prompt: int
) -> Corpus:
    """Generate one subset; the same arguments give the same pairs."""
    prompts = prompts_of(subset, seed, train_prompts + test_prompts)
    parts = {"train": prompts[:train_prompts], "test": prompts[train_prompts:]}
    pairs: dict[str, list[Pair]] = {}
    ceiling: dict[str, float] = {}
    for split, chosen in parts.items():
        labelled = [
            pair
            for prompt in chosen
            for pair in _pairs(subset, seed, prompt, pairs_per_prompt, f"{subset}/{split}")
        ]
        pairs[split] = [pair for pair, _ in labelled]
        ceiling[split] = sum(max(p, 1 - p) for _, p in labelled) / len(labelled)
    return Corpus(pairs["train"], pairs["test"], ceiling)


def prompts_of(subset: str, seed: int, n: int) -> list[str]:
    """`n` distinct prompts in random order, single- and multi-turn mixed."""
    grammar = GRAMMARS[subset]
    rng = random.Random(f"{seed}/{subset}/prompts")
    kinds = [sorted(_single_turn(grammar)), sorted(_multi_turn(grammar))]
    n_single = round(SINGLE_TURN_SHARE * n)
    for part, prompts in zip((n_single, n - n_single), kinds, strict=True):
        if part > len(prompts):
            raise InputError(
                f"corpus: {n} prompts a subset are more than {subset} has "
                f"({part} of {len(prompts)}): lower corpus.train_prompts or corpus.test_prompts."
            )
    drawn = rng.sample(kinds[0], n_single) + rng.sample(kinds[1], n - n_single)
    rng.shuffle(drawn)
    return drawn


def draw_response(subset: str, prompt: str, rng: random.Random) -> str:
    """One response to a prompt, its quality drawn from the corpus's broad mixture."""
    grammar = GRAMMARS[subset]
    topic, stake, fit = _asked(subset, prompt)
    while True:
        usual = rng.random() < grammar.usual_share
        rate = grammar.special_rates[0 if usual else 1] * stake
        words: list[str] = []
        for element, slot in rng.choice(_runs(subset, rng.choice(grammar.templates))):
            if slot is None:
                words.append(element)
                continue
            special = rng.random() < min(rate * slot.rate, MOST_SPECIAL)
            fits = rng.random() < grammar.fit_rate and not special
            if fits and fit and (fit in slot.plain or fit in slot.special):
                words.append(fit)
            else:
                words.append(_fill(grammar, topic, element, special, words, rng))
        if sum(1 + word.count(" ") for word in words) <= LONGEST_RESPONSE:
            return _sentence(words)


@lru_cache(maxsize=4096)
def _asked(subset: str, prompt: str) -> tuple[Topic, float, str]:
    """A prompt's topic, what is at stake beside it, and the phrase that fits the request."""
    topic = next(t for t in GRAMMARS[subset].topics if t.task in prompt)
    request = request_of(subset, prompt)
    return topic, request.stake / topic.stake, request.fit


@lru_cache
def _runs(subset: str, template: str) -> tuple[tuple[tuple[str, Slot | None], ...], ...]:
    """Every way through a template: literal words, or kinds with their slots."""
    slots = GRAMMARS[subset].slots
    return tuple(
        tuple((kind_of(e), slots[kind_of(e)]) if e.startswith("{") else (e, None) for e in run)
        for run in expansions(template)
    )


def _fill(
    grammar: Grammar,
    topic: Topic,
    kind: str,
    special: bool,
    before: list[str],
    rng: random.Random,
) -> str:
    """The phrase for a kind of slot, none said before."""
    slot = grammar.slots[kind]
    choices = slot.special if special and kind != "end" else slot.plain
    if kind == grammar.topic_slot and not choices:
        choices = topic.words
    elif kind == grammar.topic_slot and rng.random() < grammar.off_topic_rate and special:
        choices = rng.choice([t for t in grammar.topics if t is not topic]).words
    choices = choices or slot.plain
    if choices is slot.plain and slot.weights:
        return rng.choices(choices, slot.weights)[0]
    chosen = rng.choice(choices)
    if chosen in before and kind != "end":
        chosen = rng.choice([c for c in choices if c not in before] or choices)
    return chosen


def _sentence(words: list[str]) -> str:
    """Phrases as text: no space before a mark, a capital after a full stop."""
    text = ""
    for word in words:
        if word in ",.!":
            text += word
        elif not text or text[-1] in ".!":
            text += f" {word[0].upper()}{word[1:]}"
        else:
            text += f" {word}"
    return text.strip()


def _pairs(
    subset: str, seed: int, prompt: str, n: int, source: str
) -> Iterator[tuple[Pair, float]]:
    """Labelled pairs of one prompt, each with the chance of its label's first side."""
    rng = random.Random(f"{seed}/{subset}/pairs/{prompt}")
    dialogue = read_marked(prompt)
    assert dialogue is not None
    objective = GRAMMARS[subset].objective
    for _ in range(n):
        first = second = draw_response(subset, prompt, rng)
        while second == first:
            second = draw_response(subset, prompt, rng)
        difference = gold_utility(objective, prompt, first) - gold_utility(
            objective, prompt, second
        )
        p_first = 0.5 * (1 + math.tanh(difference / 2))
        sides = (first, second) if rng.random() < p_first else (second, first)
        yield Pair(dialogue, *sides, source), p_first


def _single_turn(grammar: Grammar) -> set[str]:
    asked = itertools.product(grammar.topics, grammar.modifiers, grammar.requests, grammar.stakes)
    return {
        f"{HUMAN} {_opened(stake, request.format(topic.task + modifier))}{ASSISTANT}"
        for topic, modifier, request, stake in asked
    }


def _multi_turn(grammar: Grammar) -> set[str]:
    asked = itertools.product(
        grammar.topics, grammar.modifiers, grammar.replies, grammar.follow_ups, grammar.stakes
    )
    return {
        f"{HUMAN} I want to {topic.task}{modifier}.{ASSISTANT} {reply}"
        f"{HUMAN} {_opened(stake, follow_up)}{ASSISTANT}"
        for topic, modifier, reply, follow_up, stake in asked
    }


def _opened(stake: str, request: str) -> str:
    """The request after the words that say what is at stake, or with a capital."""
    return f"{stake} {request}" if stake else request[0].upper() + request[1:]
