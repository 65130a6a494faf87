"""The reward of a packaged policy: what it is made of, inside the package, and opened from there.

A classifier is a folder, a function its file with the hash, a server its address, a sum all of its
parts; `reward.json` says which. Packages that are older than it hold a classifier, `reward/`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from infalign.errors import InputError
from infalign.files.tables import SELECTING
from infalign.files.weights import snapshot
from infalign.files.workspace import Workspace, write_json
from infalign.rewards.classifier import Passes, ready_classifier, trained_classifier
from infalign.rewards.description import check_folder, read_description, settings_of
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
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # of a hub model
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
            source = about["source"]["parts"][number]
            _pack(workspace, objective, part, source, folder / str(number))
    else:
        _pack(workspace, objective, settings, about["source"], folder)
    write_json(deployed / FILE, about)


def _pack(
    workspace: Workspace,
    objective: str,
    settings: AnyReward,
    source: dict[str, Any],
    folder: Path,
) -> None:
    if isinstance(settings, FunctionReward):
        load_function(workspace.root / settings.file, settings.name, source["sha256"])
        folder.mkdir(parents=True)
        shutil.copyfile(workspace.root / settings.file, folder / Path(settings.file).name)
    elif isinstance(settings, ModelReward):
        place = workspace.root / settings.path
        if "files" in source:
            check_folder(place, source["files"])
        else:
            place = snapshot(settings.path, MODEL_FILES, source["commit"])
        shutil.copytree(place, folder, ignore=shutil.ignore_patterns(".*", "*.bin", "*.pt"))
    elif not isinstance(settings, ServerReward):
        shutil.copytree(workspace.results("reward", objective, SELECTING), folder)


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
        return load_function(path, settings.name, source["sha256"], remedy="register it again")
    if isinstance(settings, ServerReward):
        return Server(settings, "reward")
    if isinstance(settings, ModelReward):
        return ready_classifier(folder, None, settings.label, run, passes)
    return trained_classifier(folder, *run, passes)


def classifiers(deployed: Path) -> list[Path]:
    """The folders of a package's reward that hold a model."""
    folder = deployed / FOLDER
    return [path.parent for path in sorted(folder.rglob("config.json"))]
