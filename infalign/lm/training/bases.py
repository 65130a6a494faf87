"""Which weights SOAP learns a basis for, by their shapes, and which optimiser suits a model.

Needs no torch: `infalign plan` counts by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

LONGEST = 512  # rows or columns: a longer side keeps its own basis, as in Adam


def short_sides(shape: Sequence[int]) -> dict[int, int]:
    """The sides of a matrix that have a basis, and their lengths."""
    sides = enumerate(shape) if len(shape) == 2 else ()
    return {side: size for side, size in sides if size <= LONGEST}


def suits(shapes: Iterable[Sequence[int]]) -> str:
    """`soap` where most of the trained numbers are in matrices with a basis, else `adamw`."""
    counts = {True: 0, False: 0}
    for shape in shapes:
        counts[bool(short_sides(shape))] += math.prod(shape)
    return "soap" if counts[True] > counts[False] else "adamw"
