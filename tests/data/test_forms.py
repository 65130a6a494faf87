"""Every form of preference data: the same pairs from each, and what cannot be used, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infalign.data.dialogue import Dialogue
from infalign.data.forms import Drop, Parts, recognise
from infalign.data.pairs import Limits, Options, Pair
from infalign.data.reading import read_data
from infalign.errors import InputError
from tests.data.thirty import FORMS, KINDS, OF_ONE_TURN, PACKINGS, single, thirty, write_rows

LIMITS = Limits(10**9, 10**6)
PAIRS = thirty()
ALL = {**FORMS, **OF_ONE_TURN}
ULTRAFEEDBACK = Path(__file__).parents[2].parent / "shared" / "cases" / "data_ultrafeedback"


def bare(pairs: list[Pair]) -> list[tuple[Dialogue, str, str]]:
    """Pairs but for their source."""
    return [pair[:3] for pair in pairs]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_in_every_kind_of_file_gives_the_same_pairs(
    tmp_path: Path, name: str, kind: str, packing: str
) -> None:
    pairs = PAIRS if name in FORMS else single(PAIRS)
    write_rows(tmp_path / f"rows{kind}{packing}", [ALL[name](pair) for pair in pairs])
    read = read_data(tmp_path, None, Options(LIMITS, 0.3))
    expected = {
        split: [p for p in pairs if (p.prompt.share("test") < 0.3) == (split == "test")]
        for split in ("train", "test")
    }
    assert bare(read.train) == bare(expected["train"])
    assert bare(read.test) == bare(expected["test"])
    assert read.lines == len(pairs)
    assert not read.dropped.total()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@given(
    st.lists(st.tuples(TEXT, st.text(max_size=3), TEXT), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from(sorted(set(FORMS) - {"hh", "marked_prompt", "strength", "scores"})),
    st.sampled_from(sorted(KINDS)),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_contents_of_conversations_are_kept_exactly(
    tmp_path: Path, said: list[tuple[str, str, str]], system: bool, form: str, kind: str
) -> None:
    """System turns, tool turns, spaces and line ends around what is said."""
    turns = [("system", " be\n")] if system else []
    for user, tool, reply in said:
        turns += [("user", user), ("tool", tool), ("assistant", reply)]
    pairs = [
        Pair(Dialogue.of([*turns, ("user", f"{n} ?\n")]), "good", "bad", "x") for n in range(40)
    ]
    rows = [FORMS[form](pair) for pair in pairs]
    if form == "ultrafeedback":  # whose prompt is a turn of the user
        rows = [row | {"prompt": said[0][0]} for row in rows]
    path = write_rows(tmp_path / f"one{kind}", rows)
    read = read_data(path, None, Options(LIMITS, 0.5))
    assert sorted(bare(read.train + read.test)) == sorted(bare(pairs))


def message(role: str, content: Any, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


ASK, YES, NO = message("user", "Why?"), message("assistant", " yes "), message("assistant", "no")
CALL = message("assistant", None, tool_calls=[{"name": "f"}])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Why?", "chosen": "a", "rejected": " a\n"}, "identical_pair"),
        ({"prompt": "Why?", "chosen": "a", "rejected": " "}, "empty_response"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "empty_prompt"),
        ({"chosen": "yes", "rejected": "no"}, "prompt_differs"),
        ({"chosen": [ASK, YES], "rejected": [ASK, YES]}, "identical_pair"),
        ({"chosen": [ASK, YES], "rejected": [message("user", "How?"), NO]}, "prompt_differs"),
        ({"chosen": [ASK, YES, ASK, NO], "rejected": [ASK, NO]}, "response_not_one_turn"),
        ({"chosen": [ASK, YES], "rejected": [ASK]}, "response_not_one_turn"),
        ({"prompt": [ASK], "chosen": [YES, NO], "rejected": [NO]}, "response_not_one_turn"),
        ({"prompt": [ASK], "chosen": [YES], "rejected": [CALL]}, "tool_calls_only"),
        ({"prompt": "How?", "chosen": [ASK, YES], "rejected": [ASK, NO]}, "prompt_differs"),
        ({"prompt": [ASK, NO], "chosen": [YES], "rejected": [NO]}, "no_question"),
        ({"prompt": [ASK, message("system", "s"), ASK]}, "system_not_first"),
        ({"prompt": [message("robot", "x")], "chosen": "a", "rejected": "b"}, "unknown_role"),
        ({"prompt": [message("user", [{"type": "image"}])]}, "content_not_text"),
        ({"messages": [ASK, YES]}, "no_question"),
        ({"prompt": "Why?", "chosen": "a", "rejected": "b", "score_chosen": 2}
         | {"score_rejected": 2.0}, "tie"),
        ({"prompt": "Why?", "response_1": "a", "response_2": "b", "strength": 0}, "tie"),
        ({"prompt": "Why?", "response_1": "a", "response_2": "b", "score_1": 1, "score_2": 1},
         "tie"),
    ],
)  # fmt: skip
def test_what_is_dropped_and_why(row: dict[str, Any], reason: str) -> None:
    form = recognise(row, {})
    assert form is not None
    with pytest.raises(Drop, match=f"^{reason}$"):
        form.read(row)


def test_a_negative_strength_prefers_the_first_response() -> None:
    row = {"prompt": "Why?", "response_1": "one", "response_2": "two", "preference_strength": -2}
    for change, chosen in (({}, "one"), ({"preference_strength": 1}, "two")):
        form = recognise(row | change, {})
        assert form is not None
        assert form.read(row | change).chosen == chosen


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "first", "second"),
    [
        ("The sky is blue.", "The sky is black.", "The sky is", "blue.", "black."),
        ("Is it?\nYes", "Is it?\nNo", "Is it?", "Yes", "No"),
        ("Q: a\nA:yes", "Q: a\nA:no", "Q: a\nA:", "yes", "no"),
        ("It is fun", "It isn't", "It", "is fun", "isn't"),
        ("天空是什么颜色?蓝色", "天空是什么颜色?绿色", "天空是什么颜色?", "蓝色", "绿色"),
        ("何色?青い色", "何色?青の色", "何色?青", "い色", "の色"),
    ],
)
def test_where_texts_that_begin_alike_are_cut(
    chosen: str, rejected: str, prompt: str, first: str, second: str
) -> None:
    row = {"chosen": chosen, "rejected": rejected}
    form = recognise(row, {})
    assert form is not None
    assert form.name == "implicit"
    assert form.read(row) == Parts(Dialogue.of([("user", prompt)]), first, second)


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n}", "better": "a", "worse": "b", "n": n} for n in range(20)]
    path = write_rows(tmp_path / "mine.jsonl", rows)
    with pytest.raises(InputError, match="no preference pairs and no prompts") as caught:
        read_data(path, None, Options(LIMITS))
    for words in ("instruction (text)", "n (number)", "columns: {prompt: instruction"):
        assert words in str(caught.value)
    names = {"prompt": "instruction", "chosen": "better", "rejected": "worse"}
    read = read_data(path, None, Options(LIMITS, columns=names))
    assert len(read.train + read.test) == 20
    with pytest.raises(InputError, match="has no column 'best', which columns names for 'chosen'"):
        read_data(path, None, Options(LIMITS, columns=names | {"chosen": "best"}))


def test_prompts_alone_keep_their_other_columns(tmp_path: Path) -> None:
    asked = [{"prompt": f"{n} + 1?", "answer": n + 1, "b": None} for n in range(30)]
    talks = [{"messages": [ASK, YES, message("user", f"{n}?")], "answer": n} for n in range(30)]
    for name, rows in (("a", asked), ("b", talks)):
        for kind in KINDS:
            path = write_rows(tmp_path / name / f"rows{kind}", rows)
            read = read_data(path, None, Options(LIMITS, 0.3))
            found = read.prompts["train"] + read.prompts["test"]
            assert not read.train + read.test
            assert sorted(json.loads(p.columns)["answer"] for p in found) == sorted(
                row["answer"] for row in rows
            )
            assert {len(p.prompt.turns) for p in found} == {1 if name == "a" else 3}


def test_a_row_of_another_form_is_counted_as_broken(tmp_path: Path) -> None:
    rows = [FORMS["explicit_messages"](pair) for pair in PAIRS]
    broken = [{"prompt": "x", "chosen": 1, "rejected": "y"}, rows[0] | {"chosen": None}]
    broken.append(rows[1] | {"chosen": [message("assistant", "\ud800")]})
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + broken))
    read = read_data(path, None, Options(LIMITS, 0.3))
    assert read.dropped["broken_line"] == 3
    assert read.first_broken == (
        f"{path} line 31 has no 'chosen' messages, a list of {{'role', 'content'}}"
    )


@pytest.mark.skipif(not ULTRAFEEDBACK.is_dir(), reason=f"the case is not at {ULTRAFEEDBACK}")
def test_the_case_of_ultrafeedback() -> None:
    read = read_data(ULTRAFEEDBACK / "data", None, Options(LIMITS))
    assert read.lines == 40
    assert read.dropped["tie"] == 8
    assert len(read.train) + len(read.test) == 32
    assert read.files[0].form == "conversations"
