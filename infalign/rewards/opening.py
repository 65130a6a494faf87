"""One function opens whatever an objective's rewards come from: `open_source`.

What results/sources says of it must still hold; the scales of a sum's parts are those that
calibrate found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.files.tables import PROMPTS, read_table
from infalign.files.workspace import Workspace
from infalign.rewards.classifier import Passes, ready_classifier, trained_classifier
from infalign.rewards.description import (
    FIELDS,
    REWARDS,
    check_folder,
    read_description,
    settings_of,
)
from infalign.rewards.function import Columns, Function, load_function
from infalign.rewards.server import Server
from infalign.rewards.source import Once, RewardSource, once
from infalign.rewards.total import Scale, Sum, summed
from infalign.settings.rewards import (
    AnyReward,
    FunctionReward,
    ModelReward,
    ServerReward,
    SumReward,
)


def judges_of(workspace: Workspace, objective: str) -> list[str]:
    """Who rewards an objective's responses: the selecting one, and the judge if there is one."""
    settings = workspace.params.objectives[objective]
    return [judge for judge in FIELDS if settings_of(settings, judge) is not None]


def open_source(
    workspace: Workspace,
    objective: str,
    judge: str,
    passes: Passes,
    scaled: bool = True,
) -> RewardSource:
    """The source of rewards of an objective.

    Args:
        judge: `selecting` or `independent`.
        scaled: a sum's parts as calibrate scaled them; calibrate itself has to ask without.
    """
    settings = settings_of(workspace.params.objectives[objective], judge)
    if settings is None:
        raise InputError(f"params.yaml: objectives.{objective}.{FIELDS[judge]} is null: name one.")
    field = FIELDS[judge]
    about = read_description(workspace.results("sources", f"{objective}.json"), settings, field)
    opening = _Opening(workspace, objective, judge, passes)
    place = f"objectives.{objective}.{field}"
    if not isinstance(settings, SumReward):
        return opening.leaf(settings, about, place)
    scales = (
        scales_of(workspace, objective, judge, settings)
        if scaled
        else [Scale()] * len(settings.parts)
    )
    parts = [
        opening.leaf(part, about["parts"][number], f"{place}.parts.{number}")
        for number, part in enumerate(settings.parts)
    ]
    return summed(settings, parts, scales)


class _Opening:
    """Opens the sources of one judge of one objective."""

    def __init__(self, workspace: Workspace, objective: str, judge: str, passes: Passes) -> None:
        self._workspace, self._objective, self._judge = workspace, objective, judge
        self._passes = passes

    def leaf(self, settings: AnyReward, about: Mapping[str, Any], place: str) -> RewardSource:
        """A source that is no sum."""
        workspace, run = self._workspace, self._workspace.params.run
        passes = self._passes
        if isinstance(settings, FunctionReward):
            table = workspace.results("prepare", "prompts.parquet")
            columns = columns_of(table, self._objective)
            path = workspace.root / settings.file
            return once(load_function(path, settings.name, about["sha256"], columns), passes.ranks)
        if isinstance(settings, ServerReward):
            return once(Server(settings, place), passes.ranks)
        if isinstance(settings, ModelReward):
            local = workspace.root / settings.path
            if "files" in about:
                check_folder(local, about["files"])
            name = local if "files" in about else settings.path
            where = (run.device, run.precision)
            return ready_classifier(name, about.get("commit"), settings.label, where, passes)
        folder = workspace.results("reward", self._objective, self._judge)
        return trained_classifier(folder, run.device, run.precision, passes)


def columns_of(path: Path, objective: str) -> Columns:
    """The other columns of the prompts' rows, where there are any, of prepare's table."""
    return {
        Dialogue.parse(row["dialogue"]): json.loads(row["columns"])
        for row in read_table(path, PROMPTS).to_pylist()
        if row["objective"] == objective and row["columns"] != "{}"
    }


def columns_used(source: RewardSource) -> list[str]:
    """The columns of the prompts' rows that a source is given."""
    if isinstance(source, Once):
        return columns_used(source.source)
    if isinstance(source, Sum):
        return sorted({name for part in source.parts for name in columns_used(part.source)})
    return source.used if isinstance(source, Function) else []


def scales_of(workspace: Workspace, objective: str, judge: str, settings: SumReward) -> list[Scale]:
    """By what a sum's parts are standardised, as calibrate found it."""
    if not any(part.standardise for part in settings.parts):
        return [Scale()] * len(settings.parts)
    path: Path = workspace.results("calibrate", objective, REWARDS)
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))[judge]["parts"]
        return [Scale(part["mean"], part["std"]) for part in parts]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} does not say by what the parts of the sum are standardised: run calibrate."
        ) from None
