"""What a training is resumed from: everything that a later step depends on, complete or not there.

A model that a process holds whole is one file, renamed when it is written. One in shares is a
folder of torch's distributed checkpoints: each process writes its own shares while the next steps
run, what ends the folder is `.metadata`, and it can be read by another number of processes. Of a
model with an adapter the adapter alone is kept.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch

from infalign.files.workspace import write_json
from infalign.lm.training.parallel import Trainable


class Stateful(Protocol):
    """What a caller carries from step to step, saved with every checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Checkpoints:
    """The checkpoint of a training, in `folder`.

    Args:
        state: of the caller; numbers and None alone.
    """

    def __init__(
        self,
        folder: Path,
        trainable: Trainable,
        optimiser: torch.optim.Optimizer,
        state: Stateful | None,
    ) -> None:
        self._folder, self._trainable, self._optimiser = folder, trainable, optimiser
        self._state = state

    def resume(self) -> int:
        """Load what is there; the number of steps done."""
        path = self._folder / "checkpoint.pt"
        if not self._trainable.ranks.first(path.exists()):
            return 0
        # From the file to the weights tensor by tensor: no device, and no memory, holds it whole.
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        self._trainable.load(content, self._optimiser)
        return self._begin(content)

    def save(self, step: int) -> None:
        """Keep what `step` steps have come to; every process calls it."""
        content = self._caller(step) | self._trainable.state(self._optimiser)
        if not self._trainable.ranks.main:
            return
        path = self._folder / "checkpoint.pt"
        temporary = path.with_suffix(".new")
        with open(temporary, "wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)

    def close(self) -> None:
        """Until everything is written."""

    def _caller(self, step: int) -> dict[str, Any]:
        return {"step": step, "state": self._state.state_dict() if self._state else {}}

    def _begin(self, content: dict[str, Any]) -> int:
        if self._state:
            self._state.load_state_dict(content["state"])
        return int(content["step"])


class SharedCheckpoints(Checkpoints):
    """The same of a model in shares (torch.distributed.checkpoint, DCP)."""

    _writing: Any = None
    _group: Any = None
    _written: Path | None = None

    def resume(self) -> int:
        """As above; from any number of processes."""
        from torch.distributed import checkpoint

        found = [path.parent for path in self._folder.glob("checkpoint-*/.metadata")]
        newest = self._trainable.ranks.first(max(found, default=None))
        if newest is None:
            return 0
        content = self._trainable.shares(self._optimiser)
        checkpoint.load(content, checkpoint_id=newest)
        self._trainable.load_shares(content, self._optimiser)
        self._written = newest
        if self._trainable.ranks.main:  # of a kill between the last one's end and its removal
            for folder in self._folder.glob("checkpoint-*"):
                if folder != newest:
                    shutil.rmtree(folder)
        return self._begin(json.loads((newest / "steps.json").read_text(encoding="utf-8")))

    def save(self, step: int) -> None:
        """As above; what is written behind the next steps is a copy."""
        from torch import distributed
        from torch.distributed import checkpoint

        self.close()
        if self._group is None:  # its own: training goes on in the other one meanwhile
            self._group = distributed.new_group(backend="gloo")
        folder = self._folder / f"checkpoint-{step:08d}"
        if self._trainable.ranks.main:
            shutil.rmtree(folder, ignore_errors=True)  # cut short by a kill
            folder.mkdir(parents=True)
            write_json(folder / "steps.json", self._caller(step))
        self._trainable.ranks.wait()
        content = self._trainable.shares(self._optimiser)
        saved = checkpoint.async_save(content, checkpoint_id=folder, process_group=self._group)
        self._writing = saved, folder

    def close(self) -> None:
        """Until the last one is complete; the one before it is removed then."""
        if self._writing is None:
            return
        (saved, folder), self._writing = self._writing, None
        saved.result()
        self._trainable.ranks.wait()
        if self._trainable.ranks.main and self._written not in (None, folder):
            shutil.rmtree(str(self._written))
        self._written = folder


def checkpoints(
    folder: Path,
    trainable: Trainable,
    optimiser: torch.optim.Optimizer,
    state: Stateful | None,
) -> Checkpoints:
    """The checkpoint of a training, whole or in shares as its model is."""
    kind = SharedCheckpoints if trainable.is_sharded else Checkpoints
    return kind(folder, trainable, optimiser, state)
