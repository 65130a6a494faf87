"""What was asked and answered, as Parquet: `infalign serve --log FOLDER`.

A row goes first to a journal, a line of JSON that is there when the answer is sent, and with
`serving.log_rows` lines the journal becomes a Parquet file: a server that is killed loses nothing,
and the next one finishes its journal. Texts pass `serving.redact` before anything is written. Files
beyond `serving.log_bytes` in all are removed, the oldest first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from infalign.deployment.deployed import Drawn, Request
from infalign.errors import InputError
from infalign.rewards.function import run_file
from infalign.settings.params import Serving

ANSWERS, FEEDBACK = "answers", "feedback"
SCHEMAS = {
    ANSWERS: pa.schema(
        {
            "id": pa.string(),
            "choice": pa.int32(),
            "time": pa.timestamp("ms", "UTC"),
            "model": pa.string(),
            "version": pa.string(),
            "dialogue": pa.string(),
            "prompt_id": pa.string(),
            "procedure": pa.string(),
            "seed": pa.int64(),
            "temperature": pa.float64(),
            "responses": pa.list_(pa.string()),
            "rewards": pa.list_(pa.float64()),
            "n_tokens": pa.list_(pa.int32()),
            "finished": pa.list_(pa.bool_()),
            "kept": pa.int32(),
            "calibrated": pa.float64(),
            "prompt_tokens": pa.int32(),
            "latency_ms": pa.float64(),
        }
    ),
    FEEDBACK: pa.schema(
        {
            "id": pa.string(),
            "choice": pa.int32(),
            "time": pa.timestamp("ms", "UTC"),
            "preferred": pa.int32(),
            "rating": pa.float64(),
            "correction": pa.string(),
        }
    ),
}
Redact = Callable[[str], str]


class Log:
    """Writes rows of answers and feedback into a folder; several processes may share it.

    Args:
        folder: made where it is missing.
        limits: section `serving` of params.yaml.
        root: of the project, which `serving.redact` is relative to.
    """

    def __init__(self, folder: Path, limits: Serving, root: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._limits = folder, limits
        self._redact: Redact | None = None
        if limits.redact is not None:
            self._redact = load_redact(limits.redact, root)
        self._lock = threading.Lock()
        self._journals: dict[str, IO[str]] = {}
        self._rows = dict.fromkeys(SCHEMAS, 0)
        for path in sorted(folder.glob("*.jsonl")):
            self._recover(path)

    def add(
        self,
        name: str,
        model: str,
        drawn: Sequence[Drawn],
        requests: Sequence[Request],
        took: float,
    ) -> None:
        """Write an answer, one row a choice; nothing where it is not among those sampled."""
        if not self.samples(name):
            return
        rows = []
        for choice, (one, request) in enumerate(zip(drawn, requests, strict=True)):
            rows.append(
                {
                    "id": name,
                    "choice": choice,
                    "time": _now(),
                    "model": model.partition("/")[0],
                    "version": model.partition("/")[2],
                    "dialogue": [dict(turn) for turn in one.dialogue.messages],
                    "prompt_id": one.dialogue.id,
                    "procedure": str(one.procedure),
                    "seed": request.seed,
                    "temperature": one.temperature,
                    "responses": list(one.responses),
                    "rewards": one.rewards.tolist(),
                    "n_tokens": one.n_tokens.tolist(),
                    "finished": one.finished.tolist(),
                    "kept": one.kept,
                    "calibrated": one.calibrated,
                    "prompt_tokens": one.prompt_tokens,
                    "latency_ms": 1000 * took,
                }
            )
        self._write(ANSWERS, rows)

    def add_feedback(
        self,
        name: str,
        choice: int,
        preferred: int | None,
        rating: float | None,
        correction: str | None,
    ) -> bool:
        """Write what somebody thinks of an answer; whether that could be done."""
        row = {"id": name, "choice": choice, "time": _now(), "preferred": preferred}
        return self._write(FEEDBACK, [row | {"rating": rating, "correction": correction}])

    def samples(self, name: str) -> bool:
        """Whether an answer is among the share that is written, by its name alone."""
        digest = hashlib.sha256(name.encode()).digest()
        return int.from_bytes(digest[:7], "big") < self._limits.log_share * 2**56

    def close(self) -> None:
        """Turn what is there into Parquet."""
        with self._lock:
            for kind in list(self._journals):
                self._turn(kind)

    def _write(self, kind: str, rows: list[dict[str, Any]]) -> bool:
        """Append rows, redacted; where that fails, nothing of them is written, and it is said."""
        try:
            lines = [json.dumps(self._redacted(kind, row), ensure_ascii=False) for row in rows]
        except Exception as error:
            print(
                f"log: {len(rows)} rows are not written, because serving.redact failed "
                f"({type(error).__name__}).",
                file=sys.stderr,
                flush=True,
            )
            return False
        with self._lock:
            journal = self._journals.get(kind) or self._open(kind)
            journal.write("".join(f"{line}\n" for line in lines))
            journal.flush()
            self._rows[kind] += len(lines)
            if self._rows[kind] >= self._limits.log_rows:
                self._turn(kind)
        return True

    def _redacted(self, kind: str, row: dict[str, Any]) -> dict[str, Any]:
        if self._redact is None:
            clean: Redact = str
        else:
            clean = self._redact
        if kind == FEEDBACK:
            said = row["correction"]
            return row | {"correction": None if said is None else clean(said)}
        turns = [turn | {"content": clean(turn["content"])} for turn in row["dialogue"]]
        text = json.dumps(turns, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return row | {"dialogue": text, "responses": [clean(text) for text in row["responses"]]}

    def _open(self, kind: str) -> IO[str]:
        path = self.folder / f".{kind}-{time.time_ns()}-{os.getpid()}.jsonl"
        journal = path.open("a", encoding="utf-8")
        fcntl.flock(journal, fcntl.LOCK_EX)  # held as long as this process lives
        self._journals[kind], self._rows[kind] = journal, 0
        return journal

    def _turn(self, kind: str) -> None:
        journal = self._journals.pop(kind)
        journal.flush()
        as_parquet(Path(journal.name))
        journal.close()
        self._remove_oldest()

    def _recover(self, path: Path) -> None:
        """Finish the journal of a process that is gone."""
        with path.open("a") as journal:
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            as_parquet(path)

    def _remove_oldest(self) -> None:
        found = {path: path.stat() for path in self.folder.glob("*.parquet")}
        size = sum(about.st_size for about in found.values())
        # Answers first: feedback is rare, and what it is about may be known elsewhere.
        files = sorted(found, key=lambda p: (p.name.startswith(FEEDBACK), found[p].st_mtime_ns))
        for path in files[:-1]:
            if size <= self._limits.log_bytes:
                break
            path.unlink(missing_ok=True)
            size -= found[path].st_size


def as_parquet(journal: Path) -> None:
    """Write a journal's rows as Parquet, then remove it; a line broken by a kill is left out."""
    kind = journal.name.lstrip(".").partition("-")[0]
    rows = _lines(journal)
    if rows:
        target = journal.with_name(journal.name.lstrip(".")).with_suffix(".parquet")
        temporary = target.with_suffix(".new")
        pq.write_table(pa.Table.from_pylist(rows, SCHEMAS[kind]), temporary)
        os.replace(temporary, target)
    journal.unlink(missing_ok=True)


def _lines(journal: Path) -> list[dict[str, Any]]:
    """The rows of a journal; a line that a kill has broken is left out."""
    rows = []
    try:
        text = journal.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:  # it has become a Parquet file
        return []
    for line in text.split("\n"):  # texts may hold what else is called a line's end
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def load_redact(spelling: str, root: Path) -> Redact:
    """The function of `serving.redact`, which has cleaned one text already.

    Raises:
        InputError: where there is none, or it gives no text.
    """
    file, _, name = spelling.rpartition(":")
    path = root / file
    said = f"serving.redact = {spelling!r}"
    if not file or not path.is_file():
        raise InputError(f"{said}: no such file; write it as file.py:function.")
    function = getattr(run_file(path, path.read_bytes()), name, None)
    if not callable(function):
        raise InputError(f"{said}: {path} has no function {name!r}.")
    try:
        found = function("a text")
    except Exception as error:
        raise InputError(f"{said} failed on a text ({type(error).__name__}: {error}).") from None
    if not isinstance(found, str):
        raise InputError(f"{said} gave {type(found).__name__} for a text: it must give a text.")

    def clean(text: str) -> str:
        given = function(text)
        if not isinstance(given, str):
            raise TypeError("no text")
        return given

    return clean


def read_log(folder: Path, kind: str) -> pa.Table:
    """All rows of a kind in a log's folder, the journals of servers at work included.

    Raises:
        InputError: where the folder is none, or a file is broken.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not there: give the folder of `infalign serve --log`.")
    journals = {path: _lines(path) for path in sorted(folder.glob(f".{kind}-*.jsonl"))}
    tables = []
    for path in sorted(folder.glob(f"{kind}-*.parquet")):
        journals.pop(path.with_name(f".{path.stem}.jsonl"), None)  # it has become this file
        try:
            tables.append(pq.read_table(path, schema=SCHEMAS[kind]))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is broken ({str(error)[:100]}): remove it.") from None
    tables += [pa.Table.from_pylist(rows, SCHEMAS[kind]) for rows in journals.values()]
    return pa.concat_tables(tables) if tables else SCHEMAS[kind].empty_table()


def asked_lately(folder: Path, model: str, days: float) -> list[dict[str, str]]:
    """What a model was asked: `{"prompt_id", "dialogue"}`, each once, in the order of the log.

    Args:
        days: age at most.
    """
    rows = read_log(folder, ANSWERS).select(["model", "time", "prompt_id", "dialogue"])
    oldest = datetime.now(UTC) - timedelta(days=days)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows.to_pylist():
        if row["model"] == model and row["time"] >= oldest:
            key = (row["prompt_id"], row["dialogue"])
            found.setdefault(key, {"prompt_id": key[0], "dialogue": key[1]})
    return list(found.values())


def _now() -> int:
    return time.time_ns() // 1_000_000
