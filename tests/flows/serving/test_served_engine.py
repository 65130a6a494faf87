"""A scoring server whose responses another server draws: answers, refusals, an outage."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from flows.serving.server import SAID, Job
from infalign.deployment.deployed import Request, load_deployed
from infalign.settings.servers import Generation
from tests.engines.own_server import stand_in
from tests.flows.serving.conftest import LIMITS

PROMPT = "one two three"


def test_it_starts_a_server_and_answers_as_ever_and_again_after_that_one_was_killed(
    packaged: Path, scoring: Callable[..., Any], tmp_path: Path
) -> None:
    deployed = load_deployed(packaged / "artifacts" / "deployed", threads=1)
    asked = {"procedure": "best_of:8", "seed": 3, "temperature": 0.7}
    wanted = [asdict(one) for one in deployed.answer([PROMPT], Request(**asked))]
    generation = Generation(python=str(stand_in(tmp_path)))
    limits = {"engine": "vllm", "folder": tmp_path, "generation": generation}
    with scoring(packaged, **limits) as served:
        body = {"inputs": [PROMPT], "params": asked}
        assert served.post(body).json()["predictions"] == wanted
        engines = [
            child
            for child in psutil.Process(served.pid).children()
            if "--served-model-name" in child.cmdline()
        ]
        [engine] = engines
        engine.kill()
        away = served.post(body)
        assert away.status_code == 503, away.text
        assert "the server's log says why" in away.json()["error"]
        deadline = time.monotonic() + 120
        while (answer := served.post(body)).status_code == 503:
            assert time.monotonic() < deadline
        assert answer.json()["predictions"] == wanted
        left = psutil.Process(served.pid).children(recursive=True)
    psutil.wait_procs(left, timeout=60)
    assert not any(process.is_running() for process in left)


def test_a_version_that_no_server_has_is_refused_in_one_sentence(
    packaged: Path, quiet: dict[str, str]
) -> None:
    limits = LIMITS.model_copy(update={"engine": "vllm", "urls": ["http://127.0.0.1:9"]})
    read, write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        job = Job(str(packaged), listener.fileno(), write, limits)
        assert Job.load(json.dumps(json.loads(job.dump()))) == job
        child = subprocess.run(
            [sys.executable, "-m", "flows.serving.server"],
            env=quiet | {"INFALIGN_SCORING": job.dump(), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            pass_fds=(listener.fileno(), write),
        )
    os.close(write)
    assert child.returncode == 1
    assert select.select([read], [], [], 0)[0]
    said = os.read(read, SAID).decode()
    os.close(read)
    assert said.startswith("serving.urls: no server has ")
    assert "cannot be reached" in said
