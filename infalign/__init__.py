"""infalign: inference-aware alignment of language models (InfAlign, arXiv 2412.19792).

The names of `__all__` are the interface for notebooks and other people's trainers, each with an
example in docs/python.md. They are imported when they are first used, and need numpy and scipy
alone; Parquet needs pyarrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infalign.instrument.interface import (
        CalibratedReward,
        calibrate,
        frontier,
        measure,
        transform,
        win_rate,
    )

__version__ = "0.1.0"
__all__ = ["CalibratedReward", "calibrate", "frontier", "measure", "transform", "win_rate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'infalign' has no attribute {name!r}")
    return getattr(import_module("infalign.instrument.interface"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
