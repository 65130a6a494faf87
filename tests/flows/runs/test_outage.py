"""Prefect's server killed in mid-run: stages go on, the run ends, the files are the same."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.services.prefect_server import answers
from tests.flows.conftest import INSTANCES, Project
from tests.flows.runs.test_pipeline import at_work, files, wait_for

SLOW = {"TOY_SLOW": "align", "TOY_STEPS": "40"}  # 4 s, longer than it takes to kill a server


def server_of(child: subprocess.Popen[str]) -> psutil.Process:
    """The temporary Prefect server of a run."""
    children = psutil.Process(child.pid).children()
    return next(p for p in children if "uvicorn" in p.cmdline())


def recorded_states(root: Path) -> dict[str, str]:
    """The state of every task run, and of the flow run (''), in the database of the server."""
    database = sqlite3.connect(root / ".infalign" / "prefect" / "prefect.db")
    tasks = database.execute("select name, state_name from task_run").fetchall()
    flows = database.execute("select '', state_name from flow_run").fetchall()
    database.close()
    return dict(tasks + flows)


@pytest.mark.soak
def test_a_temporary_server_that_is_killed_is_started_again_and_misses_nothing(
    finished: tuple[Project, str], fresh: Project
) -> None:
    del fresh.environment["PREFECT_API_URL"]
    child = fresh.start("run", **SLOW)
    wait_for(at_work(fresh, "align@helpful-ctrl"))
    server_of(child).kill()
    output = child.communicate(timeout=200)[0]
    assert child.returncode == 0, output
    assert output.count("The temporary Prefect server ended (status -9): it is started again") == 1
    assert "5 made, 0 restored from cache, 0 unchanged" in output
    assert "Error" not in output
    assert "Traceback" not in output
    assert fresh.survivors() == []
    assert recorded_states(fresh.root) == dict.fromkeys(["", *INSTANCES], "Completed")
    made = {name: data for name, data in files(fresh.root).items() if not name.startswith("align/")}
    assert made.items() <= files(finished[0].root).items()


@pytest.fixture
def own_server(fresh: Project, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Prefect server that the user started, to which the project's runs report."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = fresh.environment["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    environment = fresh.environment | {"PREFECT_HOME": str(tmp_path / "home")}
    del environment["PREFECT_API_URL"]
    with subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", port],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            wait_for(lambda: answers(url), 120)
            yield server
        finally:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.mark.soak
def test_a_run_ends_well_without_the_users_server(
    fresh: Project, own_server: subprocess.Popen[bytes]
) -> None:
    child = fresh.start("run", **SLOW)
    wait_for(at_work(fresh, "align@helpful-ctrl"))
    os.killpg(own_server.pid, signal.SIGKILL)
    begun = time.monotonic()
    output = child.communicate(timeout=300)[0]
    assert child.returncode == 0, output
    assert "5 made, 0 restored from cache, 0 unchanged" in output
    assert output.count("stopped answering (All connection attempts failed): its page lacks") == 1
    assert "Traceback" not in output
    assert time.monotonic() - begun < 150, output
    print(f"{time.monotonic() - begun:.0f} s", output)
