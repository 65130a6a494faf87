"""docs/production.md as one story on real servers: every command of the page, in turn.

Services go up; a scheduled run fires by itself, registers, judges and promotes; the champion is
served; a worse challenger is refused by name; what is forced through is rolled back, and the same
request gets the same bytes as before; the services go down and nothing is left.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from promotion_case import write_made

from flows.serving.log import FEEDBACK, read_log
from tests.flows.conftest import ROOT, Project, contents, git, write_toy
from tests.flows.runs.test_pipeline import wait_for
from tests.flows.services.test_services import _finished, ask, free_port, url, write_prefect
from tests.flows.test_readme import PLAYED, lines_of

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
PAGE = ROOT / "docs" / "production.md"


@pytest.fixture
def place(tmp_path: Path, tokenizer: Any, quiet: dict[str, str]) -> Iterator[Project]:
    """A committed project of made-up results, with `make`, and with `infalign` on its PATH."""
    root = tmp_path / "project"
    write_toy(root)
    (root / "toy_stage.py").unlink()
    write_made(root, tokenizer)
    write_other_policy(root, tokenizer)
    write_prefect(root)
    nightly = yaml.safe_load((root / "prefect.yaml").read_text())
    nightly["deployments"][0]["parameters"] = {"promote": True}
    (root / "prefect.yaml").write_text(yaml.safe_dump(nightly))
    shutil.copytree(ROOT / "deploy", root / "deploy")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, root / name)
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "infalign").write_text(f'#!/bin/sh\nexec {sys.executable} -m flows.cli "$@"\n')
    (programs / "infalign").chmod(0o755)
    (root / ".venv" / ".installed").touch()
    ports = {"PREFECT_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
    project = Project(root, quiet | ports | {"HF_HUB_OFFLINE": "1"})
    project.environment["PATH"] = f"{programs}:{project.environment['PATH']}"
    commit(root)
    try:
        yield project
    finally:
        project.run("down")
        project.end()


def write_other_policy(root: Path, tokenizer: Any) -> None:
    """A policy of other weights where few steps are asked for, so that its answers differ."""
    import torch

    from infalign.lm.models import build_tiny, save_model
    from infalign.settings.params import Tiny

    folder = root / "worse" / "align"
    shutil.copytree(root / "made" / "align", folder)
    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
    for policy in folder.glob("*/ctrl/policy"):
        shutil.rmtree(policy)
        model = build_tiny(sizes, tokenizer, 96, torch.device("cpu"), seed=7)
        save_model(model, tokenizer, policy)


def commit(root: Path) -> None:
    """Everything that git does not ignore."""
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--allow-empty", "-m", "results")


class Story:
    """The page's commands, each taken from it by a pattern and run as it is written."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.left = [line for line in lines_of(PAGE) if re.match(PLAYED, line)]
        port = project.environment["PREFECT_PORT"]
        self.login = self.take(r"export PREFECT_API_URL").replace("4200", port)

    def take(self, pattern: str) -> str:
        """The first command that matches, which is then told."""
        line = next(line for line in self.left if re.match(pattern, line))
        self.left.remove(line)
        return line

    def tell(self, pattern: str, status: int = 0, timeout: float = 400) -> str:
        """Run a command of the page: its output."""
        line = self.take(pattern)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=self.project.root,
            env=self.project.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == status, f"{line}: {done.stdout}"
        return done.stdout

    def aliases(self) -> dict[str, str]:
        """As a reader of the MLflow server finds them."""
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=url(self.project, "MLFLOW", ""))
        model = client.get_registered_model("infalign-helpful")
        return {alias: str(version) for alias, version in model.aliases.items()}


def test_from_a_run_to_production(place: Project) -> None:
    story = Story(place)
    story.tell(r"make up")
    story.tell(r"infalign schedule --on")
    _finished(place, "nightly")
    assert story.aliases() == {"champion": "1"}
    story.tell(r"infalign schedule --off")
    wait_for(lambda: not ask(place, "/flow_runs/count", RUNNING), 120)
    commit(place.root)
    assert "unchanged" in story.tell(r"infalign run$")
    worker_joins(story)
    create_pool(story)
    with Served(story) as served:
        first = served.answer()
        assert json.loads(first)["predictions"][0]["response"]
        refuse_and_force(story)
        wait_for(lambda: served.answer() != first, 120)
        story.tell(r"infalign rollback")
        assert story.aliases() == {"champion": "1"}
        wait_for(lambda: served.answer() == first, 120)
        chat = shlex.split(story.take(r"curl .*/v1/chat/completions"))
        said = served.post("/v1/chat/completions", chat[chat.index("-d") + 1])
        assert said["choices"][0]["message"]["content"]
    with Served(story, r"curl .*/feedback") as logged:
        said = logged.post("/v1/chat/completions", chat[chat.index("-d") + 1])
        written = logged.post("/feedback", logged.body.replace("chatcmpl-…", said["id"]))
        assert written == {"status": "written"}
    [feedback] = read_log(place.root / "logs" / "helpful", FEEDBACK).to_pylist()
    assert (feedback["id"], feedback["rating"]) == (said["id"], 1.0)
    assert "1 pairs corrected by a user" in story.tell(r"infalign data from-log")
    assert '"rollback"' in place.run("history", "--json")[1]
    assert "rollback" in story.tell(r"infalign history")
    assert "champion" in story.tell(r"infalign versions")
    assert "helpful" in story.tell(r"infalign restore --version")
    assert "worker ended." in story.tell(r"make down")
    assert place.survivors() == []
    assert story.left == []


def test_a_worker_in_another_clone_works_there(place: Project, tmp_path: Path) -> None:
    """Its data and results, the one registry: whoever serves takes what it promoted."""
    story = Story(place)
    story.tell(r"make up")
    story.tell(r"infalign schedule --off")  # the deployments are there, and nothing is due
    own = json.loads((place.root / ".infalign" / "services" / "worker.json").read_text())
    os.killpg(own["pid"], signal.SIGTERM)  # of the two, the other one is to work
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(place.root), str(other))
    shutil.copytree(place.root / ".dvc", other / ".dvc", dirs_exist_ok=True)
    before = git(place.root, "rev-parse", "HEAD"), contents(place.root)
    line = story.take(r"INFALIGN_ROOT=\$PWD prefect worker start")
    line = line.replace("$PWD", str(other))
    environment = place.environment | {"MLFLOW_TRACKING_URI": url(place, "MLFLOW", "")}
    with subprocess.Popen(
        ["bash", "-c", f"{story.login}; cd {other}; exec env {line}"],
        cwd=place.root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as worker:
        try:
            named = {"deployments": {"name": {"any_": ["nightly"]}}}
            [nightly] = ask(place, "/deployments/filter", named)
            due = {"parameters": nightly["parameters"], "state": {"type": "SCHEDULED"}}
            ask(place, f"/deployments/{nightly['id']}/create_flow_run", due)
            _finished(place, "nightly")
        finally:
            os.killpg(worker.pid, signal.SIGTERM)
            worker.wait(60)
    assert story.aliases() == {"champion": "1"}
    assert (other / "dvc.lock").is_file()
    assert contents(other)
    assert before == (git(place.root, "rev-parse", "HEAD"), contents(place.root))
    assert "champion" in story.tell(r"infalign versions")
    with Served(story) as served:
        assert json.loads(served.answer())["predictions"][0]["response"]


RUNNING = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}


def refuse_and_force(story: Story) -> None:
    """A run of fewer steps is refused, whoever asks, until someone forces it with a reason."""
    params = story.project.root / "params.yaml"
    before = params.read_text()
    params.write_text(re.sub(r"(align:\n(?:  .*\n)*?  steps: )\d+", r"\g<1>5", before))
    assert params.read_text() != before
    said = story.tell(r"infalign run --promote")
    assert re.search(r"infalign-helpful version 2 is not promoted; failed: .*champion", said)
    assert story.aliases() == {"champion": "1", "challenger": "2"}
    assert "champion" in story.tell(r"infalign promote --dry-run", status=1)
    story.tell(r"infalign promote .*--force")
    assert story.aliases() == {"champion": "2", "previous_champion": "1"}
    params.write_text(before)


class Served:
    """`infalign serve` as the page starts it, and the request that the page makes."""

    def __init__(self, story: Story, request_of: str = r"curl .*/invocations") -> None:
        port = str(free_port())
        words = shlex.split(story.take(r"infalign serve").replace("5001", port))
        request = shlex.split(story.take(request_of).replace("5001", port))
        self.url = next(word for word in request if word.startswith("http"))
        self.body = request[request.index("-d") + 1]
        self.headers = dict([request[request.index("-H") + 1].split(": ")])
        self.project = story.project
        self.child = self.project.start(*words[1:])

    def __enter__(self) -> Served:
        wait_for(lambda: self.child.poll() is not None or self._alive(), 120)
        assert self.child.poll() is None, self.child.communicate()[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.child.send_signal(signal.SIGINT)
        output = self.child.communicate(timeout=120)[0]
        assert self.child.returncode == 0, output

    def _alive(self) -> bool:
        try:
            return httpx.get(self._at("/ping")).status_code == 200
        except httpx.TransportError:
            return False

    def _at(self, path: str) -> str:
        return str(httpx.URL(self.url).join(path))

    def post(self, path: str, body: str) -> Any:
        """What another page says."""
        response = httpx.post(
            self._at(path), content=body.encode(), headers=self.headers, timeout=120
        )
        assert response.status_code == 200, response.text
        return response.json()

    def answer(self) -> bytes:
        """What the server says to the page's request, which nothing may drop."""
        response = httpx.post(self.url, content=self.body, headers=self.headers, timeout=120)
        assert response.status_code == 200, response.text
        return response.content


def worker_joins(story: Story) -> None:
    """The page's worker of the user's own becomes a second one of the pool, and ends."""
    line = story.take(r"INFALIGN_ROOT=\$PWD prefect worker start")
    with subprocess.Popen(
        ["bash", "-c", f"{story.login}; exec env {line}"],
        cwd=story.project.root,
        env=story.project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as child:
        try:
            path = "/work_pools/infalign/workers/filter"
            wait_for(
                lambda: sum(w["status"] == "ONLINE" for w in ask(story.project, path)) == 2, 120
            )
        finally:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait(60)


def create_pool(story: Story) -> None:
    """The page's Kubernetes pool, under a name of its own: the other one exists."""
    line = story.take(r"prefect work-pool create").replace("create infalign", "create infalign-k8s")
    project = story.project
    line = f"{story.login}; {line}"
    subprocess.run(["bash", "-c", line], cwd=project.root, env=project.environment, check=True)
    names = {pool["name"] for pool in ask(project, "/work_pools/filter")}
    assert "infalign-k8s" in names
