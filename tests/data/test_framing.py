"""Prompts as they are sent: one spelling of every dialogue, framed once, ambiguity refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infalign.data.builtin import prompts_of
from infalign.data.framing import framed, text_fault
from infalign.data.hh import ASSISTANT, HUMAN

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
    assert framed(sent) == DIALOGUE


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
        framed(sent)


def test_a_quoted_line_is_no_turn() -> None:
    question = "What is meant by\n> Human: hi\n> Assistant: hello"
    assert framed(question) == f"{HUMAN} {question}{ASSISTANT}"


def test_the_corpus_is_in_this_form_already() -> None:
    for subset in ("helpful-base", "harmless-base"):
        prompts = prompts_of(subset, 0, 200)
        assert [framed(prompt) for prompt in prompts] == prompts


blanks = st.text(" \t\r\n\u00a0\u2003\x0b\x0c", max_size=4)
newlines = st.sampled_from(["\n", "\r\n", "\r"])
words = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    .map(str.strip)
    .filter(lambda text: text and not any(marker in text for marker in MARKERS))
    .filter(lambda text: "\r" not in text)
)


@given(words, blanks, blanks)
def test_a_bare_question_is_framed_once(question: str, before: str, after: str) -> None:
    once = f"{HUMAN} {question}{ASSISTANT}"
    assert framed(before + question + after) == once == framed(once)


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
    assert framed(sent + data.draw(blanks)) == exact
    assert framed(sent.strip()) == exact


@given(
    st.lists(
        st.one_of(st.sampled_from([*MARKERS, "\n", "\n\n", "\r\n", " ", "\r", "hi"]), st.text()),
        max_size=12,
    ).map("".join)
)
def test_framing_twice_is_framing_once(sent: str) -> None:
    try:
        once = framed(sent)
    except ValueError:
        return
    assert framed(once) == once
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
