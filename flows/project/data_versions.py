"""Versions of data: those that git has of a DVC pointer, the way back, the one trained on last."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from flows.project import versions
from flows.project.git import git, shown
from infalign.errors import InputError
from infalign.files.workspace import write_text
from infalign.settings.params import Params

RAW = Path("data") / "raw"


class DataVersion(NamedTuple):
    """One version of a folder of data."""

    name: str
    commit: str  # short; empty where git does not have it yet
    date: str
    subject: str
    md5: str
    files: int | None
    size: int | None  # bytes

    def line(self) -> str:
        """As `infalign data log` shows it."""
        size = "" if self.size is None else f"  {self.files} files, {self.size:,} bytes"
        where = f"{self.commit}  {self.date}" if self.commit else "not committed"
        return f"{self.name}  {where}  {self.md5[:12]}{size}  {self.subject}".rstrip()


def log(root: Path, name: str | None) -> list[DataVersion]:
    """The versions of one folder of data or of all, the newest first."""
    versions.check_project(root)
    names = pointers(root) if name is None else [name]
    found = [version for each in names for version in _log(root, each)]
    if not found:
        place = f"data/raw/{name}" if name else "data/raw"
        raise InputError(
            f"{place} has no version yet: `infalign data add` brings data, and `git commit` keeps "
            "its version."
        )
    return found


def pointers(root: Path) -> list[str]:
    """The names of all data that is under DVC, or was."""
    here = {path.stem for path in (root / RAW).glob("*.dvc")}
    listed = ("log", "--all", "--format=", "--name-only", "--", f"{RAW}/*.dvc")
    told = git(root, *listed, fails=True)
    return sorted(here | {Path(line).stem for line in told.splitlines() if line.strip()})


def _log(root: Path, name: str) -> list[DataVersion]:
    path = f"{RAW.as_posix()}/{name}.dvc"
    listed = ("log", "--format=%h%x09%ad%x09%s", "--date=short", "--", path)
    told = git(root, *listed, fails=True)
    found = []
    for line in told.splitlines():
        commit, date, subject = line.split("\t", 2)
        text = shown(root, commit, path)
        if text:
            found.append(_version(name, commit, date, subject, text.decode(errors="replace")))
    file = root / path
    if file.is_file():
        here = _version(name, "", "", "", file.read_text(encoding="utf-8"))
        if not found or here.md5 != found[0].md5:
            found.insert(0, here)
    return found


def _version(name: str, commit: str, date: str, subject: str, text: str) -> DataVersion:
    out = _out(text, name)
    return DataVersion(
        name, commit, date, subject, str(out["md5"]), out.get("nfiles", 1), out.get("size")
    )


def _out(text: str, name: str) -> dict[str, Any]:
    """What a DVC pointer says of its only output."""
    try:
        out = yaml.safe_load(text)["outs"][0]
        return dict(out) | {"md5": str(out["md5"])}
    except (yaml.YAMLError, KeyError, IndexError, TypeError):
        raise InputError(
            f"data/raw/{name}.dvc is not a file of DVC's: restore it with `git checkout`."
        ) from None


def back(root: Path, revision: str, name: str | None) -> list[str]:
    """Go back to the data of a commit; all of it or nothing."""
    versions.check_project(root)
    if name is None:
        names = pointers(root)
        if len(names) != 1:
            raise InputError(
                f"data/raw has {names}: say which, as in `infalign data back REV NAME`."
            )
        name = names[0]
    path = f"{RAW.as_posix()}/{name}.dvc"
    held = shown(root, revision, path)
    if held is None:
        raise InputError(
            f"{revision!r} has no {path}: `infalign data log {name}` shows the versions there are."
        )
    text = held.decode(errors="replace")
    _out(text, name)
    file = root / path
    before = file.read_text(encoding="utf-8") if file.is_file() else None
    if before is not None:
        asyncio.run(_check_kept(root, path, name))
    write_text(file, text)
    try:
        asyncio.run(_checkout(root, path))
    except BaseException:
        _put_back(root, file, path, before)
        raise
    return [
        f"data/raw/{name} is that of {revision}. Keep it with `git commit {path}`, then "
        "`infalign run`: what was made from it comes from DVC's cache."
    ]


async def _check_kept(root: Path, path: str, name: str) -> None:
    """Raise where the folder holds what DVC has not: it would be lost."""
    answer = await versions.dvc(root, "status", "--json", path)
    if answer.returncode:
        raise InputError(versions.sentence(path, answer.stderr))
    changed = json.loads(answer.stdout or "{}")
    if any("modified" in json.dumps(entry) for entry in changed.values()):
        raise InputError(
            f"data/raw/{name} has changes that DVC does not have, and they would be lost: keep "
            f"them with `dvc add data/raw/{name}`, or drop them with `dvc checkout --force {path}`."
        )


async def _checkout(root: Path, path: str) -> None:
    answer = await versions.dvc(root, "checkout", "--force", path)
    if answer.returncode and "core.remote" in await versions.remote_settings(root):
        answer = await versions.dvc(root, "pull", "--force", path)
    if answer.returncode:
        raise InputError(
            f"the data is neither in DVC's cache nor in a remote: "
            f"{versions.sentence(path, answer.stderr)}"
        )


def _put_back(root: Path, file: Path, path: str, before: str | None) -> None:
    if before is None:
        file.unlink(missing_ok=True)
    else:
        write_text(file, before)
        asyncio.run(versions.dvc(root, "checkout", "--force", path))


async def put_pointer_back(root: Path, name: str, text: str) -> None:
    """Make data that of a pointer that was kept; what is there now must be in DVC's cache."""
    path = f"{RAW.as_posix()}/{name}.dvc"
    write_text(root / path, text)
    await _checkout(root, path)


def trained_on(root: Path, params: Params, objective: str) -> str | None:
    """DVC's hash of the data that prepare read last for an objective; None before the first run."""
    entry = versions.lock_entries(root).get("prepare") or {}
    path = params.data_path(objective)
    return next((str(d["md5"]) for d in entry.get("deps", []) if d["path"] == path), None)


async def unpacked(root: Path, md5: str, name: str, into: Path) -> Path | None:
    """A version as links to DVC's cache: a folder or a file to read; None where it is not there."""
    answer = await versions.dvc(root, "cache", "dir")
    cache = Path(answer.stdout.strip()) / "files" / "md5"
    target = into / name
    try:
        files = _listed(cache, md5)
        for relative, key in files:
            place = target / relative if relative else target
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(_object(cache, key).resolve(strict=True))
    except (OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(into, ignore_errors=True)
        return None
    return target


def _listed(cache: Path, md5: str) -> Sequence[tuple[str, str]]:
    """The files of a version, relative, and their hashes; of a single file: its own alone."""
    if not md5.endswith(".dir"):
        return [("", md5)]
    tree = json.loads(_object(cache, md5).read_text(encoding="utf-8"))
    return [(entry["relpath"], entry["md5"]) for entry in tree]


def _object(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]
