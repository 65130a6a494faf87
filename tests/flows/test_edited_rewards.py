"""Three objectives of one's own under DVC, Prefect and MLflow: run, edit, run, promote, ask."""

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
    parity = columns.get("parity", [0] * len(responses))
    return [float(len(text) % 2 == wanted) for text, wanted in zip(responses, parity)]
"""
LENGTH = "def score(dialogues, responses):\n    return [0.01 * len(text) for text in responses]\n"
VOWELS = "def score(d, responses):\n    return [sum(c in 'aeiou' for c in r) for r in responses]\n"


ASK = """
import json, sys
import mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
turns = [{"role": "user", "content": "What follows 1000?"}]
prompt = json.dumps(turns, separators=(",", ":"), sort_keys=True)
[answer] = mlflow.pyfunc.load_model(sys.argv[1]).predict([prompt])
print(json.dumps([answer["response"], answer["reward"]]))
"""


@pytest.fixture
def made(
    tmp_path: Path, smoke_tree: dict[str, Any], quiet: dict[str, str], prefect_api: str
) -> Iterator[Project]:
    """A project with a rule on prompts alone, a sum of two functions, and trained models."""
    length, vowels = (
        {"kind": "function", "path": f"rewards/{name}.py:score"} for name in ("length", "vowels")
    )
    parts = [part | {"standardise": True} for part in (length, vowels)]
    base = {"procedure": "best_of:2", "transform": "auto", "gold": None}
    tree = copy.deepcopy(smoke_tree)
    tree["objectives"] = {
        "even": base
        | {
            "data": "data/questions.jsonl",
            "reward": {"kind": "function", "path": "rewards/even.py:score"},
            "judge": None,
        },
        "both": base
        | {
            "subset": "harmless-base",
            "reward": {"kind": "sum", "parts": parts},
            "judge": vowels,
        },
        "trained": base | {"subset": "helpful-base"},
    }
    tree["run"] |= {"objectives": ["even", "both", "trained"], "variants": ["ctrl"]}
    project = Project(tmp_path / "project", quiet | {"PREFECT_API_URL": prefect_api})
    write_real(project.root, tree)
    rows = [{"prompt": f"What follows {n}?", "parity": n % 2} for n in range(120)]
    (project.root / "data").mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (project.root / "data" / "questions.jsonl").write_text(lines)
    (project.root / "rewards").mkdir()
    for name, text in (("even", EVEN), ("length", LENGTH), ("vowels", VOWELS)):
        (project.root / "rewards" / f"{name}.py").write_text(text)
    yield project
    project.end()


def test_rewards_of_ones_own_from_data_to_a_champion_and_an_edit(made: Project) -> None:
    status, output = made.run("run", timeout=500)
    assert status == 0, output
    listed = (made.root / "dvc.yaml").read_text()
    for name in ("even", "length", "vowels"):
        assert f'      - "rewards/{name}.py"  # by params.yaml\n' in listed
    assert '      - "data/questions.jsonl"  # by params.yaml\n' in listed
    trained = (made.root / "results" / "reward").rglob("*.safetensors")
    assert {path.parents[1].name for path in trained} == {"trained"}
    status, output = made.run("promote", "--objective", "even", "--force", "--reason", "a test")
    assert status == 0, output
    assert "not measured: the objective has no independent judge" in " ".join(output.split())
    asked = python(made, "-W", "ignore", "-c", ASK, "models:/infalign-even@champion")
    response, reward = json.loads(asked.splitlines()[-1])
    assert reward == float(len(response) % 2 == 0)  # of a new prompt, whose parity nobody knows
    (made.root / "rewards" / "even.py").write_text(EVEN.replace("wanted)", "1 - wanted)"))
    assert list(stale(made)) == ["sources"]
    python(made, "-m", "dvc", "repro", "--single-item", "sources")
    own = [name for name in stale(made) if name.split("@")[1].startswith("even")]
    assert own == list(stale(made))
    assert own[0] == "calibrate@even"
    before = contents(made.root)
    python(made, "-m", "dvc", "repro", "--single-item", "calibrate@even")
    after = contents(made.root)
    changed = {name for name in after if after[name] != before.get(name)}
    assert "calibrate/even/calibrated.parquet" in changed
    assert all(name.startswith("calibrate/even/") for name in changed)


def stale(made: Project) -> dict[str, Any]:
    """What DVC would make again."""
    found: dict[str, Any] = json.loads(python(made, "-m", "dvc", "status", "--json"))
    return found


def python(made: Project, *words: str) -> str:
    """What Python says when it runs these words in the project."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=made.root,
        env=made.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
