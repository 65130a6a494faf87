"""`register`, `arena` and `promote` of a pipeline run: tasks after the last stage of DVC's.

Models and verdicts stay in MLflow; tasks hand version numbers on. MLflow is called in threads.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from flows.children.processes import RETRIES, RETRY_SECONDS, Tell
from flows.registry import promotion
from flows.registry.arena import Entrant, meet
from flows.registry.promotion import Decision
from flows.registry.registry import Registry, Unreachable, open_registry
from flows.registry.tables import verdict_markdown
from flows.runs.approval import wait_for_approval
from flows.runs.ending import REFUSED
from infalign.errors import InputError
from infalign.settings.params import Params, load_params


def _can_retry(_task: Any, _run: Any, state: State) -> bool:
    """A server that does not answer, a killed child; never a mistake or a refusal."""
    return isinstance(state.data, Unreachable) or not isinstance(state.data, InputError)


_SETTINGS: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": RETRIES,
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": _can_retry,
}


async def _opened(word: str, root: str, objective: str) -> tuple[Registry, Params, Tell]:
    """What a task works with: the registry, the settings, and what says a line in its name."""

    def tell(line: str) -> None:
        print(f"{word}@{objective} {line}", flush=True)

    registry = await asyncio.to_thread(open_registry, Path(root))
    return registry, load_params(Path(root) / "params.yaml"), tell


@task(name="register", task_run_name="register@{objective}", **_SETTINGS)
async def register(root: str, objective: str, parent: str | None) -> str:
    """The version of what evaluate found, registered if it was not."""
    models, params, tell = await _opened("register", root, objective)
    return await promotion.registered(models, params, objective, tell, parent)


@task(name="arena", task_run_name="arena@{objective}", **_SETTINGS)
async def arena(root: str, objective: str, version: str) -> Any:
    """Hold the version's arena, unless there is nothing to hold or it was held."""
    models, params, tell = await _opened("arena", root, objective)
    if await meet(models, params, objective, Entrant(version), tell):
        return Completed(message="The arena was held.")
    return Completed(name="Skipped", message="There is nothing to hold, or it was held before.")


@task(name="promote", task_run_name="promote@{objective}", **_SETTINGS)
async def promote(root: str, objective: str, version: str) -> Any:
    """Judge the version and make it the champion if it passes; a refusal is no failure."""
    models, params, tell = await _opened("promote", root, objective)
    decision = await promotion.decide(models, params, objective, version, tell)
    await asyncio.to_thread(promotion.write_decision, models, params, decision)
    await publish(decision)
    name = REFUSED if decision.outcome == "refused" else "Completed"
    return Completed(name=name, message=decision.sentence(), data=decision)


async def publish(decision: Decision) -> None:
    """The verdict as an artifact of Prefect's."""
    key = "gate-" + re.sub(r"[^a-z0-9]+", "-", decision.objective.lower())
    await acreate_markdown_artifact(key=key, markdown=verdict_markdown(decision))


async def register_and_promote(
    root: Path, params: Params, parent: str | None, tell: Tell
) -> list[Decision]:
    """Every objective's candidate: registered, judged, approved where that is asked, promoted."""
    versions = {name: await register(str(root), name, parent) for name in params.run.objectives}
    for name, version in versions.items():
        meeting: Any = arena
        await (await meeting(str(root), name, version, return_state=True)).aresult()
    if params.promotion.approval:
        await _approved(root, params, versions, tell)
    decisions = []
    for name, version in versions.items():
        call: Any = promote  # its states carry names that a plain call would not unpack
        state = await call(str(root), name, version, return_state=True)
        decision: Decision = await state.aresult()
        tell(decision.sentence())
        decisions.append(decision)
    return decisions


async def _approved(root: Path, params: Params, versions: dict[str, str], tell: Tell) -> None:
    """Wait for a human, if anything passes the gate."""
    models = await asyncio.to_thread(open_registry, root)
    previews: Sequence[Decision] = [
        await asyncio.to_thread(promotion.preview, models, params, name, version, None)
        for name, version in versions.items()
    ]
    waiting = [p.sentence() for p in previews if p.outcome == "would promote"]
    for decision in previews:
        await publish(decision)
    if waiting:
        for sentence in waiting:
            tell(sentence)
        tell("Waiting for approval: `infalign approve`, or resume this run in Prefect.")
        await wait_for_approval(root, params.promotion.approval_seconds, waiting)
