"""What an objective's sources are made of, as results/sources says it.

For a function its file's hash; for a local model those of its files; for a hub name the commit; for
a server its address. What changes no reward (batches, waits, the name of a key) is left out.
No torch: the stage `sources` costs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infalign.errors import InputError
from infalign.files.tables import INDEPENDENT, SELECTING
from infalign.files.weights import present_commit
from infalign.settings.params import Objective
from infalign.settings.rewards import (
    AnyReward,
    FunctionReward,
    ModelReward,
    ServerReward,
    SumReward,
    TrainedReward,
    is_trained,
)

FIELDS = {SELECTING: "reward", INDEPENDENT: "judge"}  # by who judges: the key of an objective
REWARDS = "rewards.json"  # of calibrate: the scales of a sum's parts, and more about sources
_STATED = ("path", "label", "url", "form", "model", "weight", "standardise")


def settings_of(objective: Objective, judge: str) -> AnyReward | None:
    """The settings of who judges; None: nobody does."""
    found: AnyReward | None = getattr(objective, FIELDS[judge])
    return found


def trained_halves(objective: Objective) -> list[str]:
    """The reward models that have to be trained for an objective."""
    return [judge for judge in FIELDS if is_trained(settings_of(objective, judge))]


def kinds(objective: Objective) -> list[str | None]:
    """The kinds of an objective's reward and judge; None where there is no judge."""
    found = (settings_of(objective, judge) for judge in FIELDS)
    return [None if settings is None else settings.kind for settings in found]


def described(objective: Objective, root: Path) -> dict[str, Any]:
    """Both sources of an objective, with what they are made of today."""
    found: dict[str, Any] = {}
    for judge, field in FIELDS.items():
        settings = settings_of(objective, judge)
        found[field] = None if settings is None else _described(settings, root)
    return found


def _described(settings: AnyReward, root: Path) -> dict[str, Any]:
    if isinstance(settings, SumReward):
        return {"kind": "sum", "parts": [_described(part, root) for part in settings.parts]}
    about = stated(settings)
    if isinstance(settings, FunctionReward):
        about["sha256"] = _sha256(root / settings.file)
    elif isinstance(settings, ModelReward) and (root / settings.path).is_dir():
        about["files"] = _files(root / settings.path)
    elif isinstance(settings, ModelReward):
        about["commit"] = settings.revision or present_commit(settings.path)
    return about


def stated(settings: AnyReward) -> dict[str, Any]:
    """What params.yaml says of a source that is no sum, without what changes no reward."""
    tree = settings.model_dump(mode="json")
    return {"kind": settings.kind} | {key: tree[key] for key in _STATED if key in tree}


def read_description(path: Path, settings: AnyReward, field: str) -> dict[str, Any]:
    """What results/sources says of a source, or one sentence where params.yaml says another.

    Of a reward model that is trained here there is nothing to say.

    Args:
        field: `reward` or `judge`.
    """
    if isinstance(settings, TrainedReward):
        return stated(settings)
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))[field]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} does not say what the {field} is: run `infalign run`.") from None
    if not _fits(about, settings):
        raise InputError(
            f"{path}: the {field} was another one than params.yaml names now: run `infalign run`."
        )
    return about


def _fits(about: Any, settings: AnyReward) -> bool:
    if about is None or about.get("kind") != settings.kind:
        return False
    if isinstance(settings, SumReward):
        parts = about["parts"]
        return len(parts) == len(settings.parts) and all(map(_fits, parts, settings.parts))
    return all(about.get(key) == value for key, value in stated(settings).items())


def check_folder(folder: Path, files: dict[str, Any]) -> None:
    """Raise where a model's files are not those that were described: by names and sizes alone."""
    there = {name: about["bytes"] for name, about in files.items()}
    found = {name: path.stat().st_size for name, path in _listed(folder)}
    if there != found:
        raise InputError(
            f"{folder} does not hold the files that results/sources describes: run `infalign run`."
        )


def _listed(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a model's folder, without hidden ones."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), path


def _files(folder: Path) -> dict[str, Any]:
    return {
        name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for name, path in _listed(folder)
    }


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): bring it back, or correct params.yaml."
        ) from None


def in_words(settings: AnyReward | None) -> str:
    """A source as pages name it."""
    if settings is None:
        return "none"
    if isinstance(settings, SumReward):
        parts = (f"{part.weight:g} × {in_words(part)}" for part in settings.parts)
        return "a sum: " + " + ".join(parts)
    if isinstance(settings, ModelReward):
        return f"the classifier {settings.path}"
    if isinstance(settings, FunctionReward):
        return f"the function {settings.path}"
    if isinstance(settings, ServerReward):
        return f"the server {settings.url}"
    return "a reward model trained from the pairs"
