"""`infalign data from-log`: opinions become pairs, with where they come from, and no others."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.serving.feedback import ASKED, PAIRS, harvest
from flows.serving.log import ANSWERS, FEEDBACK, SCHEMAS
from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from tests.flows.conftest import Project, write_toy

TEXTS = ["best", "kept", "worst", "kept"]


def dialogue(question: str) -> Dialogue:
    return Dialogue.of([("user", question)])


def answer(name: str, question: str, **more: Any) -> dict[str, Any]:
    asked = dialogue(question)
    row: dict[str, Any] = dict.fromkeys(SCHEMAS[ANSWERS].names)
    row |= {"id": name, "choice": 0, "version": "7", "time": 0, "kept": 1}
    row |= {"dialogue": asked.text, "prompt_id": asked.id}
    return row | {"responses": TEXTS, "rewards": [2.0, 1.0, -3.0, 1.0]} | more


def opinion(name: str, time: int = 1, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SCHEMAS[FEEDBACK].names)
    return row | {"id": name, "choice": 0, "time": time} | more


def write_log(folder: Path, answers: list[dict[str, Any]], said: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for kind, rows in ((ANSWERS, answers), (FEEDBACK, said)):
        table = pa.Table.from_pylist(rows, SCHEMAS[kind])
        pq.write_table(table, folder / f"{kind}-1-2.parquet")
    return folder


def pairs(folder: Path, reserved: frozenset[str] = frozenset()) -> list[tuple[str, str, str]]:
    return [
        (row["by"], row["chosen"][0]["content"], row["rejected"][0]["content"])
        for row in harvest(folder, reserved).pairs
    ]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"correction": "better"}, [("correction", "better", "kept")]),
        ({"preferred": 0}, [("preferred", "best", "kept")]),
        ({"rating": 1.0}, [("rating", "kept", "worst")]),
        ({"rating": -0.5}, [("rating", "best", "kept")]),
        ({"rating": 0.0}, []),
        ({"preferred": 1}, []),  # what was kept
        ({"preferred": 3}, []),  # the same text
        ({"preferred": 9}, []),  # no such draw
        ({"correction": " kept "}, []),
        (
            {"correction": "better", "rating": -1.0},
            [("correction", "better", "kept"), ("rating", "best", "kept")],
        ),
    ],
)
def test_an_opinion_is_a_pair(
    tmp_path: Path, said: dict[str, Any], expected: list[tuple[str, str, str]]
) -> None:
    folder = write_log(tmp_path / "log", [answer("x", "why?")], [opinion("x", **said)])
    assert pairs(folder) == expected


@pytest.mark.parametrize(
    ("rewards", "kept"), [([1.0, -4.0, 2.0, 3.0], 1), ([1.0, 1.0, 1.0, 1.0], 0)]
)
def test_a_good_answer_that_no_draw_is_below_makes_no_pair(
    tmp_path: Path, rewards: list[float], kept: int
) -> None:
    """As what Worst-of-N keeps, and where the reward cannot tell."""
    texts = ["a", "b", "c", "d"]
    answers = [answer("x", "why?", responses=texts, rewards=rewards, kept=kept)]
    folder = write_log(tmp_path / "log", answers, [opinion("x", rating=1.0)])
    assert pairs(folder) == []


def test_the_last_opinion_of_a_kind_counts(tmp_path: Path) -> None:
    said = [opinion("x", 5, rating=-1.0), opinion("x", 3, rating=1.0), opinion("x", 1, preferred=0)]
    folder = write_log(tmp_path / "log", [answer("x", "why?")], said)
    assert pairs(folder) == [("preferred", "best", "kept"), ("rating", "best", "kept")]


def test_evaluation_and_suite_prompts_are_left_out_redacted_or_not(tmp_path: Path) -> None:
    answers = [
        answer("a", "why?"),
        answer("b", "secret?", dialogue=dialogue("***?").text),
        answer("c", "how?"),
        answer("d", "how?"),
    ]
    said = [opinion(name, correction="better") for name in "abcde"]
    folder = write_log(tmp_path / "log", answers, said)
    reserved = frozenset({dialogue("why?").id, dialogue("secret?").id})
    found = harvest(folder, reserved)
    assert [row["answer"] for row in found.pairs] == ["c", "d"]
    assert [row["prompt"] for row in found.prompts] == [dialogue("how?").messages]
    assert found.counts["answers to evaluation or suite prompts, left out"] == 2
    assert found.counts["opinions about answers that are not in the log"] == 1
    assert found.pairs[0]["version"] == "7"


def test_a_log_without_answers_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no answers"):
        harvest(write_log(tmp_path / "log", [], []), frozenset())


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, quiet: dict[str, str]) -> Project:
    """A toy project; nothing is run in it."""
    root = tmp_path_factory.mktemp("feedback") / "project"
    write_toy(root)
    return Project(root, dict(quiet))


def test_a_log_grows_a_data_set(bare: Project, tmp_path: Path) -> None:
    answers = [answer(f"n{n}", f"question {n}?") for n in range(12)]
    said = [opinion(f"n{n}", correction=f"better {n}") for n in range(12)]
    folder = write_log(tmp_path / "log", answers[:6], said[:6])
    status, output = bare.inside("data", "from-log", str(folder), "--into", "users")
    assert status == 0, output
    assert "6 pairs corrected by a user" in output
    write_log(folder, answers, said)
    status, output = bare.inside("data", "from-log", str(folder), "--into", "users")
    assert status == 0, output
    assert "12 pairs corrected by a user" in output
    files = sorted((bare.root / "data/raw/users" / PAIRS).glob("*"))
    lines = list(itertools.chain.from_iterable(f.read_text().splitlines() for f in files))
    assert {json.loads(line)["answer"] for line in lines} == {f"n{n}" for n in range(12)}
    assert len(lines) == 12
    assert (bare.root / "data/raw/users" / ASKED).is_dir()
    status, output = bare.inside("data", "from-log", str(folder), "--into", "users")
    assert "Nothing is new" in output
    status, output = bare.inside("data", "from-log", str(tmp_path / "none"), "--into", "users")
    assert (status, "is not there" in output) == (2, True)
