"""Within a job of a cluster: a stage says there how it ended, where its submitter looks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from infalign.processes import torchrun

FOLDER = "INFALIGN_JOB"  # environment variable: of this attempt, on a file system that is shared


def is_outside() -> bool:
    """Whether nobody has placed this process yet: it may submit itself."""
    return FOLDER not in os.environ and not torchrun.is_started()


def begin() -> None:
    """Take back what this node said in an earlier life of the same job."""
    if is_inside():
        _word().unlink(missing_ok=True)


def report(code: int) -> None:
    """Leave this node's exit code, the last of its words, where there is a job.

    What was killed leaves none.
    """
    if is_inside() and code < 128:
        from infalign.files.workspace import write_text

        sys.stdout.flush()
        write_text(_word(), str(code))


def is_inside() -> bool:
    """Whether this process is a job's, and no part of one that torchrun started."""
    return FOLDER in os.environ and not torchrun.is_started()


def _word() -> Path:
    return Path(os.environ[FOLDER], f"code.{torchrun.node()}")
