"""`infalign data add`: data from the hub, a folder or a file into data/raw/NAME.

The files are read as `prepare` will before they get their name, and put under DVC's control. Of the
hub, the commit is recorded in source.json beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import filecmp
import fnmatch
import glob
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from flows.project import versions
from infalign.data.pairs import SPLITS, Options, Subset, Unsuitable
from infalign.data.places import ENDINGS, KINDS, PACKINGS, is_data, split_name, subsets
from infalign.data.reading import options_of, survey
from infalign.data.shown import CHARACTERS, Measure, as_yaml, described, proposal
from infalign.errors import InputError
from infalign.files.workspace import write_json
from infalign.settings.params import Params, load_params

HUB = "hub:"
DEEPEST = 4  # folders between a data set and its files
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_REPOSITORY = re.compile(r"^[\w.-]+/[\w.-]+$")


class Wanted(NamedTuple):
    """What `infalign data add` is asked for; on the hub with a configuration and a revision."""

    source: str
    name: str | None = None
    splits: tuple[str, ...] = ()
    config: str | None = None
    revision: str | None = None

    @property
    def repository(self) -> str | None:
        """OWNER/NAME, for what is on the hub and not here."""
        bare = self.source.removeprefix(HUB).partition("@")[0]
        here = Path(self.source).exists()
        hub = self.source.startswith(HUB) or (_REPOSITORY.match(bare) and not here)
        return bare if hub and not self.source.startswith((".", "/")) else None

    @property
    def pinned(self) -> str | None:
        """The revision, also where it is written behind the name."""
        return self.revision or self.source.partition("@")[2] or None

    def wants(self, file: PurePosixPath, patterns: Sequence[str] = ()) -> bool:
        """Whether a file of a data set is one of those that are asked for."""
        folders = file.parts[:-1]
        if not is_data(Path(file)) or len(folders) > DEEPEST:
            return False
        if any(folder.startswith((".", "_")) for folder in folders):
            return False
        if patterns:
            configured = any(fnmatch.fnmatch(str(file), pattern) for pattern in patterns)
        else:
            configured = self.config is None or self.config in folders
        named = {split_name(Path(file)), *folders[-1:]}
        return configured and (not self.splits or bool(named & set(self.splits)))


class Seen(NamedTuple):
    """What is recognised in some data: lines to read, and the subsets that could be read."""

    lines: list[str]
    subsets: dict[str | None, bool]  # whether there are pairs; else there are prompts alone


def add_data(root: Path, wanted: Wanted, columns: Mapping[str, str]) -> list[str]:
    """Copy, check and version the data: what it holds, and the command that trains on it.

    Doing it again is safe; where it fails, all is as before.
    """
    versions.check_project(root)
    name = wanted.name or default_name(wanted.source)
    if not NAME.match(name):
        raise InputError(
            f"{name!r} cannot name a folder of data: use letters, digits, dot, dash, underscore "
            "(--name)."
        )
    raw = raw_folder(root, name)
    params = load_params(root / "params.yaml")
    folder = download(wanted) if wanted.repository else Path(wanted.source)
    if not folder.exists():
        raise InputError(
            f"{wanted.source} is not a folder or a file: give one, or OWNER/NAME of the hub."
        )
    # A snapshot in the hub's cache links to the blobs that lie beside the snapshots.
    files = find_files(folder, folder.parents[1] if wanted.repository else folder, wanted)
    staged = raw / f".{name}.new"
    shutil.rmtree(staged, ignore_errors=True)
    made = [place for place in (raw, root / "data") if not place.exists()]
    raw.mkdir(parents=True, exist_ok=True)
    try:
        copy_files(files, folder, staged)
        if wanted.repository:
            _record(staged, wanted, folder.name)
        path = f"data/raw/{name}"
        seen = _checked(staged, path, folder, wanted, options_of(params.data, columns))
        following = next_steps(params, path, seen.subsets, columns)
        with placed(staged, raw / name):
            asyncio.run(versions.add_folder(root, path))
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        for place in made:
            with contextlib.suppress(OSError):  # it holds the data
                place.rmdir()
    return [*seen.lines, *following]


def raw_folder(root: Path, name: str) -> Path:
    """The folder of all data; no link leads to or from it."""
    raw = root / "data" / "raw"
    for place in (root / "data", raw, raw / name):
        if place.is_symlink():
            raise InputError(f"{place} is a link: data/raw must hold the files themselves.")
    return raw


def _checked(staged: Path, path: str, folder: Path, wanted: Wanted, options: Options) -> Seen:
    """What is recognised in the copy, spoken of by the names that files had or will have."""
    try:
        seen = shown(staged, path, options)
    except InputError as error:  # about a copy that is gone when it is read
        source = wanted.source.rstrip("/")
        copied = staged if folder.is_dir() else staged / folder.name
        raise InputError(str(error).replace(str(copied), source)) from None
    lines = [line.replace(str(staged), path) for line in seen.lines]
    return Seen([line.replace(staged.name, Path(path).name) for line in lines], seen.subsets)


def shown(path: Path, name: str, options: Options, measures: Sequence[Measure] = ()) -> Seen:
    """What is recognised in every subset of some data, and the settings that would read it.

    A subset that is of no form is one line beside others that can be read; damaged files are an
    error all the same.
    """
    lines: list[str] = []
    proposals = []
    found: dict[str | None, bool] = {}
    fault: Unsuitable | None = None
    for subset in subsets(path, options.splits):
        try:
            read: Subset = survey(path, subset, options)
        except Unsuitable as error:
            fault = fault or error
            lines += [f"[{subset}] not read: {error}", ""]
            continue
        found[subset] = any(read.pairs(split) for split in SPLITS)
        lines += [f"[{subset}]"] if subset else []
        lines += [*described(read, [CHARACTERS, *measures]), ""]
        proposals.append(proposal(name, subset, dict(options.columns)))
    if fault is not None and not found:
        raise fault
    return Seen([*lines, "in params.yaml:", *(f"  {line}" for line in proposals)], found)


def next_steps(
    params: Params, path: str, found: Mapping[str | None, bool], columns: Mapping[str, str]
) -> list[str]:
    """The command that trains on the data, whatever subsets and columns params.yaml names now.

    An objective that names none of the data's subsets takes one of them, in turn.
    """
    settings = [f"data.path={path}"]
    settings += [f"data.columns={as_yaml(dict(columns))}"] if columns else []
    for number, (name, about) in enumerate(params.objectives.items()):
        if about.data is not None:
            continue
        if about.subset not in found:
            subset = list(found)[number % len(found)]
            value = "null" if subset is None else as_yaml(subset)
            settings.append(f"objectives.{name}.subset={value}")
        if about.columns:
            settings.append(f"objectives.{name}.columns={{}}")
    command = " ".join(f"--set {shlex.quote(setting)}" for setting in settings)
    lines = [f"{path} is under DVC: commit {path}.dvc with git, then run"]
    if not all(found.values()):
        lines[0] += ", with a reward that needs no pairs where there are prompts alone,"
    return [*lines, f"  infalign run {command}"]


def default_name(source: str) -> str:
    """The last part of the source, without the endings of a file."""
    if source.startswith(HUB):
        return source.removeprefix(HUB).partition("@")[0].rpartition("/")[2]
    name = Path(source).resolve().name.partition("@")[0]
    if not Path(source).is_dir() and is_data(Path(name)):
        name = name.partition(".")[0]
    return name


def find_files(folder: Path, home: Path, wanted: Wanted) -> list[Path]:
    """The files of data that are asked for; a link that leads out of `home` is refused."""
    if folder.is_file():
        if not is_data(folder):
            raise InputError(f"{folder} is not named as a file of rows: {ENDINGS}.")
        return [folder]
    patterns = _patterns(folder, wanted.config)
    places = sorted(_walk(folder))
    found = [f for f in places if wanted.wants(PurePosixPath(f.relative_to(folder)), patterns)]
    for file in found:
        for link in (*reversed([p for p in file.parents if p.is_relative_to(folder)]), file):
            if link != folder and link.is_symlink() and not _lies_in(link, home):
                raise InputError(
                    f"{link} is a link to what is not there, or not in {folder}: put the files "
                    "themselves there."
                )
    found = [f for f in found if f.is_file()]
    if not found:
        raise InputError(_nothing(wanted, folder, places))
    return found


def _walk(folder: Path) -> list[Path]:
    """All files below a folder, through links as well, but not for ever."""
    found = []
    for top, folders, files in os.walk(folder, followlinks=True):
        if len(Path(top).relative_to(folder).parts) >= DEEPEST:
            folders.clear()
        found += [Path(top) / name for name in files]
        # What links into nothing or to itself is listed, so that it can be refused by name.
        found += [f for f in map(Path(top).joinpath, folders) if f.is_symlink() and not f.is_dir()]
    return found


def _nothing(wanted: Wanted, folder: Path, places: Sequence[Path]) -> str:
    there = sorted({split_name(f) for f in places if is_data(f)})
    asked = f"split {list(wanted.splits)}" if wanted.splits else "file of data"
    asked += f" in the configuration {wanted.config!r}" if wanted.config else ""
    found = f" (it has the splits {there[:30]})" if there else ""
    return (
        f"{folder} has no {asked}{found}: give JSON lines, a JSON array or Parquet, for example "
        "<subset>/train.jsonl or data/train-00000-of-00001.parquet."
    )


def _patterns(folder: Path, config: str | None) -> list[str]:
    """The files of a configuration, where the data set's card says which they are."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
        configs = head.get("configs") or []
        files = next(c["data_files"] for c in configs if c.get("config_name") == config)
        listed = [files] if isinstance(files, str) else files
        paths = [f if isinstance(f, str) else f["path"] for f in listed]
        return [p for path in paths for p in ([path] if isinstance(path, str) else path)]
    except (OSError, ValueError, LookupError, StopIteration, TypeError, AttributeError):
        return []
    except yaml.YAMLError:
        return []


def _lies_in(path: Path, home: Path) -> bool:
    """Whether a path is there, and in a folder, when all links are followed."""
    try:
        return path.resolve(strict=True).is_relative_to(home.resolve())
    except (OSError, RuntimeError):  # nothing there, or a circle of links
        return False


def copy_files(files: list[Path], folder: Path, staged: Path) -> None:
    """Copy the files to the same places below another folder."""
    for file in files:
        target = staged / (file.relative_to(folder) if folder.is_dir() else file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(file, target)
        except PermissionError as error:
            raise InputError(f"{error.filename} cannot be read: permit it, then again.") from None


def _record(staged: Path, wanted: Wanted, commit: str) -> None:
    """Write where the files are from."""
    source: dict[str, Any] = {"repository": wanted.repository, "revision": commit}
    source |= {"config": wanted.config, "splits": list(wanted.splits)}
    write_json(staged / "source.json", source)


def put_back(raw: Path, name: str) -> None:
    """Give data its folder back that a kill left under another name (`placed`)."""
    before = raw / f".{name}.old"
    if before.is_dir() and not (raw / name).exists():
        os.replace(before, raw / name)


@contextlib.contextmanager
def placed(staged: Path, target: Path) -> Iterator[None]:
    """The staged folder under its name; the same files stay as they are.

    Where what is done with it fails, what was there before is there again.
    """
    if target.is_dir() and _same(staged, target):
        yield
        return
    before = target.with_name(f".{target.name}.old")
    shutil.rmtree(before, ignore_errors=True)
    if target.is_dir():
        os.replace(target, before)
    try:
        os.replace(staged, target)
        yield
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        if before.is_dir():
            os.replace(before, target)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _same(first: Path, second: Path) -> bool:
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    if names != sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file()):
        return False
    pairs = [str(name) for name in names]
    return not any(filecmp.cmpfiles(first, second, pairs, shallow=False)[1:])


def download(wanted: Wanted) -> Path:
    """A data set's files at one commit of the hub, or from the cache when there is no network."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    repository = wanted.repository or ""
    if not _REPOSITORY.match(repository) or ".." in repository:
        raise InputError(f"{wanted.source}: write OWNER/NAME, and --revision REVISION.")
    said = f"{wanted.source}{f' at {wanted.revision}' if wanted.revision else ''}"
    try:
        commit, files = _listed(repository, wanted)
        return Path(
            snapshot_download(
                repository, repo_type="dataset", revision=commit, allow_patterns=files
            )
        )
    except (HfHubHTTPError, HFValidationError) as error:
        words = str(error).strip().splitlines()
        raise InputError(f"{said}: {words[0] if words else error}.") from None
    except (HTTPError, OSError) as error:
        raise InputError(
            f"{said} is not in the local cache and the hub cannot be reached: go online "
            f"(unset HF_HUB_OFFLINE), or give a local folder ({type(error).__name__})."
        ) from None


def _listed(repository: str, wanted: Wanted) -> tuple[str | None, list[str]]:
    """The commit of a data set and the files that are asked for; without network, any of them."""
    from huggingface_hub import HfApi, constants, hf_hub_download

    if constants.HF_HUB_OFFLINE:
        ends = [f"*{kind}{packing}" for kind in KINDS for packing in PACKINGS]
        return wanted.pinned, [*ends, "README.md"]
    info = HfApi().dataset_info(repository, revision=wanted.pinned)
    names = [sibling.rfilename for sibling in info.siblings or []]
    patterns: list[str] = []
    if wanted.config and "README.md" in names:
        card = hf_hub_download(repository, "README.md", repo_type="dataset", revision=info.sha)
        patterns = _patterns(Path(card).parent, wanted.config)
    files = [n for n in names if wanted.wants(PurePosixPath(n), patterns)]
    if not files:
        raise InputError(_nothing(wanted, Path(wanted.source), list(map(Path, names))))
    return info.sha, [*map(glob.escape, files), "README.md"]
