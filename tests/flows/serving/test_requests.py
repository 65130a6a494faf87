"""What a scoring server is asked: every form of prompts, foreign pages, anything at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flows.serving.hosts import check_sender
from flows.serving.requests import FORMATS, Reader, Refused
from infalign.errors import InputError
from infalign.settings.params import check_params
from tests.flows.serving.conftest import LIMITS, Scoring

KINDS = {
    "procedure": "string",
    "n": "long",
    "max_new_tokens": "long",
    "temperature": "double",
    "seed": "long",
}
READER = Reader(LIMITS, KINDS)


@pytest.fixture(scope="module")
def server(packaged: Path, scoring: Callable[..., Any]) -> Iterator[Scoring]:
    with scoring(packaged, allowed_hosts=["*.models.example"]) as one:
        yield one


def forms(prompt: Any) -> list[dict[str, Any]]:
    """A prompt in every form that MLflow knows."""
    return [
        {"inputs": prompt},
        {"inputs": [prompt]},
        {"inputs": [[prompt]]},
        {"inputs": [{"prompt": prompt}]},
        {"inputs": {"prompt": [prompt]}},
        {"inputs": {"prompt": prompt}},
        {"instances": prompt},
        {"instances": [prompt]},
        {"instances": [[prompt]]},
        {"instances": [{"prompt": prompt}]},
        {"instances": {"prompt": [prompt]}},
        {"dataframe_split": {"data": [[prompt]]}},
        {"dataframe_split": {"columns": ["prompt"], "index": [0], "data": [[prompt]]}},
        {"dataframe_records": [{"prompt": prompt}]},
    ]


def said(*contents: Any) -> list[dict[str, Any]]:
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": c} for role, c in zip(roles, contents, strict=False)]


def read(tree: Any, reader: Reader = READER) -> Any:
    return json.loads(reader.read("application/json", json.dumps(tree).encode()))


def test_every_form_asks_the_same(server: Scoring) -> None:
    params = {"max_new_tokens": 2, "seed": None}
    answers = [server.post(form | {"params": params}) for form in forms("one two")]
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    assert {answer.text for answer in answers} == {answers[0].text}
    assert len(answers[0].json()["predictions"]) == 1


def test_messages_ask_what_texts_ask_and_keep_what_no_text_can_say(server: Scoring) -> None:
    params = {"max_new_tokens": 2}
    text = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
    dialogue, other = said("one", "two", "three"), said("one")
    system = [{"role": "system", "content": "four"}, *other]
    bodies = [
        {"inputs": [text, "one"]},
        {"messages": [dialogue, other]},
        {"messages": dialogue},
        {"messages": [system]},
        {"messages": said(f" {text}")},
    ]
    answers = [server.post(body | {"params": params}) for body in bodies]
    assert [answer.status_code for answer in answers] == [200] * len(bodies)
    found = [answer.json()["predictions"] for answer in answers]
    assert found[0] == found[1]
    assert found[2] == found[0][:1]
    assert [len(each) for each in found[2:]] == [1, 1, 1]
    assert read({"messages": system})["inputs"] == [
        '[{"content":"four","role":"system"},{"content":"one","role":"user"}]'
    ]
    assert read({"messages": [other]}) == read({"messages": other})


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (said("one " * 200), "the policy was trained for at most 64"),
        ([said("one"), said("x" * 9999, "x" * 9999, "x" * 9999)], "prompt 1 has 29997 characters"),
        (said("one", "two"), "prompt 0 does not end with a turn of"),
    ],
)
def test_messages_out_of_bounds_are_one_sentence(
    server: Scoring, messages: Any, words: str
) -> None:
    answer = server.post({"messages": messages})
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (None, "null"),
        (1, "a number"),
        (1.5, "a number"),
        (True, "true or false"),
        ("", "not a text with a question"),
        ("\ud800", "half of a surrogate pair"),
        ("a\0", "a NUL character"),
        ([["a", "b"]], "a list or a mapping"),
    ],
)
def test_what_is_no_text_is_refused_in_every_form(
    server: Scoring, prompt: object, words: str
) -> None:
    for form in forms(prompt):
        with pytest.raises(Refused) as error:
            read(form)
        assert error.value.status == 400
    answer = server.post(json.dumps({"inputs": ["hello", prompt]}).encode())
    assert answer.status_code == 400
    assert "prompt 1 " in answer.json()["error"]
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ("hello", "exactly one of inputs, instances, dataframe_split, dataframe_records, messages"),
        ({"inputs": ["x"], "messages": said("x")}, "exactly one of inputs"),
        ({"messages": "x"}, 'messages must be a list: send {"messages": [{"role": "user", "con'),
        ({"messages": said("x")[0]}, "messages must be a list"),
        ({"messages": []}, "0 prompts"),
        ({"messages": [[]]}, "prompt 0 is neither a text nor messages but an empty list"),
        ({"messages": [said("x"), []]}, "prompt 1 is neither a text nor messages but an empty"),
        ({"messages": [said("x"), "y"]}, "prompt 1 is no list of messages"),
        ({"messages": [said("x"), said("y")[0]]}, "prompt 1 is no list of messages"),
        ({"messages": [*said("x"), said("y")]}, "prompt 0 has a message that is not"),
        ({"messages": ["x"]}, "prompt 0 has a message that is not"),
        ({"messages": [{"content": "x"}]}, "prompt 0 has a message that is not"),
        ({"messages": [said("x")] * (LIMITS.prompts + 1)}, f"{LIMITS.prompts + 1} prompts: send"),
        ({"messages": [{"role": "x" * 9999, "content": "x"}]}, f"a turn of '{'x' * 40}', which"),
        ({"messages": [{"role": "\n\ud800", "content": "x"}]}, r"has a turn of '\n\ud800', which"),
        ({"messages": [{"role": None, "content": "x"}]}, "role or content is not a text"),
        ({"messages": [{"role": "user", "content": 1}]}, "role or content is not a text"),
        ({"messages": [{"role": "user", "content": None}]}, "role or content is not a text"),
        ({"messages": said("x", "y")}, "does not end with a turn of the user or of a tool"),
        ({"messages": [*said("x"), {"role": "system", "content": "x"}]}, "a system turn behind"),
        ({"messages": said(" ")}, "is not a text with a question in it"),
        ({"messages": said("x\0")}, "has a NUL character"),
        ({"messages": said("x", "\udfff", "x")}, "has half of a surrogate pair"),
        ({"inputs": None}, 'inputs must be a list of prompts: send {"inputs": ["a question"]}'),
        ({"inputs": {"a": ["x"], "b": ["y"]}}, "in one column"),
        ({"inputs": [["x", "y"]]}, "prompt 0 has 2 columns"),
        ({"inputs": ["x", {}]}, "prompt 1 has 0 columns"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [["x", "y"]]}}, "in one column"),
        ({"dataframe_split": [["x"]]}, "must have 'data', a list of rows"),
        ({"dataframe_records": {"a": ["x"]}}, "dataframe_records must be a list"),
        ({"dataframe_records": [{"a": "x", "b": "y"}]}, "prompt 0 has 2 columns"),
        ({"inputs": ["x"], "params": []}, "params must be a mapping"),
        ({"inputs": ["x"], "params": {"temperature": 10**400}}, "temperature is not a finite"),
        ({"inputs": ["x"], "params": {"temperature": True}}, "temperature is not a finite"),
        ({"inputs": ["x"], "params": {"seed": 2**64}}, "seed is not a whole number of 64 bits"),
        ({"inputs": ["x"], "params": {"seed": 1.5}}, "seed is not a whole number of 64 bits"),
        ({"inputs": ["x"], "params": {"procedure": "\ud800"}}, "must be a short text"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(tree: Any, words: str) -> None:
    with pytest.raises(Refused) as error:
        read(tree)
    assert error.value.status == 400
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_model_gets_what_was_checked() -> None:
    asked = {"instances": [["a"], {"p": "b"}, "c"], "params": {"n": 64, "seed": None}}
    assert read(asked) == {"inputs": ["a", "b", "c"], "params": {"n": 64}}
    named = Reader(LIMITS, KINDS, "prompt")
    assert read({"inputs": {"prompt": ["a"]}}, named)["inputs"] == ["a"]
    with pytest.raises(Refused, match="must be named 'prompt'"):
        read({"inputs": [{"p": "a"}]}, named)
    with pytest.raises(Refused, match="temperature is not a finite number"):
        READER.read("application/json", b'{"inputs": ["a"], "params": {"temperature": 1e999}}')


# Texts with surrogates and control characters; numbers that no float or 64 bits hold.
texts = st.text(st.characters(exclude_categories=[]), max_size=20)
plain = st.none() | st.booleans() | st.integers() | st.floats() | texts
trees = st.recursive(
    plain | st.sampled_from([10**400, -(2**64), "one two", "\n\nHuman: one\n\nAssistant:"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "robot"]) | trees
messages = st.lists(
    st.fixed_dictionaries({"role": roles, "content": st.just("one") | trees}) | trees, max_size=4
)
asked = st.fixed_dictionaries(
    {},
    optional={
        **{form: trees | st.lists(st.sampled_from(["one", "two"])) for form in FORMATS},
        "messages": messages | st.lists(messages, max_size=3) | trees,
        "params": trees | st.dictionaries(st.sampled_from(sorted(KINDS)), trees, max_size=3),
        "dataframe_split": st.fixed_dictionaries({"data": trees}, optional={"columns": trees}),
    },
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(asked, trees).map(json.dumps).map(str.encode) | st.binary(max_size=60))
@example(b"[" * 60_000)
@example(b'{"inputs":' + b"[" * 900 + b'"a"' + b"]" * 900 + b"}")
@example(b'{"inputs":' + b'{"a":' * 900 + b'"a"' + b"}" * 901)
@example(b'{"messages":' + b"[" * 900 + b'"a"' + b"]" * 900 + b"}")
@example(json.dumps({"inputs": ['[{"content":' + "[" * 60_000]}).encode())
@example(json.dumps({"inputs": ['[{"content":"one","role":"user"}]']}).encode())
@example(json.dumps({"messages": [{"role": "user", "content": "x" * 30_000}]}).encode())
@example(b'{"messages": [{"role": "user", "content": "\\ud800"}]}')
@example(b'{"inputs": [' + b"9" * 5000 + b"]}")
@example(b'{"inputs": ["a"], "params": {"seed": ' + b"9" * 5000 + b"}}")
@example(b'{"inputs": ["a"], "params": {"n": ' + b"9" * 4300 + b"}}")
@example(b'{"inputs": ["a"], "params": {"temperature": NaN}}')
@example(b'{"inputs": ["a"], "params": {"temperature": -Infinity}}')
@example(b'{"inputs": ["a"], "params": {"temperature": 1e-320}}')
@example(b'{"inputs": ["a"], "params": {"seed": -1}}')
@example(b'{"inputs": ["a\\u0000"]}')
@example(b'{"inputs": ["\\ud800"]}')
@example(b'{"inputs": ["\xed\xa0\x80"]}')
@example(b'{"inputs": ["' + b"x" * 30_000 + b'"]}')
@example('{"inputs": ["one"]}'.encode("utf-16"))
def test_whatever_is_asked_is_answered_or_refused_in_one_sentence(
    server: Scoring, body: bytes
) -> None:
    answer = server.post(body)
    if answer.status_code == 200:
        assert len(answer.json()["predictions"]) >= 1
        return
    assert 400 <= answer.status_code < 500, answer.text
    assert set(answer.json()) == {"error"}
    sentence = answer.json()["error"]
    assert sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "LOCALHOST:5001"}, 200),
        ({"host": "[::1]:5001"}, 200),
        ({"host": "a.models.example"}, 200),
        ({"host": "127.0.0.1", "origin": "http://localhost:3000"}, 200),
        ({"origin": "https://a.models.example"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:5001"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "a@localhost"}, 403),
        ({"host": "models.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://evil.example/?http://localhost"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost", "origin": "file://"}, 403),
    ],
)
def test_only_known_hosts_and_pages_are_answered(
    server: Scoring, headers: dict[str, str], status: int
) -> None:
    answer = server.post({"inputs": ["one"], "params": {"max_new_tokens": 1}}, headers=headers)
    assert answer.status_code == status, answer.text
    if status == 403:
        assert set(answer.json()) == {"error"}
        assert "serving.allowed_hosts" in answer.json()["error"]


def test_the_address_that_was_reached_is_known() -> None:
    def scope(host: bytes, reached: str) -> dict[str, Any]:
        return {"headers": [(b"host", host)], "server": (reached, 5001)}

    check_sender(scope(b"10.0.0.7:5001", "10.0.0.7"), [])
    check_sender(scope(b"[fd00::7]", "fd00::7"), [])
    check_sender(scope(b"anything.example", "10.0.0.7"), ["*"])
    for headers in ([], [(b"host", b"localhost"), (b"origin", b"http://a"), (b"origin", b"")]):
        with pytest.raises(Refused) as error:
            check_sender({"headers": headers, "server": ("10.0.0.7", 5001)}, [])
        assert error.value.status == 403
    with pytest.raises(Refused):
        check_sender(scope(b"10.0.0.8", "10.0.0.7"), [])


@pytest.mark.parametrize("host", ["http://a.example", "a.example:80", "[::1]", ""])
def test_an_allowed_host_is_a_host(params_tree: dict[str, Any], host: str) -> None:
    serving = params_tree["serving"] | {"allowed_hosts": ["::1", "fd00::7", "*.example", host]}
    with pytest.raises(InputError, match="is no host: give it without scheme, port and brackets"):
        check_params(params_tree | {"serving": serving}, "params.yaml")
