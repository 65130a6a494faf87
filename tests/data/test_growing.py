"""Data that grows: what is added, and that no prompt ever changes sides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infalign.data.dialogue import Dialogue
from infalign.data.growing import Growth, grow
from infalign.data.kept import Kept, cut, divide, separate
from infalign.data.pairs import SPLITS, Limits, Options, Pair, Subset, Unsuitable, side_of
from infalign.data.reading import survey
from infalign.errors import InputError

OPTIONS = Options(Limits(10**6, 10**5), test_share=0.3)
Row = dict[str, Any]


def row(prompt: str, chosen: str = "yes", rejected: str = "no") -> Row:
    """A pair as a row."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def write(path: Path, rows: Sequence[Any]) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    return path


def sides(read: Subset) -> dict[Dialogue, str]:
    """The split of every prompt."""
    return {pair.prompt: split for split in SPLITS for pair in read.pairs(split)}


def test_what_is_new_is_added_once_and_the_rest_is_counted(tmp_path: Path) -> None:
    base = tmp_path / "base"
    write(base / "pairs.jsonl", [row("a"), row("b"), row("c")])
    source = [row("a"), row("b", "no", "yes"), row("d"), row("d"), row("e", "same", "same")]
    new = write(tmp_path / "new.jsonl", [*source, row("f", "x", "")])
    growth = grow(base, new, OPTIONS, contrary=False)
    assert growth == Growth(
        rows=6,
        added=1,
        repeated=2,
        contrary=1,
        dropped=growth.dropped,
        files=["pairs_0002.jsonl"],
    )
    assert growth.dropped == {"identical_pair": 1, "empty_response": 1}
    assert [json.loads(x) for x in (base / "pairs_0002.jsonl").read_text().splitlines()] == [
        row("d")
    ]
    again = grow(base, new, OPTIONS, contrary=False)
    assert (again.added, again.files) == (0, [])
    kept = grow(base, new, OPTIONS, contrary=True)
    assert (kept.added, kept.contrary, kept.files) == (1, 1, ["pairs_0003.jsonl"])
    assert grow(base, new, OPTIONS, contrary=True).added == 0


def test_every_kind_of_file_and_layout_takes_more(tmp_path: Path) -> None:
    base = tmp_path / "base"
    for split in ("train", "test"):
        folder = base / "one" / "data" / split
        folder.mkdir(parents=True)
        table = pa.Table.from_pylist([row(f"{split} {n}") for n in range(5)])
        pq.write_table(table, folder / "0000.parquet")
    source = tmp_path / "source" / "one"
    source.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row("train 0"), row("new")]), source / "train.parquet")
    write(source / "test.jsonl", [row("train 1", "other"), row("newer")])
    growth = grow(base, source.parent, OPTIONS, contrary=True)
    assert growth.files == ["one/data/train/0002.jsonl", "one/data/test/0002.jsonl"]
    assert (growth.added, growth.repeated, growth.other_side) == (2, 1, 1)
    read = survey(base, "one", OPTIONS)
    assert (len(read.train), len(read.test), read.dropped.total()) == (6, 6, 0)


@pytest.mark.parametrize(
    ("there", "new", "words"),
    [
        (["train.jsonl"], "test.jsonl", "prompts would change sides"),
        (["train.jsonl", "test.jsonl"], "pairs.jsonl", "is of the split none"),
        (["a/train.jsonl", "b/train.jsonl"], "train.jsonl", "which it goes into with --subset"),
        (["a/train.jsonl"], "c/train.jsonl", "has the subset 'c'|has no subset"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, there: list[str], new: str, words: str
) -> None:
    for name in there:
        write(tmp_path / "base" / name, [row(name)])
    write(tmp_path / "source" / new, [row("new")])
    with pytest.raises(Unsuitable, match=words):
        grow(tmp_path / "base", tmp_path / "source", OPTIONS, contrary=True)


def test_a_subset_can_be_named_and_dates_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "base" / name / "train.jsonl", [row("old")])
    new = write(tmp_path / "new.jsonl", [row("new")])
    growth = grow(tmp_path / "base", new, OPTIONS, contrary=True, subset="b")
    assert growth.files == ["b/train_0002.jsonl"]
    table = pa.table({"prompt": ["x"], "chosen": ["y"], "rejected": ["z"], "when": [b"\xff"]})
    pq.write_table(table, tmp_path / "dated.parquet")
    with pytest.raises(InputError, match="holds what JSON cannot"):
        grow(tmp_path / "base", tmp_path / "dated.parquet", OPTIONS, contrary=True, subset="a")
    assert [p.name for p in (tmp_path / "base" / "a").iterdir()] == ["train.jsonl"]


PROMPTS = st.lists(st.text("abcdef ", min_size=1, max_size=4).filter(str.strip), max_size=25)


@settings(max_examples=40, deadline=None)
@given(old=PROMPTS, new=PROMPTS, explicit=st.booleans(), most=st.none() | st.integers(1, 30))
def test_added_rows_move_no_prompt(
    tmp_path_factory: pytest.TempPathFactory,
    old: list[str],
    new: list[str],
    explicit: bool,
    most: int | None,
) -> None:
    """Whatever is added, a prompt that is kept stays on its side and in its half."""
    folder = tmp_path_factory.mktemp("data")
    base, source = folder / "base", folder / "source"
    names = ("train.jsonl", "test.jsonl") if explicit else ("pairs.jsonl",)
    for number, name in enumerate(names):
        write(base / name, [row(f"first {name}"), *map(row, old[number::2])])
        write(source / name, [row(f"more {name}"), *map(row, new[number::2])])
    options = OPTIONS._replace(limits=OPTIONS.limits._replace(most_pairs=most))
    before = survey(base, None, options)
    grow(base, source, options, contrary=True)
    after = survey(base, None, options)
    first, then = sides(before), sides(after)
    assert all(then[prompt] == first[prompt] for prompt in first.keys() & then.keys())
    if most is None:
        assert first.keys() <= then.keys()
        # As `sample` chooses: by ids. What was not chosen before is not chosen when there is more.
        for split in SPLITS:
            then_chosen = sorted(p.id for p in then if then[p] == split)[:3]
            first_chosen = sorted(p.id for p in first if first[p] == split)[:3]
            known = {p.id for p in first if first[p] == split}
            assert known & set(then_chosen) <= set(first_chosen)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d e", "f"]), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(old=st.lists(WORDS, min_size=1, max_size=12), new=st.lists(WORDS, max_size=12))
def test_what_is_cut_has_its_own_side(old: list[list[str]], new: list[list[str]]) -> None:
    """Also where the dialogues that it was cut from are on different sides."""

    def prepared(dialogues: list[list[str]]) -> dict[Dialogue, str]:
        read = Subset("x", test_share=0.4)
        for words in dialogues:
            turns = [("user", word) for word in words]
            pair = Pair(Dialogue.of(turns), "yes", "no", "x")
            read.pairs(side_of(pair.prompt, 0.4)).append(pair)
        part = Kept(
            read, {split: list(read.pairs(split)) for split in SPLITS}, {s: [] for s in SPLITS}
        )
        cut(part, lambda prompts: [[0] * len(p.turns) for p in prompts], 2)
        divide(part)
        separate({"x": part})
        assert part.dropped["prompt_in_test"] == 0
        return {pair.prompt: split for split in SPLITS for pair in part.splits[split]}

    first, then = prepared(old), prepared(old + new)
    assert first.items() <= then.items()
