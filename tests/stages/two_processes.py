"""Run stages in one of several processes: `torchrun --nproc_per_node 2 two_processes.py …`.

Arguments: the folder with params.yaml and results/, then the instances to run, as DVC spells them;
then, if there is more to do, another folder with its instances. What they make is left in the
folder's .infalign/work/INSTANCE/out. With STOP_AT in the environment every process ends in front of
that step of `align`.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from infalign.files.workspace import Workspace
from infalign.processes.ranks import join
from infalign.settings.params import load_params


def stopping(number: int) -> None:
    """Let `align` end in front of a step."""
    from infalign.aligning import ctrl

    original = ctrl.Trainer.take

    def take(self: ctrl.Trainer, step: int) -> object:
        if step == number:
            os._exit(9)
        return original(self, step)

    ctrl.Trainer.take = take  # type: ignore[assignment, method-assign]


def main(*arguments: str) -> None:
    """Run the instances one after the other."""
    if "STOP_AT" in os.environ:
        stopping(int(os.environ["STOP_AT"]))
    for argument in arguments:
        if Path(argument).is_dir():
            folder = Path(argument)
            params = load_params(folder / "params.yaml")
            ranks = join(params.run)
            continue
        word, _, names = argument.partition("@")
        workspace = Workspace(params, folder, argument)
        if ranks.main:
            workspace.open_work("test")
        ranks.wait()
        stage = importlib.import_module(f"infalign.stages.{word}")
        stage.run(workspace, *(names.split("-") if names else ()))
        ranks.wait()
    ranks.part()


if __name__ == "__main__":
    main(*sys.argv[1:])
