"""The one optimisation loop: AdamW, warm-up, checkpoints, history, progress.

A checkpoint holds everything a later step depends on and is written atomically, so that a resumed
run equals an undisturbed one bit for bit on CPU. What a step computes is the caller's: a function
of the step's number alone, beside the weights and an optional state of its own.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from infalign.errors import InputError
from infalign.history import History


class Stateful(Protocol):
    """What a caller carries from step to step, saved with every checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Schedule:
    """Steps and step sizes: linear warm-up, then cosine down to a tenth of the peak."""

    steps: int
    learning_rate: float
    warmup_share: float
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    checkpoint_every: int = 100

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warmup = max(1, round(self.warmup_share * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Step:
    """What one step gives: the loss to descend and the numbers to record."""

    loss: torch.Tensor
    metrics: dict[str, float]
    tokens: int


def optimise(
    model: PreTrainedModel,
    schedule: Schedule,
    take: Callable[[int], Step],
    folder: Path,
    *,
    name: str,
    state: Stateful | None = None,
) -> None:
    """Run `take` for every step and descend its loss; resume from `folder` where it was left.

    Writes `history.jsonl` and `checkpoint.pt` in `folder`. Raises InputError when the loss or the
    gradient is not finite; the last checkpoint is kept.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        weights, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, betas=(0.9, 0.98)
    )
    checkpoint = folder / "checkpoint.pt"
    start = _resume(checkpoint, model, optimiser, state)
    progress = Progress(name, start, schedule.steps)
    with contextlib.closing(History(folder / "history.jsonl", start - 1)) as history:
        for number in range(start, schedule.steps):
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(number)
            step = take(number)
            loss, norm = _descend(step, optimiser, weights, schedule.max_grad_norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise InputError(
                    f"{name}: loss {loss}, gradient norm {norm} at step {number}: lower "
                    f"learning_rate; the checkpoint before it is kept in {folder}."
                )
            optimiser.step()
            history.append(number, loss=loss, gradient_norm=norm, **step.metrics)
            progress.show(number + 1, step.tokens, {"loss": loss, **step.metrics})
            if (number + 1) % schedule.checkpoint_every == 0 or number + 1 == schedule.steps:
                _save(checkpoint, number + 1, model, optimiser, state)
    progress.close()


def _descend(
    step: Step, optimiser: torch.optim.Optimizer, weights: Sequence[torch.Tensor], max_norm: float
) -> tuple[float, float]:
    """Fill and clip the gradients; the loss and the gradient's norm before clipping."""
    optimiser.zero_grad(set_to_none=True)
    step.loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(weights, max_norm)
    return float(step.loss.detach()), float(norm)


def _save(
    path: Path,
    step: int,
    model: PreTrainedModel,
    optimiser: torch.optim.Optimizer,
    state: Stateful | None,
) -> None:
    content = {
        "step": step,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "state": state.state_dict() if state else {},
    }
    temporary = path.with_suffix(".new")
    with open(temporary, "wb") as stream:
        torch.save(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _resume(
    path: Path,
    model: PreTrainedModel,
    optimiser: torch.optim.Optimizer,
    state: Stateful | None,
) -> int:
    """Load the checkpoint where there is one; the number of steps done."""
    if not path.exists():
        return 0
    content = torch.load(path, map_location=model.device, weights_only=True)
    model.load_state_dict(content["model"])
    optimiser.load_state_dict(content["optimiser"])
    if state:
        state.load_state_dict(content["state"])
    return int(content["step"])


class EpochBatches:
    """Shuffled batches of alike length, epoch after epoch; batch `number` needs no state.

    Args:
        lengths: tokens of every row.
        batch_size: rows a batch; the last of an epoch may be smaller.
        seed: of the order.
    """

    _POOL = 16  # batches within which rows are sorted by length

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        if not len(lengths):
            raise InputError("no training rows are left: look at results/prepare/metrics.json.")
        self._lengths, self._size, self._seed = np.asarray(lengths), batch_size, seed
        self._epoch, self._batches = -1, list[np.ndarray]()

    def at(self, number: int) -> np.ndarray:
        """Row indices of a batch, counted from 0 over all epochs."""
        epoch, position = divmod(number, -(-len(self._lengths) // self._size))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffle(epoch)
        return self._batches[position]

    def _shuffle(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self._lengths))
        pool = self._POOL * self._size
        batches = []
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
            batches += [rows[i : i + self._size] for i in range(0, len(rows), self._size)]
        return [batches[i] for i in rng.permutation(len(batches))]


class Progress:
    """A line on standard error: step, metrics, tokens a second, time left."""

    def __init__(self, name: str, done: int, total: int) -> None:
        self._name, self._first, self._total = name, done, total
        self._tokens, self._begun, self._shown = 0, time.monotonic(), 0.0

    def show(self, done: int, tokens: int, metrics: dict[str, float]) -> None:
        """Count a finished step and refresh the line, at most twice a second."""
        self._tokens += tokens
        now = time.monotonic()
        if now - self._shown < (0.5 if sys.stderr.isatty() else 10) and done < self._total:
            return
        self._shown = now
        seconds = max(now - self._begun, 1e-9)
        left = seconds / (done - self._first) * (self._total - done)
        numbers = " ".join(f"{key} {value:.4g}" for key, value in metrics.items())
        print(
            f"{self._name} {done}/{self._total} {numbers} "
            f"{self._tokens / seconds:.0f} tokens/s {left:.0f} s left",
            file=sys.stderr,
            flush=True,
            end="\r" if sys.stderr.isatty() else "\n",
        )

    def close(self) -> None:
        """End the line."""
        if sys.stderr.isatty():
            print(file=sys.stderr)
