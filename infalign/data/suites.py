"""Pinned prompts that train nobody: a safety suite, a customer's twenty questions.

A suite is a file in any form that `forms` knows; its prompts alone are read, whatever stands beside
them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from infalign.data.dialogue import Dialogue
from infalign.data.pairs import SPLITS
from infalign.data.reading import options_of, survey
from infalign.errors import InputError
from infalign.settings.params import Data


def read_suite(root: Path, data: Data, name: str) -> dict[str, Dialogue]:
    """The prompts of a suite, in the order of their ids: id to dialogue."""
    path = root / data.suites[name]
    if not path.exists():
        raise InputError(
            f"params.yaml: data.suites.{name} = {data.suites[name]!r} does not exist: bring the "
            "file back, or correct the path."
        )
    options = options_of(data)
    everything = options.limits._replace(kept_bytes=sys.maxsize, most_pairs=None)
    read = survey(path, None, options._replace(limits=everything))
    lost = {reason: n for reason, n in read.dropped.items() if n and reason != "repeated_pair"}
    if lost:
        raise InputError(
            f"params.yaml: data.suites.{name} = {data.suites[name]!r} has rows that cannot be "
            f"used ({', '.join(f'{n} for {reason}' for reason, n in lost.items())}): every prompt "
            "of a suite counts, so correct them, or give its prompts alone."
        )
    found = {pair.prompt for split in SPLITS for pair in read.pairs(split)}
    found |= {row.prompt for split in SPLITS for row in read.prompts[split]}
    if not found:
        raise InputError(
            f"params.yaml: data.suites.{name} = {data.suites[name]!r} has no prompts "
            f"({read.lines} rows read): give it some."
        )
    return {prompt.id: prompt for prompt in sorted(found, key=lambda prompt: prompt.id)}


def pinned(root: Path, data: Data) -> set[Dialogue]:
    """The prompts of all suites."""
    return {prompt for name in data.suites for prompt in read_suite(root, data, name).values()}
