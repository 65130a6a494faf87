"""A model in training, alone or in several processes, and the parts that a step is cut into.

Everything that needs gradients goes through a `Trainable`: `trainable(work, ...)` is
`work(model, ...)`, under autocast and, in several processes, inside what averages gradients: DDP
(accelerate's), where each holds the whole model, or FSDP2 (torch's `fully_shard`), where each
holds a share of it. Sampling uses a plain model, `whole()`. A frozen model that takes part in each
pass, the reference, is in shares where the policy is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from infalign.errors import InputError
from infalign.lm.freezing import freeze
from infalign.lm.memory import Budget, autocast
from infalign.lm.models import pick_device, without_dropout
from infalign.lm.training.shares import (
    META,
    Build,
    deal_out,
    full,
    gathered,
    share_all,
    share_layers,
)
from infalign.processes.ranks import ALONE, Ranks, join
from infalign.settings.params import Run

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Part:
    """Rows of a step that are computed together.

    Attributes:
        rows: the numbers of the data's rows.
        places: the same rows' places in the step.
        share: the factor of their mean loss. The parts of a process, averaged over processes, give
            the mean over the step: 1.0 where one part is the whole step.
    """

    rows: np.ndarray
    places: np.ndarray
    share: float


class Trainable:
    """A model whose passes may be differentiated.

    Args:
        model: on its device, or what builds it on a device; in shares it is built on the meta
            device, and on the CPU of process 0, whose weights are dealt out.
        run: how; None: alone, in float32, without a bound.

    Attributes:
        model: the plain model; in FSDP2 its weights are shares.
        ranks: the processes that train it.
        budget: tokens of a part of a step.
        used: tokens of the last step's largest part.
        can_cut: whether that step could have been cut further.
    """

    def __init__(
        self,
        model: PreTrainedModel | Build,
        run: Run | None = None,
    ) -> None:
        self._build: Build = (lambda device: model) if isinstance(model, torch.nn.Module) else model
        self._whole: PreTrainedModel | None = None
        self.ranks: Ranks = join(run) if run else ALONE
        self.budget = Budget(run.batch_tokens if run else None)
        self.is_sharded = run is not None and run.sharding == "fsdp2" and self.ranks.size > 1
        self.used, self.can_cut = 0, False
        self._passed = False
        self._device = pick_device(run.device) if run else CPU
        self.model: PreTrainedModel = self._build(META if self.is_sharded else self._device)
        if run and run.recompute:
            recompute(self.model)
        self._passes: torch.nn.Module = _Passes(self.model)
        if self.is_sharded:
            share_all(self._passes, self.model, self._device)
            self._deal_out(self.model, self._build)
        elif self.ranks.size > 1:
            self._passes = _copied(self._passes)

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """`work(model, *arguments)`, differentiable; every process calls it as often."""
        self._passed = True
        with autocast(self.model), _training(self.model):
            return self._passes(work, *arguments)

    def weights(self) -> list[torch.Tensor]:
        """What is trained."""
        return [p for p in self._passes.parameters() if p.requires_grad]

    def parts(
        self, rows: np.ndarray, lengths: np.ndarray, weights: np.ndarray | None = None
    ) -> list[Part]:
        """This process's rows of a step, in parts that the budget holds; as many in each process.

        Args:
            rows: of the whole step.
            lengths: tokens of each of them, prompt included.
            weights: how much each counts in the step's mean; None: equally.
        """
        counts = np.ones(len(rows)) if weights is None else weights
        size = self.ranks.size
        shares = [np.arange(len(rows))[rank::size] for rank in range(size)]
        tokens = max(len(share) * int(lengths[share].max(initial=0)) for share in shares)
        wanted = 1 if self.budget.holds(tokens) else -(-tokens // int(self.budget.tokens or 1))
        number = min(wanted, max(1, len(rows) // size))
        self.used, self.can_cut = -(-tokens // number), number < len(rows) // size
        found = []
        for chosen in np.array_split(shares[self.ranks.rank], number):
            share = size * float(counts[chosen].sum()) / float(counts.sum())
            # Nothing left for this process: it takes part with a row that does not count.
            places = chosen if len(chosen) else np.array([0])
            found.append(Part(rows[places], places, share))
        return found

    def holds_back(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients of a part that is not the step's last are averaged with the last one's."""
        if last or not isinstance(self._passes, torch.nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self._passes.no_sync()

    def check_passed(self) -> None:
        """Raise where gradients of several processes came past what averages them."""
        if self.ranks.size > 1 and not self._passed:
            raise RuntimeError("a step of several processes took no pass through its Trainable")
        self._passed = False

    def whole(self) -> PreTrainedModel:
        """A plain model with the present weights, whose passes no other process takes part in.

        Of shares it is another model, filled anew at every call and frozen: passes of the sharded
        one must be as many in every process, or those that follow wait for each other for ever.
        """
        if not self.is_sharded:
            return self.model
        if self._whole is None:
            self._whole = gathered(lambda device: freeze(self._build(device)), self.model)
            return self._whole
        weights = dict(self._whole.named_parameters())
        with torch.no_grad():
            for name, share in self.model.named_parameters():
                if share.requires_grad:
                    weights[name].copy_(full(share))
        return self._whole

    def shared_out(self, build: Build) -> PreTrainedModel:
        """A frozen model for passes beside this one's: its layers in shares where this one's are.

        What stands outside of the layers, embedding and head, each process has whole: a step's last
        part may want the head once more, and not every process at the same time.
        """
        if not self.is_sharded:
            return build(self._device)
        model = build(META)
        share_layers(model, self._device)
        self._deal_out(model, build)
        return model

    def state(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        """Weights and the optimiser's state; of a model that is not all trained, what is."""
        named = self.model.named_parameters(remove_duplicate=False)  # tied ones by both names
        frozen = {name for name, p in named if not p.requires_grad}
        weights = {n: v for n, v in self.model.state_dict().items() if n not in frozen}
        return {"model": weights, "optimiser": optimiser.state_dict()}

    def load(self, content: dict[str, Any], optimiser: torch.optim.Optimizer) -> None:
        """What `state` gave, in every process."""
        frozen = any(not p.requires_grad for p in self.model.parameters())
        self.model.load_state_dict(content["model"], strict=not frozen)
        optimiser.load_state_dict(content["optimiser"])

    def shares(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        """The same of a model in shares: this process's, under names that all processes share."""
        from torch.distributed.checkpoint import state_dict as dcp

        options = dcp.StateDictOptions(ignore_frozen_params=True)
        weights, state = dcp.get_state_dict(self._passes, optimiser, options=options)
        return {"model": weights, "optimiser": state}

    def load_shares(self, content: dict[str, Any], optimiser: torch.optim.Optimizer) -> None:
        """What `shares` gave, filled from a checkpoint; every process calls it."""
        from torch.distributed.checkpoint import state_dict as dcp

        dcp.set_state_dict(
            self._passes,
            optimiser,
            model_state_dict=content["model"],
            optim_state_dict=content["optimiser"],
            options=dcp.StateDictOptions(ignore_frozen_params=True, strict=False),
        )

    def plain(self) -> PreTrainedModel:
        """The trained model, whole and without what was only for training."""
        if not self.is_sharded:
            return finished(self.model)
        self._whole = None
        return gathered(self._build, self.model)

    def _deal_out(self, model: PreTrainedModel, build: Build) -> None:
        deal_out(model, build(CPU) if self.ranks.main else None, self._device)


class _Passes(torch.nn.Module):
    """A model as DDP and FSDP2 want one: every differentiable pass is a call of `forward`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(self.model, *arguments)


def _copied(passes: torch.nn.Module) -> torch.nn.Module:
    """A copy of the model in each process, gradients averaged: DDP."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # Buffers are the same everywhere, and processes may call `forward` at different times.
    options = DistributedDataParallelKwargs(broadcast_buffers=False)
    cpu = next(passes.parameters()).device.type == "cpu"
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[options])
    return accelerator.prepare_model(passes)


def recompute(model: PreTrainedModel) -> None:
    """Compute layers again in backward instead of keeping what they computed."""
    if not model.supports_gradient_checkpointing:
        raise InputError(
            f"run.recompute: {type(model).__name__} cannot compute its layers again: set it to "
            "false and lower run.batch_tokens."
        )
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()
    model.disable_input_require_grads()  # only needed by reentrant checkpoints
    without_dropout(model).recomputes = True


def finished(model: PreTrainedModel) -> PreTrainedModel:
    """The model without what was only for training."""
    if getattr(model, "recomputes", False):
        disable = getattr(model, "activation_checkpointing_disable", None)
        (disable or model.gradient_checkpointing_disable)()
        model.recomputes = False
    return model


@contextlib.contextmanager
def _training(model: PreTrainedModel) -> Iterator[None]:
    """Training mode where layers are computed again, which they are not in eval mode."""
    if not getattr(model, "recomputes", False):
        yield
        return
    model.train()
    try:
        yield
    finally:
        model.eval()


def total_norm(norm: torch.Tensor) -> float:
    """A gradient norm as a number, also that of shares."""
    full = getattr(norm, "full_tensor", None)
    return float(full() if full else norm)


def as_trainable(model: PreTrainedModel | Trainable) -> Trainable:
    """A model that is trained alone where no more is said."""
    return model if isinstance(model, Trainable) else Trainable(model)


def microbatched(
    parts: Sequence[Part], loss: Callable[[Part], torch.Tensor]
) -> tuple[torch.Tensor, list[Callable[[], float]]]:
    """A step's loss where it is one part, otherwise 0 and what adds each part's gradient.

    Args:
        loss: the mean loss of a part.
    """
    if len(parts) == 1:
        return loss(parts[0]) * parts[0].share, []

    def add(part: Part) -> float:
        value = loss(part) * part.share
        value.backward()
        return float(value.detach())

    return torch.zeros(()), [partial(add, part) for part in parts]
