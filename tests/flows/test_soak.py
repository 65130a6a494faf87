"""Slow proofs: kills of every stage at random moments, `dvc repro` alone, the real HH data."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infalign.files.stages import STAGES
from tests.flows.conftest import OBJECTIVES, ROOT, VARIANTS, Project, contents, write_real
from tests.flows.test_end_to_end import stage_process
from tests.processes.slurm import install
from tests.smoke import merged

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
RUN = [word for word, stage in STAGES.items() if not stage.compares]
HH = ROOT.parent / "shared" / "data" / "hh-rlhf"
HH_COMMAND = "infalign run --recipe hh-from-scratch --set data.path=/path/to/hh-rlhf"


def instances() -> list[str]:
    """Every instance of the real project."""
    named = {
        "calibrate": [f"calibrate@{o}" for o in OBJECTIVES],
        "align": [f"align@{o}-{v}" for o in OBJECTIVES for v in VARIANTS],
        "evaluate": [f"evaluate@{o}" for o in OBJECTIVES],
    }
    return [instance for word in RUN for instance in named.get(word, [word])]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kills_of_every_stage_at_random_moments_change_no_byte(
    real: tuple[Project, str, dict[str, bytes]], own: Project, seed: int
) -> None:
    for name in ("results", "dvc.lock", ".dvc/cache"):
        path = own.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    rng = random.Random(seed)
    waiting, killed = set(instances()), []
    longest = 1.5  # s until a kill; follows how long stages take on this machine
    child = own.start("run")
    deadline = time.monotonic() + 3000
    while waiting and time.monotonic() < deadline and child.poll() is None:
        for instance in sorted(waiting):
            if process := stage_process(own, instance):
                waiting.discard(instance)
                time.sleep(rng.uniform(0, longest))
                if process.is_running():
                    process.kill()
                    killed.append(instance)
                    longest *= 1.15
                else:
                    longest *= 0.75
                if rng.random() < 0.3:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.communicate()
                    child = own.start("run")
        time.sleep(0.05)
    output = child.communicate(timeout=1200)[0]
    assert child.returncode == 0, output
    print(f"seed {seed}: killed {killed}")
    assert len(killed) >= len(instances()) // 3
    assert contents(own.root) == real[2]
    assert own.survivors() == []


def test_dvc_repro_alone_gives_the_same_files(
    real: tuple[Project, str, dict[str, bytes]], tmp_path: Path, smoke_tree: dict[str, Any]
) -> None:
    root = tmp_path / "project"
    write_real(root, smoke_tree)
    command = [sys.executable, "-m", "dvc", "repro", "--quiet"]
    subprocess.run(command, cwd=root, env=real[0].environment, check=True)
    assert contents(root) == real[2]


def test_the_whole_pipeline_through_slurm(
    real: tuple[Project, str, dict[str, bytes]],
    tmp_path: Path,
    smoke_tree: dict[str, Any],
    prefect_api: str,
) -> None:
    """Every stage is a job; one is cancelled and one queued again while they train."""
    slurm = tmp_path / "slurm"
    cluster = install(slurm)
    environment = real[0].environment | {k: cluster[k] for k in ("PATH", "SLURM_STANDIN")}
    project = Project(tmp_path / "project", environment)
    write_real(project.root, merged(smoke_tree, {"run": {"launcher": "slurm"}}))
    shutil.copytree(ROOT / "deploy", project.root / "deploy")
    child = project.start("run")
    done, judge = set[str](), "reward@helpful"
    try:
        deadline = time.monotonic() + 1500
        while child.poll() is None and time.monotonic() < deadline:
            for word, command in (("sft", "scancel --name="), (judge, "scontrol requeue ")):
                work = project.root / ".infalign" / "work" / word
                notes = project.root / ".infalign" / "jobs" / word / "job.json"
                if word not in done and work.is_dir() and notes.is_file():
                    job = name = json.loads(notes.read_text())["name"]
                    if word == judge:
                        named = (slurm / "jobs").glob("*/name")
                        job = next(p.parent.name for p in named if p.read_text() == name)
                    subprocess.run((command + job).split(), env=environment, check=True)
                    done.add(word)
            time.sleep(0.2)
        output = child.communicate(timeout=60)[0]
    finally:
        project.end()
    assert child.returncode == 0, output
    assert done == {"sft", judge}
    assert "It is tried again" in output
    stages = [instance for instance in instances() if instance not in ("corpus", "sources")]
    assert len(list((slurm / "jobs").iterdir())) == len(stages) + 1
    assert contents(project.root) == real[2]


@pytest.mark.skipif(not HH.is_dir(), reason=f"the real HH data is not at {HH}")
def test_the_real_data_runs_through(
    tmp_path: Path, params_tree: dict[str, Any], quiet: dict[str, str], prefect_api: str
) -> None:
    root = tmp_path / "project"
    write_real(root, params_tree)
    shutil.copytree(ROOT / "recipes", root / "recipes", dirs_exist_ok=True)
    environment = quiet | {"PREFECT_API_URL": prefect_api, "HF_HUB_OFFLINE": "1"}
    project = Project(root, environment)
    assert HH_COMMAND in (ROOT / "docs" / "data.md").read_text()
    given = HH_COMMAND.replace("/path/to/hh-rlhf", str(HH)).split()[2:]
    begun = time.monotonic()
    try:
        status, output = project.run("run", *given, timeout=3000)
    finally:
        project.end()
    assert status == 0, output
    assert time.monotonic() - begun < 45 * 60
    rows = json.loads((root / "results" / "report" / "summary.json").read_text())
    for row in rows:
        assert 0 <= row["low"] <= row["win_rate"] <= row["high"] <= 1
