"""What is left of an item that was taken out of a list: it is in nobody's way, and cleared."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

from flows.project.dependencies import write_own
from flows.project.leftovers import clear, unmade
from flows.project.restoring import restore
from flows.project.versions import Plan, lock_entries, read_plan
from infalign.settings.params import load_params
from tests.flows.conftest import TOY_DVC, Project
from tests.flows.project.test_restoring import committed, no_line
from tests.flows.runs.test_pipeline import files

EVALUATE = """\
  evaluate:
    matrix:
      objective: ${run.objectives}
    cmd: python toy_stage.py evaluate ${item.objective}
    deps:
      - toy_stage.py
    params: [run.variants]
    outs: ["results/evaluate/${item.objective}"]
  report:
"""


def test_a_commit_after_a_variant_was_taken_out_is_restored(
    project: Callable[[], Project], tmp_path: Path
) -> None:
    copy = project()
    root = copy.root
    text = TOY_DVC.replace("  report:\n", EVALUATE).replace("[results/align]", "[results/evaluate]")
    (root / "dvc.yaml").write_text(text)

    def remade(variants: str) -> list[str]:
        params = (root / "params.yaml").read_text()
        before = next(line for line in params.splitlines() if line.startswith("  variants: ["))
        (root / "params.yaml").write_text(params.replace(before, f"  variants: {variants}"))
        write_own(root, load_params(root / "params.yaml"))
        cleared = asyncio.run(clear(root, asyncio.run(read_plan(root, no_line))))
        command = ["python", "-m", "dvc", "repro", "--quiet"]
        subprocess.run(command, cwd=root, env=copy.environment, check=True)
        return cleared

    assert remade("[ctrl, rlhf]") == []
    both = files(root)
    assert remade("[ctrl]") == ["results/align/harmless/rlhf", "results/align/helpful/rlhf"]
    one = files(root)
    assert one == {name: data for name, data in both.items() if "/rlhf/" not in name}
    deps = [dep["path"] for dep in lock_entries(root)["evaluate@helpful"]["deps"]]
    assert deps == ["results/align/helpful/ctrl", "toy_stage.py"]
    # Also where the folder is there all the same, as after `dvc repro` alone.
    (root / "results" / "align" / "helpful" / "rlhf").mkdir()
    commit = committed(copy)
    folder = asyncio.run(restore(root, commit, tmp_path / "there", no_line))
    assert files(folder) == one


def test_only_outputs_of_nobody_are_cleared() -> None:
    plan = Plan({"corpus": (), "align@helpful-ctrl": ()}, {})
    outs = {
        "corpus": ["results/corpus"],
        "align@helpful-ctrl": ["results/align/helpful/ctrl"],
        "align@helpful-old": ["results/align/helpful/old"],
        "align@helpful-in": ["results/corpus/in"],  # lies in what a living stage makes
        "align@helpful-out": ["data/raw", "results/../data"],
        "hack@helpful-ctrl-0.5-0": ["results/hack"],  # a stage that the plan knows nothing of
    }
    entries = {
        name: {"outs": [{"path": path, "md5": "0a.dir"} for path in paths]}
        for name, paths in outs.items()
    }
    assert unmade(entries, plan) == {"results/align/helpful/old": "0a.dir"}
    assert unmade({}, plan) == {}
