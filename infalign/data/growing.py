"""Rows that are added to data: those that can be used and are new, in files of their own.

A pair is new where no old one of its subset says the same. Where the files say which split a row is
of, a row whose prompt is on the other side of the old data is left out, so that no prompt ever
changes sides; where prompts are divided by their hash they cannot.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from infalign.data.forms import Broken
from infalign.data.pairs import Options, Pair, Prompt, Unsuitable
from infalign.data.places import Found, find_files, split_name, subsets
from infalign.data.reading import entries
from infalign.data.rows import Row
from infalign.errors import InputError
from infalign.files.workspace import replacing

Key = bytes


@dataclass
class Growth:
    """What became of the rows of a source.

    Attributes:
        rows: read.
        added: of them.
        repeated: there before, or further up in the source.
        contrary: pairs that an old one says the opposite of, whether they were added or not.
        other_side: of prompts that are of the other split.
        dropped: those that cannot be used, by reason.
        files: that were made, relative to the data.
    """

    rows: int = 0
    added: int = 0
    repeated: int = 0
    contrary: int = 0
    other_side: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)


@dataclass
class _Old:
    """What is there: pairs by subset, and the split of every prompt where files say it."""

    pairs: set[tuple[str | None, Key]] = field(default_factory=set)
    sides: dict[Key, str] = field(default_factory=dict)


def grow(
    base: Path, source: Path, options: Options, *, contrary: bool, subset: str | None = None
) -> Growth:
    """Write what is new in a source into files beside those of a folder of data.

    Args:
        base: a folder of data of its own to change.
        source: a folder or a file, of the same subsets and splits.
        contrary: whether pairs are added that old ones say the opposite of.
        subset: into which subset data without subsets goes.

    Raises:
        InputError: for a source that does not fit; `base` may be half changed then.
    """
    found = {name: find_files(base, name, options.splits) for name in subsets(base, options.splits)}
    old = _read_old(found, options)
    growth = Growth()
    for name in subsets(source, options.splits):
        target = _target(base, source, list(found), name, subset)
        for split, files in find_files(source, name, options.splits).files.items():
            for file in files:
                home = _home(base, target, found[target], split, file)
                _add(file, home, old, options, contrary, growth)
    _check_same(base, found, options)
    return growth


def _read_old(found: Mapping[str | None, Found], options: Options) -> _Old:
    old = _Old()
    for name, there in found.items():
        for split, files in there.files.items():
            for file in files:
                for _, entry in entries(file, options):
                    if isinstance(entry, Pair | Prompt):
                        old.pairs.add((name, _key(entry)))
                        if not there.single:
                            _side(old, entry, str(split))
    return old


def _side(old: _Old, entry: Pair | Prompt, split: str) -> None:
    """Note the split of a prompt; of one that both have, the test split, as when it is read."""
    key = _digest([entry.prompt.name])
    if old.sides.get(key) != "test":
        old.sides[key] = split


def _target(
    base: Path, source: Path, there: list[str | None], name: str | None, asked: str | None
) -> str | None:
    """The subset of the data that a subset of the source belongs to."""
    target = asked if name is None and asked is not None else name
    if target in there:
        return target
    if there == [None]:
        raise Unsuitable(
            f"{base} has no subset {target!r}, nor any other: give one of the source's folders, "
            "without --subset."
        )
    if name is None and len(there) == 1:
        return there[0]
    own = "no subset" if target is None else f"the subset {target!r}"
    raise Unsuitable(
        f"{source} has {own}, and {base} has {there}: say which it goes into with --subset."
    )


class _Home(NamedTuple):
    """Where the rows of a source's file go."""

    base: Path
    subset: str | None
    split: str | None  # None: prompts are divided by their hash
    place: Path


def _home(base: Path, subset: str | None, there: Found, split: str | None, file: Path) -> _Home:
    """Beside the files of the split, under the next free number."""
    own = next(iter(there.files)) if there.single and split is None else split
    if own not in there.files:
        known = [str(name) for name in there.files if name] or ["none, and is divided by prompts"]
        raise Unsuitable(
            f"{file} is of the split {split or 'none'}, and {there.base} has {known}: with another "
            "split, prompts would change sides. Name the file as one that is there."
        )
    model = there.files[own][-1]
    name = split_name(model)
    for number in itertools.count(2):
        stem = f"{name}_{number:04d}" if name else f"{number:04d}"
        if not list(model.parent.glob(f"{stem}.*")):
            break
    return _Home(base, subset, None if there.single else own, model.parent / f"{stem}.jsonl")


def _add(
    file: Path, home: _Home, old: _Old, options: Options, contrary: bool, growth: Growth
) -> None:
    """Write the new rows of a file as JSON lines; none: no file."""
    before = growth.added
    with replacing(home.place) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for row, entry in entries(file, options):
            growth.rows += 1
            if not isinstance(entry, Pair | Prompt):
                growth.dropped["broken_line" if isinstance(entry, Broken) else str(entry)] += 1
            elif _is_new(entry, home, old, contrary, growth):
                stream.write(_line(file, row) + "\n")
                growth.added += 1
    if growth.added == before:
        home.place.unlink()
    else:
        growth.files.append(home.place.relative_to(home.base).as_posix())


def _is_new(entry: Pair | Prompt, home: _Home, old: _Old, contrary: bool, growth: Growth) -> bool:
    """Whether a row is to be added; counted where it is not."""
    name = (home.subset, _key(entry))
    if name in old.pairs:
        growth.repeated += 1
        return False
    side = old.sides.get(_digest([entry.prompt.name]))
    if home.split is not None and side not in (None, home.split):
        growth.other_side += 1
        return False
    if isinstance(entry, Pair):
        opposite = entry._replace(chosen=entry.rejected, rejected=entry.chosen)
        if (home.subset, _key(opposite)) in old.pairs:
            growth.contrary += 1
            if not contrary:
                return False
    old.pairs.add(name)
    return True


def _line(file: Path, row: Row) -> str:
    try:
        return json.dumps(row.value, ensure_ascii=False)
    except (TypeError, ValueError):
        raise InputError(
            f"{file} {row.place} holds what JSON cannot (a date, bytes): leave out that column."
        ) from None


def _key(entry: Pair | Prompt) -> Key:
    sides = [entry.chosen, entry.rejected] if isinstance(entry, Pair) else []
    return _digest([entry.prompt.name, *sides])


def _digest(texts: list[str]) -> Key:
    return hashlib.sha256(json.dumps(texts).encode()).digest()[:16]


def _check_same(base: Path, before: Mapping[str | None, Found], options: Options) -> None:
    """Raise where another file than before decides which split a row is of."""
    for name, found in before.items():
        now = find_files(base, name, options.splits)
        kept = all(
            set(files) <= set(now.files.get(split, [])) for split, files in found.files.items()
        )
        if now.files.keys() != found.files.keys() or not kept:
            raise Unsuitable(
                f"{now.base}: with what was added its splits would be {list(now.files)}, not "
                f"{list(found.files)}: name the source's files as the old ones are."
            )
