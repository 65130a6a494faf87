"""Who draws from a packaged policy when it is measured, in the arena and by the monitor.

`generation` of params.yaml decides, as in the stages: the built-in sampler, or a server of vLLM
that is started for the policy. A version has no place below results/, by which servers elsewhere
would be asked for it: with `generation.urls` the built-in sampler draws.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from infalign.settings.params import Params

if TYPE_CHECKING:
    from infalign.engines.samplers import Sampler
    from infalign.lm.memory import Budget


@contextlib.contextmanager
def open_packaged_sampler(
    params: Params, folder: Path, precision: str, word: str, budget: Budget | None = None
) -> Iterator[Sampler]:
    """What draws from a packaged policy while the context lasts.

    Args:
        folder: the policy's.
        precision: that it was evaluated in.
        word: a server goes by it, and its log.
        budget: of the built-in sampler.
    """
    from infalign.engines.samplers import open_sampler
    from infalign.lm.models import load_format, load_policy, pick_device

    with open_sampler(
        params,
        load_policy(folder, pick_device(params.run.device), precision, frozen=True),
        folder,
        load_format(folder),
        name=word,
        batch_size=params.evaluate.batch_size,
        budget=budget,
        placed=False,
    ) as sampler:
        yield sampler
