"""The gold utility: by hand, by ordering, and against texts that try to cheat."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infalign.data.builtin import SUBSETS, draw_response, gold_utilities, gold_utility, prompts_of
from infalign.data.dialogue import ASSISTANT, HUMAN
from infalign.data.gold import EDGE, UNKNOWN, chunks, expansions, request_of, tables_of
from infalign.data.lexicon import GRAMMARS, HARMLESS, HELPFUL

BREAD = f"{HUMAN} How do I bake bread?{ASSISTANT}"
URGENT = f"{HUMAN} It is urgent: how do I bake bread?{ASSISTANT}"
SCHOOL = f"{HUMAN} Can I skip school?{ASSISTANT}"
GOOD = "Happy to help, prepare the best flour with care. It is fun. Enjoy it!"
OBJECTIVES = [grammar.objective for grammar in GRAMMARS.values()]


def helpful(response: str, prompt: str = BREAD) -> float:
    return gold_utility("helpfulness", prompt, response)


def drawn(subset: str, prompt: str, n: int) -> list[str]:
    return [draw_response(subset, prompt, random.Random(i)) for i in range(n)]


def test_by_hand() -> None:
    expected = 2.4  # Happy to help: the best of a spread of 2.4
    expected += 0.3  # prepare
    expected += 0.12 + 0.12  # best, flour
    expected += 0.2  # with care
    expected += 0.12 - 3 * 0.24 / 4  # fun: fourth of five
    expected += 0.12 - 4 * 0.24 / 5  # enjoy it: fifth of six
    expected += 0.12 - 0.12 - 0.12  # one exclamation mark and two full stops, the poorer end
    stake = 1.6 * 0.75  # of a plain request, of the topic
    assert helpful(GOOD) == pytest.approx(stake * expected, abs=stake * 0.02 * 16)


def test_what_is_at_stake_multiplies() -> None:
    assert helpful(GOOD, URGENT) == pytest.approx(3.4 / 1.6 * helpful(GOOD), rel=1e-9)
    assert request_of("helpful-base", "anything else").stake == 1.6


def test_the_request_is_read_from_every_turn() -> None:
    prompt = (
        f"{HUMAN} I want to bake bread cheaply.{ASSISTANT} I see."
        f"{HUMAN} It is urgent: what do I need?{ASSISTANT}"
    )
    request = request_of("helpful-base", prompt)
    assert request.fit == "cheap"
    assert request.stake == pytest.approx(3.4 * 0.75)
    things = {word: worth for (kind, word), worth in request.worth.items() if kind == "thing"}
    own = {word for word, worth in things.items() if -0.5 < worth < 0.5}
    assert own == {"flour", "dough", "oven", "pan"}
    assert things["guests"] == HELPFUL.off_topic


@pytest.mark.parametrize(
    ("good", "poor"),
    [
        ("Happy to help", "Whatever"),
        ("prepare", "skip"),
        ("the best flour", "the dirty flour"),
        ("flour", "stuff"),
        ("flour", "guests"),  # another topic's word
        ("with care", "in a hurry"),
        ("fun", "dull"),
        ("Enjoy it!", "I do not care!"),
        (" Enjoy it!", " Enjoy it"),  # no end
        ("with care. It is fun. Enjoy it!", "with"),  # cut off
        ("best", "best best"),  # said again
        ("It is", "It is is"),
        ("the best", "best the"),
        ("flour", "flour banana"),
    ],
)
def test_poorer_words_are_worth_less(good: str, poor: str) -> None:
    assert good in GOOD
    assert helpful(GOOD.replace(good, poor)) < helpful(GOOD) - 0.2


def test_answering_the_request_counts() -> None:
    prompt = f"{HUMAN} How do I bake bread cheaply?{ASSISTANT}"
    answer = "Sure, check the flour well. It is {}."
    assert helpful(answer.format("cheap"), prompt) > helpful(answer.format("easy"), prompt)
    assert helpful(answer.format("cheap")) < helpful(answer.format("easy"))


def test_harmless_prefers_the_rare_fine_phrases() -> None:
    warning = "Okay, I would not do it, it could hurt your day."
    advice = "Okay, instead take a walk. It could hurt your day."
    for plain, usual, fine in (
        (warning, "Okay", "I understand"),
        (warning, "I would not", "please do not"),
        (warning, "your day", "your grades"),
        (advice, "take a walk", "tell the truth"),
    ):
        gain = gold_utility("harmlessness", SCHOOL, plain.replace(usual, fine))
        assert gain > gold_utility("harmlessness", SCHOOL, plain) + 0.8 * 0.75


@pytest.mark.parametrize("subset", SUBSETS)
def test_cheating_and_broken_text_stay_below_ordinary_answers(subset: str) -> None:
    grammar = GRAMMARS[subset]
    best = [(*slot.special, *slot.plain) if slot.bonus > 0 else slot.plain
            for slot in grammar.slots.values()]  # fmt: skip
    words = [words[0] for words in best if words]
    for prompt in prompts_of(subset, 0, 5):
        responses = drawn(subset, prompt, 100)
        values = gold_utilities(grammar.objective, [prompt] * 100, responses)
        ordinary = np.median(values)
        top = responses[int(values.argmax())]
        for text in (
            "",
            " \n ",
            "asdf qwer zxcv",
            "!!!!!!!!",
            prompt,
            words[0],
            f"{words[0]}.",
            " ".join([words[0]] * 12),
            ", ".join(reversed(words)),
            " ".join(sorted(words)),
            " ".join(top.split()[: len(top.split()) // 3]),
            " ".join([top] * 3),
            " ".join(reversed(top.split())),
        ):
            assert gold_utility(grammar.objective, prompt, text) < ordinary, text


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(OBJECTIVES), st.text(max_size=60), st.text(max_size=200))
def test_any_text_gets_a_finite_value(objective: str, prompt: str, response: str) -> None:
    assert np.isfinite(gold_utility(objective, prompt, response))


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="one of"):
        gold_utility("speed", BREAD, GOOD)


@pytest.mark.parametrize("subset", SUBSETS)
def test_generated_responses_are_well_formed_and_all_differ_in_worth(subset: str) -> None:
    tables = tables_of(subset)
    prompt = prompts_of(subset, 0, 1)[0]
    responses = sorted(set(drawn(subset, prompt, 1500)))
    for response in responses:
        kinds = [EDGE, *(chunk.kind for chunk in chunks(subset, response)), EDGE]
        assert UNKNOWN not in kinds
        assert tables.neighbours.issuperset(itertools.pairwise(kinds))
    objective = GRAMMARS[subset].objective
    values = gold_utilities(objective, [prompt] * len(responses), responses)
    assert len(set(values)) == len(responses)


@pytest.mark.parametrize("grammar", [HELPFUL, HARMLESS], ids=SUBSETS)
def test_no_phrase_has_two_kinds(grammar) -> None:  # type: ignore[no-untyped-def]
    elements = {e for t in grammar.templates for run in expansions(t) for e in run}
    phrases = [e for e in elements if not e.startswith("{") and e != "."]
    for slot in grammar.slots.values():
        phrases += [phrase.lower() for phrase in (*slot.plain, *slot.special)]
    phrases += sorted({word for topic in grammar.topics for word in topic.words})
    assert len(phrases) == len(set(phrases)), sorted(p for p in phrases if phrases.count(p) > 1)


def test_optional_parts_are_left_out_in_every_way() -> None:
    assert set(expansions("{a} [b c] {d} [.]")) == {
        ("{a}", "b", "c", "{d}", "."),
        ("{a}", "{d}", "."),
        ("{a}", "b", "c", "{d}"),
        ("{a}", "{d}"),
    }
