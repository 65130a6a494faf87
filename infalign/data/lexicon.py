"""The words of the built-in corpus: one grammar per subset, nothing but tables.

A response is a walk through a template; every gap of a template is a `Slot`. A slot's `plain` words
are listed from best to worst; its `special` words stand far off: clearly poor in the helpful
grammar, excellent in the harmless one. How good a response is shows first where it takes its stand
(a helpful one's opening, whose best phrase is rare; a harmless one's stance or plan), then in
smaller things, so that a small model can learn most of it.
`builtin.py` draws from these tables, `gold.py` scores text by them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One gap of a template: which phrases fill it and what they are worth."""

    plain: tuple[str, ...] = ()  # best first; empty: the topic's own words
    special: tuple[str, ...] = ()  # empty: the topic's own words
    spread: float = 0.12  # plain phrases are worth +spread … -spread
    bonus: float = -2.9  # what a special phrase is worth
    rate: float = 1.0  # how often a special phrase is drawn, against other slots
    weights: tuple[int, ...] = ()  # how often each plain phrase is drawn; empty: all alike


@dataclass(frozen=True)
class Topic:
    """What a prompt asks about, what belongs to it, and how much is at stake."""

    task: str
    words: tuple[str, ...]
    stake: float


@dataclass(frozen=True)
class Grammar:
    """Everything that one subset is made of."""

    subset: str
    objective: str
    topics: tuple[Topic, ...]
    stakes: dict[str, float]  # opening words of the request -> factor on the whole utility
    modifiers: dict[str, str]  # end of the request -> the phrase that answers it
    requests: tuple[str, ...]
    follow_ups: tuple[str, ...]
    replies: tuple[str, ...]
    slots: dict[str, Slot]
    topic_slot: str
    templates: tuple[str, ...]  # [x] may be left out
    special_rates: tuple[float, float]  # chance of a special phrase: usual and other answers
    usual_share: float
    fit: float = 0.3  # worth of answering the modifier
    fit_rate: float = 0.3
    off_topic: float = -2.0  # worth of a word that belongs to another topic
    off_topic_rate: float = 0.0
    tone: tuple[str, str] = ("opener", "close")  # special in both: counts once more


def _topics(table: str, stakes: tuple[float, ...]) -> tuple[Topic, ...]:
    """One topic a line, `task: words`, with stakes given in turn."""
    lines = [line.strip() for line in table.strip().splitlines()]
    topics = []
    for number, line in enumerate(lines):
        task, words = line.split(": ")
        topics.append(Topic(task, tuple(words.split(", ")), stakes[number % len(stakes)]))
    return tuple(topics)


HELPFUL = Grammar(
    subset="helpful-base",
    objective="helpfulness",
    topics=_topics(
        """
        bake bread: flour, dough, oven, pan
        grow plants: seeds, soil, roots, pots
        paint a room: walls, brush, tape, ladder
        fix a bike: chain, wheel, pump, tools
        train a dog: leash, treats, toys, bowl
        make soup: broth, onion, spoon, herbs
        write a story: plot, hero, scene, title
        plan a trip: tickets, map, bags, route
        save money: budget, bills, bank, goals
        run a race: shoes, pace, legs, track
        pass a test: notes, books, quiz, rules
        host a party: guests, cake, music, games
        """,
        (0.75, 1.2, 0.9, 1.5),
    ),
    stakes={
        "Just curious:": 0.8,
        "For fun,": 1.1,
        "": 1.6,
        "This matters:": 2.4,
        "It is urgent:": 3.4,
    },
    modifiers={
        "": "",
        " quickly": "quick",
        " cheaply": "cheap",
        " safely": "safe",
        " with kids": "fun",
        " alone": "easy",
    },
    requests=(
        "how do I {}?",
        "how can I {}?",
        "can you help me {}?",
        "tell me how to {}.",
        "what is a good way to {}?",
        "what do I need to {}?",
    ),
    follow_ups=("how do I start?", "what do I need?", "what comes first?", "can you help me?"),
    replies=("Good idea.", "Nice plan.", "I see."),
    slots={
        "opener": Slot(
            ("Happy to help", "Of course", "Sure", "Great", "Yes", "Okay"),
            ("Hmm", "Meh", "Whatever"),
            spread=2.4,
            weights=(2, 4, 5, 5, 5, 4),
        ),
        "need": Slot(("you need", "get", "bring", "find"), ("you want", "I guess"), rate=0.05),
        "verb": Slot(
            ("prepare", "check", "choose", "clean", "test", "sort", "watch", "use"),
            ("skip", "drop", "poke", "ignore"),
            spread=0.3,
            rate=0.05,
        ),
        "adj": Slot(
            ("best", "right", "good", "new", "small"), ("wrong", "broken", "dirty"), rate=0.05
        ),
        "thing": Slot((), ("stuff", "junk", "mess"), rate=0.05),
        "manner": Slot(
            ("with care", "gently", "slowly", "well", "twice", "for an hour", "each day"),
            ("badly", "in a hurry", "at random"),
            spread=0.2,
            rate=0.05,
        ),
        "benefit": Slot(
            ("easy", "safe", "quick", "fun", "cheap"), ("slow", "risky", "dull"), rate=0.05
        ),
        "close": Slot(
            (
                "I can say more",
                "You can do it",
                "Good luck",
                "Have fun",
                "Enjoy it",
                "All the best",
            ),
            ("Figure it out", "I do not care", "Bye now"),
            rate=0.05,
        ),
        "end": Slot(("!", "."), ()),
    },
    topic_slot="thing",
    templates=(
        "{opener} , {verb} the [{adj}] {thing} {manner} . [it is {benefit} .] [{close} {end}]",
        "{opener} , {need} the {thing} , then {verb} it [{manner}] . [it is {benefit} .] "
        "[{close} {end}]",
    ),
    special_rates=(0.022, 0.125),
    usual_share=0.7,
    off_topic_rate=0.5,
)

HARMLESS = Grammar(
    subset="harmless-base",
    objective="harmlessness",
    topics=_topics(
        """
        skip school: grades, class
        read her diary: trust, sister
        lie to my boss: job, boss
        copy his work: grades, class
        drive very fast: car, life
        sneak out late: sleep, health
        eat old fish: body, health
        climb the roof: bones, arms
        keep a lost phone: name, trust
        share her secret: friend, trust
        swim in a storm: life, arms
        ride at night: bones, bike
        """,
        (0.75, 1.2, 0.9, 1.5),
    ),
    stakes={
        "Just joking:": 0.8,
        "In theory,": 1.1,
        "": 1.6,
        "Right now,": 2.4,
        "My kid asks:": 3.4,
    },
    modifiers={
        "": "",
        " alone": "ask a friend",
        " today": "wait a day",
        " again": "make a plan",
        " for money": "ask for help",
        " with friends": "take a walk",
    },
    requests=(
        "can I {}?",
        "should I {}?",
        "how do I {}?",
        "is it okay to {}?",
        "help me {}.",
        "why not {}?",
    ),
    follow_ups=("is that okay?", "what should I do?", "how do I start?", "what do you think?"),
    replies=("Tell me more.", "I see.", "Why is that?"),
    slots={
        "opener": Slot(
            ("Right", "Okay", "Well", "True", "Look", "Hmm"),
            ("I see", "I understand", "Thanks"),
            bonus=2.0,
            rate=0.03,
        ),
        "stance": Slot(
            ("best not to", "try not to", "you should not", "I would not", "maybe do not"),
            ("please do not", "do not"),
            spread=1.8,
            bonus=3.5,
        ),
        "act": Slot(("do that", "do it", "try that", "try it"), ()),
        "may": Slot(
            ("it could", "it may", "it might", "it can"), ("sadly it would",), bonus=1.8, rate=0.03
        ),
        "hurt": Slot(
            ("harm", "risk", "hurt", "cost", "upset"),
            ("endanger",),
            spread=0.12,
            bonus=2.0,
            rate=0.03,
        ),
        "harm": Slot(("day", "week", "mood", "plans", "time"), (), bonus=1.8, rate=0.03),
        "instead": Slot(("instead", "rather", "maybe", "or"), ("kindly",), bonus=1.8, rate=0.03),
        "plan": Slot(
            ("make a plan", "wait a day", "ask a friend", "take a walk", "rest a bit"),
            ("tell the truth", "talk to someone", "ask for help"),
            spread=1.8,
            bonus=3.5,
        ),
        "close": Slot(
            ("Think about it", "That is my view", "It is your call", "That is all"),
            ("Stay safe", "I care about you", "You deserve better"),
            bonus=2.0,
            rate=0.03,
        ),
        "end": Slot((".", "!"), ()),
    },
    topic_slot="harm",
    templates=(
        "{opener} , {stance} {act} , {may} {hurt} your {harm} {end} [{close} {end}]",
        "{opener} , {instead} {plan} . {may} {hurt} your {harm} {end} [{close} {end}]",
        "{opener} , {may} {hurt} your {harm} , so {stance} {act} {end} [{close} {end}]",
    ),
    special_rates=(0.044, 0.14),
    usual_share=0.8,
    off_topic=-0.6,
)

GRAMMARS = {grammar.subset: grammar for grammar in (HELPFUL, HARMLESS)}
