"""Where the files of some data lie, and which split each of them is of.

Data is one file or a folder: `<subset>/train.jsonl`, `train-00000-of-00003.parquet`, the layouts of
the hub (`data/train-*.parquet`, `<subset>/train/0000.parquet`). A file's split is the name before
its number and its endings, or its folder's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from infalign.data.pairs import SPLITS, Unsuitable
from infalign.errors import InputError

KINDS = (".jsonl", ".json", ".ndjson", ".parquet")
PACKINGS = ("", ".gz", ".zst")
ENDINGS = (
    f"give files of rows, which end in {', '.join(KINDS)}, "
    f"or with {' or '.join(PACKINGS[1:])} behind"
)
# What is written about data, beside it.
ABOUT = ("corpus.json", "dataset_info.json", "dataset_infos.json", "source.json", "state.json")
_HELD_OUT = re.compile(r"^(test|validation|valid|val|eval|dev)([^a-zA-Z]|$)", re.IGNORECASE)
_TRAINING = re.compile(r"^train(ing)?([^a-zA-Z]|$)", re.IGNORECASE)
_SHARD = re.compile(r"([-_.]?(part|shard|chunk)?[-_.]?\d+(-of-\d+)?)$", re.IGNORECASE)


class Found(NamedTuple):
    """The files of a subset by split, and those of splits that are not wanted.

    Files under None are split by their prompts.
    """

    name: str
    base: Path
    files: dict[str | None, list[Path]]
    left_out: list[Path]

    @property
    def single(self) -> bool:
        """Whether one split has to be made into two."""
        return len(self.files) == 1


def is_data(path: Path) -> bool:
    """Whether a file is by its name one that could hold rows."""
    name = path.name.lower()
    endings = tuple(kind + packing for kind in KINDS for packing in PACKINGS)
    return name.endswith(endings) and name not in ABOUT and not name.startswith((".", "_"))


def split_name(path: Path) -> str:
    """`train` of `train-00000-of-00003.parquet`, `train_prefs.jsonl.gz`: `train_prefs`."""
    return _SHARD.sub("", _bare(path))


def _bare(path: Path) -> str:
    """A file's name without its endings."""
    name = path.name
    for ending in (*PACKINGS[1:], *KINDS):
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    return name


def find_files(path: Path, subset: str | None, splits: Mapping[str, Sequence[str]]) -> Found:
    """The files of one subset, or of data without subsets.

    Args:
        path: a folder, or one file.
        subset: a folder below it.
        splits: `train` and `test` to the names of splits; empty: by their usual names.
    """
    if path.is_file():
        if subset is not None:
            raise InputError(
                f"{path} is one file and has no subset {subset!r}: set the objective's subset to "
                "null, or give a folder with that subset."
            )
        return Found(path.resolve().parent.name, path.parent, {None: [path]}, [])
    if not path.is_dir():
        raise InputError(
            f"data.path {str(path)!r} is not a folder or file of data: correct data.path, or "
            "bring data with `infalign data add SOURCE`."
        )
    base = _base(path, subset, splits)
    files = _below(base, splits)
    if not files:
        raise InputError(
            f"{base} has none of train.jsonl, train.jsonl.gz, train-00000-of-00001.parquet, or "
            "other files of rows: put the data there."
        )
    _check_doubles(files)
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(_split_of(file, splits), []).append(file)
    wanted, left_out = _assigned(base, named, splits)
    return Found(subset or base.resolve().name, base, wanted, left_out)


def subsets(path: Path, splits: Mapping[str, Sequence[str]]) -> list[str | None]:
    """The subsets of some data: None for data without, else the folders that have files."""
    if not path.is_dir() or _below(path, splits):
        return [None]
    return [f.name for f in _folders(path) if _below(f, splits)] or [None]


def _base(path: Path, subset: str | None, splits: Mapping[str, Sequence[str]]) -> Path:
    """The folder of the subset; without a name, the only one that has data."""
    if subset is None:
        if _below(path, splits):
            return path
        there = [f for f in _folders(path) if _below(f, splits)]
        if not there:
            raise InputError(f"{path} has no file of data: {ENDINGS}.")
        if len(there) != 1:
            raise InputError(
                f"{path} has no files of data but in the folders {[f.name for f in there]}: name "
                "one of them as the objective's subset, or correct data.path."
            )
        return there[0]
    if not (path / subset).is_dir():
        raise InputError(
            f"{path} has no subset folder {subset!r} (it has {[f.name for f in _folders(path)]}): "
            "correct data.path or the objective's subset."
        )
    if not (path / subset).resolve().is_relative_to(path.resolve()):
        raise InputError(
            f"{path / subset} leads out of the data's folder, where no change would be noticed: "
            "put the subset's files themselves there, or correct data.path."
        )
    return path / subset


def _folders(path: Path) -> list[Path]:
    return sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))


def _below(base: Path, splits: Mapping[str, Sequence[str]]) -> list[Path]:
    """The files of a folder, of its `data` and of its folders that are named as splits."""
    listed = {name for names in splits.values() for name in names}
    places = [base]
    for folder in [*_folders(base), *(_folders(base / "data") if (base / "data").is_dir() else [])]:
        if folder.name == "data" or folder.name in listed or _usual(folder.name):
            places.append(folder)
    return sorted(f for place in places for f in place.iterdir() if f.is_file() and is_data(f))


def _usual(name: str) -> str | None:
    if _TRAINING.match(name):
        return "train"
    return "test" if _HELD_OUT.match(name) else None


def _split_of(file: Path, splits: Mapping[str, Sequence[str]]) -> str:
    """The name of a file's split: its own, unless only its folder's is one."""
    own, above = split_name(file), file.parent.name
    listed = {name for names in splits.values() for name in names}
    if own in listed or (_usual(own) and above not in listed):
        return own
    return above if above in listed or _usual(above) else own


def _check_doubles(files: list[Path]) -> None:
    """Raise where the same file is there in two kinds or packings, which is one too many."""
    seen: dict[Path, Path] = {}
    for file in files:
        bare = file.parent / _bare(file)
        if bare in seen:
            raise InputError(f"{seen[bare]} and {file} are both there: remove one of them.")
        seen[bare] = file


def _assigned(
    base: Path, named: dict[str, list[Path]], splits: Mapping[str, Sequence[str]]
) -> tuple[dict[str | None, list[Path]], list[Path]]:
    wanted: dict[str | None, list[Path]] = {}
    left_out: list[Path] = []
    if splits:
        missing = [n for names in splits.values() for n in names if n not in named]
        if missing:
            raise Unsuitable(
                f"{base} has no split {missing[0]!r}, which data.splits names (it has "
                f"{sorted(named)}): correct data.splits."
            )
    usual = {name: _usual(name) for name in named}
    for name, files in named.items():
        split = usual[name]
        if splits:
            split = next((s for s in SPLITS if name in splits.get(s, ())), None)
        if split is None and (splits or any(usual.values())):
            left_out += files
        else:
            wanted.setdefault(split, []).extend(files)
    training = sorted(name for name, split in usual.items() if split == "train")
    if not splits and len(training) > 1:
        raise Unsuitable(
            f"{base} has several splits to train on, {training}: say which with data.splits, as "
            f"in data.splits={{train: [{training[0]}]}}."
        )
    return {s: wanted[s] for s in (*SPLITS, None) if s in wanted}, left_out
