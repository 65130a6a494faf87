"""How many prompts, or samples a prompt, an interval of a wanted width takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from infalign.files.names import SELECTING
from infalign.instrument.samples import Samples, alike
from infalign.theory.checks import FloatArray
from infalign.theory.planning import (
    WinRateNoise,
    interval_width,
    prompts_needed,
    samples_needed,
)
from infalign.theory.procedures import Procedure
from infalign.theory.winrates import win_rates


def needed(
    policy: Samples, reference: Samples, procedure: Procedure, wins: FloatArray, width: float
) -> dict[str, Any]:
    """Prompts at today's samples, and samples on today's prompts, for an interval that wide.

    The spread of the prompts' win rates is split in two: what halves of a prompt's samples differ
    by is sampling and falls with their number, the rest is between prompts and does not. Where a
    half has fewer samples than the procedure draws there is no telling, and samples is None.

    Args:
        wins: win rate of every prompt [prompts].
        width: full width of the 95 % interval.
    """
    samples = int(np.median(np.minimum(policy.counts, reference.counts)))
    total = float(wins.var(ddof=1))
    sampling = _sampling_variance(policy, reference, procedure)
    within = total if sampling is None else min(sampling, total)
    between = float(np.sqrt(max(0.0, total - within)))
    half = within * samples / 2
    noise = WinRateNoise(half, half, procedure.n)
    prompts = len(wins)
    found: dict[str, Any] = {
        "policy": policy.name,
        "width": width,
        "now": interval_width(noise, prompts, samples, between_prompts=between),
        "prompts": prompts_needed(noise, width, samples, between_prompts=between),
        "samples": None,
        "why": "",
    }
    found["more_prompts"] = max(0, found["prompts"] - prompts)
    if found["now"] <= width:
        found["samples"] = samples
    elif sampling is None:
        found["why"] = f"with {samples} samples a prompt there is no telling what more would do"
    else:
        try:
            found["samples"] = samples_needed(noise, width, prompts, between_prompts=between)
        except ValueError:
            found["why"] = "no number of samples is enough on so few prompts"
    more = found["samples"]
    found["more_samples"] = None if more is None else max(0, more - samples)
    return found


def _sampling_variance(policy: Samples, reference: Samples, procedure: Procedure) -> float | None:
    """Variance of a prompt's win rate from its samples alone, by halves; None for too few."""
    squares, prompts = 0.0, 0
    rng = np.random.default_rng(0)
    for chosen, m, other in alike(policy, reference):
        if min(m, other) // 2 < procedure.n:
            continue
        ours, theirs = (
            rng.permuted(side.rectangle(side.rewards[SELECTING], chosen, many), axis=1)
            for side, many in ((policy, m), (reference, other))
        )
        first, second = (
            win_rates(procedure, *(half(rows, part) for rows in (ours, theirs))) for part in (0, 1)
        )
        squares += float(np.sum((first - second) ** 2))
        prompts += len(chosen)
    # Halves have twice the variance each, so their difference has four times the whole's.
    return squares / prompts / 4 if prompts else None


def half(rows: FloatArray, part: int) -> FloatArray:
    """The first or the second half of each row's samples."""
    size = rows.shape[1] // 2
    return rows[:, part * size : (part + 1) * size]
