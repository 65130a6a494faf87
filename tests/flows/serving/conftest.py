"""Scoring servers of a packaged policy of tiny models, started without a registry."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from promotion_case import bounds, evidence, project_params, write_lock, write_package

from flows.registry.registry import open_registry, register
from flows.serving.server import SAID, Job
from infalign.settings.params import load_params
from infalign.settings.servers import Generation
from tests.conftest import MakeOnce
from tests.flows.conftest import ROOT

LIMITS = load_params(ROOT / "params.yaml").serving


def two_versions(root: Path, models: Callable[[int], Path]) -> None:
    """A project with two registered versions, the first of which is the champion.

    Args:
        models: the number of a version, 1 and then 2, to the folder of its models.
    """
    root.mkdir()
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    params = project_params()
    sizes = params.model.model_copy(update={"response_tokens": 12})
    params = params.model_copy(update={"promotion": bounds(), "model": sizes})
    registry = open_registry(root)
    for number in (1, 2):
        folder = write_package(root / "package", models(number), evidence(seed=number))
        write_lock(root, f"result {number}")
        register(registry, params, "helpful", folder)
    registry.champions("helpful").promote("1", None, "the first", {})


@dataclass
class Scoring:
    """A server at work."""

    address: tuple[str, int]
    url: str
    pid: int

    def post(self, body: Any, path: str = "/invocations", **named: Any) -> httpx.Response:
        """One request."""
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        headers = {"content-type": "application/json"} | named.pop("headers", {})
        # No certificates are read for it, which would take longer than the answer.
        url = self.url.replace("/invocations", path)
        return httpx.post(url, headers=headers, timeout=60, verify=False, **content, **named)


@pytest.fixture(scope="session")
def packaged(make_once: MakeOnce, quiet: dict[str, str]) -> Path:
    """The folder of the saved model; `…-older` beside it."""

    def make(folder: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "tests.flows.serving.serving_package",
            str(folder / "model"),
        ]
        path = f"{quiet['PYTHONPATH']}{os.pathsep}{ROOT / 'tests'}"
        subprocess.run(command, cwd=folder, env=quiet | {"PYTHONPATH": path}, check=True)

    return make_once("packaged", make) / "model"


@pytest.fixture(scope="session")
def scoring(quiet: dict[str, str]) -> Callable[..., Any]:
    """Starts a server of a model, and ends it: a context."""

    @contextmanager
    def start(
        model: Path,
        log: Path | None = None,
        generation: Generation | None = None,
        folder: Path | None = None,
        **limits: Any,
    ) -> Iterator[Scoring]:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        read, write = os.pipe()
        bounds = LIMITS.model_validate(LIMITS.model_dump() | limits)
        job = Job(str(model), listener.fileno(), write, bounds, log and str(log))
        if generation:
            job = replace(job, generation=generation)
        child = subprocess.Popen(
            [sys.executable, "-m", "flows.serving.server"],
            env=quiet | {"INFALIGN_SCORING": job.dump(), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            pass_fds=(listener.fileno(), write),
            cwd=folder,
        )
        os.close(write)
        try:
            assert select.select([read], [], [], 120)[0], "the server did not start"
            assert os.read(read, SAID) == b"ready"
            address = listener.getsockname()
            yield Scoring(address, f"http://127.0.0.1:{address[1]}/invocations", child.pid)
        finally:
            assert child.stdin is not None
            child.stdin.close()
            try:
                child.wait(60)
            finally:
                child.kill()
                child.wait()
                os.close(read)
                listener.close()

    return start
