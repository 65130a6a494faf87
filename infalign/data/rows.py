"""Rows of anybody's files: JSON lines, a JSON array or Parquet, each plain, gzipped or zstd.

What a file is, its first bytes say, not its name. Rows are read piece by piece, no file is ever
unpacked as a whole in memory, and what is wrong with a file is one sentence. A row that is not a
JSON object is handed on as the words that say so.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import itertools
import json
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from infalign.data.pairs import Limits
from infalign.errors import InputError

PIECE_BYTES = 1 << 16
BATCH_ROWS = 128  # of Parquet, decoded at once
PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
PARQUET = b"PAR1"
_PARQUET_FAULTS = (
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    MemoryError,
)


class Row(NamedTuple):
    """A row and its place; `value` is None where `fault` says why it is none."""

    place: str
    value: dict[str, Any] | None
    fault: str = ""


def read_rows(path: Path, limits: Limits, columns: tuple[str, ...] | None = None) -> Iterator[Row]:
    """Every row of a file.

    Args:
        columns: those that are needed, where the kind of file can leave others unread.
    """
    kind = _kind(path)
    if kind == "parquet":
        yield from _parquet_rows(path, limits, columns)
    elif kind == "array":
        yield from _items(path, limits)
    else:
        yield from _lines(path, limits)


def _kind(path: Path) -> str:
    with opened(path) as stream:
        start = stream.read(4)
        if start == PARQUET:
            return "parquet"
        start = start.removeprefix(codecs.BOM_UTF8).lstrip()
        while not start and (piece := stream.read(PIECE_BYTES)):
            start = piece.lstrip()
    return "array" if start.startswith(b"[") else "lines"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to read unpacked; what is wrong with it is one sentence."""
    packed = ""
    try:
        packed = _packing(path)
        with contextlib.closing(_stream(path, packed)) as stream:
            yield stream
    except EOFError:
        raise InputError(f"{path} is a truncated gzip file: fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a sound gzip file ({error}): fetch it again.") from None
    except (pa.ArrowException, OSError) as error:
        if packed == "zstd":
            raise InputError(
                f"{path} is not a sound zstd file ({_words(error)}): fetch it again."
            ) from None
        reason = error.strerror if isinstance(error, OSError) else _words(error)
        raise InputError(f"{path} cannot be read ({reason}): check the file.") from None


def _packing(path: Path) -> str:
    """`gzip`, `zstd` or nothing."""
    with open(path, "rb") as raw:
        start = raw.read(4)
    packed = next((kind for magic, kind in PACKED.items() if start.startswith(magic)), "")
    return packed or ("gzip" if path.suffix == ".gz" else "")  # which then says that it is none


def _stream(path: Path, packed: str) -> BinaryIO:
    if packed == "gzip":
        return cast(BinaryIO, gzip.open(path))
    if packed == "zstd":
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression="zstd")))
    return open(path, "rb")


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _too_large(path: Path, most: int) -> InputError:
    return InputError(
        f"{path} holds more than data.file_bytes = {most} bytes, unpacked: give less data, or "
        "raise data.file_bytes."
    )


def _too_long(path: Path, place: str, most: int) -> InputError:
    return InputError(
        f"{path} {place} has more than data.line_bytes = {most} bytes: give one preference pair "
        "a line, or raise data.line_bytes."
    )


def _lines(path: Path, limits: Limits) -> Iterator[Row]:
    """Objects one a line of UTF-8; lines end at \\n alone, blank ones are no rows."""
    size = 0
    with opened(path) as stream:
        for number in itertools.count(1):
            line = stream.readline(limits.line_bytes + 1)
            if not line:
                return
            size += len(line)
            if size > limits.file_bytes:
                raise _too_large(path, limits.file_bytes)
            text = line.removesuffix(b"\n")
            if len(text) > limits.line_bytes:
                raise _too_long(path, f"line {number}", limits.line_bytes)
            text = text.removeprefix(codecs.BOM_UTF8) if number == 1 else text
            if text.strip():
                yield _row(f"line {number}", *_parsed(text, path, number))


def _parsed(text: bytes, path: Path, number: int) -> tuple[Any, str]:
    try:
        return json.loads(text.decode()), ""
    except UnicodeDecodeError:
        raise InputError(f"{path} line {number} is not UTF-8 text: convert the file.") from None
    except (ValueError, RecursionError):  # an integer of 4,301 digits is a ValueError
        return None, "is not JSON"


def _row(place: str, value: Any, fault: str) -> Row:
    if not fault and not isinstance(value, dict):
        fault = "is not a JSON object"
    return Row(place, None if fault else value, fault)


class _Text:
    """The text of a file, of which only the part that is being looked at is held."""

    def __init__(self, stream: BinaryIO, path: Path, limits: Limits) -> None:
        self._stream, self._path, self._most = stream, path, limits.file_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._size = 0
        self.held, self.at, self.ended = "", 0, False

    def more(self) -> bool:
        """Hold as much again; False at the end."""
        if self.ended:
            return False
        piece = self._stream.read(max(PIECE_BYTES, len(self.held) - self.at))
        self._size += len(piece)
        if self._size > self._most:
            raise _too_large(self._path, self._most)
        self.ended = not piece
        try:
            text = self._decoder.decode(piece, final=self.ended)
        except UnicodeDecodeError:
            raise InputError(f"{self._path} is not UTF-8 text: convert the file.") from None
        self.held, self.at = self.held[self.at :] + text, 0
        return not self.ended

    def next_mark(self) -> str:
        """The next character that is not space, empty at the end; it stays where it is."""
        while True:
            while self.at < len(self.held):
                if self.held[self.at] not in " \t\r\n":
                    return self.held[self.at]
                self.at += 1
            if not self.more():
                return ""


def _items(path: Path, limits: Limits) -> Iterator[Row]:
    """The objects of one JSON array."""
    with opened(path) as stream:
        text = _Text(stream, path, limits)
        text.next_mark()
        text.at += 1
        for number in itertools.count(1):
            if text.next_mark() == "]" and number == 1:
                text.at += 1
                break
            value = _item(text, path, number, limits.line_bytes)
            yield _row(f"item {number}", value, "")
            mark = text.next_mark()
            text.at += 1
            if mark == "]":
                break
            if mark != ",":
                what = "breaks off" if not mark else f"has {mark!r} where a comma should be"
                raise InputError(f"{path} {what} after item {number}: write a sound JSON array.")
        if text.next_mark():
            raise InputError(
                f"{path} goes on after the end of its JSON array: put all rows in one array, or "
                "one JSON object a line."
            )


def _item(text: _Text, path: Path, number: int, longest: int) -> Any:
    while True:
        try:
            value, end = json.JSONDecoder().raw_decode(text.held, text.at)
            # A number may go on in the next piece; what has an end of its own may not.
            if isinstance(value, dict | list | str) or end < len(text.held) or not text.more():
                length, text.at = end - text.at, end
                break
        except (ValueError, RecursionError) as error:
            length = len(text.held) - text.at
            if length <= longest and not isinstance(error, RecursionError) and text.more():
                continue
            if length <= longest:
                raise InputError(
                    f"{path} item {number} is not JSON: write a sound JSON array, or one JSON "
                    "object a line."
                ) from None
            break
    if length > longest:
        raise _too_long(path, f"item {number}", longest)
    return value


def _parquet_rows(path: Path, limits: Limits, columns: tuple[str, ...] | None) -> Iterator[Row]:
    done = 0
    try:
        with _parquet(path, limits) as file:
            names = file.schema_arrow.names
            _check_names(names, path)
            wanted = None if columns is None else [name for name in names if name in columns]
            _check_size(file, path, limits)
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
                if batch.nbytes > limits.line_bytes:
                    _check_rows(batch, path, limits, done)
                for number, row in enumerate(batch.to_pylist(), start=done + 1):
                    yield Row(f"row {number}", row)
                done += batch.num_rows
    except InputError:
        raise
    except _PARQUET_FAULTS as error:
        raise InputError(
            f"{path} is not a sound Parquet file ({_words(error)}): fetch it again."
        ) from None


@contextlib.contextmanager
def _parquet(path: Path, limits: Limits) -> Iterator[pq.ParquetFile]:
    """An open Parquet file; it is not read in order, so a packed one is unpacked to a temporary."""
    with contextlib.ExitStack() as stack:
        source: Any = path
        if _packing(path):
            source = stack.enter_context(tempfile.TemporaryFile())
            with opened(path) as stream:
                _unpack(stream, source, path, limits.file_bytes)
        yield stack.enter_context(
            pq.ParquetFile(
                source, buffer_size=PIECE_BYTES, pre_buffer=False, page_checksum_verification=True
            )
        )


def _unpack(stream: BinaryIO, target: BinaryIO, path: Path, most: int) -> None:
    while piece := stream.read(PIECE_BYTES):
        target.write(piece)
        if target.tell() > most:
            raise _too_large(path, most)
    target.seek(0)


def _check_names(names: list[str], path: Path) -> None:
    twice = next((name for name, n in Counter(names).items() if n > 1), None)
    if twice is not None:
        raise InputError(f"{path} has two columns of the name {twice!r}: rename one of them.")


def _check_size(file: pq.ParquetFile, path: Path, limits: Limits) -> None:
    """Raise for more than is allowed, by what the file says of itself.

    Its row groups are asked and not their columns: pyarrow ends the process where it meets columns
    that are damaged.
    """
    about = file.metadata
    size = sum(about.row_group(n).total_byte_size for n in range(about.num_row_groups))
    if size > limits.file_bytes:
        raise _too_large(path, limits.file_bytes)


def _check_rows(batch: pa.RecordBatch, path: Path, limits: Limits, done: int) -> None:
    for at in range(batch.num_rows):
        if batch.slice(at, 1).nbytes > limits.line_bytes:
            raise _too_long(path, f"row {done + at + 1}", limits.line_bytes)
