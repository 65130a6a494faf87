"""The flows that run by themselves: nightly, evaluate-champion, backfill (prefect.yaml).

One run at a time has the workspace, by a file lock that the kernel frees when its holder dies. A
run that finds it taken waits or is skipped, and so is one that comes long after its time: section
`schedule` of params.yaml says which.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
)
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from flows.children.locks import run_lock
from flows.children.processes import Tell
from flows.project import nights, versions
from flows.project.configuration import check_data, complete_params, set_params
from flows.runs import night_data
from flows.runs.data_gate import BREACH, Breach, check_data_gate
from flows.runs.ending import ending, in_words
from flows.runs.notifying import notify
from flows.runs.pipeline import pipeline, work
from flows.tracking.results import headline
from infalign.errors import InputError
from infalign.files.workspace import write_text
from infalign.settings.params import Params, load_params

POLL_SECONDS = 5.0
HOOKS: Any = {f"on_{end}": [notify] for end in ("completion", "failure", "crashed")}


class Skipped(Exception):
    """It is not this run's turn; the message says why."""


def _dated() -> str:
    """What a run of a schedule is called: by its flow and the time at which it began."""
    return f"{flow_run.flow_name} {datetime.now(UTC):%Y-%m-%d %H:%M}"


def _budgets() -> str:
    """What a backfill is called: by its budgets."""
    budgets = flow_run.parameters.get("kl_nats") or ()
    return f"backfill {', '.join(f'{budget:g}' for budget in budgets)} nats"


@flow(
    name="nightly", flow_run_name=_dated, persist_result=False, validate_parameters=False, **HOOKS
)
async def nightly(root: str = ".", promote: bool = True) -> Any:
    """Ask whether the data may train, bring every stage up to date, register, judge and promote.

    Args:
        root: the project's folder.
        promote: also move the aliases, where the gate allows it.
    """
    folder = Path(root).resolve()
    try:
        async with turn(folder, str(flow_run.id), _tell):
            put_back(folder)
            params = complete_params(folder / "params.yaml", _tell)
            versions.check_project(folder)
            check_data(params, folder)
            if params.schedule.branch is not None:
                nights.check_branch(folder, params.schedule.branch)
            await night_data.bring(folder, params, _tell)
            try:
                await check_data_gate(folder, params, _tell)
            except Breach:
                await night_data.take_back(folder, params, _tell)
                raise
            night_data.taken(folder, params)
            # Not a flow within a flow: only a deployment's own run can be suspended for approval.
            done = await work(folder, "nightly", promote)
            return await _kept(folder, load_params(folder / "params.yaml"), done)
    except Skipped as reason:
        return skipped(reason)
    except Breach as breach:
        return Failed(name=BREACH, message=str(breach))


async def _kept(root: Path, params: Params, done: dict[str, Any]) -> State:
    """How the night ended, once it is in git, and where it belongs."""
    state, branch = ending(done), params.schedule.branch
    if branch is None:
        return state
    said = [decision.sentence() for decision in done["decisions"]]
    made = {one.objective: str(one.version) for one in done["decisions"] if one.version}
    words = f"{str(state.name).lower()}, {in_words(done['outcomes'])}"
    commit = await asyncio.to_thread(nights.commit, root, branch, words, said, made)
    _tell(f"The night is commit {commit[:12]} of branch {branch}.")
    if params.schedule.push:
        try:
            await versions.check_remote(root)
            await versions.push(root, _tell)
            await asyncio.to_thread(nights.push, root, branch)
        except (versions.PushFailed, InputError) as error:
            message = f"The night is complete, but it is not pushed: {error} {state.message}"
            return Failed(name="NotPushed", message=message)
    return state


@flow(
    name="evaluate-champion",
    flow_run_name=_dated,
    persist_result=False,
    validate_parameters=False,
    **HOOKS,
)
async def evaluate_champion(
    root: str = ".", alias: str = "champion", prompts: str | Sequence[str] = "fresh"
) -> Any:
    """The champions, checked again; fails with the sentence where something has drifted.

    Args:
        root: the project's folder.
        alias: whose versions are checked.
        prompts: on which prompts: `fresh`, `log` or `suite`, or several of them.
    """
    from flows.runs.champion_check import check_all, chosen, publish

    folder, sources = Path(root).resolve(), chosen(prompts)
    try:
        async with turn(folder, str(flow_run.id), _tell) as params:
            put_back(folder)
            versions.check_project(folder)
            checks = await check_all(folder, params, alias, sources, _tell)
    except Skipped as reason:
        return skipped(reason)
    if not checks:
        return skipped(Skipped(f"no model has the alias {alias!r} yet."))
    said = " ".join(check.sentence() for check in checks)
    if all(check.skipped for check in checks):
        return skipped(Skipped(said))
    await publish(folder, checks)
    alarms = [check.sentence() for check in checks if check.alarm]
    if alarms:
        return Failed(name="Drift", message=" ".join(alarms))
    return Completed(message=said)


@flow(
    name="backfill",
    flow_run_name=_budgets,
    persist_result=False,
    validate_parameters=False,
    **HOOKS,
)
async def backfill(root: str = ".", kl_nats: Sequence[float] = ()) -> Any:
    """The pipeline at each of several KL budgets; params.yaml and results are put back at the end.

    Args:
        root: the project's folder.
        kl_nats: the budgets, nats a response.
    """
    folder = Path(root).resolve()
    if not kl_nats:
        raise InputError("backfill: kl_nats is empty: give a list of budgets, nats a response.")
    rows: list[dict[str, Any]] = []
    try:
        async with turn(folder, str(flow_run.id), _tell) as params:
            put_back(folder)
            _check_budgets(params, kl_nats)
            set_aside(folder)
            try:
                for budget in kl_nats:
                    chosen = set_params(folder / "params.yaml", [f"align.kl_nats={budget}"])
                    await pipeline(name=f"backfill {budget:g} nats", root=str(folder))
                    rows += [{"budget": budget, **row} for row in headline(folder, chosen)]
            finally:
                put_back(folder)
            await pipeline(name="backfill: back", root=str(folder))  # from DVC's cache
    except Skipped as reason:
        return skipped(reason)
    from prefect.artifacts import acreate_table_artifact

    await acreate_table_artifact(table=rows, key="backfill", description="Win rate by KL budget.")
    return Completed(message=f"{len(kl_nats)} budgets.")


def _check_budgets(params: Params, kl_nats: Sequence[float]) -> None:
    """Raise for a budget that params.yaml would not take, before anything runs."""
    from infalign.settings.params import check_params

    tree = params.model_dump(mode="json")
    for budget in kl_nats:
        changed = {**tree, "align": {**tree["align"], "kl_nats": budget}}
        check_params(changed, f"backfill: kl_nats = {budget!r}")


def _aside(root: Path) -> Path:
    return root / ".infalign" / "backfill" / "params.yaml"


def set_aside(root: Path) -> None:
    """Keep params.yaml as it is, where also the run after a killed one finds it."""
    write_text(_aside(root), (root / "params.yaml").read_text(encoding="utf-8"))


def put_back(root: Path) -> None:
    """Give params.yaml back what a backfill set aside."""
    kept = _aside(root)
    if kept.is_file():
        write_text(root / "params.yaml", kept.read_text(encoding="utf-8"))
        shutil.rmtree(kept.parent)


def _tell(line: str) -> None:
    """Say a line in the worker's log and in Prefect's."""
    print(line, flush=True)
    get_run_logger().info("%s", line)


def skipped(reason: Exception) -> State:
    """The state of a run whose turn it is not: nothing failed."""
    _tell(f"Skipped: {reason}")
    return Completed(name="Skipped", message=str(reason))


@contextlib.asynccontextmanager
async def turn(root: Path, flow_run_id: str, tell: Tell) -> AsyncIterator[Params]:
    """Hold the workspace for this run; raises Skipped where it is not its turn."""
    params = load_params(root / "params.yaml")
    await check_missed(flow_run_id, params)
    settings = params.schedule
    deadline = time.monotonic() + 60 * settings.wait_minutes
    with contextlib.ExitStack() as held:
        told = False
        while True:
            try:
                held.enter_context(run_lock(root))
                break
            except InputError:
                if settings.overlap == "skip":
                    raise Skipped("another run is at work in the workspace.") from None
                if time.monotonic() > deadline:
                    minutes = f"{settings.wait_minutes:g} minutes"
                    raise Skipped(f"another run had the workspace for {minutes}.") from None
            if not told:
                tell("Waiting for another run, which has the workspace.")
                told = True
            await asyncio.sleep(POLL_SECONDS)
        yield load_params(root / "params.yaml")


async def check_missed(flow_run_id: str, params: Params) -> None:
    """Raise Skipped for a run that its schedule meant for a time long gone."""
    settings = params.schedule
    async with get_client() as client:
        run = await client.read_flow_run(UUID(flow_run_id))
        due = run.expected_start_time
        resumed = run.run_count > 1  # was suspended until someone approved, or is retried
        if resumed or not run.auto_scheduled or due is None or run.deployment_id is None:
            return
        now = datetime.now(UTC)
        if now - due < timedelta(minutes=settings.late_minutes):
            return
        late = f"it was due at {due:%Y-%m-%d %H:%M} UTC"
        if settings.missed == "skip":
            raise Skipped(f"{late} and missed.")
        later = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                expected_start_time=FlowRunFilterExpectedStartTime.model_validate(
                    {"after_": due + timedelta(seconds=1), "before_": now}
                )
            ),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id])),
        )
        if any(other.auto_scheduled for other in later):
            raise Skipped(f"{late}, and a later one is due as well.")
