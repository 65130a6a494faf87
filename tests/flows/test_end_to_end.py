"""The real stages under the real flow, with smoke params: a full pass, a rerun, kills."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from tests.flows.conftest import OBJECTIVES, REAL_INSTANCES, VARIANTS, Project, contents


def test_a_full_pass_writes_these_files_and_says_these_things(
    real: tuple[Project, str, dict[str, bytes]],
) -> None:
    project, output, files = real
    assert f"{REAL_INSTANCES} made, 0 restored from cache, 0 unchanged" in output
    rows = json.loads(files["report/summary.json"])
    assert {(row["objective"], row["policy"]) for row in rows} >= {
        (objective, variant) for objective in OBJECTIVES for variant in VARIANTS
    }
    for objective in OBJECTIVES:
        assert f"evaluate/{objective}/evaluation.parquet" in files
        for variant in VARIANTS:
            folder = f"align/{objective}/{variant}"
            inside = {n.removeprefix(f"{folder}/") for n in files if n.startswith(f"{folder}/")}
            assert {"history.jsonl", "metrics.json", "policy/model.safetensors"} <= inside
            assert re.search(rf"│ {objective} +│ {variant} ", output)
    text = b"".join(v for k, v in files.items() if k.endswith((".json", ".jsonl", ".html")))
    assert str(project.root).encode() not in text
    assert os.uname().nodename.encode() not in text
    runs = project.runs()
    child = runs["align@helpful-ctrl"][0]
    steps = [
        m.step for m in project.tracking().get_metric_history(child.info.run_id, "training/kl")
    ]
    lines = files["align/helpful/ctrl/history.jsonl"].splitlines()
    assert steps == [json.loads(line)["step"] for line in lines]
    measured = json.loads(files["evaluate/helpful/metrics.json"])["ctrl"]
    for name in ("win_rate", "kl", "limit", "low", "high", "win_rate_independent"):
        assert child.data.metrics[name] == measured[name]
    assert child.data.tags["mlflow.note.content"].startswith("Win rate over the reference under")


def test_dvc_shows_metrics_plots_and_params(own: Project, tmp_path: Path) -> None:
    for arguments, expected in (
        (["metrics", "show", "--json"], "headline/helpful-ctrl.json"),
        (["params", "diff", "--all"], "align.steps"),
        (["plots", "show", "--out", str(tmp_path / "plots")], "index.html"),
        (["status"], "up to date"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=own.root,
            env=own.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
        assert done.stderr == ""
    page = (tmp_path / "plots" / "index.html").read_text()
    for name in ("win_rate", "training_kl", "training_calibrated", "calibration_error"):
        for objective in OBJECTIVES:
            assert f"results_report_data_{name}_{objective}_json" in page


@pytest.mark.soak
def test_the_result_is_registered_judged_and_promoted(
    own: Project,
) -> None:
    status, output = own.run("promote", "--dry-run", "--json", "--objective", "helpful")
    rules = {rule["name"]: rule for rule in json.loads(output)[0]["verdict"]["rules"]}
    health = json.loads((own.root / "results/evaluate/helpful/metrics.json").read_text())["ctrl"]
    assert rules["kl"]["number"] == pytest.approx(health["kl"])
    assert rules["truncated"]["number"] == pytest.approx(health["truncated"])
    gap = health["win_rate"] - health["win_rate_independent"]
    assert rules["judge"]["number"] == pytest.approx(gap)
    assert 0 <= rules["other_harmless"]["number"] <= 1
    status, output = own.run(
        "promote", "--objective", "helpful", "--force", "--reason", "smoke params"
    )
    assert status == 0, output
    assert "infalign-helpful version 1 is the champion now" in output


def forget(project: Project, *instances: str) -> None:
    """Remove the outputs of these instances from results and from DVC's cache."""
    cache = project.root / ".dvc" / "cache"
    shutil.rmtree(cache / "runs")
    entries = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]
    for instance in instances:
        for out in entries[instance]["outs"]:
            (cache / "files" / "md5" / out["md5"][:2] / out["md5"][2:]).unlink()
            shutil.rmtree(project.root / out["path"])


def stage_process(project: Project, instance: str) -> psutil.Process | None:
    """The process at work on a stage instance."""
    word, _, names = instance.partition("@")
    want = ["infalign", word, *(n for n in names.split("-") if n)]
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            given = [x for x in line[2:] if not x.startswith("--")]
            if line[1:2] == ["-m"] and given == want and process.cwd() == str(project.root):
                return process
        except psutil.Error:
            continue
    return None


def kill_in(project: Project, instance: str, ready: Callable[[], bool]) -> None:
    """`kill -9` the stage at the first moment at which some of its work is done."""
    deadline = time.monotonic() + 240
    process = None
    while time.monotonic() < deadline:
        process = process or stage_process(project, instance)
        if process is not None and ready():
            process.kill()
            return
        time.sleep(0.005 if process else 0.1)
    raise AssertionError(f"{instance} was never seen at work")


def test_kills_in_sample_and_align_change_no_byte_and_a_rerun_skips_what_is_done(
    real: tuple[Project, str, dict[str, bytes]], own: Project
) -> None:
    work = own.root / ".infalign" / "work"
    forget(own, "sample", "align@helpful-ctrl")
    child = own.start("run")
    kill_in(own, "sample", lambda: any((work / "sample").glob("shards/*.parquet")))
    history = work / "align@helpful-ctrl" / "history.jsonl"
    kill_in(own, "align@helpful-ctrl", lambda: _lines(history) >= 3)
    os.killpg(child.pid, signal.SIGKILL)  # the flow as well: nothing can be retried
    output = child.communicate()[0]
    assert "sample was killed from outside" in output
    status, output = own.run("run", timeout=400)
    assert status == 0, output
    assert f"1 made, 0 restored from cache, {REAL_INSTANCES - 1} unchanged" in output
    assert contents(own.root) == real[2]
    assert own.survivors() == []


def _lines(path: Path) -> int:
    try:
        return path.read_text().count("\n")
    except FileNotFoundError:
        return 0
