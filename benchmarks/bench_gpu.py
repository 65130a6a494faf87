"""Right, fast and large enough on CUDA? `python -m benchmarks.bench_gpu`, some minutes on one GPU.

Each figure is printed as soon as it is known. In order: whether a 0.5 B-parameter Llama-type model
with random weights is computed right (`gpu_checks`); the sampler's tokens a second at several batch
sizes, against what memory's measured bandwidth allows; a step of CTRL, all weights, with an adapter
and, on several devices, with FSDP2: tokens a second, the share of the measured rate of large
products that the model's arithmetic reaches (model FLOPs utilisation, without attention's own
products), peak memory; last the default run, stage by stage, by `python -m infalign` alone.

Without a CUDA device it says so and ends with 0. `--toy DEVICE` is the same on a toy model, to see
that it runs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

from benchmarks.turns import ROOT

WORKS = {
    "sample-32": "sampling, 32 rows",
    "sample-128": "sampling, 128 rows",
    "sample-512": "sampling, 512 rows",
    "train": "training",
    "lora": "training, LoRA of rank 16",
    "fsdp2": "training, FSDP2",
}
TOY_RUN = {  # a run of seconds
    "corpus": {"train_prompts": 80, "test_prompts": 30, "pairs_per_prompt": 2},
    "sample": {
        "train_prompts": 8,
        "test_prompts": 6,
        "train_samples": 4,
        "test_samples": 8,
        "large_prompts": 4,
        "large_samples": 16,
    },
    "calibrate": {"error_references": [4]},
    "align": {"steps": 2, "prompts_per_step": 4, "kl_prompts": 8, "kl_samples": 2},
}


def measure(work: str, device: str, size: str, processes: int) -> dict[str, float]:
    """One measurement in processes of its own."""
    launcher = (
        ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    )
    command = [sys.executable, *launcher, "-m", "benchmarks.gpu_work", work, device, size]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{work} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def line(work: str, processes: int, found: dict[str, float]) -> str:
    """One measurement in words."""
    where = f" on {processes} devices" if processes > 1 else ""
    if "floor" in found:
        share = (
            f"{found['tokens_per_second'] / found['floor']:.3f} of {found['floor']:.0f} tokens/s"
        )
        told = f"{share} by bandwidth"
    else:
        told = (
            f"utilisation {found['flops'] / found['product_flops']:.3f} of "
            f"{found['product_flops'] / 1e12:.3g} TFLOP/s"
        )
    return (
        f"{WORKS[work] + where:<38} {found['tokens_per_second']:>10.0f} tokens/s   "
        f"{told}   peak {found['peak_mib']:.0f} MiB"
    )


def default_run(device: str, toy: bool) -> int:
    """Every stage of the default run, and its win rates; the exit code of the stage that fails."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, changes in TOY_RUN.items() if toy else ():
        params[section] |= changes
    run = params["run"]
    run["device"] = device
    objectives, variants = run["objectives"], run["variants"]
    calls = [[word] for word in ("corpus", "sources", "prepare", "sft", "sample")]
    calls += [[word, "--objective", o] for word in ("reward", "calibrate") for o in objectives]
    calls += [["align", "--objective", o, "--variant", v] for o in objectives for v in variants]
    calls += [["evaluate", "--objective", o] for o in objectives]
    whole = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        shutil.copytree(ROOT / "models" / "none", root / "models" / "none")
        (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        for call in calls:
            begun = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "infalign", *call],
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
            )
            named = [word for word in call if not word.startswith("--")]
            seconds = time.perf_counter() - begun
            print(f"{' '.join(named):<38} {seconds:>10.1f} s", flush=True)
            if done.returncode:
                print(done.stderr[-3000:])
                return done.returncode
        print(f"{'the default run':<38} {time.perf_counter() - whole:>10.1f} s", flush=True)
        for objective in objectives:
            found = json.loads((root / "results/evaluate" / objective / "metrics.json").read_text())
            for variant in variants:
                row = found[variant]
                rate = f"{row['win_rate']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
                told = f"win rate {rate}, limit {row['limit']:.3f}, KL {row['kl']:.3f}"
                print(f"{objective + ' ' + variant:<38} {told}")
    return 0


def main(arguments: list[str]) -> int:
    """Print every measurement that this machine allows."""
    toy = arguments[:1] == ["--toy"]
    device, size = (arguments[1], "toy") if toy else ("cuda", "half")
    if device == "cuda" and not torch.cuda.is_available():
        print("bench-gpu: torch sees no CUDA device, so nothing was measured.")
        return 0
    devices = torch.cuda.device_count() if device == "cuda" else 2
    if device == "cuda":
        print(f"{devices} x {torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    checks = [sys.executable, "-m", "benchmarks.gpu_checks", device, size]
    wrong = subprocess.run(checks, cwd=ROOT).returncode
    for work in WORKS:
        processes = devices if work == "fsdp2" else 1
        if work == "fsdp2" and devices < 2:
            print(f"{WORKS[work]}: needs two devices, so it was not measured")
        elif work == "lora" and importlib.util.find_spec("peft") is None:
            print(f"{WORKS[work]}: needs peft: pip install -c constraints.txt -e '.[lora]'")
        else:
            try:
                print(line(work, processes, measure(work, device, size, processes)), flush=True)
            except (
                RuntimeError
            ) as error:  # out of memory, say: what follows is measured all the same
                print(error, flush=True)
                wrong = 1
    return default_run(device, toy) or wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
