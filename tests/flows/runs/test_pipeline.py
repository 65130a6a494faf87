"""The flow on a toy project: what it says, skips, tracks, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.project.versions import lock_entries
from tests.flows.conftest import (
    INSTANCES,
    PLANTED,
    PREFECT_KEY,
    Project,
    artifacts,
    client_of,
    newest_run,
)
from tests.flows.services.strangers import files_with

Copy = Callable[[], Project]


def wait_for(condition: Callable[[], Any], seconds: float = 240) -> Any:
    """The first true answer of a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


def at_work(project: Project, instance: str) -> Callable[[], int | None]:
    """The pid of a stage that has written some steps."""
    work = project.root / ".infalign" / "work" / instance

    def look() -> int | None:
        try:
            steps = (work / "history.jsonl").read_text().count("\n")
            return int((work / "pid").read_text()) if steps > 3 else None
        except (FileNotFoundError, ValueError):
            return None

    return look


def files(root: Path) -> dict[str, bytes]:
    """Every file of results."""
    folder = root / "results"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


async def prefect_tasks(project: Project, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The states of the project's newest flow run's tasks, by name."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    async with client_of(project) as client:
        newest = await newest_run(client, project)
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[newest.id]))
        tasks = await client.read_task_runs(flow_run_filter=chosen)
    return {"": newest, **{task.name: task for task in tasks}}


def test_first_run_makes_everything_and_shows_where_to_look(
    finished: tuple[Project, str],
) -> None:
    project, output = finished
    assert "5 made, 0 restored from cache, 0 unchanged" in output
    assert "align@helpful-ctrl step 0" in output
    assert "best_of:4" in output
    assert "0.600 to 0.800" in output
    for line in ("Report   results/report/index.html", "MLflow   ", "Prefect  http://127.0.0.1"):
        assert line in output
    assert not (project.root / ".infalign" / "work" / "report").exists()


def test_secrets_reach_neither_output_nor_tracking(finished: tuple[Project, str]) -> None:
    project, output = finished
    assert "corpus the token is ***" in output
    assert PLANTED not in output
    assert "the key is *** sent as ***" in output
    assert files_with(project.root, PREFECT_KEY) == []
    for path in [project.root / "mlflow.db", *(project.root / "mlartifacts").rglob("*")]:
        assert not path.is_file() or PLANTED.encode() not in path.read_bytes()


def test_mlflow_has_a_parent_and_a_child_a_stage_with_all_evidence(
    finished: tuple[Project, str],
) -> None:
    project = finished[0]
    runs = project.runs()
    parent = runs["pipeline"][-1]
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "first run"
    assert len(parent.data.tags["mlflow.source.git.commit"]) == 40
    assert parent.data.params["align.kl_nats"] == "0.5"
    assert "| helpful | ctrl | 0.700 | 0.600 |" in parent.data.tags["mlflow.note.content"]
    assert "- align@helpful-ctrl: made" in parent.data.tags["mlflow.note.content"]
    client = project.tracking()
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"dvc.lock", "params.yaml", "report"} <= names
    copy = Path(client.download_artifacts(parent.info.run_id, "report/index.html")).read_text()
    assert copy == (project.root / ".infalign" / "report" / "index.html").read_text()
    for words in (
        parent.data.tags["mlflow.source.git.commit"][:10],
        parent.info.run_id,
        "Run took",
    ):
        assert words in copy
    made = (project.root / "results" / "report" / "index.html").read_text()
    assert made == "<p>report</p><!--run-->"
    for instance in INSTANCES:
        child = runs[instance][-1]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["infalign.outcome"] == "made"
        assert child.data.tags["mlflow.source.name"].startswith("infalign/stages/")
        files = {item.path for item in client.list_artifacts(child.info.run_id)}
        assert "metrics.json" in files
    child = runs["align@helpful-ctrl"][-1]
    assert child.info.run_name == "helpful-ctrl kl 0.5 seed 0"
    want = {"variant": "ctrl", "objective": "helpful", "kl_nats": "0.5", "seed": "0"}
    want |= {"reward": "exp:10", "method": "ctrl", "procedure": "best_of:4"}
    assert want.items() <= child.data.params.items()
    assert set(child.data.metrics) == {"training/loss"}
    history = client.get_metric_history(child.info.run_id, "training/loss")
    assert [(m.step, m.value) for m in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert [m.timestamp - child.info.start_time for m in history] == [0, 1, 2]
    dataset = child.inputs.dataset_inputs[0].dataset
    assert dataset.name == "results/corpus"
    assert dataset.digest.endswith(".dir")
    assert "results/prepare" in child.data.tags["infalign.inputs"]
    assert child.data.params["align.steps"]


def test_a_changed_number_runs_what_depends_on_it_and_going_back_is_restored(
    project: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And Prefect has a task a stage, and the artifacts."""
    copy = project()
    before = (copy.root / "params.yaml").read_text()
    steps = next(line for line in before.splitlines() if line.strip().startswith("steps:"))
    status, output = copy.run("run", "--set", "align.steps=7")
    assert status == 0, output
    assert "2 made" in output
    assert "3 unchanged" in output  # report: the toy's outputs are equal
    after = (copy.root / "params.yaml").read_text()
    assert after == before.replace(steps, "  steps: 7")
    check_prefect(copy, monkeypatch)
    status, output = copy.run("run", "--set", f"align.{steps.strip().replace(': ', '=')}")
    assert status == 0, output
    assert "0 made, 2 restored from cache, 3 unchanged" in output
    assert (copy.root / "params.yaml").read_text() == before
    runs = copy.runs()
    assert [len(runs[name]) for name in ("corpus", "align@helpful-ctrl")] == [1, 2]
    names = [run.info.run_name for run in runs["pipeline"]]
    assert names == [f"align.{steps.strip().replace(':', '')}", "align.steps 7", "first run"]
    many = sum(map(len, runs.values()))
    status, output = copy.run("run")
    assert "0 made, 0 restored from cache, 5 unchanged" in output
    assert sum(map(len, copy.runs().values())) == many + 1
    assert copy.runs()["pipeline"][0].info.run_name == "no change"


def check_prefect(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of a run that made the two instances of align."""
    found = asyncio.run(prefect_tasks(project, monkeypatch))
    flow_run = found.pop("")
    assert flow_run.state_name == "Completed"
    assert flow_run.name == "align.steps 7"
    assert flow_run.parameters["settings"] == {"align.steps": "7"}
    assert set(found) == set(INSTANCES)
    runs = project.runs()
    for name, task in found.items():
        if name.startswith("align"):
            assert task.state_name == "Completed"
            continue
        maker = runs[name][-1].info.run_id
        assert task.state_name == "Skipped"
        assert maker in task.state.message
        assert len(runs[name]) == 1
    linked = {
        i.id for inputs in found["report"].task_inputs.values() for i in inputs if hasattr(i, "id")
    }
    assert {found["align@helpful-ctrl"].id, found["align@harmless-ctrl"].id} <= linked
    shown = asyncio.run(artifacts(project))
    rows = json.loads(shown["win-rates"])
    assert [list(row)[:3] for row in rows] == [["objective", "policy", "win_rate"]] * 2
    assert "artifacts/report/index.html?workflowType=machine_learning" in shown["report"]
    assert "?workflowType=machine_learning" in shown["mlflow-run"]


def test_a_users_mistake_is_one_sentence_and_other_branches_go_on(fresh: Project) -> None:
    status, output = fresh.run("run", TOY_FAIL="align@helpful-ctrl")
    assert status == 2, output
    assert output.splitlines()[-1] == "infalign: align@helpful-ctrl: the data is bad: mend it."
    assert "Traceback" not in output
    assert (fresh.root / "results/align/harmless/ctrl/metrics.json").exists()
    assert not (fresh.root / "results/report").exists()
    runs = fresh.runs()
    assert runs["pipeline"][0].info.status == "FAILED"
    assert runs["align@helpful-ctrl"][0].info.status == "FAILED"


@pytest.mark.parametrize(
    "way", [pytest.param("SIGTERM", marks=pytest.mark.soak), "SIGINT", "prefect"]
)
def test_every_way_to_stop_leaves_no_process(
    project: Copy, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = project()
    child = copy.start("run", "--set", "align.steps=9", TOY_SLOW="align")
    wait_for(at_work(copy, "align@helpful-ctrl"))
    wait_for(at_work(copy, "align@harmless-ctrl"))
    if way == "SIGTERM":
        wait_for(lambda: live(copy))
    if way == "prefect":
        asyncio.run(_cancel_newest(copy))
    else:
        child.send_signal(getattr(signal, way))
    output = child.communicate(timeout=240)[0]
    assert child.returncode == 130, output
    assert output.endswith("infalign: interrupted, every stage was ended: run again to resume.\n")
    assert copy.survivors() == []
    assert (copy.root / ".infalign/work/align@helpful-ctrl").exists()  # it did not come to its end
    assert "Traceback" not in output
    states = asyncio.run(prefect_tasks(copy, monkeypatch))
    assert states[""].state_name in ("Cancelled", "Crashed")
    assert copy.runs()["pipeline"][0].info.status == "KILLED"


def live(project: Project) -> bool:
    """Whether MLflow has numbers of a stage that is still at work."""
    newest = project.runs()["align@helpful-ctrl"][0]
    return newest.info.status == "RUNNING" and newest.data.metrics.get("training/loss", 1) < 0.5


async def _cancel_newest(project: Project) -> None:
    from prefect.states import Cancelling

    async with client_of(project) as client:
        newest = await newest_run(client, project)
        await client.set_flow_run_state(newest.id, Cancelling())


@pytest.mark.soak
def test_a_killed_stage_is_run_again_and_a_killed_flow_leaves_nothing_in_the_way(
    finished: tuple[Project, str], project: Copy
) -> None:
    copy = project()
    child = copy.start("run", "--set", "align.steps=9", TOY_SLOW="align")
    first = wait_for(at_work(copy, "align@helpful-ctrl"))
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: at_work(copy, "align@helpful-ctrl")() not in (None, first))
    child.kill()
    child.wait()
    status, output = copy.run("run")
    assert status == 0, output
    assert copy.survivors() == []
    assert files(copy.root) == files(finished[0].root)
    statuses = [run.info.status for run in copy.runs()["pipeline"]]
    assert statuses[:2] == ["FINISHED", "KILLED"]
    assert not list((copy.root / ".infalign" / "tracking").iterdir())


def _dvc_at(project: Project, instance: str) -> psutil.Process | None:
    """The DVC process that remakes an instance, once the stage itself has written its results."""
    word, _, names = instance.partition("@")
    made = project.root.joinpath("results", word, *names.split("-")) / "metrics.json"
    for process in psutil.process_iter() if made.exists() else []:
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[-1:] == [instance] and process.cwd() == str(project.root):
                return process
    return None


@pytest.mark.soak
def test_kills_while_dvc_writes_are_made_good(
    finished: tuple[Project, str], fresh: Project
) -> None:
    """DVC killed behind a stage, as it fills its cache and writes dvc.lock, again and again."""
    rng, killed = random.Random(0), list[str]()
    child = fresh.start("run")
    waiting = set(INSTANCES)
    while child.poll() is None:
        for instance in list(waiting):
            process = _dvc_at(fresh, instance)
            if process is not None:
                time.sleep(rng.uniform(0, 0.6))
                waiting.discard(instance)
                with contextlib.suppress(psutil.Error):
                    process.kill()
                    killed.append(instance)
        time.sleep(0.02)
    output = child.communicate()[0]
    print(killed, output)
    status, again = fresh.run("run")
    assert status == 0, again
    assert "Traceback" not in output + again
    assert len(killed) >= 2
    assert files(fresh.root) == files(finished[0].root)
    assert set(lock_entries(fresh.root)) == set(INSTANCES)
    assert fresh.survivors() == []


def test_two_runs_at_once_and_a_dvc_lock_held_by_someone_else(project: Copy) -> None:
    copy = project()
    hold = (
        "import sys, zc.lockfile; lock = zc.lockfile.LockFile('.dvc/tmp/lock'); "
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold], cwd=copy.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    first = copy.start("run")
    assert first.stdout is not None
    told = [first.stdout.readline()]
    assert told == ["Waiting for another DVC command, which holds DVC's lock.\n"]
    status, output = copy.inside("run")
    assert status == 2
    assert "another run is at work in" in output
    assert len(output.splitlines()) == 1
    holder.communicate(b"")
    output = first.communicate(timeout=240)[0]
    assert first.returncode == 0, output
