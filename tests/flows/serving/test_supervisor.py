"""`infalign serve` on real servers: procedures and bounds, bad requests, restarts under load."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from flows.serving.server import in_a_sentence
from infalign.settings.params import load_params
from tests.flows.conftest import ROOT, Project

NAME = "infalign-helpful"
LIMITS = load_params(ROOT / "params.yaml").serving


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, quiet: dict[str, str]) -> Project:
    """A project with four versions: one, two, one that cannot be loaded, one without files."""
    root = tmp_path_factory.mktemp("registry")
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    command = [sys.executable, "-m", "tests.flows.serving.serving_versions", uri, NAME]
    subprocess.run([*command, "one", "two", "broken", "gone"], cwd=root, env=quiet, check=True)
    for model in list(root.glob("mlartifacts/**/MLmodel")):
        if "word: gone" in model.read_text():
            shutil.rmtree(model.parent)
    project = Project(root, dict(quiet))
    project.tracking().set_registered_model_alias(NAME, "gone", "4")
    return project


def point(project: Project, version: str) -> None:
    """Make a version the champion."""
    project.tracking().set_registered_model_alias(NAME, "champion", version)


class Running:
    """`infalign serve` at work, and its lines."""

    def __init__(self, project: Project, *arguments: str, within: float = 240) -> None:
        self.project = project
        self.child = project.start("serve", "--objective", "helpful", "--port", "0", *arguments)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(r"Serving .* at (http://\S+)", within)

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.lines.append(line.rstrip())

    def wait_for(self, pattern: str, seconds: float = 240) -> str:
        """The first group of the first line that matches."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found[1] if found.groups() else line
            if self.child.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"{pattern} was not said: {self.lines}")

    def ask(self, prompts: list[str] | None = None, **params: Any) -> httpx.Response:
        """One request."""
        body: dict[str, Any] = {"inputs": {"prompt": prompts or ["hello"]}}
        return httpx.post(self.url, json=body | ({"params": params} if params else {}), timeout=200)

    def post(self, content: Any, kind: str | None = None) -> httpx.Response:
        """Any request."""
        headers = {"content-type": kind} if kind else {}
        return httpx.post(self.url, content=content, headers=headers, timeout=200, verify=False)

    def get(self, path: str) -> httpx.Response:
        """What is at a path."""
        url = self.url.replace("/invocations", path)
        return httpx.get(url, timeout=200, verify=False)


def until(condition: Callable[[], bool], seconds: float = 200) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def servers(served: Running) -> dict[int, psutil.Process]:
    """The scoring servers that are there, resting ones as well."""
    found = {}
    for child in psutil.Process(served.child.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            if "flows.serving.server" in child.cmdline():
                found[child.pid] = child
    return found


@pytest.fixture(scope="module")
def served(registry: Project) -> Iterator[Running]:
    """A server of version 1."""
    point(registry, "1")
    params = registry.root / "params.yaml"
    text = params.read_text().replace("poll_seconds: 1.0", "poll_seconds: 0.3")
    # A test keeps a silent client for as long as a server takes to start.
    params.write_text(text.replace("request_seconds: 20.0", "request_seconds: 120.0"))
    running = Running(registry)
    yield running
    running.child.send_signal(signal.SIGINT)
    try:
        assert running.child.wait(240) == 0, running.lines
        assert registry.survivors() == []
    finally:
        registry.end()


def test_answers_with_the_procedure_and_n_of_the_request(served: Running) -> None:
    answer = served.ask(["a", "b"], procedure="worst_of:3", n=5)
    assert answer.status_code == 200, answer.text
    rows = answer.json()["predictions"]
    assert [(r["prompt"], r["procedure"], r["n"]) for r in rows] == [
        ("a", "worst_of:3", 5),
        ("b", "worst_of:3", 5),
    ]
    assert served.ask().json()["predictions"][0]["procedure"] == "best_of:4"
    assert answer.headers["x-infalign-model"] == f"{NAME}/1"


GOOD = {"inputs": {"prompt": ["hello"]}}


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (400, b"{", "is not JSON"),
        (400, b"[" * 5000, "is not JSON"),
        (400, b"\xff\xfe", "is not JSON"),
        (400, b'{"inputs": {"prompt": ["x"]}, "params": {"temperature": NaN}}', "is not JSON"),
        (400, b"[]", "exactly one of inputs"),
        (400, b"{}", "exactly one of inputs"),
        (400, GOOD | {"extra": 1}, "exactly one of inputs"),
        (400, GOOD | {"instances": []}, "exactly one of inputs"),
        (400, {"inputs": {"prompt": []}}, "0 prompts"),
        (400, {"inputs": 7}, 'inputs must be a list of prompts: send {"inputs": ["a question"]}'),
        (400, {"inputs": {"prompt": ["x"] * (LIMITS.prompts + 1)}}, "17 prompts: send 1 to 16"),
        (400, {"inputs": {"text": ["x"]}}, "prompt"),
        (400, {"dataframe_split": {"columns": ["prompt"]}}, "must have 'data', a list"),
        (400, GOOD | {"params": [1]}, "must be a mapping"),
        (400, GOOD | {"params": {"nn": 1}}, "'nn' is not one of the model's"),
        (400, GOOD | {"params": {"n": LIMITS.n + 1}}, f"1 to {LIMITS.n}"),
        (400, GOOD | {"params": {"n": -1}}, f"1 to {LIMITS.n}"),
        (400, GOOD | {"params": {"n": True}}, f"1 to {LIMITS.n}"),
        (400, GOOD | {"params": {"n": "4"}}, f"1 to {LIMITS.n}"),
        (400, GOOD | {"params": {"n": 10**40}}, f"1 to {LIMITS.n}"),
        (400, GOOD | {"params": {"max_new_tokens": 10**6}}, f"1 to {LIMITS.new_tokens}"),
        (400, GOOD | {"params": {"procedure": 4}}, "must be a short text"),
        (400, GOOD | {"params": {"procedure": "best_of:65"}}, "draws more than 64"),
        (400, GOOD | {"params": {"procedure": "best_of:99999999999"}}, "draws more than 64"),
        (400, GOOD | {"params": {"procedure": "nonsense"}}, "'nonsense' is unknown: write best_of"),
        (500, GOOD | {"params": {"procedure": "crash"}}, "the server's log says why"),
        (413, b'{"inputs": ["' + b"x" * LIMITS.request_bytes + b'"]}', "longer than 65536 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_request_is_one_sentence(
    served: Running, status: int, content: Any, words: str
) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    answer = served.post(body, "application/json")
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    sentence = answer.json()["error"]
    assert words in sentence
    assert "\n" not in sentence
    assert "Traceback" not in answer.text
    assert "/etc" not in answer.text


def test_other_types_paths_and_methods_are_one_sentence(served: Running) -> None:
    csv, bare = served.post(b"prompt\nx", "text/csv"), served.post(b"x")
    nowhere, reading = served.get("/nowhere"), served.get("/invocations")
    for answer, status in ((csv, 415), (bare, 415), (nowhere, 404), (reading, 405)):
        assert answer.status_code == status
        assert set(answer.json()) == {"error"}
    assert served.get("/health").status_code == 200


def test_a_body_without_a_length_is_bounded(served: Running) -> None:
    chunks = (b"x" * 4096 for _ in range(100))
    answer = served.post(chunks, "application/json")
    assert answer.status_code == 413, answer.text


def test_only_loopback_is_listened_on(served: Running) -> None:
    host, port = re.search(r"http://([^:]+):(\d+)/", served.url).groups()  # type: ignore[union-attr]
    assert host == "127.0.0.1"
    listening = [
        c.laddr.ip
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == int(port)
    ]
    assert set(listening) == {"127.0.0.1"}


@pytest.mark.soak
def test_a_new_champion_under_load_drops_nothing(served: Running, registry: Project) -> None:
    stop = threading.Event()
    answers: list[tuple[float, str]] = []
    faults: list[str] = []

    def ask(keep: bool) -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                body = {**GOOD, "params": {"max_new_tokens": 20}}
                try:
                    if keep:
                        answer = client.post(served.url, json=body)
                    else:
                        answer = httpx.post(served.url, json=body, timeout=60)
                    by = answer.json()["predictions"][0]["by"]
                    assert answer.headers["x-infalign-model"][-1] == {"one": "1", "two": "2"}[by]
                    answers.append((time.monotonic(), by))
                except Exception as error:
                    faults.append(repr(error))

    threads = [threading.Thread(target=ask, args=(n % 2 == 0,)) for n in range(6)]
    for thread in threads:
        thread.start()
    try:
        for version, word in (("2", "two"), ("1", "one"), ("2", "two")):
            before = len(answers)
            point(registry, version)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not any(w == word for _, w in answers[before:]):
                time.sleep(0.1)
            time.sleep(1.5)
            assert {w for _, w in answers[-6:]} == {word}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert faults == []
    assert min(Counter(word for _, word in answers).values()) > 20


def test_a_request_in_flight_is_answered_by_the_old_server(
    served: Running, registry: Project
) -> None:
    point(registry, "1")
    until(lambda: served.ask().headers["x-infalign-model"] == f"{NAME}/1")
    time.sleep(1)  # until it rests the old server may still take what comes
    answered: list[str] = []

    def slow() -> None:
        answered.append(served.ask(max_new_tokens=250).json()["predictions"][0]["by"])

    waiting = threading.Thread(target=slow)
    # A client that has connected but not asked yet must not be cut off either.
    host, port = re.search(r"http://([^:]+):(\d+)/", served.url).groups()  # type: ignore[union-attr]
    with socket.create_connection((host, int(port))) as quiet:
        waiting.start()
        time.sleep(0.5)
        before = len(served.lines)
        point(registry, "2")
        until(lambda: any("version 2 " in line for line in served.lines[before:]))
        time.sleep(1)  # the old server is told to rest
        body = json.dumps(GOOD)
        quiet.sendall(
            f"POST /invocations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        text = b""
        while part := quiet.recv(65536):
            text += part
    waiting.join()
    assert answered == ["one"]
    assert b'"by": "one"' in text


def test_a_version_that_cannot_be_loaded_changes_nothing(
    served: Running, registry: Project
) -> None:
    point(registry, "2")
    until(lambda: served.ask().headers["x-infalign-model"] == f"{NAME}/2")
    point(registry, "3")
    assert "stays" in served.wait_for("version 3 of infalign-helpful cannot be served")
    before = len(served.lines)
    point(registry, "4")
    said = served.wait_for("version 4 of infalign-helpful cannot be served: its files are missing")
    assert served.lines[before:] == [said]  # no stack trace of MLflow's
    assert said.endswith("Version 2 stays.")
    assert served.ask().headers["x-infalign-model"] == f"{NAME}/2"
    point(registry, "2")


def test_going_back_wakes_the_server_that_rests(served: Running, registry: Project) -> None:
    for version in ("1", "2"):
        point(registry, version)
        until(lambda v=version: served.ask().headers["x-infalign-model"] == f"{NAME}/{v}")
    until(lambda: len(servers(served)) == 2)
    before = set(servers(served))
    for version in ("1", "2", "1"):
        point(registry, version)
        until(lambda v=version: served.ask().headers["x-infalign-model"] == f"{NAME}/{v}")
        assert set(servers(served)) == before  # no process was started for it
    assert served.ask().json()["predictions"][0]["by"] == "one"


def test_a_server_that_dies_is_started_again(served: Running) -> None:
    before = servers(served)
    for child in before.values():
        child.kill()
    assert served.ask().status_code == 200  # it waited in the socket's queue
    served.wait_for("died: it is started again")
    assert not set(before) & set(servers(served))


@pytest.mark.soak
def test_a_killed_supervisor_leaves_no_server(registry: Project) -> None:
    point(registry, "1")
    running = Running(registry)
    children = psutil.Process(running.child.pid).children(recursive=True)
    assert children
    running.child.kill()
    running.child.wait()
    gone, alive = psutil.wait_procs(children, 30)
    assert not alive
    assert len(gone) == len(children)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objective", "helpful", "--alias", "nobody"], "no version with the alias 'nobody'"),
        (["--objective", "helpful", "--alias", "gone"], "version 4 of infalign-helpful cannot be"),
        (["--objective", "wit"], "--objective 'wit' is not one of params.yaml's"),
        ([], "--objective is missing: give one of helpful, harmless"),
        (["--objective", "helpful", "--port", "70000"], "--port 70000 is not a port"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    registry: Project, arguments: list[str], words: str
) -> None:
    # A server of a version without files is started, and ends with the process that asks.
    command = registry.run if "gone" in arguments else registry.inside
    status, output = command("serve", *arguments)
    assert status == 2, output
    assert words in output
    assert len(output.strip().splitlines()) == 1


def test_a_port_in_use_is_one_sentence(registry: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, output = registry.inside("serve", "--objective", "helpful", "--port", port)
    assert status == 2, output
    assert f"127.0.0.1:{port} cannot be listened on" in output


def test_an_error_of_mlflow_is_one_sentence() -> None:
    assert in_a_sentence(422, b"not json at all") == (422, "not json at all")
    assert in_a_sentence(503, b"{}")[0] == 500
