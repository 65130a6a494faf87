"""`infalign schedule`: prefect.yaml's deployments on the server, and what is switched on.

`prefect deploy --all` makes the deployments. Deploying again would switch every schedule off, as
prefect.yaml says: what was on before stays on here, until it is switched off.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from flows.children.processes import Tell, child_environment, redact
from flows.services import services
from flows.services.prefect_server import check_server, prepare_environment
from infalign.errors import InputError
from infalign.settings.params import load_params

AUTOMATION = "infalign: runs without a heartbeat"
_FINAL = ("Completed", "Failed", "Cancelled", "Crashed")


def schedule(root: Path, on: Sequence[str], off: Sequence[str], tell: Tell) -> None:
    """Deploy, switch schedules on and off, set up the automation, and say what will run.

    Servers and worker are started where there are none; a server of PREFECT_API_URL is used as it
    is, with a worker of the user's own.
    """
    minutes = load_params(root / "params.yaml").schedule.silent_minutes
    names = scheduled_names(root)
    for option, chosen in (("--on", on), ("--off", off)):
        for name in chosen:
            if name not in names:
                raise InputError(
                    f"{option} {name!r} is not a deployment with a schedule: give one of "
                    f"{', '.join(names)}."
                )
    if both := set(on) & set(off):
        raise InputError(f"{sorted(both)[0]!r} is both switched on and off: give one of them.")
    prepare_environment(root)
    if "PREFECT_API_URL" not in os.environ:
        ports = {
            name: int(os.environ.get(v) or 0) or None for name, v in services.VARIABLES.items()
        }
        services.up(root, ports, os.environ.get("DB", ""), tell)
        prepare_environment(root)
    check_server(os.environ["PREFECT_API_URL"])
    asyncio.run(_schedule(root, on, off, minutes, tell))


def read_deployments(root: Path) -> list[dict[str, Any]]:
    """The deployments of prefect.yaml."""
    path = root / "prefect.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return list(tree["deployments"])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run from the project's root.") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        words = " ".join(str(error).split())
        raise InputError(f"{path} has no list of deployments: {words}.") from None


def scheduled_names(root: Path) -> list[str]:
    """The deployments that have a schedule."""
    return [one["name"] for one in read_deployments(root) if one.get("schedules")]


async def _schedule(
    root: Path,
    on: Sequence[str],
    off: Sequence[str],
    minutes: float,
    tell: Tell,
) -> None:
    from prefect import get_client

    wanted = [one["name"] for one in read_deployments(root)]
    async with get_client() as client:
        await _ensure_pool(client)
        before = {
            d.name for d in await _found(client, wanted) if any(s.active for s in d.schedules)
        }
        await asyncio.to_thread(_deploy, root)
        for deployment in await _found(client, wanted):
            active = deployment.name in on or deployment.name in before.difference(off)
            for one in deployment.schedules:
                if one.active != active:
                    await client.update_deployment_schedule(deployment.id, one.id, active=active)
            tell(_line(deployment, active))
        await ensure_automation(client, minutes)
    tell(f"A run without a heartbeat for {minutes:g} minutes is failed.")


async def _found(client: Any, names: Sequence[str]) -> list[Any]:
    """The deployments that are on the server, in the order of prefect.yaml."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    found = await client.read_deployments(
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=list(names)))
    )
    return sorted(found, key=lambda deployment: names.index(deployment.name))


def _line(deployment: Any, active: bool) -> str:
    """One deployment in words."""
    times = [_when(one.schedule) for one in deployment.schedules]
    if not times:
        return f"{deployment.name:<18} on demand"
    return f"{deployment.name:<18} {'on ' if active else 'off'}  {', '.join(times)}"


def _when(schedule: Any) -> str:
    """A schedule in words: cron, or every so often; and the time zone."""
    when = getattr(schedule, "cron", None) or getattr(schedule, "rrule", None)
    return f"{when or f'every {schedule.interval}'} {schedule.timezone}"


async def _ensure_pool(client: Any) -> None:
    """The work pool of prefect.yaml; one that is there, of any type, stays."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        await client.read_work_pool(services.POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        pool = WorkPoolCreate(name=services.POOL, type="process", base_job_template=template)
        await client.create_work_pool(pool)


def _deploy(root: Path) -> None:
    """`prefect deploy --all`, or one sentence.

    Without INFALIGN_ROOT: the deployment would keep this folder for every worker's.
    """
    environment = child_environment({"COLUMNS": "500"})
    environment.pop("INFALIGN_ROOT", None)
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line.strip(" │") for line in done.stdout.splitlines() if line.strip(" │╭╮╰╯─")]
        raise InputError(redact(f"prefect.yaml cannot be deployed: {' '.join(lines[-3:])[:400]}"))


def zombie_automation(minutes: float) -> Any:
    """Fail a run whose heartbeat, once heard, has fallen silent (its machine or process died)."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    heartbeat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=AUTOMATION,
        description="Set up by `infalign schedule`.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{word}" for word in _FINAL)},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(minutes=minutes),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Zombie",
                force=False,
                message=f"No heartbeat for {minutes:g} minutes: its process is gone.",
            )
        ],
    )


async def ensure_automation(client: Any, minutes: float) -> None:
    """Have the automation on the server once, with these minutes."""
    wanted = zombie_automation(minutes)
    there = await client.read_automations_by_name(AUTOMATION)
    if not there:
        await client.create_automation(wanted)
        return
    await client.update_automation(there[0].id, wanted)
    for extra in there[1:]:
        await client.delete_automation(extra.id)
