"""MLflow's outages, kills and repeats: nothing is lost, nothing is there twice, told once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.tracking import tracker as module
from flows.tracking.followers import Followers, finished_histories, prefix, row_metrics
from flows.tracking.journal import Journal
from flows.tracking.tracker import PARENT, Tracker
from tests.flows.conftest import Project


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESEND_SECONDS", 0.3)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(
    tmp_path: Path, free_port: int, quiet: dict[str, str]
) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts an MLflow server, again and again, on one port and one database."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers"]
        command += ["1", "--port", str(free_port), "--backend-store-uri"]
        command += [f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/art"]
        child = subprocess.Popen(
            command,
            env=quiet,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        started.append(child)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", free_port)) == 0:
                    return child
            time.sleep(0.2)
        raise AssertionError("the MLflow server did not start")

    yield start
    for child in started:
        stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    """`kill -9` a server and its workers."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def history(client: Any, run_id: str) -> list[tuple[int, float]]:
    """Steps and values of `loss`."""
    return [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")]


def test_an_outage_in_mid_run_is_told_once_and_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    apply, down = module.apply, False
    refused: list[int] = []

    def flaky(*arguments: Any) -> None:
        if down:
            refused.append(threading.get_ident())
            raise ConnectionError("refused")
        apply(*arguments)

    monkeypatch.setattr(module, "apply", flaky)
    tracker = Tracker(tmp_path, "one", told.append)
    tracker.begin(PARENT, "pipeline", {})
    _until(lambda: tracker.run_id(PARENT) is not None)
    down = True
    for step in range(50):
        tracker.metrics(PARENT, [("loss", float(step), step)])
    _until(lambda: len(refused) > 2)
    assert threading.get_ident() not in refused  # training does not wait
    down = False
    tracker.end(PARENT, "FINISHED")
    tracker.close(60)
    assert [line.split(" ")[1] for line in told] == ["at", "answers"]
    client = module.connect(tmp_path, tracker.uri)[0]
    run_id = tracker.run_id(PARENT)
    assert run_id is not None
    assert history(client, run_id) == [(s, float(s)) for s in range(50)]


@pytest.mark.soak
def test_a_server_that_goes_and_comes_back_has_every_metric_once(
    tmp_path: Path, free_port: int, server: Callable[[], subprocess.Popen[bytes]]
) -> None:
    child = server()
    told: list[str] = []
    uri = f"http://127.0.0.1:{free_port}"
    tracker = Tracker(tmp_path, "one", told.append, uri)
    tracker.begin(PARENT, "pipeline", {})
    tracker.begin("align@a-b", "align@a-b", {})
    tracker.metrics("align@a-b", [("loss", 1.0, 0)])
    deadline = time.monotonic() + 60
    while tracker.run_id("align@a-b") is None and time.monotonic() < deadline:
        time.sleep(0.1)
    stop(child)
    begun = time.monotonic()
    for step in range(1, 5):
        tracker.metrics("align@a-b", [("loss", 1.0 / step, step)])
    tracker.end("align@a-b", "FINISHED")
    assert time.monotonic() - begun < 1  # training does not wait
    deadline = time.monotonic() + 30
    while not told and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    assert len(told) == 1
    assert "does not answer" in told[0]
    server()
    tracker.end(PARENT, "FINISHED")
    tracker.close(60)
    assert [line.split(":")[0] for line in told[1:]] == ["MLflow answers again"]
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run_id = tracker.run_id("align@a-b")
    assert run_id is not None
    assert history(client, run_id) == [(0, 1.0), *((s, 1.0 / s) for s in range(1, 5))]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert not list((tmp_path / ".infalign" / "tracking").iterdir())


def test_what_could_not_be_logged_is_logged_by_the_next_run(tmp_path: Path, free_port: int) -> None:
    told: list[str] = []
    tracker = Tracker(tmp_path, "one", told.append, f"http://127.0.0.1:{free_port}")
    tracker.begin(PARENT, "pipeline", {})
    tracker.begin("sft", "sft", {})
    tracker.metrics("sft", [("loss", 0.5, 3)])
    _until(lambda: told)
    tracker.close(0.5)
    assert len(told) == 2
    assert "are kept in" in told[1]
    # The next run, with a database: it also ends the runs that were cut short.
    told.clear()
    tracker = Tracker(tmp_path, "two", told.append)
    tracker.begin(PARENT, "pipeline", {})
    tracker.end(PARENT, "FINISHED")
    tracker.close(60)
    assert told == []
    client, experiment = module.connect(tmp_path, tracker.uri)
    runs = {
        r.info.run_name: r
        for r in client.search_runs([experiment], "tags.mlflow.parentRunId != ''")
    }
    assert runs["sft"].info.status == "KILLED"
    assert runs["sft"].data.metrics == {"loss": 0.5}
    # Doing an entry twice changes nothing.
    journal = Journal(tmp_path / "again.jsonl")
    journal.run_ids["sft"] = runs["sft"].info.run_id
    start = runs["sft"].info.start_time
    rows = [["loss", 0.5, 3, start + 3]]
    entry = {"op": "metrics", "key": "sft", "rows": rows}
    module.apply(client, experiment, journal, entry)
    assert history(client, runs["sft"].info.run_id) == [(3, 0.5)]


def test_who_stops_waiting_for_an_answer_does_not_stop_the_logging(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, "one", lambda _: None)
    future = tracker.maker("asked while the database is being made")
    assert future.cancel()
    tracker.begin(PARENT, "pipeline", {})
    tracker.metrics(PARENT, [("loss", 1.0, 0)])
    tracker.end(PARENT, "FINISHED")
    tracker.close(60)
    run_id = tracker.run_id(PARENT)
    assert run_id is not None
    client = module.connect(tmp_path, tracker.uri)[0]
    assert history(client, run_id) == [(0, 1.0)]


def test_an_entry_that_mlflow_refuses_does_not_stop_the_others(tmp_path: Path) -> None:
    told: list[str] = []
    tracker = Tracker(tmp_path, "one", told.append)
    tracker.begin(PARENT, "pipeline", {})
    tracker.params(PARENT, {"a": 1})
    tracker.params(PARENT, {"a": 2})  # MLflow's parameters cannot change
    tracker.artifact(PARENT, tmp_path / "missing")
    tracker.metrics(PARENT, [("odd!name", 1.0, 0)])
    tracker.end(PARENT, "FINISHED")
    tracker.close(60)
    assert len(told) == 2
    assert all(line.startswith("MLflow refused an entry") for line in told)
    run = module.connect(tmp_path, tracker.uri)[0].get_run(tracker.run_id(PARENT))
    assert run.data.metrics == {"odd_name": 1.0}


def test_a_journal_cut_short_by_a_kill_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    journal = Journal(path)
    journal.append({"op": "begin", "key": PARENT})
    journal.append({"op": "begin", "key": "sft"})
    journal.advance()
    with open(path, "a") as stream:
        stream.write('{"op": "metr')
    again = Journal(path)
    assert again.applied == 1
    assert again.waiting() == 1
    assert again.unfinished() == ["sft", PARENT]
    again.append({"op": "end", "key": "sft"})
    assert Journal(path).entries[-1] == {"op": "end", "key": "sft"}


def test_followers_send_each_step_once_also_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.tracking.followers.POLL_SECONDS", 0.02)
    work = tmp_path / ".infalign" / "work" / "sft"
    work.mkdir(parents=True)
    live = work / "history.jsonl"
    sent: list[tuple[str, float, int]] = []

    def write(steps: range, mode: str) -> None:
        with open(live, mode) as stream:
            for step in steps:
                stream.write(json.dumps({"step": step, "loss": float(step)}) + "\n")

    followers = Followers(tmp_path)
    try:
        followers.follow("sft", sent.extend)
        write(range(4), "w")
        with open(live, "a") as stream:
            stream.write('{"step": 4, "lo')
        _until(lambda: len(sent) == 4)
        temporary = work / "new"
        temporary.write_text("".join(f'{{"step": {s}, "loss": {float(s)}}}\n' for s in range(2)))
        os.replace(temporary, live)  # resumed from a checkpoint at step 1
        write(range(2, 6), "a")
        _until(lambda: len(sent) == 6)
        out = tmp_path / "results" / "sft"
        out.mkdir(parents=True)
        write(range(6, 8), "a")
        os.replace(live, out / "history.jsonl")
        followers.finish("sft", [out])
    finally:
        followers.close()
    assert sent == [("loss", float(step), step) for step in range(8)]


def test_a_folder_that_goes_while_it_is_looked_through_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.tracking.followers.POLL_SECONDS", 0.02)
    work = tmp_path / ".infalign" / "work" / "reward"
    gone = work / "out" / "judge"
    gone.mkdir(parents=True)
    (work / "history.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    scandir, looked = os.scandir, []

    def vanishing(path: Any = ".") -> Any:
        if Path(path) == gone:
            looked.append(path)
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    sent: list[tuple[str, float, int]] = []
    followers = Followers(tmp_path)
    try:
        followers.follow("reward", sent.extend)
        _until(lambda: len(looked) > 1)
    finally:
        followers.close()
    assert sent == [("loss", 1.0, 0)]


def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_names_of_live_and_finished_histories_agree(tmp_path: Path) -> None:
    live = prefix(tmp_path / "helpful" / "train" / "history.jsonl", tmp_path)
    (tmp_path / "out" / "helpful").mkdir(parents=True)
    (tmp_path / "out" / "helpful" / "train.jsonl").touch()
    (tmp_path / "out" / "history.jsonl").touch()
    assert set(finished_histories([tmp_path / "out"])) == {live, ""}
    assert live == "helpful/train/"
    row = {"step": 3, "a": 1, "b": True, "c": "x", "d": float("nan")}
    assert row_metrics(row, live) == [("helpful/train/a", 1.0, 3)]


def test_a_clock_that_is_set_back_loses_nothing(
    project: Callable[[], Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, told = project(), list[str]()
    tracker = Tracker(copy.root, "jump", told.append)
    tracker.begin(PARENT, "before", {})
    real = time.time
    monkeypatch.setattr(module.time, "time", lambda: real() - 86400)
    tracker.begin("later", "later", {})
    tracker.metrics("later", [("loss", 1.0, 0), ("loss", 0.5, 1)])
    for key in ("later", PARENT):
        tracker.end(key, "FINISHED")
    tracker.close()
    assert told == []
    runs = copy.runs()
    assert [runs[name][0].info.status for name in ("before", "later")] == ["FINISHED"] * 2
    history = copy.tracking().get_metric_history(runs["later"][0].info.run_id, "loss")
    assert [metric.value for metric in history] == [1.0, 0.5]
