"""A packaged policy whose responses servers of vLLM draw, for `infalign serve`.

The policy is in this process for as long as the check takes: responses to some of its own prompts
are drawn from the servers and computed by the own forward pass (`engines/truth.py`). After that
the reward alone is here.
"""

from __future__ import annotations

import contextlib
import gc
from dataclasses import replace

import numpy as np
import torch

from infalign.data.framing import asked
from infalign.deployment.deployed import Deployed
from infalign.engines import truth
from infalign.engines.samplers import BuiltIn, Served, computed, open_engine
from infalign.errors import InputError
from infalign.lm.sampling.randomness import derive_seed
from infalign.settings.operating import Serving
from infalign.settings.servers import Generation

QUESTION = "How do I bake bread?"  # where a package holds no prompts
PROMPTS = 16  # that the servers are checked with
PATIENCE = 2.0  # seconds: whoever asks is told sooner that a server is away, and asks again


def by_engine(
    deployed: Deployed,
    name: str,
    serving: Serving,
    generation: Generation,
    stack: contextlib.ExitStack,
) -> Deployed:
    """The same policy on servers that have proved to have it, and not in this process any more.

    Args:
        name: by which the servers know it, as `infalign-helpful/3`.
        generation: how servers are started and asked; where they are says `serving`.
        stack: ends what is started here.

    Raises:
        InputError, CheckFailed: one sentence, where no server has it, or has another policy.
    """
    sampler = deployed.sampler
    if not isinstance(sampler, BuiltIn):
        raise InputError(f"{name}: servers draw from it already.")
    urls, start = serving.urls, not serving.urls
    changes = {"urls": urls, "start": start, "patience_seconds": PATIENCE}
    settings = generation.model_copy(update=changes)
    how = computed(sampler.policy)
    opened = open_engine(settings, how, deployed.folder, name, section="serving")
    engine = stack.enter_context(opened)
    _check(Served(engine, sampler.policy, deployed.form), deployed)
    return replace(deployed, sampler=Served(engine, None, deployed.form))


def _check(served: Served, deployed: Deployed) -> None:
    """Draw as many responses as are compared."""
    prompts = list(deployed.references)[:PROMPTS] or [asked(QUESTION)]
    samples = -(-truth.RESPONSES // len(prompts))
    served.draw(
        prompts,
        [prompt.id for prompt in prompts],
        np.tile(np.arange(samples), (len(prompts), 1)),
        seed=derive_seed(0, "check"),
        longest=deployed.response_tokens,
    )


def give_memory_back() -> None:
    """The memory of models that nobody holds any more, and what torch keeps of it on a GPU."""
    gc.collect()
    torch.cuda.empty_cache()
