"""`infalign compare`: what it asks for, what it tells MLflow, and that a run does not notice it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.commands.compare import compare_methods, with_objectives
from flows.commands.tables import gain_table
from flows.tracking.naming import names_of
from flows.tracking.results import gains
from infalign.errors import InputError
from infalign.settings.params import load_params
from tests.flows.conftest import ROOT, Project, contents

TOY_COMPARISON = """\
  contend:
    matrix:
      objective: ${compare.objectives}
      variant: ${compare.variants}
      kl_nats: ${compare.kl_nats}
      seed: ${compare.seeds}
    cmd: >-
      python toy_stage.py contend ${item.objective} ${item.variant} ${item.kl_nats} ${item.seed}
    deps: [results/prepare]
    outs: ["results/contend/${item.objective}/${item.variant}/${item.kl_nats}/${item.seed}"]
  compare:
    matrix:
      objective: ${compare.objectives}
    cmd: python toy_stage.py compare ${item.objective}
    deps: ["results/contend/${item.objective}"]
    outs: ["results/compare/${item.objective}"]
"""
SMALL = (
    "compare.objectives=[helpful]",
    "compare.variants=[ctrl,ipo]",
    "compare.kl_nats=[0.2]",
    "compare.poison.variants=[rlhf]",
    "compare.poison.kl_nats=[0.2]",
)


def assigned(*assignments: str) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def test_the_first_comparison_names_the_objectives(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    poisoned = "compare.poison.objectives"
    both = [(name, ["helpful", "harmless"]) for name in ("compare.objectives", poisoned)]
    assert with_objectives(tmp_path, []) == both
    assert with_objectives(tmp_path, ["align.steps=5"]) == both
    assert with_objectives(tmp_path, [f"{poisoned}=[helpful]"]) == both[:1]
    one = (poisoned, ["helpful"])
    assert with_objectives(tmp_path, ["compare.objectives=[helpful]"]) == [one]
    own = ("compare.objectives", ["helpful"])
    assert with_objectives(tmp_path, [], [own]) == [own, one]
    # Only a reward that is trained here can be poisoned.
    rule = {"kind": "function", "path": "rules.py:score"}
    ruled = [("objectives.harmless.reward", rule), ("objectives.harmless.judge", None)]
    assert with_objectives(tmp_path, [], ruled) == [*ruled, both[0], one]
    with pytest.raises(InputError, match=r"compare\.objectives is empty"):
        compare_methods(tmp_path, "compare", [], dry_run=True)
    # What the file names stays.
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(
        text.replace("  objectives: []  # empty: nothing is", "  objectives: [helpful]  # is")
    )
    assert with_objectives(tmp_path, []) == []
    # Which the file poisons stays; one that says nothing of it poisons what is trained.
    alone = ["compare.objectives=[helpful]"]
    assert with_objectives(tmp_path, alone) == [(poisoned, [])]
    assert with_objectives(tmp_path, ["compare.objectives=[]"]) == [(poisoned, [])]
    text = (tmp_path / "params.yaml").read_text()
    silent = [line for line in text.splitlines() if "those of compare.objectives" not in line]
    (tmp_path / "params.yaml").write_text("\n".join(silent) + "\n")
    assert load_params(tmp_path / "params.yaml").compare.poison.objectives == ["helpful"]
    assert with_objectives(tmp_path, alone) == [one]


def test_an_instance_s_name_says_what_it_is() -> None:
    expected = {"objective": "helpful", "variant": "ctrl", "kl_nats": "0.5", "seed": "1"}
    assert names_of("contend@helpful-ctrl-0.5-1") == expected
    assert names_of("align@helpful-ctrl") == {"objective": "helpful", "variant": "ctrl"}
    assert names_of("corpus") == {}


def test_the_table_has_a_row_a_budget_and_judge(tmp_path: Path) -> None:
    row = {"variant": "ctrl", "rival": "ipo", "kl_nats": 0.5, "judge": "selecting"}
    row |= {"difference": 0.031, "low": 0.01, "high": 0.05, "allowed": None}
    folder = tmp_path / "results" / "compare" / "helpful"
    folder.mkdir(parents=True)
    (folder / "comparison.json").write_text(json.dumps({"gains": [row]}))
    tree = load_params(ROOT / "params.yaml")
    compare = tree.compare.model_copy(update={"objectives": ["helpful", "harmless"]})
    found = gains(tmp_path, tree.model_copy(update={"compare": compare}))
    assert found == [{"objective": "helpful", **row}]
    table = gain_table(found)
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["helpful", "ctrl", "ipo", "0.5", "selecting", "+3.1", "+1.0 to +5.0", "–"]


@pytest.mark.soak
def test_a_run_does_not_notice_a_comparison(project: Callable[[], Project]) -> None:
    mine = project()
    with open(mine.root / "dvc.yaml", "a") as stream:
        stream.write(TOY_COMPARISON)
    status, output = mine.run("run")
    assert status == 0, output
    assert "0 made, 0 restored from cache, 5 unchanged" in output
    before = contents(mine.root)
    small = ["compare.variants=[ctrl,ipo]", "compare.kl_nats=[0.25, 1.0]"]
    status, output = mine.run("compare", *assigned(*small))
    assert status == 0, output
    # Both objectives of the run: corpus and prepare, eight contenders, two comparisons.
    assert "10 made, 0 restored from cache, 2 unchanged" in output
    assert "results/report" not in output
    written = yaml.safe_load((mine.root / "params.yaml").read_text())
    assert written["compare"]["objectives"] == written["run"]["objectives"]
    assert written["compare"]["poison"]["objectives"] == written["run"]["objectives"]
    runs = mine.runs()
    run = runs["contend@harmless-ipo-0.25-0"][0]
    want = {"objective": "harmless", "variant": "ipo", "kl_nats": "0.25", "seed": "0"}
    assert want.items() <= run.data.params.items()
    assert run.info.run_name == "contend harmless-ipo kl 0.25 seed 0"
    shutil.rmtree(mine.root / "results" / "contend" / "helpful")
    status, output = mine.run("run")
    assert status == 0, output
    assert "0 made, 0 restored from cache, 5 unchanged" in output
    after = contents(mine.root)
    assert {name: after[name] for name in before} == before
    status, output = mine.run("compare", "--dry-run")
    assert status == 0, output
    assert "compare@harmless: up to date" in output
    assert "contend@helpful-ctrl-1.0-0: results/contend/helpful/ctrl/1.0/0 deleted" in output
    assert "report" not in output
    status, output = mine.run("compare")
    assert status == 0, output
    assert "0 made, 4 restored from cache, 8 unchanged" in output


@pytest.mark.soak
def test_a_comparison_of_the_real_stages(
    real: tuple[Project, str, dict[str, bytes]], own: Project
) -> None:
    root = own.root
    status, output = own.run("compare", *assigned(*SMALL), timeout=500)
    assert status == 0, output
    assert "results/compare/helpful/index.html" in output
    assert "helpful" in output.split("Gain in win rate")[1]
    rows: dict[str, Any] = json.loads(
        (root / "results/compare/helpful/comparison.json").read_text()
    )
    assert {row["variant"] for row in rows["curves"]} == {"ctrl", "ipo"}
    run = own.runs()["contend@helpful-ipo-0.2-0"][0]
    assert {"win_rate", "kl", "win_rate_independent"} <= set(run.data.metrics)
    after = contents(root)
    assert {name: after[name] for name in real[2]} == real[2]
    status, output = own.run("compare")
    assert status == 0, output
    assert "0 made, 0 restored from cache" in output
    status, output = own.run("run")
    assert status == 0, output
    assert "0 made, 0 restored from cache" in output
    assert contents(root) == after
