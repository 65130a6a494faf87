"""The gate of a night's data: what is refused trains nobody, and the verdict can be read."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from flows.project.intake import examine
from flows.runs.data_gate import BREACH, markdown, place
from infalign.settings.params import load_params
from tests.flows.conftest import Project, artifacts, git
from tests.flows.project.test_data_growth import rows

NIGHT = """
import asyncio, sys
from flows.services.prefect_server import prepare_environment
from pathlib import Path
prepare_environment(Path(sys.argv[1]))
from flows.runs.nightly import nightly
state = asyncio.run(nightly(root=sys.argv[1], promote=False, return_state=True))
print("STATE", state.name, state.message, flush=True)
"""


def night(project: Project) -> str:
    """A nightly run in a process of its own: the name of its state, and the message."""
    done = subprocess.run(
        [sys.executable, "-c", NIGHT, str(project.root)],
        cwd=project.root,
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "STATE " in done.stdout, done.stdout + done.stderr
    return done.stdout.split("STATE ")[1].strip()


def test_a_bad_night_trains_nobody_and_going_back_mends_it(fresh: Project) -> None:
    root = fresh.root
    source = rows(root.parent / "mine.jsonl", *(f"question {n}" for n in range(40)))
    assert fresh.inside("data", "add", str(source), "--name", "mine")[0] == 0
    params = (root / "params.yaml").read_text().replace("results/corpus  #", "data/raw/mine  #")
    for name in ("helpful-base", "harmless-base"):
        params = params.replace(f"subset: {name}", "subset: null")
    (root / "params.yaml").write_text(params)
    dvc = [sys.executable, "-m", "dvc", "repro", "--quiet", "prepare"]
    subprocess.run(dvc, cwd=root, env=fresh.environment, check=True)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "first")
    rows(root / "data" / "raw" / "mine" / "mine.jsonl", *(f"question {n}" for n in range(9)))
    said = night(fresh)
    assert said.startswith(f"{BREACH} The data of helpful is refused: size = 0.225, but 0.8 to 5")
    assert said.endswith("The champion stays.")
    assert "The data of harmless is refused" in said
    assert not (root / "results" / "align").exists()
    verdict = json.loads((place(root) / "helpful.json").read_text())
    assert not verdict["passed"]
    assert verdict["kept"] == {"before": 40, "now": 9}
    shown = asyncio.run(artifacts(fresh))["data-gate-helpful"]
    assert "| size | 0.225 |" in shown
    assert shown == markdown(verdict)
    pointer = Path("data", "raw", "mine.dvc")
    subprocess.run([*dvc[:3], "checkout", "--force", pointer], cwd=root, check=True)
    found = asyncio.run(examine(root, load_params(root / "params.yaml"), "helpful"))
    assert found["passed"]
    assert found["bounds"] == []  # it is what was trained on last
