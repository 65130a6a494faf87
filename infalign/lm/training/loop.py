"""The one optimisation loop: optimiser, warm-up, checkpoints, history, progress.

A checkpoint holds everything a later step depends on (`checkpoints`), so that a resumed run equals
an undisturbed one bit for bit on CPU. What a step computes is the caller's: a function of the
step's number alone, beside the weights and an optional state of its own. No process has random
numbers of its own, so that a checkpoint is all processes' at once.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from infalign.errors import InputError
from infalign.files.history import History
from infalign.lm.memory import ran_out
from infalign.lm.training.bases import suits
from infalign.lm.training.checkpoints import Stateful, checkpoints
from infalign.lm.training.parallel import Trainable, as_trainable, total_norm
from infalign.lm.training.soap import Soap
from infalign.processes.ranks import Ranks


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


def optimiser_of(
    name: str, weights: Sequence[torch.Tensor], schedule: Schedule
) -> torch.optim.Optimizer:
    """SOAP, or Adam with decoupled weight decay (Loshchilov and Hutter 2019), fused on CUDA.

    Args:
        name: soap, adamw or auto: what suits the shapes of the weights.
    """
    rate, decay = schedule.learning_rate, schedule.weight_decay
    if (suits(weight.shape for weight in weights) if name == "auto" else name) == "soap":
        return Soap(weights, lr=rate, weight_decay=decay)
    fused = True if all(weight.is_cuda for weight in weights) else None
    return torch.optim.AdamW(weights, lr=rate, weight_decay=decay, betas=(0.9, 0.98), fused=fused)


@dataclass(frozen=True)
class Step:
    """What one step gives: the loss to descend and the numbers to record.

    Attributes:
        loss: a scalar with gradient, or 0 where the parts have it.
        metrics: as the loss, averaged over processes. May be filled while the parts run.
        tokens: of the whole step.
        parts: each adds its gradient and gives its share of the loss.
    """

    loss: torch.Tensor
    metrics: dict[str, float]
    tokens: int
    parts: Sequence[Callable[[], float]] = ()


def optimise(
    model: PreTrainedModel | Trainable,
    schedule: Schedule,
    take: Callable[[int], Step],
    folder: Path,
    *,
    name: str,
    state: Stateful | None = None,
    bounds: Mapping[str, float] | None = None,
    optimizer: str = "adamw",
) -> None:
    """Run `take` for every step and descend its loss; resume from `folder` where it was left.

    Writes `history.jsonl` and the checkpoint in `folder`; of several processes, rank 0 does.
    Raises InputError when the loss, the gradient or a metric is not finite or above its bound; the
    last checkpoint is kept. Where memory runs out, the step is done again in smaller parts.

    Args:
        bounds: values of the loss or a metric that only a run gone wrong exceeds.
        optimizer: as in params.yaml; auto: the one that suits the shapes of what is trained.
    """
    trainable = as_trainable(model)
    weights, main = trainable.weights(), trainable.ranks.main
    optimiser = optimiser_of(optimizer, weights, schedule)
    kept = checkpoints(folder, trainable, optimiser, state)
    start = kept.resume()
    progress = Progress(name, start, schedule.steps)
    with contextlib.ExitStack() as stack:
        if main:
            history = History(folder / "history.jsonl", start - 1)
            stack.callback(history.close)
        for number in range(start, schedule.steps):
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(number)
            step, loss = _attempt(trainable, optimiser, partial(take, number), state, name)
            norm = total_norm(torch.nn.utils.clip_grad_norm_(weights, schedule.max_grad_norm))
            values = _agreed(trainable.ranks, loss, step)
            _check(values | {"gradient norm": norm}, bounds or {}, name, number, folder)
            optimiser.step()
            if main:
                loss = values.pop("loss")
                history.append(number, loss=loss, gradient_norm=norm, **values)
                progress.show(number + 1, step.tokens, {"loss": loss, **values})
            if (number + 1) % schedule.checkpoint_every == 0 or number + 1 == schedule.steps:
                kept.save(number + 1)
        kept.close()
    progress.close()


def _attempt(
    trainable: Trainable,
    optimiser: torch.optim.Optimizer,
    take: Callable[[], Step],
    state: Stateful | None,
    name: str,
) -> tuple[Step, float]:
    """A step with its gradients filled, and this process's loss; again where memory runs out."""
    before = copy.deepcopy(state.state_dict()) if state else {}
    while True:
        optimiser.zero_grad(set_to_none=True)
        try:
            step = take()
            return step, _backward(step, trainable)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        if not trainable.can_cut or trainable.ranks.size > 1:
            raise InputError(
                f"{name}: memory ran out in training: lower run.batch_tokens below "
                f"{trainable.used} (a step is cut into parts of so many tokens), set run.recompute "
                "to true, or take a smaller model; the last checkpoint is kept."
            )
        trainable.budget.halve(trainable.used, name)
        if state:
            state.load_state_dict(copy.deepcopy(before))


def _backward(step: Step, trainable: Trainable) -> float:
    """Fill the gradients; the loss."""
    if step.loss.requires_grad:
        step.loss.backward()
    loss = float(step.loss.detach())
    for number, part in enumerate(step.parts, 1):
        with trainable.holds_back(last=number == len(step.parts)):
            loss += part()
    trainable.check_passed()
    return loss


def _agreed(ranks: Ranks, loss: float, step: Step) -> dict[str, float]:
    """Loss and metrics, averaged over processes."""
    values = {"loss": loss, **step.metrics}
    if ranks.size == 1:
        return values
    means = ranks.total(np.array(list(values.values()))) / ranks.size
    return dict(zip(values, means.tolist(), strict=True))


def _check(
    values: Mapping[str, float], bounds: Mapping[str, float], name: str, number: int, folder: Path
) -> None:
    """Stop where a value is not finite, or beyond what a run that works ever reaches."""
    for key, value in values.items():
        bound = bounds.get(key, math.inf)
        if not math.isfinite(value) or value > bound:
            beyond = f", above {bound:g}" if math.isfinite(value) else ""
            raise InputError(
                f"{name}: {key} is {value:g}{beyond} at step {number}: lower learning_rate, or "
                f"raise warmup_share; the checkpoint before it is kept in {folder}."
            )


class EpochBatches:
    """Shuffled batches of alike length, epoch after epoch; batch `number` needs no state.

    Args:
        lengths: tokens of every row.
        batch_size: rows a batch; the last of an epoch may be smaller.
        seed: of the order.
    """

    _POOL = 16  # batches within which rows are sorted by length

    def __init__(self, lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int) -> None:
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
