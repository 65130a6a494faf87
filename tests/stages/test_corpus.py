"""Stage corpus: the files, what corpus.json says of them, and the same bytes every time."""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from infalign.data.builtin import gold_utility
from infalign.errors import InputError
from infalign.files.workspace import Workspace
from infalign.settings.params import check_params
from infalign.stages import corpus

FILES = [
    "corpus.json",
    "harmless-base/test.jsonl.gz",
    "harmless-base/train.jsonl.gz",
    "helpful-base/test.jsonl.gz",
    "helpful-base/train.jsonl.gz",
]


def made(tree: dict[str, Any], root: Path, **changes: int) -> Path:
    tree = copy.deepcopy(tree)
    tree["corpus"].update(changes)
    workspace = Workspace(check_params(tree, "test"), root, "corpus")
    workspace.open_work("test")
    corpus.run(workspace)
    return workspace.out / "corpus"


def test_writes_hh_files_and_says_what_they_are(smoke_tree: dict[str, Any], tmp_path: Path) -> None:
    folder = made(smoke_tree, tmp_path, seed=7)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert names == FILES
    about = json.loads((folder / "corpus.json").read_text())
    assert about["seed"] == 7
    assert about["gold"] == "builtin"
    settings = smoke_tree["corpus"]
    for subset, splits in about["subsets"].items():
        for split, said in splits.items():
            lines = gzip.decompress((folder / subset / f"{split}.jsonl.gz").read_bytes())
            rows = [json.loads(line) for line in lines.decode().splitlines()]
            prompts = {row["chosen"].rpartition("\n\nAssistant:")[0] for row in rows}
            assert set(rows[0]) == {"chosen", "rejected"}
            assert said["pairs"] == len(rows) == len(prompts) * settings["pairs_per_prompt"]
            assert said["prompts"] == len(prompts) == settings[f"{split}_prompts"]
            objective = {"helpful-base": "helpfulness", "harmless-base": "harmlessness"}[subset]
            right = [agrees(objective, row) for row in rows]
            assert sum(right) / len(right) == pytest.approx(said["accuracy_ceiling"], abs=0.2)


def agrees(objective: str, row: dict[str, str]) -> bool:
    values = []
    for side in ("chosen", "rejected"):
        prompt, marker, response = row[side].rpartition("\n\nAssistant:")
        values.append(gold_utility(objective, prompt + marker, response.strip()))
    return values[0] > values[1]


def test_same_seed_same_bytes(smoke_tree: dict[str, Any], tmp_path: Path) -> None:
    first, again = (made(smoke_tree, tmp_path / name) for name in ("a", "b"))
    other = made(smoke_tree, tmp_path / "c", seed=9)
    for name in FILES:
        assert (first / name).read_bytes() == (again / name).read_bytes()
        assert (first / name).read_bytes() != (other / name).read_bytes()


def test_more_prompts_than_the_grammar_has(smoke_tree: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lower corpus\.train_prompts"):
        made(smoke_tree, tmp_path, train_prompts=50_000)


def test_stage_depends_on_nothing_but_its_params(smoke_tree: dict[str, Any]) -> None:
    stage = corpus.needs(check_params(smoke_tree, "test"))
    assert stage.inputs == ()
    assert stage.params == ("corpus",)
    assert stage.outputs == ("results/corpus",)
