"""Rewards by a function of one's own: what it is given, and every way in which it may fail."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.rewards.function import load_function

ASKED = [Dialogue.of([("system", "Be brief."), ("user", "Hi?")]), Dialogue.of([("user", "Ho?")])]
SAID = ["Hello there.", "Yes."]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def made(text: str) -> Path:
        path = tmp_path / "own.py"
        path.write_text(text)
        return path

    return made


def test_it_is_given_turns_and_responses(write: Callable[[str], Path]) -> None:
    path = write(
        "def score(dialogues, responses, **columns):\n"
        "    assert dialogues[0][0] == {'role': 'system', 'content': 'Be brief.'}\n"
        "    assert not columns\n"
        "    return [len(d) - len(r) for d, r in zip(dialogues, responses)]\n"
    )
    found = load_function(path, "score").rewards(ASKED, SAID)
    assert found.dtype == np.float64
    assert found.tolist() == [2 - 12, 1 - 4]


def test_many_responses_come_in_their_order(write: Callable[[str], Path]) -> None:
    path = write("def score(dialogues, responses):\n    return [float(r) for r in responses]\n")
    found = load_function(path, "score").rewards([ASKED[0]] * 3000, [str(i) for i in range(3000)])
    assert found.tolist() == list(range(3000))


@pytest.mark.parametrize(
    "gives", ["(1, 0.5)", "[True, 0]", "__import__('numpy').array([1.0, 2.0])"]
)
def test_any_list_of_numbers_will_do(write: Callable[[str], Path], gives: str) -> None:
    path = write(f"def score(dialogues, responses):\n    return {gives}\n")
    assert load_function(path, "score").rewards(ASKED, SAID).shape == (2,)


def test_an_edit_within_the_same_second_is_seen(write: Callable[[str], Path]) -> None:
    for value in "12":
        path = write(f"def score(dialogues, responses):\n    return [{value}] * len(responses)\n")
        assert load_function(path, "score").rewards(ASKED, SAID)[0] == float(value)


def test_another_file_than_the_one_looked_at_is_refused(write: Callable[[str], Path]) -> None:
    path = write("def score(dialogues, responses):\n    return [1.0] * len(responses)\n")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    load_function(path, "score", sha256)
    write("def score(dialogues, responses):\n    return [2.0] * len(responses)\n")
    with pytest.raises(InputError, match=r"own\.py is not the file that was described"):
        load_function(path, "score", sha256)


HEAD = "def score(dialogues, responses, **columns):\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def score(:\n", r"own\.py, line 1: invalid syntax"),
        ("x = 1\nimport nothing_of_this_name\n", r"own\.py, line 2: .*nothing_of_this_name"),
        ("raise SystemExit(3)\n", r"own\.py, line 1: .*SystemExit: 3"),
        ("def other(a, b):\n    return []\n", r"no function 'score': it has \['other'\]"),
        ("\ndef score(responses):\n    return []\n", r"own\.py, line 2: score\(responses\) cannot"),
        (
            "def score(a, b, *, c):\n    return []\n",
            r"line 1: score needs the column 'c', and the prompts have",
        ),
        ("async def score(a, b):\n    return []\n", r"score is async"),
        (f"{HEAD}\n    return 1 / 0\n", r"own\.py, line 3: score failed \(ZeroDivisionError"),
        (f"{HEAD}    return [1.0]\n", r"line 1: score gave 1 rewards for 2 responses"),
        (f"{HEAD}    return [1.0, 'x']\n", r"line 1: score gave 'x' for response 1, 'Yes\.'"),
        (f"{HEAD}    return [1.0, None]\n", r"gave None for response 1, 'Yes\.': a reward is a nu"),
        (
            f"{HEAD}    return [float('nan'), 1]\n",
            r"nan for response 0, 'Hello there\.'",
        ),
        (f"{HEAD}    return {{1: 2}}\n", r"score gave dict, and not a list"),
        (f"{HEAD}    pass\n", r"score gave NoneType, and not a list"),
    ],
)
def test_what_is_wrong_is_one_sentence(write: Callable[[str], Path], text: str, words: str) -> None:
    path = write(text)
    with pytest.raises(InputError, match=words) as caught:
        load_function(path, "score").rewards(ASKED, SAID)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"own\.py cannot be read \(No such file"):
        load_function(tmp_path / "own.py", "score")


def test_the_line_is_the_last_one_of_the_file_itself(write: Callable[[str], Path]) -> None:
    path = write(
        f"import json\ndef inner(text):\n    return json.loads(text)\n{HEAD}    inner('x')\n"
    )
    with pytest.raises(InputError, match=r"own\.py, line 3: score failed \(JSONDecodeError"):
        load_function(path, "score").rewards(ASKED, SAID)


def test_a_number_beyond_every_float_is_one_sentence(write: Callable[[str], Path]) -> None:
    path = write("def score(dialogues, responses):\n    return [1, -(10**400)]\n")
    with pytest.raises(InputError, match=r"gave -inf for response 1, 'Yes\.'"):
        load_function(path, "score").rewards(ASKED, SAID)
