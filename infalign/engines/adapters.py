"""Servers that draw for a policy in training: its adapter is handed to them every few steps.

A step's loss holds for samples of any policy (`aligning.losses.rloo_loss`), so that the adapter may
be some steps old. Servers read it from a folder: they stand on this machine, or share its files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from infalign.data.dialogue import Dialogue
from infalign.engines.samplers import Served, computed, open_engine
from infalign.engines.vllm import Engine
from infalign.lm.formats import Format
from infalign.lm.sampling.sampler import Responses
from infalign.lm.training.lora import save_adapter
from infalign.processes.ranks import Ranks
from infalign.settings.params import Params


class Adapters:
    """Draws with the policy as it was when its adapter was last handed over.

    Args:
        engine: the reference on its servers.
        folder: where adapters are written; they are gone when the next one is there.
        base: the reference's folder.
        every: steps between two adapters.
        ranks: processes that draw, each its own part of a step.
    """

    def __init__(
        self, engine: Engine, form: Format, folder: Path, base: Path, every: int, ranks: Ranks
    ) -> None:
        self._engine, self._form, self._every, self._ranks = engine, form, every, ranks
        self._folder, self._base = folder, base
        self._name: str | None = None

    def draw(
        self,
        number: int,
        policy: PreTrainedModel,
        prompts: Sequence[Dialogue],
        prompt_ids: Sequence[str],
        sample_indices: np.ndarray,
        *,
        seed: int,
        longest: int,
    ) -> Responses:
        """Responses of a step; the first of every adapter's are checked against the policy.

        Args:
            number: of the step.
            policy: with its adapter.
        """
        renews = self._name is None or number % self._every == 0
        if renews:
            self._hand_over(number, policy)
        assert self._name is not None
        checked = policy if renews else None
        served = Served(self._engine.named(self._name), checked, self._form)
        return served.draw(prompts, prompt_ids, sample_indices, seed=seed, longest=longest)

    def _hand_over(self, number: int, policy: PreTrainedModel) -> None:
        """Write the adapter, tell the servers, have them forget the former one."""
        former = self._name
        self._name = self._ranks.first(f"{self._folder.parent.name}-{number}-{os.getpid()}")
        if self._ranks.main:
            place = self._folder / self._name
            save_adapter(policy, place, str(self._base.absolute()))
            named = {"lora_name": self._name}
            self._engine.post("/v1/load_lora_adapter", named | {"lora_path": str(place.absolute())})
            if former is not None:
                self._engine.post("/v1/unload_lora_adapter", {"lora_name": former})
                shutil.rmtree(self._folder / former, ignore_errors=True)
        self._ranks.wait()


@contextlib.contextmanager
def open_adapters(
    params: Params,
    policy: PreTrainedModel,
    base: Path,
    form: Format,
    work: Path,
    ranks: Ranks,
) -> Iterator[Adapters | None]:
    """What draws for a policy with an adapter, where an engine does; else None.

    Args:
        base: the reference's folder, which servers are started with.
        work: the stage's folder of unfinished work.
    """
    align = params.align
    if params.generation.engine == "builtin" or align.lora_rank is None:
        yield None
        return
    folder = work / "adapters"
    shutil.rmtree(folder, ignore_errors=True)
    settings, rank = params.generation, align.lora_rank
    how = computed(policy)
    with open_engine(settings, how, base, "sft", ranks=ranks, lora_rank=rank) as engine:
        yield Adapters(engine, form, folder, base, align.sync_every, ranks)
    if ranks.main:
        shutil.rmtree(folder, ignore_errors=True)
