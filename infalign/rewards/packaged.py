"""The reward of a packaged policy: what it is made of, inside the package, and opened from there.

A classifier is a folder, a function its file with the hash, a server its address, a sum all of its
parts; `reward.json` says which. Packages that are older than it hold a classifier, `reward/`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from infalign.errors import InputError
from infalign.files.tables import SELECTING
from infalign.files.workspace import Workspace, write_json
from infalign.rewards.classifier import Passes, ready_classifier, trained_classifier
from infalign.rewards.description import read_description, settings_of
from infalign.rewards.function import load_function
from infalign.rewards.opening import scales_of
from infalign.rewards.server import Server
from infalign.rewards.source import RewardSource
from infalign.rewards.total import Part, Scale, Sum
from infalign.settings.rewards import (
    AnyReward,
    FunctionReward,
    ModelReward,
    RewardSettings,
    ServerReward,
    SumReward,
)

FILE, FOLDER = "reward.json", "reward"
_SETTINGS: TypeAdapter[AnyReward] = TypeAdapter(RewardSettings)


def pack_source(workspace: Workspace, objective: str, deployed: Path) -> None:
    """Put the selecting reward of an objective into a package."""
    settings = settings_of(workspace.params.objectives[objective], SELECTING)
    assert settings is not None
    path = workspace.results("sources", f"{objective}.json")
    about = read_description(path, settings, "reward")
    about = {"settings": settings.model_dump(mode="json"), "source": about}
    folder = deployed / FOLDER
    if isinstance(settings, SumReward):
        scales = scales_of(workspace, objective, SELECTING, settings)
        about["scales"] = [[scale.mean, scale.std] for scale in scales]
        for number, part in enumerate(settings.parts):
            commit = about["source"]["parts"][number].get("commit")
            _pack(workspace, objective, part, commit, folder / str(number))
    else:
        _pack(workspace, objective, settings, about["source"].get("commit"), folder)
    write_json(deployed / FILE, about)


def _pack(
    workspace: Workspace, objective: str, settings: AnyReward, commit: str | None, folder: Path
) -> None:
    if isinstance(settings, FunctionReward):
        folder.mkdir(parents=True)
        shutil.copyfile(workspace.root / settings.file, folder / Path(settings.file).name)
    elif isinstance(settings, ModelReward):
        source = workspace.root / settings.path
        if commit is not None:
            source = _cached(settings.path, commit)
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".*", "*.bin", "*.pt"))
    elif not isinstance(settings, ServerReward):
        shutil.copytree(workspace.results("reward", objective, SELECTING), folder)


def _cached(name: str, commit: str) -> Path:
    """The folder of a hub model that was run before, in the local cache."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    return Path(snapshot_download(name, revision=commit, allow_patterns=patterns))


def open_packaged(deployed: Path, device: str, precision: str, passes: Passes) -> RewardSource:
    """The reward of a packaged policy."""
    folder = deployed / FOLDER
    if not (deployed / FILE).exists():
        return trained_classifier(folder, device, precision, passes)
    try:
        about = json.loads((deployed / FILE).read_text(encoding="utf-8"))
        settings, source = _SETTINGS.validate_python(about["settings"]), about["source"]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(
            f"{deployed / FILE} does not say what the reward is "
            f"({type(error).__name__}): register the policy again."
        ) from None
    if not isinstance(settings, SumReward):
        return _open(settings, source, folder, (device, precision), passes)
    parts = []
    for number, part in enumerate(settings.parts):
        inside = folder / str(number)
        opened = _open(part, source["parts"][number], inside, (device, precision), passes)
        scale = Scale(*about["scales"][number])
        parts.append(Part(f"{number} {part.kind}", opened, part.weight, scale))
    return Sum(parts)


def _open(
    settings: AnyReward,
    source: dict[str, Any],
    folder: Path,
    run: tuple[str, str],
    passes: Passes,
) -> RewardSource:
    if isinstance(settings, FunctionReward):
        path = folder / Path(settings.file).name
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != source["sha256"]:
            raise InputError(f"{path} is not the file that was packaged: register it again.")
        return load_function(path, settings.name)
    if isinstance(settings, ServerReward):
        return Server(settings, "reward")
    if isinstance(settings, ModelReward):
        return ready_classifier(folder, None, settings.label, run, passes)
    return trained_classifier(folder, *run, passes)


def classifiers(deployed: Path) -> list[Path]:
    """The folders of a package's reward that hold a model."""
    folder = deployed / FOLDER
    return [path.parent for path in sorted(folder.rglob("config.json"))]
