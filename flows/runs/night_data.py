"""Data that a night finds in `schedule.source`: added before the gate, taken back if it refuses."""

from __future__ import annotations

import asyncio
from pathlib import Path

from flows.children.processes import Tell
from flows.project.data_growth import add_into
from flows.project.data_versions import put_pointer_back
from flows.project.datasets import Wanted
from infalign.files.workspace import write_text
from infalign.settings.params import Params


def _set_aside(root: Path, name: str) -> Path:
    return root / ".infalign" / "intake" / f"{name}.dvc"


async def bring(root: Path, params: Params, tell: Tell) -> None:
    """Add what is new in the source, if there is one; the pointer before it is set aside.

    What a killed night had set aside stays: it is the data that was judged last.
    """
    source, name = params.schedule.source, params.schedule.into
    if source is None or name is None:
        return
    aside, pointer = _set_aside(root, name), root / "data" / "raw" / f"{name}.dvc"
    if pointer.is_file() and not aside.is_file():
        write_text(aside, pointer.read_text(encoding="utf-8"))
    place = root / source
    if place.is_dir() and not any(path.is_file() for path in place.rglob("*")):
        tell(f"{source} is empty: no data is added.")
        return
    wanted = Wanted(str(place) if place.exists() else source, name)
    for line in (await asyncio.to_thread(add_into, root, wanted, {})).lines():
        tell(line)


def taken(root: Path, params: Params) -> None:
    """The gate has taken the data: there is nothing to go back to."""
    if params.schedule.into is not None:
        _set_aside(root, params.schedule.into).unlink(missing_ok=True)


async def take_back(root: Path, params: Params, tell: Tell) -> None:
    """The gate has refused the data: what the source added goes; DVC's cache keeps it."""
    name = params.schedule.into
    aside = None if name is None else _set_aside(root, name)
    if name is None or aside is None or not aside.is_file():
        return
    await put_pointer_back(root, name, aside.read_text(encoding="utf-8"))
    aside.unlink()
    tell(f"data/raw/{name} is as before the night: {params.schedule.source} added what is refused.")
