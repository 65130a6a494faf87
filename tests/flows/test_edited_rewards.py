"""Objectives with rewards of one's own under DVC, Prefect and MLflow: run, edit, run, promote."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import Project, contents, write_real

EVEN = """
def score(dialogues, responses, **columns):
    return [float(len(response) % 2 == 0) for response in responses]
"""
LENGTH = "def score(dialogues, responses):\n    return [0.01 * len(text) for text in responses]\n"
VOWELS = "def score(d, responses):\n    return [sum(c in 'aeiou' for c in r) for r in responses]\n"


@pytest.fixture
def made(
    tmp_path: Path, smoke_tree: dict[str, Any], quiet: dict[str, str], prefect_api: str
) -> Iterator[Project]:
    """A project with a rule that no judge compares, and a sum of two functions."""
    length, vowels = (
        {"kind": "function", "path": f"rewards/{name}.py:score"} for name in ("length", "vowels")
    )
    parts = [part | {"standardise": True} for part in (length, vowels)]
    base = {"procedure": "best_of:2", "transform": "auto", "gold": None}
    tree = copy.deepcopy(smoke_tree)
    tree["objectives"] = {
        "even": base
        | {
            "subset": "helpful-base",
            "reward": {"kind": "function", "path": "rewards/even.py:score"},
            "judge": None,
        },
        "both": base
        | {
            "subset": "harmless-base",
            "reward": {"kind": "sum", "parts": parts},
            "judge": vowels,
        },
    }
    tree["run"]["objectives"] = ["even", "both"]
    project = Project(tmp_path / "project", quiet | {"PREFECT_API_URL": prefect_api})
    write_real(project.root, tree)
    (project.root / "rewards").mkdir()
    for name, text in (("even", EVEN), ("length", LENGTH), ("vowels", VOWELS)):
        (project.root / "rewards" / f"{name}.py").write_text(text)
    yield project
    project.end()


def test_an_edited_function_makes_its_objective_again_and_no_other(made: Project) -> None:
    status, output = made.run("run", timeout=500)
    assert status == 0, output
    listed = (made.root / "dvc.yaml").read_text()
    for name in ("even", "length", "vowels"):
        assert f"      - rewards/{name}.py  # by params.yaml\n" in listed
    assert not list((made.root / "results" / "reward").rglob("*.safetensors"))
    before = contents(made.root)
    (made.root / "rewards" / "even.py").write_text(EVEN.replace("== 0", "== 1"))
    asked = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(asked, cwd=made.root, env=made.environment, capture_output=True)
    assert list(json.loads(done.stdout)) == ["sources"]
    status, output = made.run("run", timeout=500)
    assert status == 0, output
    after = contents(made.root)
    changed = {name for name in after if after[name] != before.get(name)}
    assert not [name for name in changed if "both" in name]
    assert {"sources/even.json", "calibrate/even/calibrated.parquet"} <= changed
    assert not [name for name in changed if name.startswith(("prepare/", "sft/", "sample/"))]
    status, output = made.run("promote", "--objective", "even", "--force", "--reason", "a test")
    assert status == 0, output
    assert "not measured: the objective has no independent judge" in " ".join(output.split())
