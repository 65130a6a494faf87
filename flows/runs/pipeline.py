"""The Prefect flow: one asynchronous task per stage instance, in the order of DVC's graph.

DVC says what is stale and runs it; MLflow gets the evidence; Prefect decides when. Independent
instances run side by side, one at a time per GPU. Every way to stop a run (Ctrl-C, SIGTERM,
cancelling it in Prefect) ends the whole process group of every child. Prefect's server may be gone
for a while, or for good: stages go on, and what the run did is known here (`how_it_ended`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import flow, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, State

from flows.children.locks import gpus_held, run_lock
from flows.children.processes import (
    RETRIES,
    RETRY_SECONDS,
    Tell,
    child_environment,
)
from flows.project import dvc_lock, versions
from flows.project.versions import Busy, Plan, StageFailed, StageKilled, lock_entries
from flows.runs import published
from flows.runs.ending import ending
from flows.runs.preparing import prepare, taken, warmed
from flows.runs.progress import FAILED, Progress, progress_of
from flows.runs.stopping import ends_on_signals, watch_cancelling
from flows.tracking import records
from flows.tracking.machine import watched
from flows.tracking.naming import curve, what_changed
from flows.tracking.tracker import PARENT, Tracker
from infalign.files.stages import stage_of
from infalign.settings.params import Params, load_params

SERVER_SECONDS = 60.0  # how long a finished run waits for a Prefect server that went away


@dataclass
class Run:
    """What the tasks of one pipeline run share; it never leaves the process."""

    root: Path
    params: Params
    plan: Plan
    tracker: Tracker
    tell: Tell
    slots: asyncio.Semaphore
    gpus: list[str]
    extra: dict[str, str]  # environment of every stage
    progress: Progress


_RUNS: dict[str, Run] = {}  # by the id of the flow run: tasks are handed ids, not objects
_ENDED: dict[Path, dict[str, Any] | BaseException] = {}


def how_it_ended(root: Path) -> dict[str, Any] | BaseException | None:
    """What a project's last run in this process gave, whether or not Prefect could record it."""
    return _ENDED.get(root.resolve())


def _first_name() -> str:
    """What the flow run is called until it is known what there is to do."""
    given = flow_run.parameters
    settings = [f"{key} {value}" for key, value in (given.get("settings") or {}).items()]
    return str(given.get("name") or ", ".join(settings)[:100] or "looking for changes")


@flow(name="infalign", flow_run_name=_first_name, persist_result=False, validate_parameters=False)
async def pipeline(
    name: str = "",
    root: str = ".",
    promote: bool = False,
    target: str = versions.RUN,
    settings: dict[str, Any] | None = None,
) -> Any:
    """Bring a stage and all that it depends on up to date; `how_it_ended` has what was done.

    Args:
        name: shown in Prefect and MLflow; empty: what changed.
        root: the project's folder.
        promote: register, judge and promote the results; as `promotion.after_run`.
        target: the last stage: `report`, or `compare`.
        settings: what was written into params.yaml for this run, to be shown.
    """
    return ending(await work(Path(root).resolve(), name, promote, target, settings))


async def work(
    folder: Path,
    name: str,
    promote: bool,
    target: str = versions.RUN,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of a flow, whichever: what each instance did, and what was decided."""
    body = asyncio.current_task()
    assert body is not None
    with run_lock(folder), ends_on_signals(body):
        watcher = asyncio.create_task(watch_cancelling(str(flow_run.id), body))
        try:
            done = await _run(folder, name, target, settings or {})
            wanted = target == versions.RUN  # a comparison makes nothing to promote
            decisions = await _promote(folder, promote, done["parent"]) if wanted else []
            done |= {"decisions": decisions}
            _ENDED[folder] = done
            return done
        except BaseException as error:
            _ENDED[folder] = error
            raise
        finally:
            watcher.cancel()


async def _run(root: Path, name: str, target: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The flow's body, with the workspace held."""
    tell = _teller(get_run_logger().info)
    progress, early = progress_of(root), taken(root)
    progress.phase = "" if early else "Asking DVC what is stale"
    found = early or await prepare(root, target, tell)
    params, plan = found.params, found.plan
    tracker = Tracker(root, f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}", tell)
    status = "KILLED"
    try:
        slots = asyncio.Semaphore(params.run.concurrency)
        progress.plan(plan.upstream, plan.stale, params.run.concurrency)
        run = Run(root, params, plan, tracker, tell, slots, found.gpus, found.extra, progress)
        title = name or what_changed(plan, params, settings, target, not lock_entries(root))
        if not name:
            await _rename(title)
        records.begin_run(run.tracker, root, params, title, plan)
        _RUNS[str(flow_run.id)] = run
        status = "FAILED"
        with contextlib.ExitStack() as around:
            if plan.stale:
                around.enter_context(watched(tracker))
            if early is None:
                around.enter_context(warmed(root, found))
            outcomes = await _run_all(run, str(flow_run.id))
        status = "FINISHED"
        copy = await asyncio.to_thread(_published, run, target, time.monotonic() - found.begun)
        records.end_run(run.tracker, root, params, target, outcomes, copy)
        done = {"flow_run_id": str(flow_run.id), "outcomes": outcomes}
    except asyncio.CancelledError:
        status = "KILLED"
        raise
    finally:
        _RUNS.pop(str(flow_run.id), None)
        tracker.end(PARENT, status)
        closing = asyncio.shield(asyncio.to_thread(tracker.close))
        # Where both servers are gone, both are waited for at the same time.
        answering = _prefect_answers(tell) if status == "FINISHED" else asyncio.sleep(0, False)
        _, answers = await asyncio.gather(closing, answering)
        if answers:
            await records.publish_artifacts(root, tracker, params, target)
    where = (tracker.page(), tracker.served_by())
    return done | {"parent": tracker.run_id(PARENT), "mlflow": where}


def _published(run: Run, target: str, seconds: float) -> Path | None:
    """The report's copy with the facts of this run."""
    if target != versions.RUN:
        return None
    page = run.tracker.page() if run.tracker.begun(records.MAKER_SECONDS) else ""
    facts = published.facts_of(run.root, seconds, page, run.tracker.served_by())
    return published.publish(run.root, run.params, facts)


async def _promote(root: Path, asked: bool, parent: str | None) -> list[Any]:
    """The stages register and promote, where they are asked for."""
    params = load_params(root / "params.yaml")
    if not (asked or params.promotion.after_run):
        return []
    from flows.runs.promotion_tasks import register_and_promote

    decisions = await register_and_promote(root, params, parent, _teller(get_run_logger().info))
    await asyncio.to_thread(published.renew, root, params, parent)
    return decisions


async def _prefect_answers(tell: Tell) -> bool:
    """Whether Prefect's server is there, or is back soon."""
    deadline, told = time.monotonic() + SERVER_SECONDS, False
    while True:
        async with get_client() as client:
            if await client.api_healthcheck() is None:
                return True
        if time.monotonic() > deadline:
            return False
        if not told:
            tell(f"Prefect's server does not answer: waiting {SERVER_SECONDS:.0f} s at most.")
            told = True
        await asyncio.sleep(1)


async def _run_all(run: Run, run_key: str) -> dict[str, str]:
    """Every instance, each as soon as those it depends on are done.

    A failure stops what depends on it; independent instances go on, so that their work is kept.
    """
    jobs: dict[str, asyncio.Task[dict[str, str] | None]] = {}

    async def job(instance: str) -> dict[str, str] | None:
        needs = [await asyncio.shield(jobs[need]) for need in run.plan.upstream[instance]]
        upstream = [result for result in needs if result is not None]
        if len(upstream) < len(needs):
            return None
        # What is up to date costs nothing and need not queue behind what runs.
        async with run.slots if instance in run.plan.stale else contextlib.nullcontext():
            call: Any = stage.with_options(name=instance.split("@")[0], task_run_name=instance)
            try:
                state = await call(run_key, instance, upstream, return_state=True)
                return cast(dict[str, str], await state.aresult())
            except Exception as error:
                failures.append(error)
                run.tell(f"{instance} failed: {error}")
                return None

    failures: list[Exception] = []
    try:
        for instance in run.plan.instances:
            jobs[instance] = asyncio.create_task(job(instance))
        results = await asyncio.gather(*jobs.values())
    finally:
        for started in jobs.values():
            started.cancel()
        await asyncio.gather(*jobs.values(), return_exceptions=True)
    if failures:
        raise _worst(failures)
    return {result["instance"]: result["outcome"] for result in results if result}


def _worst(failures: list[Exception]) -> Exception:
    """The failure to report: a user's mistake is the one that the user can mend."""
    mistakes = [e for e in failures if isinstance(e, StageFailed) and e.user_error]
    return (mistakes or failures)[0]


def _can_retry(_task: Any, _run: Any, state: State) -> bool:
    """Only what came from outside: a killed process, a lock held by someone else."""
    return isinstance(state.data, Busy | StageKilled | ConnectionError)


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_can_retry,
)
async def stage(run_key: str, instance: str, upstream: list[dict[str, str]]) -> Any:
    """Bring one stage instance up to date, or say that it is.

    Args:
        run_key: the flow run's id.
        instance: `align@helpful-ctrl`.
        upstream: what the instances did on which this one depends.
    """
    run = _RUNS[run_key]
    logger = get_run_logger()
    why = run.plan.stale.get(instance)
    records.begin_stage(run.tracker, run.root, run.params, instance)
    outcome, status = "unchanged", "FAILED"
    try:
        if why is not None:
            logger.info("Stale: %s", why)
            tell = _teller(logger.info, instance, run.progress)
            run.progress.begins(instance)
            outcome = await _reproduce(run, instance, tell)
        maker = await records.end_stage(run.tracker, run.root, run.params, instance, outcome)
        status = "FINISHED"
        run.progress.ends(instance, outcome)
    except asyncio.CancelledError:
        status = "KILLED"
        raise
    except (Busy, StageKilled) as error:
        run.tell(f"{error} It is tried again, {RETRIES} times at most.")
        raise
    finally:
        run.tracker.end(instance, status)
        if status != "FINISHED":
            run.progress.ends(instance, FAILED)
    result = {"instance": instance, "outcome": outcome, "made_by": maker or ""}
    if outcome == "made":
        return Completed(data=result)
    words = "Unchanged" if outcome == "unchanged" else "Restored from DVC's cache"
    message = f"{words}; made by MLflow run {maker}." if maker else f"{words}."
    logger.info("%s", message)
    return Completed(name="Skipped", message=message, data=result)


async def _reproduce(run: Run, instance: str, tell: Tell) -> str:
    """Run `dvc repro`, on GPUs of its own, one a process, where the stage needs them."""
    run.tracker.follow(instance, curve)
    tell("begins")
    begun = time.monotonic()
    await asyncio.to_thread(dvc_lock.mend, run.root)
    kind = stage_of(instance)
    if not run.gpus or not kind.models:
        outcome = await versions.reproduce(run.root, instance, tell, child_environment(run.extra))
    else:
        wanted = run.params.run.processes // run.params.run.nodes if kind.several else 1
        async with gpus_held(run.gpus, wanted) as gpus:
            environment = child_environment({**run.extra, "CUDA_VISIBLE_DEVICES": gpus.visible})
            outcome = await versions.reproduce(
                run.root, instance, tell, environment, gpus.descriptors
            )
    dvc_lock.keep(run.root)
    tell(f"{outcome} in {time.monotonic() - begun:.0f} s")
    return outcome


async def _rename(title: str) -> None:
    """Call the flow run by what it does; an outage of Prefect is no reason to stop."""
    with contextlib.suppress(Exception):
        async with get_client() as client:
            await client.update_flow_run(UUID(str(flow_run.id)), name=title)


def _teller(log: Tell, instance: str = "", progress: Progress | None = None) -> Tell:
    """Say a line in the terminal, beside its stage where a view is on, and in Prefect's log."""

    def tell(line: str) -> None:
        if progress is not None:
            progress.says(instance, line.removeprefix(instance).strip())
        if progress is None or not progress.shown:
            print(line if line.startswith(instance) else f"{instance} {line}", flush=True)
        log(line.replace("%", "%%"))

    return tell
