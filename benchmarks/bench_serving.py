"""Requests a second of a served policy: drawn side by side, and each prompt alone.

`python -m benchmarks.bench_serving [--results FOLDER] [--objective O]` packs the policy that
`promotion.variant` names from a finished run, and serves it as `infalign serve` does, once with
serving.side_by_side as it is in params.yaml and once with 1. 16 clients ask one after the other, in
turns of some seconds, one side at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from flows.registry.packaging import save
from flows.serving.server import SAID, Job
from infalign.deployment.package import package
from infalign.settings.params import Params, load_params

CLIENTS, SECONDS, TURNS = 16, 5.0, 5


@contextlib.contextmanager
def serving(model: Path, params: Params, **limits: int) -> Iterator[str]:
    """The address of a server of the packaged model."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    read, write = os.pipe()
    bounds = params.serving.model_copy(update=limits)
    job = Job(str(model), listener.fileno(), write, bounds)
    child = subprocess.Popen(
        [sys.executable, "-m", "flows.serving.server"],
        env=os.environ | {"INFALIGN_SCORING": job.dump(), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        pass_fds=(listener.fileno(), write),
    )
    os.close(write)
    try:
        select.select([read], [], [], 300)
        if os.read(read, SAID) != b"ready":
            raise RuntimeError("the server did not start")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
    finally:
        assert child.stdin is not None
        child.stdin.close()
        child.wait(60)
        os.close(read)
        listener.close()


def load(url: str, prompts: list[str], procedure: str) -> list[float]:
    """Seconds that each answer took, of clients that ask one after the other."""
    took: list[float] = []
    end = time.monotonic() + SECONDS

    def client(number: int) -> None:
        with httpx.Client(timeout=60, verify=False) as line:
            asked = number
            while time.monotonic() < end:
                body = {
                    "messages": [{"role": "user", "content": prompts[asked % len(prompts)]}],
                    "infalign": {"procedure": procedure},
                }
                begun = time.monotonic()
                answer = line.post(url, json=body)
                if answer.status_code != 200:
                    raise RuntimeError(answer.text)
                took.append(time.monotonic() - begun)
                asked += CLIENTS

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took


def main(arguments: list[str]) -> None:
    """Print both sides' rates and latencies, and the ratio of the rates in turns."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_serving")
    parser.add_argument("--results", type=Path, default=Path.cwd(), help="a project that has run")
    parser.add_argument("--objective", default="helpful")
    chosen = parser.parse_args(arguments)
    params = load_params(chosen.results / "params.yaml")
    texts = ["How do I bake bread?", "What is a good name for a cat?", "Why is the sky blue?"]
    with tempfile.TemporaryDirectory() as made:
        folder, model = Path(made) / "package", Path(made) / "model"
        package(chosen.results, params, chosen.objective, params.promotion.variant, folder)
        save(params, chosen.objective, folder, model)
        procedure = params.objectives[chosen.objective].procedure
        with (
            serving(model, params) as together,
            serving(model, params, side_by_side=1) as alone,
        ):
            sides: dict[str, list[list[float]]] = {together: [], alone: []}
            for _ in range(TURNS):
                for url, turns in sides.items():
                    turns.append(load(url, texts, procedure))
    ratios = [len(a) / len(b) for a, b in zip(*sides.values(), strict=True)]
    for name, turns in zip(("side by side", "each alone"), sides.values(), strict=True):
        took = sorted(seconds for turn in turns for seconds in turn)
        rate = statistics.median(len(turn) for turn in turns) / SECONDS
        print(
            f"{name:<14} {rate:7.1f} requests/s   median {took[len(took) // 2]:.3f} s   "
            f"p99 {took[int(0.99 * len(took))]:.3f} s"
        )
    print(json.dumps({"clients": CLIENTS, "procedure": procedure, "ratios": ratios}))
    print(f"side by side answers {statistics.median(ratios):.2f} times as many (median of {TURNS})")


if __name__ == "__main__":
    main(sys.argv[1:])
