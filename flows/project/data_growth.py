"""`infalign data add SOURCE --into NAME`: more data beside what is there, and what changed with it.

Old files stay as they are; what is new gets files of its own. Nothing has happened where it fails,
and nothing more happens where it is done again.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flows.project import versions
from flows.project.datasets import (
    NAME,
    Wanted,
    copy_files,
    download,
    find_files,
    placed,
    put_back,
    raw_folder,
)
from flows.project.intake import examine, sentence
from infalign.data.changes import ALIKE, changes
from infalign.data.growing import Growth, grow
from infalign.data.pairs import Options
from infalign.data.places import subsets
from infalign.data.reading import options_of, survey
from infalign.errors import InputError
from infalign.settings.params import Params, load_params


class Grown(NamedTuple):
    """What was added to some data, and what changed with it, by subset."""

    name: str
    growth: Growth
    changes: dict[str | None, dict[str, Any]]

    def lines(self) -> list[str]:
        """To read."""
        growth, place = self.growth, f"data/raw/{self.name}"
        lines = [
            f"{growth.rows} rows read, {growth.added} added to {place}: {growth.repeated} are "
            f"there already, {growth.contrary} contradict an old one, {growth.other_side} are of "
            "prompts of the other split"
        ]
        lines += [f"dropped, {reason}: {n}" for reason, n in sorted(growth.dropped.items())]
        if not growth.added:
            return [*lines, "Nothing is new: nothing was changed."]
        for subset, numbers in self.changes.items():
            lines += [f"[{subset}]"] if subset else []
            lines += _in_words(numbers)
        return [*lines, f"{place} is under DVC: commit {place}.dvc with git."]


def add_into(
    root: Path, wanted: Wanted, columns: Mapping[str, str], subset: str | None = None
) -> Grown:
    """Add what is new in a source to data that is there, under DVC: all of it, or nothing.

    Args:
        columns: of the source and of what is there; empty: those of params.yaml.
        subset: of what is there, into which data without subsets goes.
    """
    versions.check_project(root)
    name, params = str(wanted.name), load_params(root / "params.yaml")
    raw = raw_folder(root, name)
    put_back(raw, name)
    if not NAME.match(name) or not (raw / name).is_dir():
        raise InputError(
            f"data/raw/{name} is not there: bring it with `infalign data add SOURCE --name "
            f"{name}`, or fetch it with `dvc pull`."
        )
    options = options_of(params.data, columns or _columns_of(params, f"data/raw/{name}"))
    folder = download(wanted) if wanted.repository else Path(wanted.source)
    if not folder.exists():
        raise InputError(
            f"{wanted.source} is not a folder or a file: give one, or OWNER/NAME of the hub."
        )
    files = find_files(folder, folder.parents[1] if wanted.repository else folder, wanted)
    staged, copied = raw / f".{name}.new", raw / f".{name}.source"
    for place in (staged, copied):
        shutil.rmtree(place, ignore_errors=True)
    try:
        copy_files(files, folder, copied)
        source = copied if folder.is_dir() else copied / folder.name
        shutil.copytree(raw / name, staged)
        keeps = params.intake.contrary == "keep"
        try:
            grown = _grown(name, staged, source, options, keeps, subset)
        except InputError as error:  # about copies that are gone when it is read
            words = str(error).replace(str(source), wanted.source.rstrip("/"))
            raise InputError(words.replace(str(staged), f"data/raw/{name}")) from None
        if grown.growth.added:
            with placed(staged, raw / name):
                asyncio.run(versions.add_folder(root, f"data/raw/{name}"))
    finally:
        for place in (staged, copied):
            shutil.rmtree(place, ignore_errors=True)
    return grown


def _grown(
    name: str, staged: Path, source: Path, options: Options, keeps: bool, subset: str | None
) -> Grown:
    """Add to a copy of the data, and say what changed."""
    before = {each: survey(staged, each, options) for each in subsets(staged, options.splits)}
    for each in subsets(source, options.splits):
        survey(source, each, options)  # what cannot be read is refused, whatever of it is new
    growth = grow(staged, source, options, contrary=keeps, subset=subset)
    found = {each: changes(old, survey(staged, each, options)) for each, old in before.items()}
    changed = {
        n: numbers
        for n, numbers in found.items()
        if numbers["rows"]["before"] != numbers["rows"]["now"]
    }
    return Grown(name, growth, changed)


def _columns_of(params: Params, path: str) -> Mapping[str, str]:
    """The columns of whoever reads the data by params.yaml."""
    readers = [params.objectives[name] for name in _readers(params, path)]
    return next((about.columns for about in readers if about.columns), params.data.columns)


def _readers(params: Params, path: str) -> list[str]:
    """The objectives that run and read some data."""
    return [name for name in params.run.objectives if params.data_path(name) == path]


def agreement_lines(root: Path, name: str) -> list[str]:
    """What the present reward models say of the new pairs, and what a night would."""
    params = load_params(root / "params.yaml")
    lines = []
    for objective in _readers(params, f"data/raw/{name}"):
        if not (root / "results" / "reward" / objective).is_dir():
            continue
        verdict = asyncio.run(examine(root, params, objective))
        agreed = verdict.get("agreement")
        if agreed is not None:
            lines.append(
                f"{objective}: the present reward model agrees with {agreed['accuracy']:.1%} of "
                f"{agreed['pairs']} new pairs ({agreed['accuracy_low']:.1%} to "
                f"{agreed['accuracy_high']:.1%}), with {agreed['held_out']:.1%} of held-out ones"
            )
        lines.append(f"A night would say: {sentence(verdict)}")
    return lines


def _in_words(numbers: Mapping[str, Any]) -> list[str]:
    """What changed, a line each."""
    lines = [
        f"{what}: {numbers[what]['before']} before, {numbers[what]['now']} now"
        for what in ("rows", "pairs", "prompts")
    ]
    mean = numbers["characters"]
    if mean["new"] is not None and mean["before"] is not None:
        lines.append(
            f"characters a response: {mean['before']:.0f} before, {mean['new']:.0f} of the new"
        )
    if numbers["near_duplicates"] is not None:
        lines.append(
            f"near-duplicates: {numbers['near_duplicates']:.1%} of the new training prompts are "
            f"like an evaluation prompt (Jaccard index of three consecutive words, {ALIKE} or more)"
        )
    return lines
