"""Rewards over HTTP, from a real server: the forms, the order, the tries, and what may go wrong."""

from __future__ import annotations

import json
import socket
from typing import Any

import numpy as np
import pytest

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.rewards.server import Server
from infalign.settings.rewards import ServerReward
from tests.rewards.servers import Asked, lengths, serving

ASKED = [Dialogue.of([("user", "Hi?"), ("assistant", "Ho."), ("user", "So?")])] * 10
SAID = ["x" * number for number in range(10)]
FIELD = "objectives.safe.reward"


def source(asked: Asked | str, waits: list[float] | None = None, **settings: Any) -> Server:
    url = asked if isinstance(asked, str) else asked.url
    waited = [] if waits is None else waits
    return Server(ServerReward(kind="http", url=url, **settings), FIELD, waited.append)


def fault(asked: Asked | str, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        source(asked, **settings).rewards(ASKED, SAID)
    assert "\n" not in str(caught.value)
    assert FIELD in str(caught.value)
    return str(caught.value)


def test_batches_side_by_side_come_back_in_their_order() -> None:
    with serving(lengths, seconds=0.05) as asked:
        found = source(asked, batch=2, concurrency=3).rewards(ASKED, SAID)
    assert found.tolist() == list(range(10))
    assert found.dtype == np.float64
    assert 1 < asked.most <= 3
    assert sorted(len(body["responses"]) for body in asked.bodies) == [2] * 5
    assert asked.bodies[0]["dialogues"][0] == ASKED[0].messages
    assert "model" not in asked.bodies[0]


def test_vllm_classify() -> None:
    def answer(body: dict[str, Any], _: int) -> tuple[int, bytes]:
        said = len(body["messages"][-1]["content"]) - 0.5
        row = {"index": 0, "label": "LABEL_0", "probs": [said], "num_classes": 1}
        return 200, json.dumps({"object": "list", "data": [row]}).encode()

    with serving(answer) as asked:
        found = source(asked, form="classify", model="judge").rewards(ASKED, SAID)
    assert found.tolist() == [number - 0.5 for number in range(10)]
    assert {body["model"] for body in asked.bodies} == {"judge"}
    for body in asked.bodies:
        assert body["messages"][:-1] == ASKED[0].messages
        assert body["messages"][-1]["role"] == "assistant"
        assert body["use_activation"] is body["add_generation_prompt"] is False


@pytest.mark.parametrize("outputs", [[2.5], [[9.0], [2.5]]])
def test_vllm_pooling_one_output_or_one_a_token(outputs: list[Any]) -> None:
    answer = json.dumps({"data": [{"index": 0, "object": "pooling", "data": outputs}]}).encode()
    with serving(lambda *_: (200, answer)) as asked:
        assert source(asked, form="pooling").rewards(ASKED[:2], SAID[:2]).tolist() == [2.5, 2.5]


def test_of_two_outputs_one_is_chosen() -> None:
    answer = json.dumps({"data": [{"probs": [0.25, 1.5]}]}).encode()
    with serving(lambda *_: (200, answer)) as asked:
        assert source(asked, form="classify", label=1).rewards(ASKED[:1], SAID[:1]) == [1.5]
        assert f"has 2 outputs: set {FIELD}.label" in fault(asked, form="classify")
        assert f"{FIELD}.label = 2" in fault(asked, form="classify", label=2)


def test_what_fails_for_a_while_is_asked_again_with_growing_waits() -> None:
    def answer(body: dict[str, Any], number: int) -> tuple[int, bytes]:
        return lengths(body, number) if number >= 3 else (503, b"busy")

    waits: list[float] = []
    with serving(answer) as asked:
        found = source(asked, waits, retries=3).rewards(ASKED, SAID)
    assert found.tolist() == list(range(10))
    assert waits == [0.5, 1.0, 2.0]


def test_what_will_not_get_better_is_not_asked_again() -> None:
    with serving(lambda *_: (404, b"no such page")) as asked:
        text = fault(asked, retries=5)
        assert "answered 404 Not Found and said 'no such page': correct the address" in text
        assert len(asked.bodies) == 1


def test_a_server_with_an_error_of_its_own() -> None:
    with serving(lambda *_: (500, b"out of\nmemory")) as asked:
        text = fault(asked, retries=1, concurrency=1)
        assert "answered 500 Internal Server Error and said 'out of memory': look at" in text
        assert "(2 times)" in text
        assert len(asked.bodies) == 2


def test_a_server_that_is_too_late() -> None:
    with serving(lengths, seconds=0.5) as asked:
        text = fault(asked, retries=1, timeout_seconds=0.05)
        assert "gave no answer within timeout_seconds = 0.05" in text


def test_a_server_that_is_down() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        text = fault(f"http://127.0.0.1:{held.getsockname()[1]}/", retries=0)
    assert "cannot be reached ([Errno 111] Connection refused): start it" in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"rewards": [1.0, 2.0]}', "gave 2 rewards for 10 responses"),
        (b'{"rewards": [1, 1, 1, NaN, 1, 1, 1, 1, 1, 1]}', "gave nan for response 3, 'xxx'"),
        (b'{"rewards": [1, 1, 1, 1, null, 1, 1, 1, 1, 1]}', "gave nan for response 4, 'xxxx'"),
        (b'{"rewards": [1, "good", 1, 1, 1, 1, 1, 1, 1, 1]}', "gave 'good' for response 1, 'x'"),
        (b'{"reward": [1.0]}', "answer is not {\"rewards\": […]}, but {'reward': [1.0]}"),
        (b"[1, 2]", "answer is not"),
        (b'{"rewards": 1}', "answer is not"),
        (b"<html>", "gave no JSON, but b'<html>'"),
    ],
)
def test_an_answer_that_is_no_rewards(body: bytes, words: str) -> None:
    with serving(lambda *_: (200, body)) as asked:
        assert words in fault(asked)


def test_an_answer_of_another_form() -> None:
    with serving(lengths) as asked:
        pass
    with serving(lambda *_: (200, b'{"data": []}')) as asked:
        assert "form = 'pooling'" in fault(asked, form="pooling")


def test_the_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_KEY", raising=False)
    with serving(lengths) as asked:
        assert "no such variable: set it" in fault(asked, api_key_variable="REWARD_KEY")
        assert not asked.bodies
        monkeypatch.setenv("REWARD_KEY", "very-secret")
        source(asked, api_key_variable="REWARD_KEY").rewards(ASKED, SAID)
        assert asked.headers[0]["Authorization"] == "Bearer very-secret"
    with serving(lambda *_: (401, b"who are you?")) as asked:
        text = fault(asked, api_key_variable="REWARD_KEY")
        assert "very-secret" not in text
        assert "answered 401" in text


def test_no_responses_ask_nothing() -> None:
    assert source("http://127.0.0.1:9/").rewards([], []).shape == (0,)


def test_a_number_beyond_every_float_is_one_sentence() -> None:
    answer = json.dumps({"rewards": [1.0] * 9 + [10**400]}).encode()
    with serving(lambda *_: (200, answer)) as asked:
        assert "gave inf for response 9" in fault(asked)
