"""Stage prepare: tables by hand, recounted by plain loops, on clean, dirty and real data."""

import copy
import gzip
import itertools
import json
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from infalign.data.builtin import make_corpus
from infalign.data.dialogue import Dialogue, Turn
from infalign.data.hh import write_pairs
from infalign.errors import InputError
from infalign.files.tables import PREFERENCES, PROMPTS, read_table
from infalign.files.workspace import Workspace
from infalign.lm.models import build_tiny, save_model
from infalign.settings.params import Tiny, check_params
from infalign.stages import prepare

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "hh-rlhf"
SUBSETS = {"helpful": "helpful-base", "harmless": "harmless-base"}


def prompt_of(*said: str) -> str:
    """Human and assistant in turn; the assistant is to answer."""
    marks = (HUMAN, ASSISTANT)
    return "".join(f"{marks[i % 2]} {text}" for i, text in enumerate(said)) + ASSISTANT


def put(folder: Path, subset: str, split: str, rows: list[tuple[str, str, str]]) -> None:
    lines = [json.dumps({"chosen": f"{p} {c}", "rejected": f"{p} {r}"}) for p, c, r in rows]
    path = folder / subset / f"{split}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


def many(word: str, n: int = 12) -> list[tuple[str, str, str]]:
    return [(prompt_of(f"{word} {i}?"), "Yes.", "No.") for i in range(n)]


def run(tree: dict[str, Any], data: Path, root: Path, **model: Any) -> Path:
    tree = copy.deepcopy(tree)
    tree["data"]["path"] = str(data)
    tree["model"].update(model)
    root.mkdir(exist_ok=True)
    workspace = Workspace(check_params(tree, "test"), root, "prepare")
    workspace.open_work("test")
    prepare.run(workspace)
    return workspace.out / "prepare"


def rows_of(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    tables = (("prompts.parquet", PROMPTS), ("preferences.parquet", PREFERENCES))
    prompts, pairs = (read_table(folder / name, kind).to_pylist() for name, kind in tables)
    return prompts, pairs


def objective_counts(folder: Path, objective: str) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    counts: dict[str, Any] = metrics["objectives"][objective]
    return counts


def filled(folder: Path) -> Path:
    """A small clean data folder with both subsets and both splits."""
    for objective, subset in SUBSETS.items():
        put(folder, subset, "train", many(f"{objective} how"))
        put(folder, subset, "test", many(f"{objective} why", 3))
    return folder


def check_invariants(folder: Path) -> None:
    """A prompt has one split and one half everywhere, and the id that its text gives."""
    prompts, pairs = rows_of(folder)
    splits: dict[str, set[str]] = {}
    for row in prompts:
        dialogue = Dialogue.parse(row["dialogue"])
        assert dialogue.text == row["dialogue"]
        assert row["prompt_id"] == dialogue.id
        assert [turn.role for turn in dialogue.turns[::2]] == ["user"] * len(dialogue.turns[::2])
        assert dialogue.turns[-1].role == "user"
        splits.setdefault(row["prompt_id"], set()).add(row["split"])
    halves: dict[str, set[str]] = {}
    for row in pairs:
        halves.setdefault(row["prompt_id"], set()).add(row["half"])
        assert splits[row["prompt_id"]] == {row["split"]}
        assert row["chosen"] != row["rejected"]
        assert row["chosen"].strip() == row["chosen"] != ""
    assert all(len(found) == 1 for found in [*splits.values(), *halves.values()])
    asked = {(row["objective"], row["prompt_id"]) for row in prompts}
    assert asked == {(row["objective"], row["prompt_id"]) for row in pairs}


def test_tables_by_hand(smoke_tree: dict[str, Any], tmp_path: Path) -> None:
    data = filled(tmp_path / "data")
    long = prompt_of("word " * 60, "Good.", "Why so?")
    put(data, "helpful-base", "train", [*many("how"), (long, "So.", "Hm."), (long, "So.", "Hm.")])
    folder = run(smoke_tree, data, tmp_path / "run")
    check_invariants(folder)
    prompts, pairs = rows_of(folder)
    [cut] = [row for row in prompts if "Why so" in row["dialogue"]]
    assert cut == {
        "prompt_id": sha256(f"{HUMAN} Why so?{ASSISTANT}".encode()).hexdigest()[:16],
        "objective": "helpful",
        "split": "train",
        "source": "helpful-base/train.jsonl.gz",
        "dialogue": '[{"content":"Why so?","role":"user"}]',
        "columns": "{}",
    }
    [pair] = [row for row in pairs if row["prompt_id"] == cut["prompt_id"]]
    assert (pair["chosen"], pair["rejected"]) == ("So.", "Hm.")
    counts = objective_counts(folder, "helpful")
    assert counts["dialogues_cut"] == 2
    assert counts["dropped"]["repeated_pair"] == 1
    assert counts["lines"] == 17
    assert counts["pairs"] == {"train": 13, "test": 3}
    assert counts["gold"] is None
    assert counts["accuracy_ceiling"] is None


def test_what_cutting_makes_equal_leaves_the_training_split(
    smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    data = filled(tmp_path / "data")
    long = prompt_of("word " * 60, "Good.", "helpful why 1?")  # cut: a test prompt
    endless = prompt_of("Hi", "Hello", "word " * 60)
    put(data, "helpful-base", "train", [*many("how"), (long, "a", "b"), (endless, "a", "b")])
    folder = run(smoke_tree, data, tmp_path / "run")
    check_invariants(folder)
    counts = objective_counts(folder, "helpful")
    assert counts["dropped"]["prompt_in_test"] == 1
    assert counts["dropped"]["prompt_too_long"] == 1
    assert counts["pairs"]["train"] == 12


def test_a_test_prompt_of_one_objective_trains_no_other(
    smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    data = filled(tmp_path / "data")
    put(data, "helpful-base", "train", [*many("how"), *many("harmless why", 3)])
    folder = run(smoke_tree, data, tmp_path / "run")
    check_invariants(folder)
    assert objective_counts(folder, "helpful")["dropped"]["prompt_in_test"] == 3
    assert objective_counts(folder, "harmless")["pairs"]["test"] == 3


def test_two_objectives_may_share_a_subset(smoke_tree: dict[str, Any], tmp_path: Path) -> None:
    tree = copy.deepcopy(smoke_tree)
    tree["objectives"]["harmless"]["subset"] = "helpful-base"
    folder = run(tree, filled(tmp_path / "data"), tmp_path / "run")
    check_invariants(folder)
    prompts, _ = rows_of(folder)
    ids = {
        name: [row["prompt_id"] for row in prompts if row["objective"] == name] for name in SUBSETS
    }
    assert ids["helpful"] == ids["harmless"]


def test_the_same_bytes_again_and_a_tokenizer_that_loads(
    smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for subset in SUBSETS.values():
        corpus = make_corpus(subset, 0, 40, 10, 2)
        write_pairs(data / subset / "train.jsonl.gz", corpus.train)
        write_pairs(data / subset / "test.jsonl.gz", corpus.test)
    about = {"gold": "builtin", "subsets": {"helpful-base": {"test": {"accuracy_ceiling": 0.8}}}}
    (data / "corpus.json").write_text(json.dumps(about))
    first, again = (run(smoke_tree, data, tmp_path / name) for name in ("a", "b"))
    files = sorted(str(p.relative_to(first)) for p in first.rglob("*") if p.is_file())
    assert files == [
        "lengths.json",
        "metrics.json",
        "preferences.parquet",
        "prompts.parquet",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ]
    for name in files:
        assert (first / name).read_bytes() == (again / name).read_bytes()
    check_invariants(first)
    recount(first, data)
    tokenizer = AutoTokenizer.from_pretrained(first / "tokenizer")
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    metrics = json.loads((first / "metrics.json").read_text())
    assert metrics["objectives"]["helpful"]["gold"] == "builtin"
    assert metrics["objectives"]["helpful"]["accuracy_ceiling"] == 0.8


def test_where_nothing_is_left_the_lengths_follow_nothing(
    smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for subset, split in itertools.product(SUBSETS.values(), ("train", "test")):
        put(data, subset, split, many("the same"))
    words = r"no usable pair for its train split \(24 rows read, dropped: \{'prompt_in_test': 12\}"
    with pytest.raises(InputError, match=words):
        run(smoke_tree, data, tmp_path / "run", prompt_tokens=None)


def test_an_objective_with_data_of_its_own_has_no_gold_beside_built_in_ones(
    smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    builtin, own = filled(tmp_path / "data"), filled(tmp_path / "own")
    (builtin / "corpus.json").write_text(json.dumps({"gold": "builtin", "subsets": {}}))
    tree = copy.deepcopy(smoke_tree)
    tree["objectives"]["harmless"]["data"] = str(own)
    folder = run(tree, builtin, tmp_path / "run")
    assert objective_counts(folder, "helpful")["gold"] == "builtin"
    assert objective_counts(folder, "harmless")["gold"] is None


def test_another_models_tokenizer(smoke_tree: dict[str, Any], tmp_path: Path) -> None:
    data = filled(tmp_path / "data")
    trained = run(smoke_tree, data, tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(trained / "tokenizer")
    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=1, heads=2)
    model = build_tiny(sizes, tokenizer, 64, torch.device("cpu"), seed=1)
    tokenizer.pad_token = None
    save_model(model, tokenizer, tmp_path / "model")
    name = str(tmp_path / "model")
    folder = run(smoke_tree, data, tmp_path / "named", name_or_path=name, folder=name, kind="base")
    copied = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert copied("Hello")["input_ids"] == tokenizer("Hello")["input_ids"]
    assert copied.pad_token_id is not None
    check_invariants(folder)


def test_odd_characters_come_through_as_they_are(
    smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    """NUL, a line separator, a carriage return, a BOM inside, an emoji, a lone accent."""
    odd = "a\0b \u2028 c\r\nd \ufeff \U0001f600 \u0301"
    data = filled(tmp_path / "data")
    put(data, "helpful-base", "train", [*many("how"), (prompt_of(odd), f"x{odd}x", "No.")])
    folder = run(smoke_tree, data, tmp_path / "run", prompt_tokens=200)
    check_invariants(folder)
    prompts, pairs = rows_of(folder)
    asked_odd = Dialogue((Turn("user", odd),))
    [found] = [row for row in prompts if row["dialogue"] == asked_odd.text]
    [pair] = [row for row in pairs if row["prompt_id"] == found["prompt_id"]]
    assert pair["chosen"] == f"x{odd}x"


def test_a_corpus_json_of_nonsense_is_nobodys_word(
    smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    data = filled(tmp_path / "data")
    for text in ("[" * 100_000, '{"gold": ' + "9" * 5000 + "}", "\0", "[1]"):
        (data / "corpus.json").write_text(text)
        folder = run(smoke_tree, data, tmp_path / "run")
        assert objective_counts(folder, "helpful")["gold"] is None


def test_pairs_lost_for_long_prompts_are_told_and_most_are_an_error(
    smoke_tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = filled(tmp_path / "data")
    run(smoke_tree, data, tmp_path / "short")
    assert "left out" not in capsys.readouterr().out
    for lost, pairs in ((4, 19), (16, 31)):
        endless = [(prompt_of(f"word {i} " * 40), "a", "b") for i in range(lost)]
        put(data, "helpful-base", "train", [*many("helpful how"), *endless])
        told = rf"'helpful': {lost} of {pairs} pairs are left out, .*: \d+ would keep 95 %"
        if lost < 10:
            folder = run(smoke_tree, data, tmp_path / "some")
            assert re.search(told, capsys.readouterr().out)
            assert objective_counts(folder, "helpful")["dropped"]["prompt_too_long"] == lost
            continue
        with pytest.raises(InputError, match=f"{told}.*more than half is too many"):
            run(smoke_tree, data, tmp_path / "most")
        assert not (tmp_path / "most" / "results").exists()


def test_bad_input_is_one_sentence(smoke_tree: dict[str, Any], tmp_path: Path) -> None:
    data = filled(tmp_path / "data")

    def fails(message: str, path: Path = data, **model: Any) -> None:
        with pytest.raises(InputError, match=message) as caught:
            run(smoke_tree, path, tmp_path / "run", **model)
        assert "\n\n" not in str(caught.value).replace("\\n", "")

    fails("is not a folder", tmp_path / "nowhere")
    fails("no subset folder 'helpful-base'", (tmp_path / "data" / "harmless-base"))
    fails("model 'nobody/no-such-model' cannot be loaded", name_or_path="nobody/no-such-model")
    fails("too few prompts .* raise model.prompt_tokens = 3", prompt_tokens=3)
    put(data, "harmless-base", "train", [])
    fails("train.jsonl.gz is empty")
    path = data / "helpful-base" / "train.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9])
    fails("truncated gzip")


def test_real_data_is_counted_right(smoke_tree: dict[str, Any], tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip(f"the real HH data is not at {REAL}")
    for subset in SUBSETS.values():
        lines = gzip.decompress((REAL / subset / "test.jsonl.gz").read_bytes()).splitlines(True)
        path = tmp_path / "data" / subset / "test.jsonl.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(b"".join(lines[:400])))
    tree = copy.deepcopy(smoke_tree)
    tree["model"]["tiny"]["vocab_size"] = 1000
    folder = run(tree, tmp_path / "data", tmp_path / "run", prompt_tokens=96, response_tokens=64)
    check_invariants(folder)
    recount(folder, tmp_path / "data")
    assert objective_counts(folder, "helpful")["dialogues_cut"] > 100


TURN = re.compile(r"\s*(\n\n(?:Human|Assistant):)\s*")  # what is around markers says nothing


def recount(folder: Path, data: Path) -> None:
    """Prompts, pairs and every reason once more, by plain loops over the files."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    prompts, pairs = rows_of(folder)
    marked = {row["prompt_id"]: Dialogue.parse(row["dialogue"]).marked for row in prompts}
    longest = max(len(tokenizer(text)["input_ids"]) for text in marked.values())
    held_out = {marked[row["prompt_id"]] for row in prompts if row["split"] == "test"}
    for objective, subset in SUBSETS.items():
        reasons: Counter[str] = Counter()
        expected: set[tuple[str, str, str]] = set()
        lines = 0
        for path in sorted((data / subset).glob("*.jsonl.gz")):
            for line in gzip.decompress(path.read_bytes()).splitlines():
                lines += 1
                row = json.loads(line)
                both = (f"\n\n{row[side].strip()}" for side in ("chosen", "rejected"))
                sides = [TURN.sub(r"\1 ", text).rsplit(ASSISTANT, 1) for text in both]
                answers = [side[1].strip() for side in sides]
                if sides[0][0] != sides[1][0]:
                    reasons["prompt_differs"] += 1
                elif answers[0] == answers[1]:
                    reasons["identical_pair"] += 1
                elif "" in answers:
                    reasons["empty_response"] += 1
                else:
                    prompt = sides[0][0] + ASSISTANT
                    while len(tokenizer(prompt)["input_ids"]) > longest and prompt:
                        start = prompt.find(HUMAN, 1)
                        prompt = prompt[start:] if start > 0 else ""
                    expected.add((prompt, *answers))
        found = {
            (marked[row["prompt_id"]], row["chosen"], row["rejected"])
            for row in pairs
            if row["objective"] == objective
        }
        assert found <= expected
        assert all(prompt == "" or prompt in held_out for prompt, *_ in expected - found)
        counts = objective_counts(folder, objective)
        assert counts["lines"] == lines
        assert sum(counts["pairs"].values()) == len(found)
        assert lines == len(found) + sum(counts["dropped"].values())
        for reason in ("prompt_differs", "identical_pair", "empty_response"):
            assert counts["dropped"][reason] == reasons[reason]


def test_what_a_suite_pins_trains_nobody_and_is_a_dependency(
    smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    data, root = tmp_path / "data", tmp_path / "project"
    rows = many("what is")
    for subset in SUBSETS.values():
        put(data, subset, "train", rows)
        put(data, subset, "test", many("other"))
    root.mkdir()
    asked = [f"what is {i}?" for i in (0, 3)]
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in asked)
    (root / "safety.jsonl").write_text(lines)
    tree = copy.deepcopy(smoke_tree)
    tree["data"]["suites"] = {"safety": "safety.jsonl"}
    assert "safety.jsonl" in prepare.needs(check_params(tree, "test")).inputs
    without = rows_of(run(smoke_tree, data, tmp_path / "without"))[0]
    folder = run(tree, data, root)
    prompts, pairs = rows_of(folder)
    pinned = {Dialogue.of([("user", text)]).text for text in asked}
    train = {row["dialogue"] for row in prompts if row["split"] == "train"}
    assert not pinned & train
    gone = {row["prompt_id"] for row in without} - {row["prompt_id"] for row in prompts}
    assert len(gone) == 2
    assert not gone & {pair["prompt_id"] for pair in pairs}
    for objective in SUBSETS:
        assert objective_counts(folder, objective)["dropped"]["prompt_in_suite"] == 2
