"""Pinned prompts: read from any form, left out of training before and after a cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infalign.data.dialogue import Dialogue
from infalign.data.kept import Kept, separate, shortened
from infalign.data.pairs import Pair, Prompt, Subset
from infalign.data.suites import pinned, read_suite
from infalign.errors import InputError
from infalign.settings.params import Data


def ask(*turns: str) -> Dialogue:
    roles = ("user", "assistant")
    return Dialogue.of((roles[n % 2], text) for n, text in enumerate(turns))


def write_suite(root: Path, *prompts: str, name: str = "safety.jsonl") -> Data:
    lines = (json.dumps({"prompt": text}) for text in prompts)
    (root / name).write_text("\n".join(lines) + "\n")
    return Data(suites={"safety": name})


def test_a_suite_is_its_prompts_whatever_split_they_would_fall_into(tmp_path: Path) -> None:
    texts = [f"question {n}" for n in range(20)]
    data = write_suite(tmp_path, *texts)
    found = read_suite(tmp_path, data, "safety")
    assert set(found.values()) == {ask(text) for text in texts}
    assert list(found) == sorted(found)
    assert pinned(tmp_path, data) == set(found.values())
    assert pinned(tmp_path, Data()) == set()


def test_a_suite_that_is_missing_or_empty_is_one_sentence(tmp_path: Path) -> None:
    data = Data(suites={"safety": "nowhere.jsonl"})
    with pytest.raises(InputError, match=r"data\.suites\.safety = 'nowhere\.jsonl' does not exist"):
        read_suite(tmp_path, data, "safety")
    (tmp_path / "empty.jsonl").write_text('{"prompt": " "}\n')
    with pytest.raises(InputError, match=r"empty\.jsonl"):
        read_suite(tmp_path, Data(suites={"safety": "empty.jsonl"}), "safety")


def test_every_prompt_of_a_suite_counts(tmp_path: Path) -> None:
    data = write_suite(tmp_path, *[f"question {n}" for n in range(30)])
    few = data.model_copy(update={"most_pairs": 10, "kept_bytes": 1})
    assert len(read_suite(tmp_path, few, "safety")) == 30
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b" if n else "a"} for n in range(30)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"1 for identical_pair.*every prompt of a suite counts"):
        read_suite(tmp_path, Data(suites={"safety": "pairs.jsonl"}), "safety")


def kept(*prompts: Dialogue) -> Kept:
    pairs = [Pair(prompt, "yes", "no", "made") for prompt in prompts]
    alone = [Prompt(prompt, "made", "{}") for prompt in prompts]
    return Kept(Subset("made"), {"train": pairs, "test": []}, {"train": alone, "test": []})


def test_pinned_prompts_leave_training_and_are_counted() -> None:
    part = kept(ask("a"), ask("b"), ask("c"))
    separate({"helpful": part}, {ask("b")})
    assert {pair.prompt for pair in part.splits["train"]} == {ask("a"), ask("c")}
    assert part.dialogues("train") == {ask("a"), ask("c")}
    assert part.dropped["prompt_in_suite"] == 2  # a pair, and a prompt alone
    assert part.dropped["prompt_in_test"] == 0


def test_what_a_pinned_prompt_is_cut_to_trains_nobody_either() -> None:
    long = ask("first question", "an answer", "last")

    def words(prompts):  # type: ignore[no-untyped-def]
        return [[0] * sum(len(turn.content.split()) for turn in p.turns) for p in prompts]

    cut = shortened({long, ask("one"), ask("far too many words in one turn")}, words, 3)
    assert cut == {ask("last"), ask("one")}
