"""What a run knows and has before its first stage: the settings, what is stale, a warm process.

None of it needs Prefect, so that `infalign run` prepares while its temporary server starts, and the
flow takes what it finds prepared.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.children.locks import visible_gpus
from flows.children.processes import Tell, child_environment, end_leftovers, warm_process
from flows.project import dvc_lock, versions
from flows.project.configuration import check_data, complete_params
from flows.project.dependencies import write_own
from flows.project.leftovers import clear
from flows.project.versions import Plan
from flows.registry.start import bring_starts
from infalign.settings.params import Params


@dataclass(frozen=True)
class Prepared:
    """What a run begins with.

    Attributes:
        gpus: of this machine, that stages may have.
        extra: environment of every stage.
        begun: when it was begun, on the monotonic clock.
    """

    params: Params
    plan: Plan
    gpus: list[str]
    extra: dict[str, str]
    begun: float


_AHEAD: dict[Path, Prepared] = {}  # by project, until its flow takes it


async def prepare(root: Path, target: str, tell: Tell) -> Prepared:
    """Put the project in order, and ask DVC what is stale; the workspace is held."""
    begun = time.monotonic()
    params = complete_params(root / "params.yaml", tell)
    versions.check_project(root)
    check_data(params, root)
    if write_own(root, params):
        tell("dvc.yaml: its dependencies are those that params.yaml names.")
    if end_leftovers(root):
        tell("A run that was killed before left stages at work: they were ended.")
    if dvc_lock.mend(root):
        tell("dvc.lock was cut short by a kill: the last whole one is back.")
    dvc_lock.keep(root)
    plan = await versions.read_plan(root, tell, target=target)
    if await bring_starts(root, params, plan, tell):
        plan = await versions.read_plan(root, tell, target=target)
    for path in await clear(root, plan):
        tell(f"{path}: no stage makes it any more, so it is removed; DVC's cache holds it.")
    here = params.run.launcher == "local" and params.run.device != "cpu"
    gpus = await asyncio.to_thread(visible_gpus) if here else []
    extra = {"HF_HUB_OFFLINE": "1"} if _is_local(params, root) else {}
    return Prepared(params, plan, gpus, extra, begun)


@contextlib.contextmanager
def ahead(root: Path, target: str, tell: Tell) -> Iterator[None]:
    """Prepare now what the flow of this process would prepare when it begins."""
    prepared = asyncio.run(prepare(root, target, tell))
    with warmed(root, prepared):
        _AHEAD[root] = prepared
        try:
            yield
        finally:
            _AHEAD.pop(root, None)


def taken(root: Path) -> Prepared | None:
    """What was prepared ahead; it is given once."""
    return _AHEAD.pop(root, None)


@contextlib.contextmanager
def warmed(root: Path, prepared: Prepared) -> Iterator[None]:
    """Stages as forks of one process, where each of them is one process and there is work."""
    run = prepared.params.run
    if not prepared.plan.stale or prepared.gpus or run.processes > 1 or run.launcher != "local":
        yield
        return
    with warm_process(root, child_environment(prepared.extra)) as found:
        prepared.extra.update(found)
        yield


def _is_local(params: Params, root: Path) -> bool:
    """Whether no stage has anything to download."""
    names = {params.model.name_or_path, params.reward.name_or_path} - {"tiny", "sft"}
    return all((root / name).is_dir() for name in names)
