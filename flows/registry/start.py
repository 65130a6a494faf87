"""`align.start: champion`: the champion's policy as a file that align depends on, under DVC.

`champion/O/` holds `policy/`, version.json, and the ids of the prompts that the champion was
trained on, as whoever starts from it was too; without a champion version.json alone, which means
the reference. It is renewed when align has to run anyway: a promotion alone trains nobody again.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

from flows.children.processes import Tell
from flows.project import versions
from flows.project.versions import Plan
from flows.registry.champions import CHAMPION
from flows.registry.registry import Registry, model_name, open_registry
from flows.services.mlflow_store import said
from infalign.deployment.evidence import TRAINED
from infalign.errors import InputError
from infalign.files.sources import START
from infalign.files.workspace import write_json
from infalign.settings.params import Params


async def bring_starts(root: Path, params: Params, plan: Plan, tell: Tell) -> bool:
    """Bring the champions that align is to start from; whether anything has changed."""
    if params.align.start != "champion":
        return False
    changed = False
    for objective in params.run.objectives:
        waits = any(name.startswith(f"align@{objective}-") for name in plan.stale)
        if not waits and (root / START / objective / "version.json").is_file():
            continue
        changed |= await _bring(root, objective, tell)
    return changed


async def _bring(root: Path, objective: str, tell: Tell) -> bool:
    """Bring one champion, unless it is there."""
    registry = await asyncio.to_thread(open_registry, root)
    aliases = await asyncio.to_thread(registry.champions(objective).aliases)
    number = aliases.get(CHAMPION)
    about = {"model": model_name(objective), "version": number}
    folder = root / START / objective
    try:
        if json.loads((folder / "version.json").read_text(encoding="utf-8")) == about:
            return False
    except (OSError, ValueError):
        pass
    staged = folder.with_name(f".{objective}.new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        if number is not None:
            place = registry.client.get_model_version_download_uri(model_name(objective), number)
            await asyncio.to_thread(_bring_files, registry, place, about, staged)
        write_json(staged / "version.json", about)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    await versions.add_folder(root, f"{START}/{objective}")
    whom = f"version {number} of {model_name(objective)}" if number else "the reference, so far"
    tell(f"align for {objective} starts from {whom}: commit {START}/{objective}.dvc as well.")
    return True


def _bring_files(registry: Registry, place: str, about: dict[str, str | None], to: Path) -> None:
    """The champion's policy and what it was trained on, which older versions do not say."""
    from mlflow.artifacts import download_artifacts, list_artifacts

    uri, kept = registry.client.tracking_uri, f"{place.rstrip('/')}/artifacts"
    wanted = ["deployed/policy"]
    try:
        told = list_artifacts(artifact_uri=f"{kept}/evidence", tracking_uri=uri)
        wanted += [f"evidence/{TRAINED}"] * any(Path(one.path).name == TRAINED for one in told)
        for name in wanted:
            download_artifacts(artifact_uri=f"{kept}/{name}", dst_path=str(to), tracking_uri=uri)
    except Exception as error:
        raise InputError(
            f"the policy of version {about['version']} of {about['model']}, from which align is to "
            f"start, cannot be read ({said(error, 200)}): its artifacts must be where they were "
            "stored, or set align.start to reference."
        ) from None
