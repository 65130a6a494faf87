"""Ten promotions and rollbacks under 10,000 requests: none fails, none is mixed, none is lost.

Two real versions whose answers to every request are known beforehand. INFALIGN_REQUESTS asks for
another number of requests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from promotion_case import tiny_models

from flows.registry.registry import open_registry
from flows.serving.log import ANSWERS, read_log
from infalign.deployment.deployed import Request, load_deployed
from tests.flows.conftest import Project
from tests.flows.serving.conftest import two_versions
from tests.flows.serving.test_supervisor import Running, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]
REQUESTS = int(os.environ.get("INFALIGN_REQUESTS", "10000"))
MOVES = 10
CLIENTS = 8
SECRET = "pl4nted-s3cret"
PROMPTS = [f"{word} {SECRET} two" for word in ("one", "three", "five", "seven")]
SEEDS = range(5)
NAME = "infalign-helpful"
REDACT = f'''def clean(text):
    return text.replace("{SECRET}", "(removed)")
'''


@pytest.fixture
def project(tmp_path: Path, tokenizer: Any, quiet: dict[str, str]) -> Any:
    """Two versions of other weights, the first of which is the champion."""
    root = tmp_path / "project"
    tiny_models(tmp_path / "models", tokenizer)

    def models(number: int) -> Path:
        if number == 2:
            other_weights(tmp_path / "models" / "policy")
        return tmp_path / "models"

    two_versions(root, models)
    tree = yaml.safe_load((root / "params.yaml").read_text())
    tree["serving"] |= {"poll_seconds": 0.3, "log_rows": 500, "redact": "redact.py:clean"}
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    (root / "redact.py").write_text(REDACT)
    made = Project(root, quiet | {"HF_HUB_OFFLINE": "1"})
    yield made
    made.end()


def other_weights(folder: Path) -> None:
    """A policy that says something else."""
    import torch

    from infalign.lm.models import load_format, load_policy, save_model

    model, form = load_policy(folder, torch.device("cpu"), "float32"), load_format(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    shutil.rmtree(folder)
    save_model(model, form.tokenizer, folder)


def expected(project: Project) -> dict[tuple[str, str, int], str]:
    """What each version answers to each prompt and seed."""
    found = {}
    for number in ("1", "2"):
        package = open_registry(project.root).package("helpful", number, project.root / "none")
        deployed = load_deployed(package / "deployed", threads=1)
        for prompt in PROMPTS:
            for seed in SEEDS:
                [answer] = deployed.answer([prompt], Request("", seed=seed))
                found[number, prompt, seed] = answer.response
    return found


class Clients:
    """Threads that ask until enough was asked; what was answered, and what went wrong."""

    def __init__(self, url: str, answers: dict[tuple[str, str, int], str]) -> None:
        self.url, self.expected = url, answers
        self.given: dict[str, tuple[str, str, int]] = {}
        self.faults: list[str] = []
        self.moved = threading.Event()  # all moves are made
        self.last = ""  # the version of the last answer
        self._lock, self._asked = threading.Lock(), 0
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        with httpx.Client(timeout=120) as client:
            while True:
                with self._lock:
                    number, self._asked = self._asked, self._asked + 1
                if number >= REQUESTS and self.moved.is_set():
                    return
                prompt, seed = PROMPTS[number % 4], number // 4 % len(SEEDS)
                body = {"inputs": [prompt], "params": {"seed": seed}}
                try:
                    reply = client.post(self.url, json=body)
                    reply.raise_for_status()
                    version = reply.headers["x-infalign-model"].rpartition("/")[2]
                    said = reply.json()["predictions"][0]["response"]
                    assert said == self.expected[version, prompt, seed], (version, said)
                    self.last = version
                    with self._lock:
                        self.given[reply.headers["x-infalign-id"]] = (version, prompt, seed)
                except Exception as error:
                    self.faults.append(repr(error))

    def done(self) -> int:
        return len(self.given) + len(self.faults)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def test_ten_promotions_and_rollbacks_under_load(project: Project) -> None:
    answers = expected(project)
    different = sum(answers["1", p, s] != answers["2", p, s] for p in PROMPTS for s in SEEDS)
    assert different > len(PROMPTS) * len(SEEDS) / 2
    champions = open_registry(project.root).champions("helpful")
    log = project.root / "logs"
    served = Running(project, "--log", str(log))
    clients = Clients(served.url, answers)
    for move in range(MOVES):
        until(lambda m=move: clients.done() >= m * REQUESTS // MOVES, 3600)
        if move % 2 == 0:
            champions.promote("2", "1", f"move {move}", {})
        else:
            champions.rollback(f"move {move}")
        until(lambda m=move: clients.last == "21"[m % 2], 600)
    clients.moved.set()
    clients.join()
    served.child.send_signal(signal.SIGINT)
    assert served.child.wait(240) == 0, served.lines
    assert clients.faults == []
    assert len(clients.given) >= REQUESTS
    assert {version for version, _, _ in clients.given.values()} == {"1", "2"}
    written = {row["id"]: row for row in read_log(log, ANSWERS).to_pylist()}
    assert written.keys() == clients.given.keys()
    for name, (version, prompt, seed) in clients.given.items():
        row = written[name]
        assert (row["version"], row["seed"]) == (version, seed)
        assert row["responses"][row["kept"]] == answers[version, prompt, seed]
        assert "(removed)" in json.loads(row["dialogue"])[-1]["content"]
    for path in log.rglob("*"):
        assert SECRET.encode() not in path.read_bytes()
