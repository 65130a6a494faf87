"""Answers of a deployed policy for many clients: a bounded queue, counts for Prometheus, the log.

Requests wait in threads; whoever waits is drawn for side by side with all who wait
(`infalign.deployment.together`). Where too many wait, a request is refused at once with the time
after which to come again.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flows.serving.log import Log
from flows.serving.requests import Refused
from infalign.deployment.deployed import Deployed, Drawn, Request
from infalign.settings.params import Serving

SMOOTH = 0.2  # of the newest answer, in the time that a prompt takes
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Busy(Refused):
    """Too many wait."""

    def __init__(self, seconds: int, waiting: int) -> None:
        super().__init__(429, f"{waiting} prompts wait already: come again in {seconds} seconds.")
        self.seconds = seconds


class Answering:
    """Draws for prompts, side by side where several wait.

    Args:
        deployed: the policy.
        model: as `infalign-helpful/3`.
        limits: section `serving` of params.yaml.
        log: takes what was asked and answered, if anything does.
    """

    def __init__(self, deployed: Deployed, model: str, limits: Serving, log: Log | None) -> None:
        self.deployed = replace(deployed, together=limits.side_by_side)
        self.model, self.limits, self.log = model, limits, log
        self._pool = ThreadPoolExecutor(limits.waiting, "answering")
        self._waiting, self._each = 0, 0.1  # prompts, and seconds that one took
        registry = self._registry = CollectorRegistry()
        name, _, version = model.partition("/")
        labels = {"model": name, "version": version}

        def made(kind: Any, what: str, about: str, **more: Any) -> Any:
            return kind(f"infalign_{what}", about, list(labels), registry=registry, **more).labels(
                **labels
            )

        self._prompts = made(Counter, "prompts", "Prompts answered")
        self._responses = made(Counter, "responses", "Responses drawn")
        self._tokens = made(Counter, "tokens", "Tokens drawn")
        self._refused = made(Counter, "refused", "Prompts refused because too many waited")
        self._queue = made(Gauge, "waiting_prompts", "Prompts waiting or being answered")
        self._seconds = made(Histogram, "request_seconds", "Time to answer", buckets=SECONDS)
        self._rewards = made(
            Histogram,
            "kept_calibrated",
            "Calibrated reward of kept answers with references",
            buckets=[x / 10 for x in range(1, 11)],
        )

    async def draw(self, prompts: Sequence[str], requests: Sequence[Request]) -> list[Drawn]:
        """What is drawn for each prompt; Busy where too many wait.

        Args:
            prompts: texts or dialogues' canonical JSON.
            requests: one a prompt.
        """
        if self._waiting + len(prompts) > self.limits.waiting and self._waiting:
            self._refused.inc(len(prompts))
            raise Busy(max(1, math.ceil(self._waiting * self._each)), self._waiting)
        self._waiting += len(prompts)
        self._queue.set(self._waiting)
        begun = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            drawn = await loop.run_in_executor(self._pool, self.deployed.draw, prompts, requests)
        finally:
            self._waiting -= len(prompts)
            self._queue.set(self._waiting)
        took = time.monotonic() - begun
        self._each += SMOOTH * (took / (self._waiting + len(prompts)) - self._each)
        self._count(drawn, took)
        return drawn

    def _count(self, drawn: Sequence[Drawn], took: float) -> None:
        self._prompts.inc(len(drawn))
        self._responses.inc(sum(len(one.responses) for one in drawn))
        self._tokens.inc(int(sum(one.n_tokens.sum() for one in drawn)))
        self._seconds.observe(took)
        for one in drawn:
            if one.calibrated is not None:
                self._rewards.observe(one.calibrated)

    def record(self, drawn: Sequence[Drawn], requests: Sequence[Request], took: float) -> str:
        """The name of an answer; what was asked and answered goes to the log."""
        name = f"chatcmpl-{uuid.uuid4().hex}"
        if self.log is not None:
            self.log.add(name, self.model, drawn, requests, took)
        return name

    def metrics(self) -> bytes:
        """Everything counted, as Prometheus reads it."""
        return generate_latest(self._registry)
