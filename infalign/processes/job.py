"""Within a job of a cluster: a stage says there how it ended, where its submitter looks."""

from __future__ import annotations

import os
from pathlib import Path

from infalign.processes import torchrun

FOLDER = "INFALIGN_JOB"  # environment variable: of this attempt, on a file system that is shared


def is_outside() -> bool:
    """Whether nobody has placed this process yet: it may submit itself."""
    return FOLDER not in os.environ and not torchrun.is_started()


def report(code: int) -> None:
    """Leave this node's exit code, where there is a job; what was killed has none."""
    if FOLDER in os.environ and not torchrun.is_started() and code < 128:
        from infalign.files.workspace import write_text

        write_text(Path(os.environ[FOLDER], f"code.{torchrun.node()}"), str(code))
