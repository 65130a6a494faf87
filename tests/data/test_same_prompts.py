"""A text means the same prompt where it is trained on and where it is sent to what was trained."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infalign.data.forms import Drop, recognise
from infalign.data.framing import asked

TEXTS = [
    "What is it?",
    "  What is it?\n",
    "One\r\ntwo\rthree\n",
    "Human: What is it?",
    "Human: Hi\n\nAssistant: Ho\n\nHuman: So?",
    "\n\nHuman: a\r\nb\n\nAssistant:",
    "Human: a\r\nb\n\nAssistant: c\rd\n\nHuman: e\n\nAssistant:",
    "\r\n\r\nHuman: Hi?\r\n\r\nAssistant:",
    "Say > Human: hi",
    '[{"content":"Hi?","role":"user"}]',
    "Read:\nHuman: hi",  # of two meanings
    "Human: Hi\n\nAssistant: Ho",
    "a\0b",
    "Human: so?\nHuman: what?\n\nAssistant:",
]


def trained(row: dict[str, Any]) -> Any:
    form = recognise(row, {})
    assert form is not None
    try:
        return form.read(row).prompt
    except Drop:
        return None


def served(text: str) -> Any:
    try:
        return asked(text)
    except ValueError:
        return None


def rows(text: str) -> list[dict[str, Any]]:
    """The text as the prompt of every form that takes one."""
    return [
        {"prompt": text},
        {"prompt": text, "chosen": "yes", "rejected": "no"},
        {"prompt": text, "response_1": "yes", "response_2": "no", "strength": 1},
    ]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_the_same_prompt_in_training_and_in_serving(text: str) -> None:
    assert {json.dumps(row): trained(row) for row in rows(text)} == {
        json.dumps(row): served(text) for row in rows(text)
    }


@given(
    st.lists(st.sampled_from(["Human:", "Assistant:", " ", "\n", "\r\n", "\r", "so?", "\u2028"]))
)
def test_whatever_it_is_made_of(pieces: list[str]) -> None:
    text = "".join(pieces)
    if text.strip():  # of no words there is no row
        assert trained({"prompt": text}) == served(text)


def test_a_prompt_with_markers_that_was_trained_on_can_be_sent_as_it_was_written() -> None:
    text = "\n\nHuman: a\r\nb\n\nAssistant:"
    sides = {"chosen": f"{text} yes", "rejected": f"{text} no"}
    assert trained(sides) == served(text)
    assert served(text).turns[0].content == "a\r\nb"
