"""Samples as columns: JSON lines, JSON arrays, Parquet, or what Python already holds.

One row a response. Only the columns that are asked for are kept, and prompts as numbers, so that
a million rows fit. JSON needs nothing beyond the standard library, Parquet needs pyarrow.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infalign.errors import InputError
from infalign.theory.checks import FloatArray

Source: TypeAlias = Any  # a path, columns by name, rows, a pandas or datasets or pyarrow table

KEYS = ("prompt_id", "prompt")  # what says which prompt a row answers, the first one preferred
RESPONSES = ("response", "completion")
JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
SUFFIXES = (*JSON_LINES, ".json", ".parquet")
LINES = 20_000  # parsed at once


@dataclass
class Columns:
    """A source's columns, every one as long as there are rows.

    Attributes:
        place: how the source is spoken of: its path, or what it was passed as.
        names: every column that it has, kept or not.
        texts: column to codes [rows], and the text of each code, in the order of appearance.
        numbers: column to numbers [rows], finite.
        rows: how many there are.
        parts: the files that the rows came from: the first row of each, its path, its lines (of
            JSON lines, where blank ones are among them), and what a row of it is called.
    """

    place: str
    names: tuple[str, ...] = ()
    texts: dict[str, tuple[NDArray[np.intp], list[str]]] = field(default_factory=dict)
    numbers: dict[str, FloatArray] = field(default_factory=dict)
    rows: int = 0
    parts: list[Part] = field(default_factory=list)

    def at(self, position: int) -> str:
        """How a row is spoken of, its file first."""
        part = max((p for p in self.parts if p.start <= position), key=lambda p: p.start)
        return part.at(position - part.start)


@dataclass
class Part:
    """One file of a source, or the whole of what is none.

    Attributes:
        start: its first row's position in the source.
        lines: of JSON lines among which blank ones are: each row's line.
    """

    place: str
    start: int = 0
    unit: str = "row"
    lines: list[int] | None = None

    def at(self, row: int) -> str:
        """How its row is spoken of: lines count from 1, rows from 0."""
        number = self.lines[row] if self.lines else row + (self.unit == "line")
        return f"{self.place}, {self.unit} {number}"


def read_columns(
    source: Source, texts: Sequence[str], numbers: Sequence[str], name: str
) -> Columns:
    """The columns of a source that it has among those named.

    Args:
        source: a path to JSON lines, a JSON array or Parquet (or a folder of them), a mapping of
            columns, a sequence of rows, or a table of pandas, datasets or pyarrow.
        texts: columns of prompts and responses; conversations become canonical JSON.
        numbers: columns of finite numbers.
        name: how a source that is no path is spoken of.

    Raises:
        InputError: naming file, row, column and remedy.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        gathered = _Gathered(Columns(str(path)), texts, numbers)
        for part, blocks in _file_blocks(path):
            gathered.begin(part)
            for block in blocks:
                gathered.add(block)
    else:
        gathered = _Gathered(Columns(name), texts, numbers)
        gathered.begin(Part(name))
        gathered.add(_given(source, name))
    return gathered.finish()


class _Gathered:
    """Blocks of rows, or of columns, put behind each other."""

    def __init__(self, columns: Columns, texts: Sequence[str], numbers: Sequence[str]) -> None:
        self._columns = columns
        self._known: dict[str, dict[str, int]] = {name: {} for name in texts}
        self._codes: dict[str, list[NDArray[np.intp]]] = {name: [] for name in texts}
        self._numbers: dict[str, list[FloatArray]] = {name: [] for name in numbers}

    def begin(self, part: Part) -> None:
        """What is added from here on is of this file."""
        part.start = self._columns.rows
        self._columns.parts.append(part)

    def add(self, block: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]) -> None:
        """Columns by name, or rows."""
        if not block:
            return
        if not self._columns.names:
            self._keep(tuple(block if isinstance(block, Mapping) else block[0]))
        columns = {name: self._column(block, name) for name in (*self._codes, *self._numbers)}
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            raise InputError(
                f"{self._columns.place} has columns of {sorted(lengths)} rows: they must be alike."
            )
        for name, values in columns.items():
            if name in self._codes:
                self._codes[name].append(self._coded(name, values))
            else:
                self._numbers[name].append(self._finite(name, values))
        self._columns.rows += max(lengths, default=0)

    def _keep(self, names: tuple[str, ...]) -> None:
        """Of the wanted columns those that there are, as the first row says."""
        self._columns.names = names
        # Responses are only looked at to find their log-probabilities on the other side.
        left = () if "logp" in names else RESPONSES
        self._codes = {name: [] for name in self._codes if name in names and name not in left}
        self._numbers = {name: [] for name in self._numbers if name in names}

    def _column(
        self, block: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]], name: str
    ) -> Sequence[Any]:
        if isinstance(block, Mapping):
            if name in block:
                return block[name]
            at = self._columns.parts[-1].place
        else:
            try:
                return [row[name] for row in block]
            except KeyError:
                lacks = next(i for i, row in enumerate(block) if name not in row)
                at = self._columns.at(self._columns.rows + lacks)
        raise InputError(f"{at}: has no {name!r}, which the first row has: write it in every row.")

    def _coded(self, name: str, values: Sequence[Any]) -> NDArray[np.intp]:
        known = self._known[name]
        if not all(map(str.__instancecheck__, values)):
            values = [self._text(name, row, value) for row, value in enumerate(values)]
        codes = (known.setdefault(value, len(known)) for value in values)
        return np.fromiter(codes, np.intp, len(values))

    def _text(self, name: str, row: int, value: Any) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, np.generic | np.ndarray):
            value = value.tolist()
        if isinstance(value, list | tuple | dict):
            return canonical(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise InputError(
            f"{self._columns.at(self._columns.rows + row)}: {name} is {value!r}, "
            "which names no prompt: write a text, a number or messages."
        )

    def _finite(self, name: str, values: Sequence[Any]) -> FloatArray:
        try:
            array = np.asarray(values)
        except ValueError:  # lists of several lengths among them
            array = np.array([None])
        if array.dtype.kind not in "fiub" or array.ndim != 1:  # something else is among them
            array = np.array([_number(value) for value in values])
        numbers = array.astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if not len(bad):
            return numbers
        row = int(bad[0])
        raise InputError(
            f"{self._columns.at(self._columns.rows + row)}: {name} is "
            f"{_shown(values[row])}, not a finite number: score that response again, or leave its "
            "row out."
        )

    def finish(self) -> Columns:
        columns = self._columns
        if not columns.rows:
            raise InputError(f"{columns.place} holds no rows: write one a response.")
        for name, codes in self._codes.items():
            columns.texts[name] = (np.concatenate(codes), list(self._known[name]))
        columns.numbers = {name: np.concatenate(x) for name, x in self._numbers.items()}
        return columns


def _number(value: Any) -> float:
    """A number of any kind as a float; NaN for what is none."""
    if not isinstance(value, int | float | Decimal | np.number | np.bool_):
        return np.nan
    try:
        return float(value)
    except (OverflowError, ValueError):
        return np.nan


def _shown(value: Any) -> str:
    """A value in a message, short."""
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def canonical(value: Any) -> str:
    """Messages as one text: the same for the same conversation, however it was written."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _given(source: Source, name: str) -> Any:
    """Columns or rows of what Python already holds."""
    if isinstance(source, Mapping):
        return source
    if hasattr(source, "column_names"):  # datasets, pyarrow
        return {column: _listed(source[column]) for column in source.column_names}
    if hasattr(source, "columns") and hasattr(source, "iloc"):  # pandas
        return {str(column): source[column].to_numpy() for column in source.columns}
    rows = list(source) if isinstance(source, Iterable) else None
    if rows is None or not all(isinstance(row, Mapping) for row in rows):
        raise InputError(
            f"{name} is a {type(source).__name__}: pass a path, columns by name, rows as mappings, "
            "or a table of pandas, datasets or pyarrow."
        )
    return rows


def _listed(values: Any) -> Sequence[Any]:
    listed: Sequence[Any] = values.to_pylist() if hasattr(values, "to_pylist") else values
    return listed


def _file_blocks(path: Path) -> Iterator[tuple[Part, Iterable[Any]]]:
    """Every file of a source with its blocks of rows."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES))
        if not files:
            runs = sorted(str(p) for p in path.glob("evaluate/*") if p.is_dir())
            hint = f": give {' or '.join(runs)}" if runs else ""
            raise InputError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}{hint}.")
    elif path.is_file():
        files = [path]
    else:
        raise InputError(f"{path} does not exist.")
    for file in files:
        part = Part(str(file))
        if file.name.endswith(".parquet"):
            yield part, [_parquet(file)]
        elif file.name.endswith(JSON_LINES):
            part.unit = "line"
            yield part, _json_lines(file, part)
        elif file.name.endswith(".json"):
            yield part, [_json_array(file)]
        else:
            raise InputError(f"{file}: its name must end in one of {', '.join(SUFFIXES)}.")


def _parquet(path: Path) -> Mapping[str, Sequence[Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            f"{path} is Parquet, which needs pyarrow: `pip install pyarrow`, or write JSON lines."
        ) from None
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}.") from None
    return _Table(table)


class _Table(Mapping[str, Sequence[Any]]):
    """A pyarrow table whose columns are made of it when they are asked for."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __getitem__(self, name: str) -> Sequence[Any]:
        column = self._table[name]
        plain = column.null_count == 0 and str(column.type).startswith(("int", "float", "double"))
        values: Sequence[Any] = column.to_numpy() if plain else column.to_pylist()
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table.column_names)


def _json_array(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}; JSON lines end in .jsonl.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} must hold an array of objects, one a response.")
    return rows


def _json_lines(path: Path, part: Part) -> Iterator[list[dict[str, Any]]]:
    opened = gzip.open if path.name.endswith(".gz") else open
    read, done = 0, 0
    try:
        with opened(path, "rb") as stream:
            while lines := list(itertools.islice(stream, LINES)):
                filled = [line for line in lines if not line.isspace()]
                if part.lines is not None or len(filled) < len(lines):
                    there = (i for i, line in enumerate(lines, read + 1) if not line.isspace())
                    part.lines = [*(part.lines or range(1, done + 1)), *there]
                yield _parsed(filled, part, done)
                read, done = read + len(lines), done + len(filled)
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None


def _parsed(lines: list[bytes], part: Part, done: int) -> list[dict[str, Any]]:
    """Objects of lines: all at once, or one by one to name the line that is none."""
    try:
        rows = json.loads(b"[" + b",".join(lines) + b"]")
        if len(rows) == len(lines) and all(map(dict.__instancecheck__, rows)):
            return list(rows)
    except (ValueError, RecursionError):
        pass
    rows = []
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            rows.append(None)
        if not isinstance(rows[-1], dict):
            raise InputError(f"{part.at(done + number)}: not a JSON object: write one a line.")
    return rows
