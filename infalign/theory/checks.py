"""Checks of what callers hand in; every failure is one ValueError with one sentence.

Reads arrays and numbers; returns them as float64; leaves shapes that differ
between functions to the functions themselves.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

MIN_KL_NATS = 1e-8  # what the theory can solve
MAX_KL_NATS = 20.0
BUDGET_NATS = (0.001, 5.0)  # what a policy may be trained to spend a response


class Misspelled(ValueError):
    """A spelling that cannot be read; its one sentence shows the grammar."""

    def __init__(self, kind: str, spelling: str, why: str, grammar: str) -> None:
        super().__init__(f"{kind} {spelling!r} cannot be read ({why}); write {grammar}.")


def spelled(number: float) -> str:
    """The shortest text that reads back as the same number: 10 rather than 10.0."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


def finite_rewards(name: str, rewards: ArrayLike, ndim: int | None = None) -> FloatArray:
    """Return `rewards` as float64, refusing NaN, infinities, emptiness and a wrong rank."""
    array = np.asarray(rewards, dtype=np.float64)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(
            f"{name} must have {ndim} axes (prompts, samples) but has shape {array.shape}; reshape."
        )
    if array.size == 0:
        raise ValueError(f"{name} is empty (shape {array.shape}); score at least one sample.")
    finite = np.isfinite(array)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{name} holds {int(array.size - finite.sum())} NaN or infinite values, the first at "
            f"index {first}; drop or rescore those responses."
        )
    return array


def same_prompts(names: str, *arrays: FloatArray) -> None:
    """Refuse arrays whose first axis, the prompts, differ in length."""
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"{names} must cover the same prompts but have {lengths} rows; align them by prompt_id."
        )


def positive_kl(kl_nats: float, reachable: float = MAX_KL_NATS, of: str = "") -> float:
    """Return a KL budget in nats if it lies in the reachable range (of what `of` names)."""
    kl = float(kl_nats)
    top = min(reachable, MAX_KL_NATS)
    if not MIN_KL_NATS <= kl <= top:
        shown = max(math.floor(top * 1e4) / 1e4, 0.0)
        raise ValueError(
            f"kl_nats is {kl:g} but must lie within the reachable range {MIN_KL_NATS:g} to "
            f"{shown:g} nats{of and ' of ' + of}; choose a budget in that range."
        )
    return kl


def budget_kl(kl_nats: float) -> float:
    """Return the KL budget of a policy, in nats a response, if it lies within `BUDGET_NATS`."""
    low, high = BUDGET_NATS
    if not low <= kl_nats <= high:
        raise ValueError(f"a KL budget must lie within {low:g} to {high:g} nats a response")
    return kl_nats


def positive_integer(name: str, value: int) -> int:
    """Return a count of at least one."""
    if isinstance(value, bool) or not (value >= 1 and math.isfinite(value) and int(value) == value):
        raise ValueError(f"{name} is {value!r} but must be a whole number of at least 1.")
    return int(value)
