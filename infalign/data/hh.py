"""Anthropic-HH preference files: `<subset>/{train,test}.jsonl[.gz]` in, clean pairs out.

A line is `{"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}`; the response is what
follows the last `\\n\\nAssistant:`. Pairs that cannot be used are dropped and counted by reason; a
file that is not HH at all is an error. Files are read line by line and never unpacked as a whole.
Lengths in tokens are not this module's business.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import zlib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from infalign.data.dialogue import ASSISTANT, HUMAN, Dialogue, read_marked
from infalign.errors import InputError

SPLITS = ("train", "test")
DROP_REASONS = (
    "broken_line",
    "prompt_differs",
    "identical_pair",
    "empty_response",
    "prompt_in_test",
)
FEW_BROKEN = 5
BROKEN_SHARE = 0.01
PIECE_BYTES = 1 << 20  # unpacked at once while a file is measured


class Pair(NamedTuple):
    """One preference: a prompt, two stripped responses."""

    prompt: Dialogue
    chosen: str
    rejected: str
    source: str  # `<subset>/<file>`, the place it was read from


class Limits(NamedTuple):
    """What a file may hold at most: `data.file_bytes` and `data.line_bytes`."""

    file_bytes: int  # of one file, unpacked
    line_bytes: int  # of one line, without its end


@dataclass
class Subset:
    """The pairs of one folder, split by prompt, and what was dropped on the way."""

    name: str
    train: list[Pair]
    test: list[Pair]
    lines: int
    dropped: Counter[str] = field(default_factory=Counter)
    first_broken: str | None = None


def split_dialogue(text: str) -> tuple[Dialogue, str] | None:
    """Prompt and stripped response, cut at the last assistant marker; None if not a dialogue."""
    cut = text.rfind(ASSISTANT)
    if cut < 0 or not text.startswith(HUMAN):
        return None
    cut += len(ASSISTANT)
    prompt, response = text[:cut], text[cut:]
    if HUMAN in response:  # the dialogue ends with the human: there is no response to judge
        return None
    dialogue = read_marked(prompt)
    return None if dialogue is None else (dialogue, response.strip())


def without_prompts(pairs: Iterable[Pair], prompts: set[Dialogue]) -> tuple[list[Pair], int]:
    """The pairs whose prompt is not in `prompts`, and how many were left out."""
    pairs = list(pairs)
    kept = [pair for pair in pairs if pair.prompt not in prompts]
    return kept, len(pairs) - len(kept)


def read_subset(folder: Path, name: str, test_share: float, limits: Limits) -> Subset:
    """Read one subset folder of HH files; where it has a single file, split it by prompt.

    A prompt that train and test share stays in test only.
    """
    subset = Subset(name, [], [], 0)
    files = _files(folder, name)
    for split, path in files.items():
        pairs = _read_file(path, f"{name}/{path.name}", subset, limits)
        (subset.train if split == "train" else subset.test).extend(pairs)
    if len(files) == 1:
        pairs = subset.train + subset.test
        held_out = [pair.prompt.share("test") < test_share for pair in pairs]
        subset.train = [pair for pair, test in zip(pairs, held_out, strict=True) if not test]
        subset.test = [pair for pair, test in zip(pairs, held_out, strict=True) if test]
    test_prompts = {pair.prompt for pair in subset.test}
    subset.train, shared = without_prompts(subset.train, test_prompts)
    subset.dropped["prompt_in_test"] += shared
    for split in SPLITS:
        if not getattr(subset, split):
            raise InputError(
                f"{folder / name} has no usable pair for its {split} split "
                f"({subset.lines} lines read, dropped: {dict(subset.dropped)}): give it more pairs."
            )
    return subset


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as a gzipped HH file whose bytes depend on the pairs alone."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as stream:
        for pair in pairs:
            row = {
                "chosen": f"{pair.prompt.marked} {pair.chosen}",
                "rejected": f"{pair.prompt.marked} {pair.rejected}",
            }
            stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def _files(folder: Path, name: str) -> dict[str, Path]:
    """The split files of a subset, or a sentence about what is missing."""
    if not folder.is_dir():
        raise InputError(f"data.path {str(folder)!r} is not a folder: give a folder of HH files.")
    if not (folder / name).is_dir():
        there = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise InputError(
            f"{folder} has no subset folder {name!r} (it has {there}): correct data.path or the "
            "objective's subset."
        )
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{folder / name} leads out of the data's folder, where no change would be noticed: "
            "put the subset's files themselves there, or correct data.path."
        )
    found: dict[str, Path] = {}
    for split in SPLITS:
        paths = [folder / name / f"{split}.jsonl{end}" for end in ("", ".gz")]
        paths = [path for path in paths if path.is_file()]
        if len(paths) > 1:
            raise InputError(f"{paths[0]} and {paths[1]} are both there: remove one of them.")
        if paths:
            found[split] = paths[0]
    if not found:
        raise InputError(
            f"{folder / name} has none of train.jsonl, train.jsonl.gz, test.jsonl, test.jsonl.gz: "
            "put the HH files there."
        )
    return found


def _read_file(path: Path, source: str, subset: Subset, limits: Limits) -> list[Pair]:
    """The usable pairs of one file; what is dropped is counted in `subset`."""
    pairs: list[Pair] = []
    first_broken = ""
    dropped: Counter[str] = Counter()
    n_lines = 0
    for number, line in enumerate(_lines(path, limits), start=1):
        if not line.strip():
            continue
        n_lines += 1
        sides = _sides(line)
        if isinstance(sides, str):
            first_broken = first_broken or f"{path} line {number} {sides}"
            dropped["broken_line"] += 1
            if n_lines == 1:
                break
            continue
        pair, reason = _pair(*sides, source)
        dropped.update([reason] if reason else [])
        pairs.extend([pair] if not reason else [])
    _check_broken(path, first_broken, dropped["broken_line"], n_lines)
    subset.lines += n_lines
    subset.dropped.update(dropped)
    subset.first_broken = subset.first_broken or first_broken or None
    return pairs


def _check_broken(path: Path, first: str, n_broken: int, n_lines: int) -> None:
    """Stray broken lines are dropped; a broken start or many of them mean another format."""
    if n_lines == 0:
        raise InputError(f"{path} is empty: put HH preference pairs there, one JSON object a line.")
    allowed = max(BROKEN_SHARE * n_lines, min(FEW_BROKEN, n_lines / 2))
    if n_broken and (n_lines == 1 or n_broken > allowed):
        raise InputError(
            f"{first} ({n_broken} of the {n_lines} lines read are broken): give a file in "
            'the Anthropic HH format, {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", '
            '"rejected": …} on every line.'
        )


def _lines(path: Path, limits: Limits) -> Iterator[str]:
    """The lines of a plain or gzipped UTF-8 file, one at a time; they end at \\n alone."""
    _check_size(path, limits.file_bytes)
    with _opened(path) as stream:
        for number in itertools.count(1):
            line = stream.readline(limits.line_bytes + 1)
            if not line:
                return
            text = line.removesuffix(b"\n")
            if len(text) > limits.line_bytes:
                raise InputError(
                    f"{path} line {number} has more than data.line_bytes = {limits.line_bytes} "
                    "bytes: give one preference pair a line, or raise data.line_bytes."
                )
            try:
                yield (text.removeprefix(BOM_UTF8) if number == 1 else text).decode()
            except UnicodeDecodeError:
                raise InputError(
                    f"{path} line {number} is not UTF-8 text: convert the file."
                ) from None


def _check_size(path: Path, most_bytes: int) -> None:
    """Raise for a file that is damaged or too large, before anything of it is kept."""
    size = 0
    with _opened(path) as stream:
        while piece := stream.read(PIECE_BYTES):
            size += len(piece)
            if size > most_bytes:
                raise InputError(
                    f"{path} holds more than data.file_bytes = {most_bytes} bytes, unpacked: give "
                    "less data, or raise data.file_bytes where memory allows."
                )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A plain or gzipped file to read from; what is wrong with it is one sentence."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            yield cast(BinaryIO, stream)
    except EOFError:
        raise InputError(f"{path} is a truncated gzip file: fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a sound gzip file ({error}): fetch it again.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the file.") from None


def _sides(line: str) -> tuple[tuple[Dialogue, str], tuple[Dialogue, str]] | str:
    """(prompt, response) of chosen and rejected, or what is wrong with the line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # an integer of 4,301 digits is a ValueError
        return "is not JSON"
    if not isinstance(row, dict):
        return "is not a JSON object"
    sides = []
    for key in ("chosen", "rejected"):
        text = row.get(key)
        if not isinstance(text, str):
            return f"has no {key!r} text"
        if not _is_unicode(text):
            return f"has a {key!r} text that is not valid Unicode"
        side = split_dialogue(text)
        if side is None:
            return (
                f"has a {key!r} that is no dialogue of '\\n\\nHuman:' and '\\n\\nAssistant:' turns "
                "ending with the assistant's"
            )
        sides.append(side)
    return sides[0], sides[1]


def _is_unicode(text: str) -> bool:
    """JSON can spell half of a UTF-16 pair, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pair(
    chosen: tuple[Dialogue, str], rejected: tuple[Dialogue, str], source: str
) -> tuple[Pair, str]:
    """The pair and the reason to drop it, empty if there is none."""
    pair = Pair(chosen[0], chosen[1], rejected[1], source)
    if chosen[0] != rejected[0]:
        return pair, "prompt_differs"
    if chosen[1] == rejected[1]:
        return pair, "identical_pair"
    if not chosen[1] or not rejected[1]:
        return pair, "empty_response"
    return pair, ""
