"""Dialogues: their text, their identity, their exchanges."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infalign.data.dialogue import ASSISTANT, HUMAN, MARKERS, ROLES, Dialogue, Turn, read_marked
from infalign.data.framing import asked

MARKED = f"{HUMAN} Tell me of races.{ASSISTANT} Sure.{HUMAN} And then?{ASSISTANT}"
SAID = [("user", "Tell me of races."), ("assistant", "Sure."), ("user", "And then?")]

marks = MARKERS.values()
bits = st.sampled_from([*marks, *(f"{mark} " for mark in marks), *'hi \n"\\', "\u2028", "é😀"])
contents = st.lists(bits, max_size=5).map("".join)
turns = st.tuples(st.sampled_from(ROLES[1:]), contents)
dialogues = st.builds(
    lambda system, middle, last: Dialogue.of([*system, *middle, last]),
    st.lists(st.tuples(st.just("system"), contents), max_size=1),
    st.lists(turns, max_size=3),
    st.tuples(st.sampled_from(["user", "tool"]), contents),
)


@given(dialogues)
def test_its_text_is_canonical_json_and_comes_back(dialogue: Dialogue) -> None:
    assert Dialogue.parse(dialogue.text) == dialogue
    loose = json.dumps(dialogue.messages, indent=1)
    assert Dialogue.parse(loose).text == dialogue.text
    assert Dialogue.of((turn["role"], turn["content"]) for turn in dialogue.messages) == dialogue


def test_markers_and_messages_give_one_dialogue_with_the_id_of_the_text() -> None:
    read = read_marked(MARKED)
    assert read == Dialogue.of(SAID) == asked(MARKED)
    assert read.marked == read.name == MARKED
    assert read.id == sha256(MARKED.encode()).hexdigest()[:16]
    assert read.share("test") == Dialogue.of(SAID).share("test") != read.share("half")


BARE = Dialogue.of([("user", "one")])
SYSTEM = Dialogue.of([("system", "one"), ("user", "two")])


@given(dialogues, dialogues)
@example(Dialogue.of(SAID), Dialogue.of([("user", MARKED.removeprefix(HUMAN).strip())]))
@example(
    Dialogue.of(SAID),
    Dialogue.of([("user", MARKED[len(HUMAN) + 1 : -len(ASSISTANT)])]),
)
@example(BARE, Dialogue.of([("user", " one")]))
@example(BARE, Dialogue.of([("tool", "one")]))
@example(BARE, Dialogue.of([("user", BARE.text)]))
@example(SYSTEM, Dialogue.of([("user", f"one{HUMAN} two")]))
@example(SYSTEM, Dialogue.of([("user", SYSTEM.marked)]))
@example(SYSTEM, Dialogue.of([("user", "one\n\ntwo")]))
def test_no_two_dialogues_have_one_id(one: Dialogue, other: Dialogue) -> None:
    assert (one == other) == (one.name == other.name) == (one.id == other.id)


@given(dialogues)
def test_last_keeps_whole_exchanges_and_the_system_turn(dialogue: Dialogue) -> None:
    exchanges = dialogue.exchanges()
    system = dialogue.turns[: dialogue.turns[0].role == "system"]
    assert system + tuple(turn for group in exchanges for turn in group) == dialogue.turns
    assert all(group[0].role == "user" for group in exchanges[1:])
    assert all(turn.role != "user" for group in exchanges for turn in group[1:])
    for count in range(1, len(exchanges) + 1):
        last = dialogue.last(count)
        assert last.turns[: len(system)] == system
        assert last.exchanges() == exchanges[-count:]


def test_a_greeting_is_an_exchange_of_its_own() -> None:
    greeting, question = Turn("assistant", "Hello."), Turn("user", "Why?")
    dialogue = Dialogue((Turn("system", "Be brief."), greeting, question))
    assert dialogue.exchanges() == [(greeting,), (question,)]
    assert dialogue.last(1) == Dialogue((Turn("system", "Be brief."), question))
    assert dialogue.last(2) == dialogue


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([], "does not end with a turn of the user or of a tool"),
        ([("user", "a"), ("assistant", "b")], "does not end with a turn of the user"),
        ([("human", "a")], "has a turn of 'human', which is none of"),
        ([("user", "a"), ("system", "b"), ("user", "c")], "has a system turn behind another"),
        ([("system", "a")], "does not end with a turn of the user"),
    ],
)
def test_what_is_no_prompt(said: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Dialogue.of(said)


@pytest.mark.parametrize("text", ["", "one", HUMAN, f"{HUMAN} one", f"{ASSISTANT} one{ASSISTANT}"])
def test_what_is_no_text_with_markers(text: str) -> None:
    assert read_marked(text) is None
