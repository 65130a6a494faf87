"""Speed of infalign.theory beside the plain-numpy way: `python -m benchmarks.bench_theory`.

Every line asserts nothing; it prints seconds, the ceiling they should stay under, and the
peak of traced memory where that has one too.
"""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from infalign.theory import bootstrap_interval, calibrate, win_rates

PROMPTS = 10_000


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Best of three runs, in seconds, with the result."""
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return best, result


def peak_mib(call: Callable[[], Any]) -> float:
    """Peak memory that numpy and Python allocate during a call, in MiB."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def plain_calibrate(candidates: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """All comparisons at once, a thousand prompts at a time."""
    parts = []
    for start in range(0, len(candidates), 1000):
        values = candidates[start : start + 1000, :, None]
        others = reference[start : start + 1000, None, :]
        parts.append(((others < values) + 0.5 * (others == values)).mean(axis=2))
    return np.concatenate(parts)


def plain_best_of_four(policy: np.ndarray, reference: np.ndarray, rng: np.random.Generator) -> Any:
    """1,000 random subsets a prompt and side: noisy, where win_rates is exact."""
    won = np.zeros(len(policy))
    for _ in range(1000):
        left, right = (
            np.take_along_axis(side, rng.integers(0, 64, (len(side), 4)), axis=1).max(axis=1)
            for side in (policy, reference)
        )
        won += (left > right) + 0.5 * (left == right)
    return won / 1000


def plain_bootstrap(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One resample after the other."""
    means = [rng.choice(values, len(values)).mean() for _ in range(1000)]
    return np.quantile(means, [0.025, 0.975])


def fresh_process(*arguments: str) -> float:
    """Wall time of `infalign frontier` in a new interpreter, imports included."""
    code = "import sys; from flows.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "frontier", *arguments]
    return timed(lambda: subprocess.run(command, check=True, capture_output=True))[0]


def line(what: str, seconds: float, ceiling: float, plain: float | None = None) -> None:
    beside = "" if plain is None else f"   plain numpy {plain:7.2f} s ({plain / seconds:.0f} x)"
    print(f"{what:<66} {seconds:6.2f} s  (at most {ceiling:g} s){beside}", flush=True)


def main() -> None:
    """Print every comparison."""
    rng = np.random.default_rng(0)
    candidates, reference = rng.normal(size=(PROMPTS, 100)), rng.normal(size=(PROMPTS, 64))
    ours, fast = timed(lambda: calibrate(candidates, reference))
    plain, slow = timed(lambda: plain_calibrate(candidates, reference))
    assert np.allclose(fast, slow)
    line("calibrate 10^6 candidates, 10^4 prompts x 64 references", ours, 1, plain)

    policy = rng.normal(0.3, 1, size=(PROMPTS, 64))
    ours, rates = timed(lambda: win_rates("best_of:4", policy, reference))
    start = time.perf_counter()
    plain_best_of_four(policy[:500], reference[:500], rng)
    plain = (time.perf_counter() - start) * PROMPTS / 500
    line("best-of-4 win rates of 10^4 prompts x 64 samples a side", ours, 2, plain)
    peak = peak_mib(lambda: win_rates("best_of:4", policy, reference))
    print(f"    its peak memory: {peak:.0f} MiB (at most 1024 MiB)")

    ours, _ = timed(lambda: bootstrap_interval(rates, replicates=1000))
    plain, _ = timed(lambda: plain_bootstrap(rates, rng))
    line("1,000 bootstrap replicates of them", ours, 1, plain)

    one = fresh_process("--procedure", "best_of:4", "--kl", "0.5", "--json")
    line("infalign frontier, best_of:4, one KL, optimal and auto, new process", one, 2)
    line("infalign frontier, the default table, new process", fresh_process("--json"), 10)


if __name__ == "__main__":
    main()
