"""`infalign serve` over real servers of vLLM: promotion, rollback, a kill, a wrong server."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
import yaml

from flows.registry.registry import open_registry
from infalign.deployment.deployed import Request, load_deployed
from infalign.engines.starting import Start, end, free_port, log_path, spawn, wait_until_up
from infalign.lm.models import build_reward_model, build_tiny, save_model
from infalign.settings.params import Tiny
from infalign.settings.servers import Generation
from tests.flows.conftest import ROOT, Project
from tests.flows.serving.conftest import two_versions
from tests.flows.serving.test_supervisor import NAME, Running, until

PYTHON = ROOT / ".venv-engine" / "bin" / "python"
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not PYTHON.exists(), reason="run `make engine` first"),
]
WITHIN = 1800.0  # seconds that a server of vLLM may take to start
PROMPTS = ["ten", "three four five", "six", "seven eight nine"]
COLD, FEW = 0.01, 4  # the likeliest tokens, whatever the random numbers are


def models(folder: Path, tokenizer: Any, seed: int) -> Path:
    """A policy and its reward; vLLM's attention on a CPU begins at a head size of 32."""
    sizes = Tiny(vocab_size=300, hidden_size=64, intermediate_size=96, layers=2, heads=2)
    policy = build_tiny(sizes, tokenizer, 96, torch.device("cpu"), seed=seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.parameters():  # so large that they have something to say
            weight += 0.1 * torch.randn(weight.shape, generator=random)
    save_model(policy, tokenizer, folder / "policy")
    reward = build_reward_model(folder / "policy", tokenizer, torch.device("cpu"), seed=2)
    save_model(reward, tokenizer, folder / "reward")
    return folder


@pytest.fixture
def project(tmp_path: Path, tokenizer: Any, quiet: dict[str, str]) -> Iterator[Project]:
    """Two versions of other weights, the first of which is the champion."""
    root = tmp_path / "project"
    two_versions(root, lambda n: models(tmp_path / f"models {n}", tokenizer, seed=n))
    made_of = Project(root, quiet | {"HF_HUB_OFFLINE": "1"})
    yield made_of
    made_of.end()


def configure(root: Path, *urls: str) -> None:
    tree = yaml.safe_load((root / "params.yaml").read_text())
    tree["serving"] |= {"poll_seconds": 0.3, "engine": "vllm", "urls": list(urls)}
    tree["generation"] |= {"python": str(PYTHON)}
    (root / "params.yaml").write_text(yaml.safe_dump(tree))


def packaged(project: Project, version: str) -> Path:
    registry = open_registry(project.root)
    return registry.package("helpful", version, project.root / "none") / "deployed"


def cold(project: Project, version: str) -> list[str]:
    """What a version answers where it is cold, by the built-in sampler."""
    deployed = load_deployed(packaged(project, version), threads=1)
    request = Request("standard", max_new_tokens=FEW, temperature=COLD)
    return [answer.response for answer in deployed.answer(PROMPTS, request)]


def asked(served: Running, seed: int, temperature: float = 1.0) -> tuple[str, list[str]]:
    """The version that answered, and what."""
    params = {"seed": seed, "procedure": "best_of:4", "temperature": temperature}
    params["max_new_tokens"] = FEW
    body = {"inputs": PROMPTS, "params": params}
    reply = httpx.post(served.url, json=body, timeout=600, verify=False)
    reply.raise_for_status()
    said = [row["response"] for row in reply.json()["predictions"]]
    return reply.headers["x-infalign-model"].rpartition("/")[2], said


def engines(served: Running) -> dict[str, psutil.Process]:
    """The servers of vLLM, by the name of what they serve."""
    found = {}
    for child in psutil.Process(served.child.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ValueError, IndexError):
            line = child.cmdline()
            found[line[line.index("--served-model-name") + 1]] = child
    return found


def test_each_version_has_a_server_and_a_rollback_finds_the_former_one(project: Project) -> None:
    configure(project.root)
    wanted = {version: cold(project, version) for version in "12"}
    assert wanted["1"] != wanted["2"]
    champions = open_registry(project.root).champions("helpful")
    served = Running(project, within=WITHIN)
    assert list(engines(served)) == [f"{NAME}/1"]
    assert asked(served, 0, COLD) == ("1", wanted["1"])
    with ThreadPoolExecutor(16) as pool:
        warm = list(pool.map(lambda seed: asked(served, seed), [*range(16)] * 2))
        same = sum(one == other for one, other in zip(warm[:16], warm[16:], strict=True))
        assert same >= 12, "the same request and seed, but for roundings"
        assert len({tuple(said) for _, said in warm}) > 12
    champions.promote("2", "1", "moved", {})
    while asked(served, 0, COLD) == ("1", wanted["1"]):  # without a gap
        time.sleep(0.1)
    assert asked(served, 0, COLD) == ("2", wanted["2"])
    assert sorted(engines(served)) == [f"{NAME}/1", f"{NAME}/2"]
    before = time.monotonic()
    champions.rollback("moved back")
    until(lambda: asked(served, 0, COLD) == ("1", wanted["1"]), 60)
    print(f"a rollback took {time.monotonic() - before:.1f} s")
    os.killpg(engines(served)[f"{NAME}/1"].pid, signal.SIGKILL)
    with pytest.raises(httpx.HTTPStatusError, match="503"):
        asked(served, 1)

    def answers() -> bool:
        with contextlib.suppress(httpx.HTTPStatusError):
            return asked(served, 0, COLD) == ("1", wanted["1"])
        return False

    until(answers, WITHIN)
    left = list(engines(served).values())
    served.child.send_signal(signal.SIGINT)
    assert served.child.wait(240) == 0, served.lines
    psutil.wait_procs(left, timeout=60)
    assert not any(process.is_running() for process in left)


def test_a_version_whose_server_has_another_policy_changes_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    names = ["--served-model-name", f"{NAME}/1", f"{NAME}/2"]
    settings = Generation(python=str(PYTHON), options=names)
    start = Start(settings, packaged(project, "1") / "policy", "both", True, "cpu")
    port = free_port()
    process, url = spawn(start, port, detached=False), f"http://127.0.0.1:{port}"
    try:
        wait_until_up(process, url, log_path("both"))
        configure(project.root, url)
        served = Running(project, within=WITHIN)
        wanted = cold(project, "1")
        assert asked(served, 0, COLD) == ("1", wanted)
        open_registry(project.root).champions("helpful").promote("2", "1", "moved", {})
        line = served.wait_for("Version 1 stays", WITHIN)
        assert f"serving.urls: the server of '{NAME}/2' gives its responses log-prob" in line
        assert asked(served, 0, COLD) == ("1", wanted)
        served.child.send_signal(signal.SIGINT)
        assert served.child.wait(240) == 0, served.lines
    finally:
        end(process)
