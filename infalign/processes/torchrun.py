"""Several processes for one stage: started as torchrun starts them, and ended with it.

Needs no torch to say how many there are. `python -m infalign STAGE` starts `run.processes` of
itself; `torchrun --nproc_per_node N -m infalign STAGE` does the same by hand. Of several nodes each
starts its own share of them, and they meet by torchrun's rendezvous, whose settings come from the
environment (PET_RDZV_ENDPOINT, PET_NODE_RANK, ...).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence

from infalign.errors import InputError

POLL_SECONDS = 1.0
MEETING = ("PET_RDZV_ENDPOINT", "PET_MASTER_ADDR")


def place() -> tuple[int, int]:
    """This process's rank and the number of processes; 0 and 1 where it was started alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def is_started() -> bool:
    """Whether torchrun, or something like it, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def node() -> int:
    """The number of this machine among several; 0 where nothing says it."""
    return int(os.environ.get("GROUP_RANK") or os.environ.get("PET_NODE_RANK") or "0")


def start(processes: int, nodes: int, arguments: Sequence[str]) -> int:
    """Run `python -m infalign` with these arguments in this node's processes; the exit code.

    Raises:
        InputError: where several nodes do not know how to meet.

    The code is that of the process that failed first: torchrun's own would hide a user's mistake
    (2) behind a 1. Its report is left out: each process says what is wrong in a sentence.
    """
    if nodes > 1 and not any(os.environ.get(name) for name in MEETING):
        raise InputError(
            f"run.nodes = {nodes}, and nothing says where they meet: start the stage in every node "
            "with PET_RDZV_BACKEND=c10d and PET_RDZV_ENDPOINT=HOST:PORT (of one of them) in the "
            "environment, and PET_NODE_RANK with its number."
        )
    os.environ.setdefault("LOGLEVEL", "CRITICAL")  # torchrun's, read when it is imported
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        here = ["--nnodes", str(nodes), "--nproc_per_node", str(processes // nodes)]
        run(parse_args([*here, "-m", "infalign", *arguments]))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


def end_with_parent() -> None:
    """End this process when the one that started it is gone: torchrun may be killed outright."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()
