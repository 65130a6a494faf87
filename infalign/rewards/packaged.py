"""The reward of a packaged policy: what it is made of, inside the package, and opened from there.

A classifier is a folder, a function its file with the hash, a server its address, a sum all of its
parts; `reward.json` says which, and which columns of the data it was given, as no prompt that is
served has them. Packages that are older than it hold a classifier, `reward/`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from infalign.errors import InputError
from infalign.files.tables import SELECTING
from infalign.files.weights import PICKLES, snapshot
from infalign.files.workspace import Workspace, write_json
from infalign.lm.loading import check_weights
from infalign.rewards.classifier import Passes, ready_classifier, trained_classifier
from infalign.rewards.description import FIELDS, check_folder, read_description, settings_of
from infalign.rewards.function import Columns, load_function
from infalign.rewards.opening import columns_of, scales_of
from infalign.rewards.server import Server
from infalign.rewards.source import RewardSource
from infalign.rewards.total import Scale, summed
from infalign.settings.rewards import (
    AnyReward,
    FunctionReward,
    ModelReward,
    RewardSettings,
    ServerReward,
    SumReward,
    leaves,
)

FILE, FOLDER = "reward.json", "reward"
# Of a hub model; what is none of these may be a second copy of the weights.
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.bpe"]
_SETTINGS: TypeAdapter[AnyReward] = TypeAdapter(RewardSettings)


def pack_source(
    workspace: Workspace, objective: str, deployed: Path, judge: str = SELECTING
) -> None:
    """Put a source of rewards of an objective into a package: the selecting one, or its judge."""
    settings = settings_of(workspace.params.objectives[objective], judge)
    assert settings is not None
    path = workspace.results("sources", f"{objective}.json")
    about = read_description(path, settings, FIELDS[judge])
    about = {"settings": settings.model_dump(mode="json"), "source": about}
    # A judge is never served: it is asked about prompts of the data, with their columns.
    served = judge == SELECTING
    if used := _columns_left_behind(workspace, objective, settings) if served else []:
        about["columns"] = used
    folder = deployed / FOLDER
    if isinstance(settings, SumReward):
        scales = scales_of(workspace, objective, judge, settings)
        about["scales"] = [[scale.mean, scale.std] for scale in scales]
        for number, part in enumerate(settings.parts):
            source = about["source"]["parts"][number]
            _pack(workspace, (objective, judge), part, source, folder / str(number))
    else:
        _pack(workspace, (objective, judge), settings, about["source"], folder)
    write_json(deployed / FILE, about)


def _columns_left_behind(workspace: Workspace, objective: str, settings: AnyReward) -> list[str]:
    """The columns that the reward was given, and is not where the policy is served."""
    found = leaves(settings).items()
    functions = [(place, leaf) for place, leaf in found if isinstance(leaf, FunctionReward)]
    if not functions:
        return []
    columns = columns_of(workspace.results("prepare", "prompts.parquet"), objective)
    used: list[str] = []
    for place, leaf in functions:
        function = load_function(workspace.root / leaf.file, leaf.name, columns=columns)
        if function.needed:
            raise InputError(
                f"objectives.{objective}.reward{place}.path = {leaf.path!r} needs the column "
                f"{function.needed[0]!r}, which a prompt that is served does not have: give it a "
                f"default in {leaf.name}, or leave {objective!r} unregistered."
            )
        used += function.used
    return sorted(set(used))


def _pack(
    workspace: Workspace,
    whose: tuple[str, str],
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
        check_weights(place)
        left_out = shutil.ignore_patterns(".*", *(f"*{suffix}" for suffix in PICKLES))
        shutil.copytree(place, folder, ignore=left_out)
    elif not isinstance(settings, ServerReward):
        shutil.copytree(workspace.results("reward", *whose), folder)


def open_packaged(
    deployed: Path,
    device: str,
    precision: str,
    passes: Passes,
    columns: Columns | None = None,
) -> RewardSource:
    """The reward of a packaged policy.

    Args:
        columns: of the prompts that will be asked about; prompts that are served have none.
    """
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

    def opened(settings: AnyReward, source: dict[str, Any], folder: Path) -> RewardSource:
        if isinstance(settings, FunctionReward):
            path, sha256 = folder / Path(settings.file).name, source["sha256"]
            return load_function(path, settings.name, sha256, columns, "register it again")
        if isinstance(settings, ServerReward):
            return Server(settings, "reward")
        if isinstance(settings, ModelReward):
            return ready_classifier(folder, None, settings.label, (device, precision), passes)
        return trained_classifier(folder, device, precision, passes)

    if not isinstance(settings, SumReward):
        return opened(settings, source, folder)
    parts = [
        opened(part, source["parts"][number], folder / str(number))
        for number, part in enumerate(settings.parts)
    ]
    return summed(settings, parts, [Scale(*scale) for scale in about["scales"]])


def classifiers(deployed: Path) -> list[Path]:
    """The folders of a package's reward that hold a model."""
    folder = deployed / FOLDER
    return [path.parent for path in sorted(folder.rglob("config.json"))]
