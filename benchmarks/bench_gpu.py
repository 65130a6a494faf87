"""A 0.5 B-parameter Llama-type model with random weights on CUDA: `python -m benchmarks.bench_gpu`.

Sampling, a training step, the same with LoRA and with FSDP2, in bfloat16: tokens a second, the
share of the device's measured rate of large products that the model's arithmetic reaches (model
FLOPs utilisation, without attention's own products), and peak memory. Without a CUDA device it
says so and ends with 0. `--toy DEVICE` is the same on a toy model, to see that it runs.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import torch

from benchmarks.turns import ROOT

WORKS = {
    "sample": "sampling",
    "train": "training",
    "lora": "training, LoRA of rank 16",
    "fsdp2": "training, FSDP2",
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
    return (
        f"{WORKS[work] + where:<38} {found['tokens_per_second']:>10.0f} tokens/s   "
        f"utilisation {found['flops'] / found['product_flops']:.3f} of "
        f"{found['product_flops'] / 1e12:.3g} TFLOP/s   peak {found['peak_mib']:.0f} MiB"
    )


def main(arguments: list[str]) -> int:
    """Print every measurement that this machine allows."""
    toy = arguments[:1] == ["--toy"]
    device = arguments[1] if toy else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        print("bench-gpu: torch sees no CUDA device, so nothing was measured.")
        return 0
    devices = torch.cuda.device_count() if device == "cuda" else 2
    if device == "cuda":
        print(f"{devices} x {torch.cuda.get_device_name()}, torch {torch.__version__}")
    for work in WORKS:
        processes = devices if work == "fsdp2" else 1
        if work == "fsdp2" and devices < 2:
            print(f"{WORKS[work]}: needs two devices, so it was not measured")
        elif work == "lora" and importlib.util.find_spec("peft") is None:
            print(f"{WORKS[work]}: needs peft: pip install -c constraints.txt -e '.[lora]'")
        else:
            found = measure(work, device, "toy" if toy else "half", processes)
            print(line(work, processes, found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
