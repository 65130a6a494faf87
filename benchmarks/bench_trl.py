"""infalign beside TRL and transformers, on the default sizes: `python -m benchmarks.bench_trl`.

A step of align against one of TRL's RLOOTrainer, and the sampler against `model.generate`: same
model, prompts, K and lengths, float32, no dropout, no logging; each side in its own process, warm,
in turns. Needs the extra `bench`: `pip install -c constraints.txt -e '.[bench]'`. With `--model
FOLDER` the same for a pretrained Llama with an adapter of rank 8 on all its linear layers.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.case import Case, prompt_texts
from benchmarks.machine import gemm_flops, sampling_flops, step_flops
from benchmarks.turns import in_turns

Steps = Sequence[dict[str, Any]]
ROUNDS, WARM = 7, 2
BATCHES = (64, 256)
LORA_RANK = 8  # with --model


def middle(steps: Steps, field: str = "seconds") -> float:
    """Median over steps."""
    return statistics.median(step[field] for step in steps)


def same_work(steps: dict[str, Steps]) -> dict[str, int]:
    """Tokens that every step sampled and trained on: the same on all sides, or an error."""
    counts = {
        key: {side: sorted({step.get(key, 0) for step in taken}) for side, taken in steps.items()}
        for key in ("sampled", "trained")
    }
    for key, found in counts.items():
        first = next(iter(found.values()))
        if len(first) != 1 or any(values != first for values in found.values()):
            raise RuntimeError(f"the sides do not do the same work: {key} tokens {found}")
    return {key: int(next(iter(found.values()))[0]) for key, found in counts.items()}


def compare_steps(folder: Path, warm: int = WARM, rounds: int = ROUNDS) -> dict[str, Steps]:
    """Steps of both trainers."""
    sides = {"ours": ("ours", str(folder)), "trl": ("trl", str(folder))}
    steps: dict[str, Steps] = dict(in_turns(sides, warm=warm, rounds=rounds))
    same_work(steps)
    return steps


def compare_samplers(
    folder: Path, batch: int, warm: int = WARM, rounds: int = ROUNDS
) -> dict[str, Steps]:
    """Batches of both samplers."""
    sides = {name: (name, str(folder), str(batch)) for name in ("sampler", "generate")}
    steps: dict[str, Steps] = dict(in_turns(sides, warm=warm, rounds=rounds))
    same_work(steps)
    return steps


def print_steps(case: Case, folder: Path, steps: dict[str, Steps], most: float) -> None:
    """Step times, memory, and the floor under them."""
    ours, theirs = middle(steps["ours"]), middle(steps["trl"])
    work = same_work(steps)
    print(f"a step: {work['sampled']} tokens sampled, {work['trained']} trained, on either side")
    print(
        f"  CTRL {ours:.3f} s, TRL's RLOOTrainer {theirs:.3f} s: "
        f"ratio {ours / theirs:.2f}  (at most {most:g})"
    )
    for name, taken in steps.items():
        peak = max(step["peak_mib"] for step in taken)
        above = peak - taken[0]["base_mib"]
        print(f"  {name:<5} peak memory {peak:5.0f} MiB, {above:.0f} MiB above the loaded models")
    flops, rate = step_flops(case, mean_prompt(folder)), gemm_flops()
    print(
        f"  arithmetic {flops / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s measured on large "
        f"products: floor {flops / rate:.3f} s, CTRL at {ours * rate / flops:.1f} times it, "
        f"TRL at {theirs * rate / flops:.1f}"
    )


def mean_prompt(folder: Path) -> float:
    """The mean length of the case's prompts, tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "results/sft/policy")
    return statistics.mean(len(ids) for ids in tokenizer(prompt_texts(folder))["input_ids"])


def print_samplers(
    case: Case, folder: Path, batch: int, steps: dict[str, Steps], least: float
) -> None:
    """Samples a second, and the floor under their time."""
    ours, theirs = (middle(steps[name], "seconds") for name in ("sampler", "generate"))
    print(
        f"sampling, batch {batch}: {batch / ours:.1f} samples/s, model.generate "
        f"{batch / theirs:.1f}: ratio {theirs / ours:.2f}  (at least {least:g})"
    )
    floor = sampling_flops(case, batch, mean_prompt(folder)) / gemm_flops()
    print(
        f"  arithmetic alone {floor:.3f} s: ours at {ours / floor:.1f} times it, model.generate at "
        f"{theirs / floor:.1f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every comparison; 1 where TRL is not installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_trl", description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of a pretrained Llama")
    given = parser.parse_args(arguments).model
    if importlib.util.find_spec("trl") is None:
        print("bench_trl: TRL is not installed: pip install -c constraints.txt -e '.[bench]'")
        return 1
    import trl

    case = Case() if given is None else Case.given(given, LORA_RANK)
    print(f"TRL {trl.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case.save(folder)
        warm, rounds = (WARM, ROUNDS) if given is None else (1, 5)
        for batch in BATCHES if given is None else (32,):
            steps = compare_samplers(folder, batch, warm, rounds)
            print_samplers(case, folder, batch, steps, 2.0 if given is None else 1.0)
        steps = compare_steps(folder, warm, rounds)
        print_steps(case, folder, steps, 0.5 if given is None else 0.75)
    return 0


if __name__ == "__main__":
    sys.exit(main())
