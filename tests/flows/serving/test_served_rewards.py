"""`infalign serve` of a policy whose reward is a function, or a server's: it chooses by that."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.flows.conftest import ROOT, Project
from tests.flows.serving.test_supervisor import NAME, Running, point, until
from tests.rewards.servers import Asked, lengths, serving


@pytest.fixture(scope="module")
def judge() -> Iterator[Asked]:
    """A server that likes long responses."""
    with serving(lengths) as asked:
        yield asked


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, quiet: dict[str, str], judge: Asked
) -> Iterator[Running]:
    """A server of version 1."""
    root = tmp_path_factory.mktemp("rewards")
    text = (ROOT / "params.yaml").read_text()
    uri = f"sqlite:///{root / 'mlflow.db'}"
    command = [sys.executable, "-m", "tests.flows.serving.serving_rewards", uri, NAME, judge.url]
    path = f"{quiet['PYTHONPATH']}{os.pathsep}{ROOT / 'tests'}"
    subprocess.run(command, cwd=root, env=quiet | {"PYTHONPATH": path}, check=True)
    shutil.rmtree(root / "results")
    (root / "shortest.py").unlink()  # the package has its own
    (root / "params.yaml").write_text(text.replace("poll_seconds: 1.0", "poll_seconds: 0.3"))
    project = Project(root, dict(quiet))
    point(project, "1")
    running = Running(project)
    yield running
    running.child.send_signal(signal.SIGINT)
    try:
        assert running.child.wait(240) == 0, running.lines
    finally:
        project.end()


def kept(served: Running, procedure: str) -> dict[str, Any]:
    answer = served.ask(["one two three"], procedure=procedure)
    assert answer.status_code == 200, answer.text
    [row] = answer.json()["predictions"]
    return dict(row)


def test_answers_are_chosen_by_the_function_and_then_by_the_server(
    served: Running, judge: Asked
) -> None:
    best, worst = (kept(served, f"{word}:16") for word in ("best_of", "worst_of"))
    assert best["reward"] == -len(best["response"])
    assert worst["reward"] == -len(worst["response"])
    assert len(best["response"]) < len(worst["response"])
    assert judge.bodies == []
    point(served.project, "2")
    until(lambda: kept(served, "best_of:2")["reward"] >= 0)
    longest, shortest = (kept(served, f"{word}:16") for word in ("best_of", "worst_of"))
    assert longest["reward"] == len(longest["response"]) > len(shortest["response"])
    assert longest["response"] == worst["response"]  # of the same sixteen
    assert [len(body["responses"]) for body in judge.bodies][-2:] == [16, 16]
