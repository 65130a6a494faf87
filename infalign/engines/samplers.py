"""Samplers: what draws responses to dialogues, by whichever engine generation.engine names.

`BuiltIn` draws with a model in this process and gives the same bytes in any number of processes.
`Served` draws over HTTP from servers, and checks the first responses of every call against the own
forward pass: see `truth`. It promises no bytes: rounding there depends on what is drawn together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from transformers import PreTrainedModel

from infalign.data.dialogue import Dialogue
from infalign.engines import truth
from infalign.engines.starting import Start, started
from infalign.engines.vllm import Drawn, Engine, Wanted
from infalign.lm.formats import Format
from infalign.lm.memory import Budget
from infalign.lm.sampling.randomness import engine_seed
from infalign.lm.sampling.sampler import Responses, sample_responses
from infalign.processes.ranks import ALONE, Ranks
from infalign.settings.params import Params
from infalign.settings.servers import Generation


class Sampler(Protocol):
    """Draws responses, no truncation of the distribution.

    Attributes:
        at_once: whether several threads may draw at once.
    """

    @property
    def at_once(self) -> bool: ...

    def draw(
        self,
        prompts: Sequence[Dialogue],
        prompt_ids: Sequence[str],
        sample_indices: np.ndarray,
        *,
        seed: int | Sequence[int],
        longest: int,
        temperature: float = 1.0,
        ranks: Ranks = ALONE,
    ) -> Responses:
        """As `sample_responses`."""
        ...


@dataclass(frozen=True)
class BuiltIn:
    """The sampler of this program."""

    policy: PreTrainedModel
    form: Format
    batch_size: int
    budget: Budget
    at_once = False

    def draw(
        self,
        prompts: Sequence[Dialogue],
        prompt_ids: Sequence[str],
        sample_indices: np.ndarray,
        *,
        seed: int | Sequence[int],
        longest: int,
        temperature: float = 1.0,
        ranks: Ranks = ALONE,
    ) -> Responses:
        """As `sample_responses`."""
        return sample_responses(
            self.policy,
            self.form,
            prompts,
            prompt_ids,
            sample_indices,
            seed=seed,
            longest=longest,
            batch_size=self.batch_size,
            temperature=temperature,
            budget=self.budget,
            ranks=ranks,
        )


@dataclass(frozen=True)
class Served:
    """A model on servers.

    Attributes:
        policy: the same model here, which the first responses are checked against; None: they are
            not.
    """

    engine: Engine
    policy: PreTrainedModel | None
    form: Format
    at_once = True

    def draw(
        self,
        prompts: Sequence[Dialogue],
        prompt_ids: Sequence[str],
        sample_indices: np.ndarray,
        *,
        seed: int | Sequence[int],
        longest: int,
        temperature: float = 1.0,
        ranks: Ranks = ALONE,
    ) -> Responses:
        """As `sample_responses`; of several processes that share a call, rank 0 asks.

        Log-probabilities are those without a temperature. What is drawn at another temperature
        than 1 cannot be checked, so some responses are drawn at 1 for that.
        """
        responses = None
        if ranks.main:
            wanted = Wanted(longest, self.form.ends, temperature)
            seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
            responses = self._draw(prompts, prompt_ids, sample_indices, seeds, wanted)
        found = ranks.first(responses)
        assert found is not None
        return found

    def _draw(
        self,
        prompts: Sequence[Dialogue],
        prompt_ids: Sequence[str],
        sample_indices: np.ndarray,
        streams: Sequence[int],
        wanted: Wanted,
    ) -> Responses:
        samples = sample_indices.shape[1]
        if not np.array_equal(sample_indices, sample_indices[:, :1] + np.arange(samples)):
            raise ValueError("an engine draws responses of consecutive sample indices")
        encoded = self.form.encode_prompts(prompts)
        firsts = sample_indices[:, 0].tolist()
        seeds = [engine_seed(*own) for own in zip(streams, prompt_ids, firsts, strict=True)]
        drawn: list[Drawn] = []
        if self.policy is not None and encoded:
            some = min(len(encoded), max(2, -(-truth.RESPONSES // samples)))
            plain = wanted._replace(temperature=1.0)
            first = self.engine.draw(encoded[:some], seeds[:some], samples, plain)
            self._check(self.policy, encoded[:some], first)
            drawn += first if wanted == plain else []
        done = len(drawn) // samples
        drawn += self.engine.draw(encoded[done:], seeds[done:], samples, wanted)
        tokens = [one.tokens for one in drawn]
        sums = np.array([_sum(one.logp) for one in drawn])
        finished = np.array([one.finished for one in drawn], dtype=bool)
        return Responses(tokens, self.form.decode(tokens), sums, finished)

    def _check(
        self, policy: PreTrainedModel, prompts: Sequence[Sequence[int]], drawn: Sequence[Drawn]
    ) -> None:
        tokens, sums = [one.tokens for one in drawn], np.array([_sum(one.logp) for one in drawn])
        who = f"{self.engine.section}.urls: the server of {self.engine.model!r}"
        truth.check_drawn(policy, prompts, tokens, sums, self.form.pad, who)


def _sum(values: Sequence[float]) -> float:
    """In the order of the tokens, as the built-in sampler adds."""
    return float(np.cumsum(values)[-1])


@contextlib.contextmanager
def open_sampler(
    params: Params,
    policy: PreTrainedModel,
    folder: Path,
    form: Format,
    *,
    name: str,
    batch_size: int,
    budget: Budget | None = None,
    ranks: Ranks = ALONE,
    placed: bool = True,
) -> Iterator[Sampler]:
    """What draws from a policy; servers that are started for it end with the context.

    Args:
        folder: the policy's, which a server is started with.
        name: of the policy there: its place below results/.
        batch_size, budget: of the built-in sampler.
        ranks: the processes that will draw; rank 0 starts a server for all.
        placed: whether servers that generation.urls names may have it. A packaged policy has no
            place below results/: the built-in sampler draws from it where no server is started.
    """
    settings = params.generation
    if settings.engine == "builtin" or not (placed or settings.start):
        yield BuiltIn(policy, form, batch_size, budget or Budget())
        return
    with open_engine(settings, computed(policy), folder, name, ranks=ranks) as engine:
        yield Served(engine, policy, form)


class Computed(NamedTuple):
    """How a model computes here, and so on its servers.

    Attributes:
        exact: in float32.
        device: its type.
    """

    exact: bool
    device: str


def computed(policy: PreTrainedModel) -> Computed:
    """How a model computes."""
    return Computed(getattr(policy, "autocast_dtype", None) is None, policy.device.type)


@contextlib.contextmanager
def open_engine(
    settings: Generation,
    how: Computed,
    folder: Path,
    name: str,
    *,
    ranks: Ranks = ALONE,
    lora_rank: int | None = None,
    section: str = "generation",
) -> Iterator[Engine]:
    """A policy on servers, which are started and ended where `start` says so.

    Args:
        how: the policy computes.
        folder, name, ranks: as `open_sampler`.
        lora_rank: of adapters that a server takes.
        section: of params.yaml that has `urls`.
    """
    with contextlib.ExitStack() as stack:
        urls = settings.urls
        if settings.start:
            if ranks.main:
                start = Start(settings, folder, name, how.exact, how.device, lora_rank)
                urls = [stack.enter_context(started(start))]
            urls = ranks.first(urls)
        yield Engine(settings, urls, name, section=section)
        ranks.wait()
