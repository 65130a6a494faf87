"""Who is told of a scheduled run's end, on a real server; and that nothing else depends on it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from flows.runs.nightly import backfill, evaluate_champion, nightly
from flows.runs.notifying import notify
from tests.flows.conftest import ROOT

VARIABLE = "INFALIGN_WEBHOOK"


@pytest.fixture
def heard() -> Iterator[tuple[str, list[Any]]]:
    """A server on loopback, and what it was sent."""
    bodies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", bodies
    server.shutdown()
    thread.join()
    server.server_close()


def project(folder: Path, variable: str | None) -> Path:
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["schedule"]["notify"] = variable
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    return folder


def end(root: Path, name: str, message: str) -> None:
    run = SimpleNamespace(parameters={"root": str(root)})
    state = SimpleNamespace(name=name, message=message)
    asyncio.run(notify(SimpleNamespace(name="nightly"), run, state))


def test_refusals_drift_and_failures_are_told(
    tmp_path: Path, heard: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, bodies = heard
    root = project(tmp_path, VARIABLE)
    monkeypatch.setenv(VARIABLE, url)
    for name in ("Completed", "Refused", "Skipped", "Drift", "Failed"):
        end(root, name, f"the message of {name}")
    assert bodies == [
        {"text": f"infalign nightly: {name}. the message of {name}"}
        for name in ("Refused", "Drift", "Failed")
    ]


def test_without_a_webhook_nothing_is_sent(
    tmp_path: Path,
    heard: tuple[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, bodies = heard
    monkeypatch.setenv(VARIABLE, url)
    end(project(tmp_path, None), "Failed", "why")
    assert not bodies
    monkeypatch.delenv(VARIABLE)
    end(project(tmp_path, VARIABLE), "Failed", "why")
    assert capsys.readouterr().out == (
        f"schedule.notify: {VARIABLE} is not set where the worker runs.\n"
    )


def test_a_webhook_that_does_not_answer_harms_nothing_and_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9/secret")
    end(project(tmp_path, VARIABLE), "Failed", "why")
    said = capsys.readouterr().out
    assert said.startswith("schedule.notify: not delivered (")
    assert "secret" not in said


@pytest.mark.parametrize("flow", [nightly, evaluate_champion, backfill])
def test_every_scheduled_flow_tells(flow: Any) -> None:
    hooks = (flow.on_completion_hooks, flow.on_failure_hooks, flow.on_crashed_hooks)
    assert all(notify in each for each in hooks)
