"""Sides that take turns: each in a process of its own, at work only while the others wait.

A side is `python -m benchmarks.sides NAME FOLDER`. It calls `Gate.step` where a step begins: what
the step before it took and what it counted is sent to `Side.step`, and the side waits for its next
turn. Seconds are counted by the side itself, from the opening of the gate to the next knock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parent.parent


class Finished(Exception):
    """No more turns are wanted."""


class Gate:
    """The side's end of the line. What a library prints goes to standard error instead."""

    def __init__(self) -> None:
        self._line: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._begun: float | None = None

    def step(self, counts: Mapping[str, float]) -> None:
        """End the step before with its counts, and wait for the next turn."""
        now = time.perf_counter()
        if self._begun is None:
            self.send({"ready": True, "base_mib": status_mib("VmRSS")})
            with open("/proc/self/clear_refs", "w") as refs:
                refs.write("5")  # the peak counts from here
        else:
            seconds = now - self._begun
            self.send({"seconds": seconds, "peak_mib": status_mib("VmHWM"), **counts})
        if sys.stdin.readline().strip() != "go":
            raise Finished
        self._begun = time.perf_counter()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one line of JSON."""
        self._line.write(json.dumps(message) + "\n")


def status_mib(field: str) -> float:
    """A field of this process's status (VmRSS now, VmHWM the peak), MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


class Side:
    """The other end: a process that takes a step at a time."""

    def __init__(self, *arguments: str) -> None:
        self._name = arguments[0]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sides", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.base: dict[str, Any] = self._receive()

    def step(self) -> dict[str, Any]:
        """Let the side take one step: its seconds, peak memory and counts."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._receive()

    def close(self) -> None:
        """No more turns."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.stdin = None  # or communicate() flushes it
        self._process.communicate(timeout=60)

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._process.communicate()[1]
            raise RuntimeError(f"{self._name} ended:\n{said[-3000:]}")
        message: dict[str, Any] = json.loads(line)
        return message


def in_turns(
    sides: Mapping[str, Sequence[str]], *, warm: int, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Steps of every side, one of each in turn, without the first `warm` rounds.

    Args:
        sides: name to arguments of the process.
    """
    running: dict[str, Side] = {}
    try:
        for name, arguments in sides.items():
            running[name] = Side(*arguments)
        steps: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for number in range(warm + rounds):
            for name, side in running.items():
                step = side.step() | {"base_mib": side.base["base_mib"]}
                if number >= warm:
                    steps[name].append(step)
        return steps
    finally:
        for side in running.values():
            side.close()
