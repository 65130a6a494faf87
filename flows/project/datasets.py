"""`infalign data add`: preference data from a folder or the Hugging Face hub into data/raw/NAME.

The files are checked as HH files before they get their name, and put under DVC's control.
"""

from __future__ import annotations

import asyncio
import filecmp
import os
import re
import shutil
from pathlib import Path

from flows.project import versions
from infalign.data.hh import SPLITS, Limits, read_subset
from infalign.errors import InputError
from infalign.settings.params import load_params

HUB = "hub:"
FILES = tuple(f"{split}.jsonl{end}" for split in SPLITS for end in ("", ".gz"))
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


def add_data(root: Path, source: str, name: str | None = None) -> str:
    """Copy, check and version the data; its path relative to the root. Doing it again is safe.

    Args:
        root: the project's folder.
        source: a folder with `<subset>/{train,test}.jsonl[.gz]`, or hub:OWNER/NAME[@REVISION].
        name: of the folder below data/raw; by default the source's own.
    """
    versions.check_project(root)
    name = name or default_name(source)
    if not _NAME.match(name):
        raise InputError(
            f"{name!r} cannot name a folder of data: use letters, digits, dot, dash, underscore "
            "(--name)."
        )
    raw = root / "data" / "raw"
    for place in (root / "data", raw, raw / name):
        if place.is_symlink():
            raise InputError(f"{place} is a link: data/raw must hold the files themselves.")
    settings = load_params(root / "params.yaml").data
    from_hub = source.startswith(HUB)
    folder = download(source.removeprefix(HUB)) if from_hub else Path(source)
    if not folder.is_dir():
        raise InputError(f"{source} is not a folder: give one with HH files, or hub:OWNER/NAME.")
    # A snapshot in the hub's cache links to the blobs that lie beside the snapshots.
    files = find_files(folder, folder.parents[1] if from_hub else folder)
    raw.mkdir(parents=True, exist_ok=True)
    staged = raw / f".{name}.new"
    shutil.rmtree(staged, ignore_errors=True)
    try:
        _copy(files, folder, staged)
        for subset in sorted({file.relative_to(folder).parts[0] for file in files}):
            read_subset(staged, subset, 0.5, Limits(settings.file_bytes, settings.line_bytes))
        _place(staged, raw / name)
    except InputError as error:  # about a copy that is gone when it is read
        raise InputError(str(error).replace(str(staged), source.rstrip("/"))) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    asyncio.run(versions.add_folder(root, f"data/raw/{name}"))
    return f"data/raw/{name}"


def default_name(source: str) -> str:
    """The last part of the source."""
    if source.startswith(HUB):
        return source.removeprefix(HUB).partition("@")[0].rpartition("/")[2]
    return Path(source).resolve().name


def find_files(folder: Path, home: Path) -> list[Path]:
    """The HH files of every subset; a link that leads out of `home` is refused."""
    found = sorted(f for f in folder.glob("*/*") if f.name in FILES)
    found = [f for f in found if not f.parent.name.startswith(".")]
    for link in (place for file in found for place in (file.parent, file)):
        if link.is_symlink() and not _lies_in(link, home):
            raise InputError(
                f"{link} is a link to what is not there, or not in {folder}: put the files "
                "themselves there."
            )
    found = [f for f in found if f.is_file()]
    if not found:
        raise InputError(
            f"{folder} has no <subset>/{{train,test}}.jsonl[.gz]: give a folder of HH files."
        )
    return found


def _lies_in(path: Path, home: Path) -> bool:
    """Whether a path is there, and in a folder, when all links are followed."""
    try:
        return path.resolve(strict=True).is_relative_to(home.resolve())
    except (OSError, RuntimeError):  # nothing there, or a circle of links
        return False


def _copy(files: list[Path], folder: Path, staged: Path) -> None:
    """Copy the files to the same places below another folder."""
    for file in files:
        target = staged / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(file, target)
        except PermissionError as error:
            raise InputError(f"{error.filename} cannot be read: permit it, then again.") from None


def _place(staged: Path, target: Path) -> None:
    """Give the staged folder its name; the same files stay as they are."""
    if target.is_dir():
        if _same(staged, target):
            return
        shutil.rmtree(target)
    os.replace(staged, target)


def _same(first: Path, second: Path) -> bool:
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    if names != sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file()):
        return False
    pairs = [str(name) for name in names]
    return not any(filecmp.cmpfiles(first, second, pairs, shallow=False)[1:])


def download(reference: str) -> Path:
    """A data set's files from the hub, or from the local cache when there is no network."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = reference.partition("@")
    if repository.count("/") != 1 or ".." in reference:
        raise InputError(f"hub:{reference}: write hub:OWNER/NAME or hub:OWNER/NAME@REVISION.")
    try:
        return Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=[f"*/{name}" for name in FILES],
            )
        )
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise InputError(
            f"hub:{reference} is not in the local cache and the hub cannot be reached: go online "
            f"(unset HF_HUB_OFFLINE), or give a local folder ({type(error).__name__})."
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        words = str(error).strip().splitlines()
        raise InputError(f"hub:{reference}: {words[0] if words else error}.") from None
