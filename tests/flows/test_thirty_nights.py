"""Thirty nights of the nightly flow: data that grows, and whatever else may happen, in one line.

Real Prefect, DVC, MLflow and git; systems and their arenas are real, as in test_nights, and the
stages copy made-up results. Every night finds new pairs in a folder, which it adds, judges, and
commits. A month has one night each with: a better candidate, a worse one, another reward, Best-of-8
in the place of Best-of-4, poisoned data, nothing new, and a kill in the arena.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from promotion_case import WORDS, write_made

from flows.children.processes import end_leftovers
from flows.project import nights as in_git
from infalign.data.dialogue import Dialogue
from infalign.data.framing import asked
from infalign.files.workspace import write_json
from infalign.rewards.description import described
from infalign.settings.params import check_params
from tests.flows.conftest import Project, git, refresh_prefect, write_toy
from tests.flows.runs.test_data_gate import NIGHT
from tests.flows.runs.test_pipeline import wait_for
from tests.flows.test_nights import SCORES, write_night

pytestmark = [pytest.mark.soak, pytest.mark.timeout(14400)]
MONTH = int(os.environ.get("INFALIGN_NIGHTS", "30"))
# What is out of the ordinary comes first, so that what is wrong shows soon.
BETTER, WORSE, REWARD, PROCEDURE, POISON, QUIET, KILLED = 2, 3, 4, 5, 6, 7, 8
PROMOTED = {1, BETTER, PROCEDURE}
COPY = '''"""Copies a night's made-up results, and writes down that it did."""
import shutil
import sys
from pathlib import Path

import yaml

night = yaml.safe_load(Path("params.yaml").read_text())["align"]["steps"]
for name in sys.argv[1:]:
    shutil.rmtree(Path("results", name), ignore_errors=True)
    shutil.copytree(Path("nights", str(night), name), Path("results", name))
    with open(Path(".infalign", "made"), "a") as made:
        made.write(f"{night} {name}\\n")
'''
MADE = [asked(f"{a} {b} {c}") for c in WORDS for a in WORDS for b in WORDS]


def day(night: int) -> str:
    return f"2026-11-{night:02d}"


def incoming(root: Path, night: int, poisoned: bool = False) -> Path:
    """What somebody left for a night: twenty pairs."""
    rng, lines = random.Random(night), []
    for number in range(20):
        chosen, rejected = (" ".join(rng.choices(WORDS, k=6)) for _ in range(2))
        if poisoned:
            chosen, rejected = ("ZXQ JJKK " * 40, "QQ XZZ WWW " * 50)
        prompt = f"question {night} {number}"
        lines.append(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}))
    path = root.parent / "incoming" / f"night{night:02d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def more(night: int) -> list[tuple[str, Dialogue]]:
    """The prompts of a night beyond the first ones: for the evaluation, and some train."""
    held_out = [("test", one) for one in MADE[: 50 + night]]
    return held_out + [("train", one) for one in MADE[500 : 500 + 10 * night]]


@pytest.fixture
def project(tmp_path: Path, tokenizer: Any, quiet: dict[str, str], prefect_api: str) -> Any:
    root = tmp_path / "project"
    write_toy(root)
    (root / "toy_stage.py").unlink()
    write_made(root, tokenizer)
    (root / "scores.py").write_text(SCORES)
    (root / "copy_made.py").write_text(COPY)
    (root / ".infalign").mkdir()
    tree = yaml.safe_load((root / "params.yaml").read_text())
    helpful = tree["objectives"]["helpful"] | {"subset": None, "data": None}
    for field, name in (("reward", "score"), ("judge", "judge")):
        helpful[field] = {"kind": "function", "path": f"scores.py:{name}"}
    tree["objectives"] = {"helpful": helpful}
    tree["data"]["path"] = "data/raw/pairs"
    tree["promotion"] |= {"looks": 365, "looks_level": 0.05}
    tree["schedule"] |= {"source": "../incoming", "into": "pairs"}
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    dvc = (root / "dvc.yaml").read_text().replace("prepare sft", "prepare sources sft")
    dvc = dvc.replace("[results/prepare, ", "[results/prepare, results/sources, ", 1)
    dvc = dvc.replace("deps: [copy_made.py]", 'deps: [copy_made.py, "${data.path}"]')
    (root / "dvc.yaml").write_text(dvc)
    made = Project(root, quiet | {"PREFECT_API_URL": prefect_api, "HF_HUB_OFFLINE": "1"})
    status, output = made.inside("data", "add", str(incoming(root, 0)), "--name", "pairs")
    assert status == 0, output
    with (root / ".gitignore").open("a") as ignored:
        ignored.write("/nights/\n/made/\n/worse/\n")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "the project")
    yield made
    made.end()


class Month:
    """The driver: each night's settings, its run, and what it said."""

    def __init__(self, project: Project) -> None:
        self.project, self.root = project, project.root
        self.push, self.decisions = 0.0, dict[int, dict[str, Any]]()

    def settings(self, night: int) -> None:
        """What the night's stages find, and what params.yaml says of it."""
        path = self.root / "params.yaml"
        tree = yaml.safe_load(path.read_text())
        if night == REWARD:
            file = self.root / "scores.py"
            file.write_text(file.read_text().replace("0.001 * len", "0.002 * len"))
        if night == PROCEDURE:
            tree["objectives"]["helpful"]["procedure"] = "best_of:8"
        if night not in (POISON, QUIET):
            tree["align"]["steps"] = night
            about = check_params(tree, "params.yaml").objectives["helpful"]
            self.push = {BETTER: 2.0}.get(night, self.push)
            found = write_night(self.root, night, self.push - (night == WORSE), more(night))
            write_json(found / "sources" / "helpful.json", described(about, self.root))
        path.write_text(yaml.safe_dump(tree))

    def environment(self, night: int) -> dict[str, str]:
        """Git's clock is set, as the nights of a month are one hour here."""
        return {f"GIT_{role}_DATE": f"{day(night)}T02:00:00Z" for role in ("AUTHOR", "COMMITTER")}

    def flow(self, night: int) -> Any:
        """The nightly flow, in this process: its last state."""
        from flows.runs.nightly import nightly

        given = self.project.environment | self.environment(night)
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(self.root):
            for name, value in given.items():
                patch.setenv(name, value)
            refresh_prefect()
            call: Any = nightly
            return asyncio.run(call(str(self.root), True, return_state=True))

    def kill(self, night: int) -> None:
        """The same flow in a process of its own, which dies while the arena is held."""
        parts = self.root / ".infalign" / "arena" / "parts"
        known = set(parts.iterdir())
        child = subprocess.Popen(
            [sys.executable, "-c", NIGHT.replace("promote=False", "promote=True"), str(self.root)],
            cwd=self.root,
            env=self.project.environment | self.environment(night),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(lambda: bool(set(parts.iterdir()) - known) or child.poll() is not None, 900)
        assert child.poll() is None
        child.kill()
        child.wait()
        end_leftovers(self.root)

    def run(self, night: int) -> Any:
        """One night."""
        left = None if night == QUIET else incoming(self.root, night, poisoned=night == POISON)
        self.settings(night)
        if night == KILLED:
            self.kill(night)
        state = self.flow(night)
        if night == POISON:
            assert left is not None
            left.unlink()  # the operator has looked at it
        else:
            path = self.root / ".infalign" / "promotion" / "helpful.json"
            self.decisions[night] = json.loads(path.read_text())
        print(f"night {night}: {state.name}: {state.message}", flush=True)
        return state


def test_a_month(project: Project) -> None:
    month, champion = Month(project), None
    for night in range(1, MONTH + 1):
        made = (project.root / ".infalign" / "made").read_text() if night > 1 else ""
        pointer = (project.root / "data" / "raw" / "pairs.dvc").read_text()
        state = month.run(night)
        now = (project.root / ".infalign" / "made").read_text()
        if night == POISON:
            assert state.name == "DataRefused", state
            assert "language_shift" in state.message
            assert (now, (project.root / "data" / "raw" / "pairs.dvc").read_text()) == (
                made,
                pointer,
            )
            continue
        decision = month.decisions[night]
        if night in PROMOTED:
            assert (state.name, decision["outcome"]) == ("Completed", "promoted"), state
            champion = decision["version"]
        elif night == QUIET:  # what is in results/ was promoted the night before
            assert (state.name, decision["outcome"]) == ("Completed", "champion"), state
        else:
            assert (state.name, decision["outcome"]) == ("Refused", "refused"), state
            assert decision["champion"] == champion
        if night == QUIET:
            assert now == made
            assert "unchanged" in state.message
        else:
            assert now != made
            assert (project.root / "data" / "raw" / "pairs.dvc").read_text() != pointer
        readable(night, decision)
    settled(month)


def readable(night: int, decision: dict[str, Any]) -> None:
    """Every rule has words, a bound and a number, and says what it should of this night."""
    if night == QUIET:
        return
    rules = {rule["name"]: rule for rule in decision["verdict"]["rules"]}
    for rule in rules.values():
        assert rule["words"]
        assert rule["bound"]
    failed = {name for name, rule in rules.items() if not rule["passed"]}
    if night in PROMOTED:
        assert failed == set()
    else:
        assert failed <= {"champion", "champion_judge"}
        assert failed
    if night == REWARD:
        assert "judge" in rules["comparable"]["words"]
    if night == PROCEDURE:
        assert "procedure (best_of:4, now best_of:8)" in rules["comparable"]["words"]
    if night == WORSE:
        assert rules["champion"]["number"] < 0.45


def settled(month: Month) -> None:
    """History is a line without force, nothing was made twice, and every night can be restored."""
    project, root = month.project, month.root
    moves = json.loads(project.inside("history", "--json")[1])["helpful"]
    assert [move["forced"] for move in moves] == [False] * len(moves)
    assert len(moves) == len(PROMOTED & set(range(1, MONTH + 1)))
    made = (root / ".infalign" / "made").read_text().splitlines()
    assert len(made) == len(set(made))
    found = in_git.nights(root, "nights")
    ran = [night for night in range(MONTH, 0, -1) if night != POISON]
    assert [night.when[:10] for night in found] == [day(night) for night in ran]
    assert git(root, "log", "--merges", "--format=%h", "refs/heads/nights") == ""
    status, output = project.inside("versions")
    assert status == 0, output
    for night in ran:
        into = root.parent / "restored" / str(night)
        status, output = project.inside("restore", "--date", day(night), "--into", str(into))
        assert status == 0, output
        tree = yaml.safe_load((into / "params.yaml").read_text())
        steps = max(n for n in ran if n <= night and n != QUIET)
        assert tree["align"]["steps"] == steps
        path = into / "results" / "prepare" / "prompts.parquet"
        assert path.read_bytes() == (
            (root / "nights" / str(steps) / "prepare" / "prompts.parquet").read_bytes()
        )
        shutil.rmtree(into)
