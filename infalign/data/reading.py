"""Anybody's preference data: one subset of it, read in pieces, split by prompt, within bounds.

Rows that cannot be used are dropped and counted by reason; a file of another form is an error. What
is kept has bounds: beyond them prompts are chosen by the hash of what they say, with all of their
pairs, so that the same data gives the same choice in any order and however it is cut into files.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infalign.data.forms import Broken, Drop, Form, Parts, recognise
from infalign.data.pairs import (
    DROP_REASONS,
    SPLITS,
    FileRead,
    Limits,
    Options,
    Pair,
    Prompt,
    Subset,
    Unsuitable,
    side_of,
    without_prompts,
)
from infalign.data.places import find_files
from infalign.data.rows import Row, read_rows
from infalign.errors import InputError
from infalign.settings.params import Data

ALWAYS = (
    "broken_line",
    "prompt_differs",
    "identical_pair",
    "empty_response",
    "prompt_in_test",
    "prompt_too_long",
    "repeated_pair",
)
FEW_BROKEN = 5  # or cannot be used, whatever their share
BROKEN_SHARE = 0.01
DROPPED_SHARE = 0.5  # of a file's rows; where more cannot be used, its form is not what it seems
HEAD = 20  # rows by which a file's form is recognised
ENTRY_BYTES = 800  # of memory around the texts of a pair


def read_data(path: Path, subset: str | None, options: Options) -> Subset:
    """Read one subset of a folder of data, or a file; a single split is split by prompt.

    A prompt that train and test share stays in test only.
    """
    read = survey(path, subset, options)
    for split in SPLITS:
        if not read.pairs(split) and not read.prompts[split]:
            dropped = {reason: n for reason, n in read.dropped.items() if n}
            raise InputError(
                f"{path / subset if subset else path} has no usable pair for its {split} split "
                f"({read.lines} rows read, dropped: {dropped}): give it more pairs."
            )
    return read


def survey(path: Path, subset: str | None, options: Options) -> Subset:
    """The same, where a split may be left with nothing."""
    found = find_files(path, subset, options.splits)
    read = Subset(found.name, left_out=found.left_out)
    kept = _Bounded(options.limits)
    for split, files in found.files.items():
        for file in files:
            source = f"{found.name}/{file.relative_to(found.base).as_posix()}"
            _read_file(file, split, source, read, kept, options)
    read.test_share = options.test_share if found.single else None
    _divide(read, kept)
    return read


def options_of(data: Data, columns: Mapping[str, str] | None = None) -> Options:
    """How data is read by the settings, with an objective's own columns where it has some."""
    limits = Limits(data.file_bytes, data.line_bytes, data.kept_bytes, data.most_pairs)
    return Options(limits, data.test_share, columns or data.columns, data.splits)


def counted(dropped: Mapping[str, int]) -> dict[str, int]:
    """How many were dropped for each reason: the common ones also where there are none."""
    return {
        reason: dropped[reason] for reason in DROP_REASONS if reason in ALWAYS or dropped[reason]
    }


class _Bounded:
    """The rows that are kept: prompts with the lowest hashes, as many as the bounds allow.

    A prompt that was left out once stays out, so whatever the order, those below the last hash that
    was left out are all there.
    """

    def __init__(self, limits: Limits) -> None:
        self._most_bytes = limits.kept_bytes
        self._most = sys.maxsize if limits.most_pairs is None else limits.most_pairs
        self._rows: dict[float, list[tuple[int, str | None, Pair | Prompt]]] = {}
        self._highest: list[float] = []  # a heap of the negative hashes
        self._bytes: dict[float, int] = {}
        self._bound, self._size, self._n = 1.0, 0, 0
        self._number = itertools.count()
        self.left_out = 0

    def add(self, split: str | None, row: Pair | Prompt) -> None:
        """Keep a row, or leave out the prompt with the highest hash."""
        share = row.prompt.share("kept")
        if share >= self._bound:
            self.left_out += 1
            return
        there = self._rows.get(share)
        if there is None:
            there = self._rows[share] = []
            heapq.heappush(self._highest, -share)
            size = _size(row, True)
        else:
            row = row._replace(prompt=there[0][2].prompt)
            size = _size(row, False)
        there.append((next(self._number), split, row))
        self._bytes[share] = self._bytes.get(share, 0) + size
        self._size += size
        self._n += 1
        while self._size > self._most_bytes or self._n > self._most:
            self._leave_out()

    def _leave_out(self) -> None:
        self._bound = -heapq.heappop(self._highest)
        rows = self._rows.pop(self._bound)
        self._size -= self._bytes.pop(self._bound)
        self._n -= len(rows)
        self.left_out += len(rows)

    def rows(self) -> list[tuple[str | None, Pair | Prompt]]:
        """What is kept, in the order in which it was read."""
        rows = sorted((row for rows in self._rows.values() for row in rows), key=lambda r: r[0])
        return [(split, row) for _, split, row in rows]


def _size(row: Pair | Prompt, new: bool) -> int:
    """Bytes of memory, about."""
    texts = row[1:3]
    turns = row.prompt.turns if new else ()
    return (
        ENTRY_BYTES
        + sum(sys.getsizeof(text) for text in texts)
        + sum(64 + sys.getsizeof(turn.content) for turn in turns)
    )


def _read_file(
    path: Path, split: str | None, source: str, read: Subset, kept: _Bounded, options: Options
) -> None:
    """Keep the usable rows of one file; what is dropped is counted in `read`."""
    form, seen = form_of(path, options.limits, options.columns)
    about = FileRead(path, form.name, form.columns, seen)
    dropped: Counter[str] = Counter()
    first = ""
    needed = None if form.name == "prompts" else tuple(form.columns.values())
    for row in read_rows(path, options.limits, needed):
        about.rows += 1
        entry = _entry(form, row, source)
        if isinstance(entry, Drop):
            dropped[str(entry)] += 1
        elif isinstance(entry, Broken):
            first = first or f"{path} {row.place} {entry}"
            dropped["broken_line"] += 1
            if about.rows == 1:
                break
        else:
            kept.add(split, entry)
    _check_broken(about, first, dropped["broken_line"])
    _check_dropped(about, dropped)
    read.lines += about.rows
    read.dropped.update(dropped)
    read.first_broken = read.first_broken or first or None
    read.files.append(about)


def entries(path: Path, options: Options) -> Iterator[tuple[Row, Pair | Prompt | Drop | Broken]]:
    """Every row of a file, whole, and what it says, or why it cannot be used."""
    form, _ = form_of(path, options.limits, options.columns)
    for row in read_rows(path, options.limits):
        yield row, _entry(form, row, str(path))


def _entry(form: Form, row: Row, source: str) -> Pair | Prompt | Drop | Broken:
    if row.value is None:
        return Broken(row.fault)
    try:
        parts: Parts = form.read(row.value)
        if parts.chosen is None or parts.rejected is None:
            return Prompt(parts.prompt, source, form.others(row.value))
    except (Drop, Broken) as reason:
        return reason
    return Pair(parts.prompt, parts.chosen, parts.rejected, source)


def form_of(path: Path, limits: Limits, columns: Mapping[str, str]) -> tuple[Form, list[str]]:
    """The form of a file, and all columns that its first rows have."""
    head = list(itertools.islice(read_rows(path, limits), HEAD))
    if not head:
        raise InputError(f"{path} is empty: put preference pairs or prompts there.")
    if head[0].value is None:
        raise InputError(
            f"{path} {head[0].place} {head[0].fault}: give JSON lines, a JSON array or Parquet "
            "with preference pairs or prompts, for example the Anthropic HH format."
        )
    rows = [row.value for row in head if row.value is not None]
    seen = list(dict.fromkeys(name for row in rows for name in row))
    _check_columns(path, seen, columns)
    forms = [form for row in rows if (form := recognise(row, columns)) is not None]
    if not forms:
        raise Unsuitable(
            f"{path}: no preference pairs and no prompts are recognised in its columns "
            f"{_shown(rows, seen)}: say which is which, as in "
            "columns: {prompt: instruction, chosen: better, rejected: worse}, or give data in a "
            "form that docs/data.md lists."
        )
    names = Counter(form.name for form in forms)
    best = max(names, key=lambda name: names[name])
    if best == "prompts":
        _check_sides(path, rows, columns)
    return max((f for f in forms if f.name == best), key=lambda f: len(f.columns)), seen


def _shown(rows: list[dict[str, Any]], seen: list[str]) -> list[str]:
    """Columns with the kind of what they hold, a few dozen at most."""
    kinds = {str: "text", list: "list", dict: "mapping", bool: "bool", int: "number"}
    kinds |= {float: "number"}
    words = []
    for name in seen[:30]:
        value = next((row[name] for row in rows if row.get(name) is not None), None)
        words.append(f"{name[:60]} ({kinds.get(type(value), type(value).__name__)})")
    return words


def _check_columns(path: Path, seen: list[str], columns: Mapping[str, str]) -> None:
    for role, name in columns.items():
        if name not in seen:
            raise Unsuitable(
                f"{path} has no column {name!r}, which columns names for {role!r} (it has "
                f"{seen[:30]}): correct columns, in params.yaml or as --column."
            )


def _check_sides(path: Path, rows: list[dict[str, Any]], columns: Mapping[str, str]) -> None:
    """Raise for pairs that cannot be read: they would pass for prompts alone."""
    sides = [columns.get(side, side) for side in ("chosen", "rejected")]
    for row in rows:
        form = recognise(row, columns)
        both = all(row.get(side) is not None for side in sides)
        if both and form is not None and form.name == "prompts":
            raise Unsuitable(
                f"{path}: no responses are recognised in its columns {_shown([row], sides)}: give "
                "two texts, or two lists of {role, content} messages, or leave these columns out "
                "for prompts alone."
            )


def _check_broken(about: FileRead, first: str, n_broken: int) -> None:
    """Stray broken rows are dropped; a broken start or many of them mean another form."""
    n_rows = about.rows
    if n_rows == 0:
        raise InputError(f"{about.path} is empty: put preference pairs or prompts there.")
    allowed = max(BROKEN_SHARE * n_rows, min(FEW_BROKEN, n_rows / 2))
    if n_broken and (n_rows == 1 or n_broken > allowed):
        raise InputError(
            f"{first} ({n_broken} of the {n_rows} rows read are broken; the file's form is "
            f"{about.form!r}): give every row the columns {sorted(about.columns.values())}, for "
            "example in the Anthropic HH format."
        )


def _check_dropped(about: FileRead, dropped: Counter[str]) -> None:
    """Raise where most rows cannot be used; ties are sound, and limits and repeats come later."""
    lost = Counter({reason: n for reason, n in dropped.items() if reason != "tie"})
    if lost.total() <= max(DROPPED_SHARE * about.rows, FEW_BROKEN):
        return
    usual, _ = lost.most_common(1)[0]
    if about.form == "implicit" and usual == "prompt_differs":
        remedy = (
            "without a column `prompt`, chosen and rejected must begin with it: say which column "
            "it is, with columns: {prompt: NAME}"
        )
    else:
        remedy = "correct columns, or give data in a form that docs/data.md lists"
    why = ", ".join(f"{n} for {reason}: {DROP_REASONS[reason]}" for reason, n in lost.most_common())
    raise Unsuitable(
        f"{about.path}: {lost.total()} of the {about.rows} rows read cannot be used ({why}; the "
        f"file's form is {about.form!r}, its columns are {about.seen[:30]}): {remedy}."
    )


def _divide(read: Subset, kept: _Bounded) -> None:
    """Put rows into their splits, a single split's by the hash of their prompts."""
    for split, row in kept.rows():
        if read.test_share is not None:
            split = side_of(row.prompt, read.test_share)
        if isinstance(row, Prompt):
            read.prompts[str(split)].append(row)
        else:
            read.pairs(str(split)).append(row)
    held_out = {row.prompt for row in read.test} | {row.prompt for row in read.prompts["test"]}
    read.train, shared = without_prompts(read.train, held_out)
    read.prompts["train"], more = without_prompts(read.prompts["train"], held_out)
    read.dropped["prompt_in_test"] += shared + more
    read.dropped["over_limit"] += kept.left_out
