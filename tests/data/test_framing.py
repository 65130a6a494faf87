"""Prompts as they are sent: one spelling of every dialogue, framed once, ambiguity refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infalign.data.builtin import prompts_of
from infalign.data.dialogue import ASSISTANT, HUMAN
from infalign.data.framing import asked, text_fault

DIALOGUE = "\n\nHuman: Tell me of races.\n\nAssistant: Sure.\n\nHuman: And then?\n\nAssistant:"
MARKERS = ("Human:", "Assistant:")


@pytest.mark.parametrize(
    "sent",
    [
        DIALOGUE,
        DIALOGUE + " ",
        DIALOGUE + "\n",
        DIALOGUE.strip(),
        DIALOGUE.replace("\n", "\r\n"),
        DIALOGUE.replace("\n", "\r"),
        DIALOGUE.removesuffix(ASSISTANT),
        DIALOGUE.removesuffix(ASSISTANT).strip() + "\r\n",
        DIALOGUE.replace("\n\n", "\n"),
        DIALOGUE.replace("\n\n", "\n \n\t\n  "),
        DIALOGUE.replace(": ", ":"),
        DIALOGUE.replace(": ", ":\n"),
    ],
)
def test_a_dialogue_in_markers_has_one_spelling(sent: str) -> None:
    assert asked(sent).marked == DIALOGUE


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ("Read this:\n\nHuman: hi\n\nAssistant:", "'Human:', but does not itself start with"),
        ("\n\nAssistant: hi\n\nHuman: you", "'Assistant:', but does not itself start with"),
        ("\n\nHuman: hi\n\nAssistant: hello", "ends with words of the assistant"),
        ("\n\nHuman: hi\n\nAssistant: hello\n\nAssistant:", "ends with words of the assistant"),
        ("\n\nHuman:", "last turn is empty"),
        ("\n\nHuman: hi\n\nAssistant: ho\n\nHuman: \n\nAssistant:", "last turn is empty"),
        ("\n\nHuman: go on:\nHuman: hi\n\nAssistant:", "'Human:' right below another"),
        ("Human: go on:\nHuman: hi", "'Human:' right below another"),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused(sent: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        asked(sent)


def test_a_quoted_line_is_no_turn() -> None:
    question = "What is meant by\n> Human: hi\n> Assistant: hello"
    assert asked(question).marked == f"{HUMAN} {question}{ASSISTANT}"


def test_the_corpus_is_in_this_form_already() -> None:
    for subset in ("helpful-base", "harmless-base"):
        prompts = prompts_of(subset, 0, 200)
        assert [asked(prompt).marked for prompt in prompts] == prompts


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Say\n\nHuman: so "},
]


def test_messages_are_turns_as_they_are_and_so_is_their_canonical_json() -> None:
    dialogue = asked(MESSAGES)
    assert dialogue.messages == MESSAGES
    assert asked(dialogue.text) == dialogue
    deep = '[{"content":' + "[" * 100_000
    for loose in (json.dumps(MESSAGES), deep, "[{}]"):  # any other JSON is somebody's question
        assert asked(loose).turns == (("user", loose),)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (None, "is neither a text nor messages but null"),
        (0.5, "is neither a text nor messages but a number"),
        ([], "is neither a text nor messages but an empty list"),
        ({"role": "user", "content": "hi"}, "is neither a text nor messages but a mapping"),
        (["hi"], "has a message that is not"),
        ([{"role": "user", "content": "hi", "name": "me"}], "has a message that is not"),
        ([{"role": "user", "content": ["hi"]}], "role or content is not a text"),
        ([{"role": 1, "content": "hi"}], "role or content is not a text"),
        ([{"role": "human", "content": "hi"}], "has a turn of 'human', which is none of"),
        ([{"role": "user", "content": "hi"}, MESSAGES[0]], "has a system turn behind another"),
        ([*MESSAGES, {"role": "assistant", "content": "So."}], "does not end with a turn of"),
        ([MESSAGES[0]], "does not end with a turn of"),
        ([{"role": "user", "content": " "}], "is not a text with a question in it"),
        ([{"role": "user", "content": "a\0"}], "has a NUL character"),
        ([{"role": "user", "content": "\ud800"}], "has half of a surrogate pair"),
    ],
)
def test_what_are_no_messages(sent: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        asked(sent)


blanks = st.text(" \t\r\n\u00a0\u2003\x0b\x0c", max_size=4)
newlines = st.sampled_from(["\n", "\r\n", "\r"])
words = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    .map(str.strip)
    .filter(lambda text: text and not any(marker in text for marker in MARKERS))
    .filter(lambda text: not {"\r", "\0"} & set(text))
)


@given(words, blanks, blanks)
def test_a_bare_question_is_framed_once(question: str, before: str, after: str) -> None:
    once = f"{HUMAN} {question}{ASSISTANT}"
    assert asked(before + question + after).marked == once == asked(once).marked


@given(st.lists(words, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2), st.data())
def test_whitespace_around_markers_changes_nothing(turns: list[str], data: st.DataObject) -> None:
    marks = [HUMAN, ASSISTANT] * len(turns)
    exact = "".join(f"{mark} {said}" for mark, said in zip(marks, turns, strict=False)) + ASSISTANT
    sent = ""
    ends = [*zip(marks, turns, strict=False)] + [(ASSISTANT, "")] * data.draw(st.booleans())
    for mark, said in ends:
        end = data.draw(newlines)
        gap = data.draw(blanks) + end + data.draw(blanks) + end
        sent += gap + data.draw(blanks) + mark.strip() + data.draw(blanks) + said
    assert asked(sent + data.draw(blanks)).marked == exact
    assert asked(sent.strip()).marked == exact


@given(
    st.lists(
        st.one_of(st.sampled_from([*MARKERS, "\n", "\n\n", "\r\n", " ", "\r", "hi"]), st.text()),
        max_size=12,
    ).map("".join)
)
def test_framing_twice_is_framing_once(sent: str) -> None:
    try:
        once = asked(sent).marked
    except ValueError:
        return
    assert asked(once).marked == once
    assert once.startswith(HUMAN)
    assert once.endswith(ASSISTANT)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (None, "is not a text but null"),
        (True, "is not a text but true or false"),
        (1, "is not a text but a number"),
        (0.5, "is not a text but a number"),
        (["a"], "is not a text but a list or a mapping"),
        ("", "is not a text with a question in it"),
        (" \n", "is not a text with a question in it"),
        ("a\0", "has a NUL character: leave it out"),
        ("\ud800", "has half of a surrogate pair, which is no character: send valid Unicode"),
        ("\ud83d\ude00 in two halves", "has half of a surrogate pair, which is no character"),
        ("😀", None),
    ],
)
def test_what_is_no_text(value: object, fault: str | None) -> None:
    found = text_fault(value)
    assert found == fault or (fault is not None and found is not None and found.startswith(fault))
