"""Several processes for one stage: started as torchrun starts them, and ended with it.

Needs no torch to say how many there are. `python -m infalign STAGE` starts `run.processes` of
itself; `torchrun --nproc_per_node N -m infalign STAGE` does the same by hand.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence

POLL_SECONDS = 1.0


def place() -> tuple[int, int]:
    """This process's rank and the number of processes; 0 and 1 where it was started alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def is_started() -> bool:
    """Whether torchrun, or something like it, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start(processes: int, arguments: Sequence[str]) -> int:
    """Run `python -m infalign` with these arguments in several processes; the exit code.

    The code is that of the process that failed first: torchrun's own would hide a user's mistake
    (2) behind a 1. Its report is left out: each process says what is wrong in a sentence.
    """
    os.environ.setdefault("LOGLEVEL", "CRITICAL")  # torchrun's, read when it is imported
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        run(parse_args(["--nproc_per_node", str(processes), "-m", "infalign", *arguments]))
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
