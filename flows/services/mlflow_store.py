"""MLflow's database: made once, whole, whoever comes first; and what its errors say.

MLflow makes an SQLite database in place, by dozens of migrations: two at once are in each other's
way, and killed in between it stays half made for ever. So it is made beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from flows.children.processes import redact
from infalign.errors import InputError

_SQLITE = "sqlite:///"
# SQLAlchemy's, of what is not as a migration wants it; and those that pass.
_FAULTS = {"DatabaseError", "IntegrityError", "OperationalError", "ProgrammingError"}
_PASSING = ("database is locked", "readonly database", "disk I/O", "disk is full")


class Unusable(InputError):
    """A database that cannot be used as it is; the message says what to do."""


def file_of(uri: str) -> Path | None:
    """The file of an SQLite database; None for any other address."""
    path = uri.removeprefix(_SQLITE).partition("?")[0]
    if not uri.startswith(_SQLITE) or path in ("", ":memory:"):
        return None
    return Path(path).absolute()


@contextlib.contextmanager
def making(uri: str) -> Iterator[None]:
    """One at a time, of all projects of this machine, to make what a database lacks.

    A server sees to its own database.
    """
    path = file_of(uri)
    if path is not None:
        lock = path.with_name(f"{path.name}.lock")
    elif uri.startswith("http"):
        yield
        return
    else:
        name = hashlib.sha256(f"{os.getuid()} {uri}".encode()).hexdigest()[:16]
        lock = Path(tempfile.gettempdir()) / f"infalign-mlflow-{name}.lock"
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # whoever cannot write there makes nothing there
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(lock))
        yield


def make(uri: str) -> None:
    """Make an SQLite database where there is none; within `making`.

    Raises:
        InputError: where its folder cannot be written to.
    """
    path = file_of(uri)
    if path is None or (path.exists() and path.stat().st_size):
        return
    try:
        for left in path.parent.glob(f"{path.name}.*.new*"):  # by who was killed
            left.unlink()
        staged = path.with_name(f"{path.name}.{os.getpid()}.new")
        _create(staged)
        os.replace(staged, path)
    except OSError as error:
        raise Unusable(
            f"MLflow's database {path} cannot be made ({error.strerror}): let its folder be "
            "written to, or set MLFLOW_TRACKING_URI."
        ) from None


def _create(path: Path) -> None:
    """MLflow's tables, all of them, in a new file."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    engine = create_sqlalchemy_engine(f"{_SQLITE}{path}")
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()


def check(uri: str, error: Exception) -> None:
    """Raise what is wrong with an SQLite database that MLflow could not open, and the remedy.

    Where nothing is known of it, the error is left to whoever met it.
    """
    path = file_of(uri)
    if path is None or not path.exists():
        return
    words, again = str(error), f"`mlflow db upgrade {_SQLITE}{path}`"
    if "out-of-date database schema" in words:
        raise Unusable(f"MLflow's database {path} is of an older MLflow: copy it, then {again}.")
    if "Can't locate revision" in words:
        raise Unusable(
            f"MLflow's database {path} is of a newer MLflow: use that one, or another database "
            "(MLFLOW_TRACKING_URI)."
        )
    if type(error).__name__ not in _FAULTS or any(passing in words for passing in _PASSING):
        return
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            runs = _count(database, "runs")
    except sqlite3.DatabaseError:
        raise Unusable(
            f"{path} is no SQLite database, so MLflow cannot use it: move it away, or set "
            "MLFLOW_TRACKING_URI."
        ) from None
    if runs:
        raise Unusable(
            f"MLflow's database {path} is half migrated, with {runs} runs in it: put a copy from "
            f"before in its place, or mend it, then {again}."
        )
    raise Unusable(
        f"MLflow's database {path} is half made, by somebody who was killed at it, and holds no "
        f"run: remove it (`rm {path}`), then again."
    )


def _count(database: sqlite3.Connection, table: str) -> int:
    """The rows of a table, none where there is no such table."""
    found = database.execute(
        "select count(*) from sqlite_master where type = 'table' and name = ?", [table]
    ).fetchone()[0]
    return int(database.execute(f"select count(*) from {table}").fetchone()[0]) if found else 0


def said(error: Exception, most: int = 300) -> str:
    """What an error of MLflow's says, redacted, on one line, without the traces that it quotes."""
    words, _, _ = str(error).partition("\nTraceback")
    line = redact(" ".join(words.split())) or type(error).__name__
    return line if len(line) <= most else f"{line[:most]}…"
