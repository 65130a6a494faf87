"""Stage prepare on data of every form, and on data of each objective's own."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from flows.project.dependencies import rewritten, with_own
from infalign.data.dialogue import Dialogue
from infalign.data.pairs import Pair
from infalign.errors import InputError
from infalign.files.sources import check_listed, data_paths
from infalign.files.tables import PREFERENCES, PROMPTS, read_table
from infalign.files.workspace import Workspace
from infalign.settings.params import Params, check_params
from infalign.stages import prepare
from tests.data.thirty import FORMS, KINDS, OF_ONE_TURN, PACKINGS, Row, thirty, write_rows
from tests.smoke import ROOT

FILES = [f"{kind}{packing}" for kind in KINDS for packing in PACKINGS]


def asked() -> list[Pair]:
    """The thirty pairs, each with the last question of its prompt."""
    return [pair._replace(prompt=Dialogue(pair.prompt.turns[-1:])) for pair in thirty()]


def prepared(tree: dict[str, Any], root: Path) -> Path:
    root.mkdir(exist_ok=True)
    workspace = Workspace(check_params(tree, "test"), root, "prepare")
    workspace.open_work("test")
    prepare.run(workspace)
    return workspace.out / "prepare"


def with_data(tree: dict[str, Any], **paths: Path) -> dict[str, Any]:
    """Params whose objectives are these, each with its own data."""
    tree = copy.deepcopy(tree)
    one = tree["objectives"]["helpful"]
    tree["objectives"] = {
        name: one | {"data": str(path), "subset": None, "gold": None}
        for name, path in paths.items()
    }
    tree["run"]["objectives"] = list(paths)
    tree["model"].update(prompt_tokens=200, response_tokens=60)
    return tree


def test_every_form_gives_the_same_preferences(smoke_tree: dict[str, Any], tmp_path: Path) -> None:
    """From the same thirty pairs, each form in another kind of file; only `source` differs."""
    tables = {}
    forms = {**FORMS, **OF_ONE_TURN}
    for number, (name, form) in enumerate(forms.items()):
        place = tmp_path / name
        rows: list[Row] = [form(pair) for pair in asked()]
        write_rows(place / f"rows{FILES[number % len(FILES)]}", rows)
        out = prepared(with_data(smoke_tree, mine=place), tmp_path / f"{name}.out")
        prompts = read_table(out / "prompts.parquet", PROMPTS).drop_columns("source")
        assert read_table(out / "preferences.parquet", PREFERENCES).num_rows == 30
        tables[name] = ((out / "preferences.parquet").read_bytes(), prompts.to_pylist())
    assert all(table == tables["hh"] for table in tables.values())


def test_objectives_with_data_of_their_own(smoke_tree: dict[str, Any], tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one" / "train.json.gz", [FORMS["scores"](p) for p in asked()])
    two = write_rows(tmp_path / "two.parquet", [FORMS["hh"](p) for p in thirty()])
    out = prepared(with_data(smoke_tree, short=one.parent, long=two), tmp_path / "root")
    rows = read_table(out / "prompts.parquet", PROMPTS).to_pylist()
    assert {(row["objective"], row["source"]) for row in rows} == {
        ("short", "one/train.json.gz"),
        ("long", f"{tmp_path.name}/two.parquet"),
    }


def own(params: Params, **paths: str | None) -> Params:
    """The params with data of their own for some objectives."""
    objectives = {
        name: about.model_copy(update={"data": paths.get(name)})
        for name, about in params.objectives.items()
    }
    return params.model_copy(update={"objectives": objectives})


def test_dvc_yaml_lists_the_data_of_objectives(smoke_tree: dict[str, Any], tmp_path: Path) -> None:
    text = (ROOT / "dvc.yaml").read_text()
    params = check_params(smoke_tree, "test")
    for paths, lines in (
        ({}, ["${data.path}"]),
        ({"helpful": "data/raw/mine"}, ["${data.path}", '"data/raw/mine"  # by params.yaml']),
        (
            {"helpful": "../a b", "harmless": "x/1${y}.jsonl"},
            ['"../a b"  # by params.yaml', '"x/1\\\\${y}.jsonl"  # by params.yaml'],
        ),
    ):
        mine = own(params, **paths)
        assert set(prepare.needs(mine).inputs) == set(data_paths(mine))
        changed = with_own(text, mine)
        section = changed.partition("\n  prepare:")[2].partition("infalign/__main__.py")[0]
        listed = re.findall(r"      - (.*)", section)
        assert [line for line in listed if line != "${model.folder}"][:-1] == lines
        assert with_own(changed, mine) == rewritten(changed, mine) == changed
        assert with_own(changed, own(params)) == text
        (tmp_path / "dvc.yaml").write_text(changed)
        check_listed("prepare", mine, tmp_path)
        other = own(params, helpful="elsewhere")
        with pytest.raises(InputError, match=r"what (data\.path|objectives\.helpful\.data) names"):
            check_listed("prepare", other, tmp_path)
    with pytest.raises(InputError, match=r"not depend on what data\.path names"):
        check_listed("prepare", own(params), tmp_path)
