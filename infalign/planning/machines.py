"""What processors can do by their makers' data sheets, and the share of it that is counted on."""

from __future__ import annotations

import os
from dataclasses import dataclass

from infalign.errors import InputError

GIB = 2**30


@dataclass(frozen=True)
class Processor:
    """One GPU, or the cores of a machine.

    Attributes:
        memory: bytes a process can have.
        half, single: matrix products a second in bfloat16 and float32, dense, operations.
        bandwidth: of its memory, bytes a second.
        base: bytes that a process has before any model: CUDA's context, or Python's libraries.
    """

    memory: float
    half: float
    single: float
    bandwidth: float
    base: float = 1.0 * GIB


# Data sheets: NVIDIA H100, H200, A100, L40S, L4, RTX 4090; dense figures, TF32 off.
PROCESSORS = {
    "h100-80g": Processor(80e9, 989e12, 67e12, 3.35e12),
    "h200-141g": Processor(141e9, 989e12, 67e12, 4.8e12),
    "a100-80g": Processor(80e9, 312e12, 19.5e12, 2.0e12),
    "a100-40g": Processor(40e9, 312e12, 19.5e12, 1.55e12),
    "l40s-48g": Processor(48e9, 362e12, 91.6e12, 0.864e12),
    "l4-24g": Processor(24e9, 121e12, 30e12, 0.3e12),
    "rtx4090-24g": Processor(24e9, 165e12, 82.6e12, 1.0e12),
}
# One core of a server with AVX-512, measured, and the memory that all of them read.
CORE_OPERATIONS, CORES_BANDWIDTH, LIBRARIES = 0.075e12, 2.0e10, 0.42 * GIB
# Shares of those peaks that stages are counted to reach where nothing was measured.
TRAINING, SCORING, DECODING = 0.35, 0.45, 0.5


def processor(name: str, processes: int = 1) -> Processor:
    """A processor by its name; `cpu` is this machine, a process's share of it."""
    if name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        speed = CORE_OPERATIONS * len(os.sched_getaffinity(0)) / processes
        band = CORES_BANDWIDTH / processes
        return Processor(memory / processes, speed, speed, band, base=LIBRARIES)
    if name not in PROCESSORS:
        raise InputError(f"--gpu {name!r} is not known: give one of {', '.join(PROCESSORS)}.")
    return PROCESSORS[name]
