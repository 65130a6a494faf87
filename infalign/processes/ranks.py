"""The processes of one stage: who this one is, and the few things that they tell each other.

Every process runs the same stage on the same files; work is shared out by `share`, and what comes
of it is brought together by `total` and `gather`. Rank 0 alone writes. Alone, all of it is nothing,
and torch is not imported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import numpy as np

from infalign.errors import CheckFailed, InputError
from infalign.processes import torchrun
from infalign.settings.params import Run

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # for the others; torchrun ends them when one of them fails


@dataclass(frozen=True)
class Ranks:
    """This process among `size` of them."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items: every `size`-th."""
        return items[self.rank :: self.size]

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum over processes of float64 arrays of one shape."""
        if self.size == 1:
            return values
        import torch
        from accelerate import PartialState
        from accelerate.utils import reduce

        tensor = torch.as_tensor(np.asarray(values, dtype=np.float64), device=PartialState().device)
        return reduce(tensor, "sum").cpu().numpy()

    def mean(self, value: float, weight: float = 1.0) -> float:
        """The weighted mean over processes."""
        if self.size == 1:
            return value
        whole = self.total(np.array([value * weight if weight else 0.0, weight]))
        return float(whole[0] / whole[1])

    def gather(self, value: T) -> list[T]:
        """What every process has, in the order of their ranks."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def first(self, value: T) -> T:
        """What rank 0 has."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            from accelerate.utils import wait_for_everyone

            wait_for_everyone()

    def part(self) -> None:
        """Part from the others when all are done."""
        if self.size > 1:
            import torch

            self.wait()
            torch.distributed.destroy_process_group()


ALONE = Ranks()


def join(run: Run) -> Ranks:
    """Meet the other processes of this stage; the same answer at every call."""
    return _join(run.processes, run.device)


@cache
def _join(processes: int, device: str) -> Ranks:
    rank, size = torchrun.place()
    if size != processes:
        raise InputError(
            f"run.processes = {processes}, but {size} were started: give torchrun "
            f"--nproc_per_node {processes}, or set run.processes to {size}."
        )
    if size == 1:
        return ALONE
    import torch
    from accelerate import PartialState

    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if kind == "cuda" and torch.cuda.device_count() < here:
        raise InputError(
            f"run.processes = {size}, but there are {torch.cuda.device_count()} GPUs: "
            "each process needs its own."
        )
    torchrun.end_with_parent()
    state: Any = PartialState(cpu=kind == "cpu", timeout=PATIENCE)
    if state.num_processes != size or torch.distributed.get_world_size() != size:
        raise CheckFailed(
            f"{size} processes were started, but {state.num_processes} met: look for settings of "
            "accelerate on this machine (ACCELERATE_* in the environment)."
        )
    return Ranks(rank, size)
