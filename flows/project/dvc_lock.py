"""dvc.lock, which DVC writes in place: killed meanwhile it leaves half of it, and then refuses it.

A whole one is kept after every stage, and put back where one was cut short. What it does not know
yet DVC's run cache does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from infalign.files.workspace import write_text

_LOCK_SECONDS = 30.0  # that DVC may take to write


def _kept(root: Path) -> Path:
    return root / ".infalign" / "dvc.lock"


def keep(root: Path) -> None:
    """Keep a copy, if it is whole."""
    text = _text(root / "dvc.lock")
    if text and is_whole(text):
        write_text(_kept(root), text)


def mend(root: Path) -> bool:
    """Put the kept copy in the place of one that was cut short; whether it was."""
    path = root / "dvc.lock"
    if not path.exists() or is_whole(_text(path)) or not _kept(root).is_file():
        return False
    with _held(root):  # or somebody is writing it at this moment
        text = _text(path)
        if is_whole(text) or "<<<<<<<" in text:  # a merge is for its owner to finish
            return False
        write_text(path, _text(_kept(root)))
        return True


def is_whole(text: str) -> bool:
    """Whether DVC would take it, and its last line has an end."""
    if not text.endswith("\n"):
        return False
    try:
        tree = yaml.safe_load(text)
        return tree["schema"] == "2.0" and all(map(_is_entry, tree["stages"].values()))
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _is_entry(entry: Any) -> bool:
    """Whether what is said of one stage has all that DVC asks for."""
    listed = [*(entry.get("deps", [])), *(entry.get("outs", []))]
    sections = all(isinstance(keys, dict) for keys in entry.get("params", {}).values())
    return bool(entry["cmd"]) and sections and all("path" in each for each in listed)


def _text(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    return ""


@contextlib.contextmanager
def _held(root: Path) -> Iterator[None]:
    """DVC's own lock, which it has while it writes; after a while without it."""
    from zc.lockfile import LockError, LockFile

    deadline, lock = time.monotonic() + _LOCK_SECONDS, None
    while lock is None and time.monotonic() < deadline:
        try:
            lock = LockFile(str(root / ".dvc" / "tmp" / "lock"))
        except (LockError, OSError):
            time.sleep(0.2)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()
