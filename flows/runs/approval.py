"""A human's word before a promotion: the flow waits, someone resumes it.

A run of a deployment is suspended: its process ends, and a worker starts it again when it is
resumed. Any other run is paused where it is. Both are resumed on Prefect's page or with
`infalign approve`; a temporary server's address is noted in `.infalign/approval.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from flows.children.processes import redact
from flows.services.prefect_app import AUTH, project_key
from flows.services.services import addresses
from infalign.errors import InputError
from infalign.files.workspace import write_json

KEY = "approval"  # one a flow run: what is resumed does not wait again
POLL_SECONDS = 2
FLOW = "infalign"


def note_path(root: Path) -> Path:
    """Where a waiting run says how it is reached."""
    return root / ".infalign" / "approval.json"


async def wait_for_approval(root: Path, seconds: int, waiting: Sequence[str]) -> None:
    """Return when someone has resumed this flow run.

    Args:
        seconds: how long to wait.
        waiting: what is to be promoted, in words.
    """
    from prefect.flow_runs import apause_flow_run, asuspend_flow_run
    from prefect.runtime import deployment, flow_run
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    note = note_path(root)
    told = {"flow_run_id": str(flow_run.id), "url": PREFECT_API_URL.value()}
    own = PREFECT_API_AUTH_STRING.value() == project_key(root)
    write_json(note, told | {"own": own, "waiting": list(waiting)})
    if deployment.id:
        await asuspend_flow_run(timeout=seconds, key=KEY)  # ends this process the first time
        note.unlink(missing_ok=True)
        return
    try:
        await apause_flow_run(timeout=seconds, poll_interval=POLL_SECONDS, key=KEY)
    finally:
        note.unlink(missing_ok=True)


async def resume(root: Path, run_id: str | None) -> str:
    """Resume the run that waits; one sentence about what was done."""
    from httpx import HTTPStatusError, TransportError
    from prefect.client.orchestration import PrefectClient
    from prefect.exceptions import ObjectNotFound

    told = _note(root)
    url = os.environ.get("PREFECT_API_URL") or told.get("url")
    if not url:
        raise InputError("no run waits in this project, and PREFECT_API_URL is not set.")
    own = url == addresses(root).get("PREFECT_API_URL") or (told.get("own") and url == told["url"])
    auth = project_key(root) if own else os.environ.get(AUTH)
    key = os.environ.get("PREFECT_API_KEY")  # of Prefect Cloud; `auth` comes before it
    try:
        async with PrefectClient(url, auth_string=auth, api_key=key) as client:
            chosen = run_id or told.get("flow_run_id") or await _only_one(client)
            run = await client.read_flow_run(_uuid(chosen))  # of none, resuming says 500
            answer = await client.resume_flow_run(run.id)
    except ObjectNotFound:
        raise InputError(f"there is no flow run {chosen}.") from None
    except TransportError as error:
        raise InputError(f"Prefect at {redact(url)} does not answer ({error}).") from None
    except HTTPStatusError as error:
        status = error.response.status_code
        hint = f": set {AUTH} to its key" if status in (401, 403) else ""
        raise InputError(f"Prefect at {redact(url)} answers with {status}{hint}.") from None
    if answer.status.value != "ACCEPT":
        raise InputError(f"flow run {chosen} does not wait for approval (any more).")
    return f"Flow run {chosen} goes on."


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InputError(f"--run {text!r} is not the id of a flow run.") from None


def _note(root: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(note_path(root).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


async def _only_one(client: object) -> str:
    """The id of the one run of the pipeline that waits."""
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    paused = FlowRunFilterStateType(any_=[StateType.PAUSED])
    runs = await client.read_flow_runs(  # type: ignore[attr-defined]
        flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=paused)),
    )
    if len(runs) == 1:
        return str(runs[0].id)
    names = ", ".join(f"{run.id} ({run.name})" for run in runs)
    raise InputError(f"several runs wait: {names}: choose one with --run." if runs else NONE)


NONE = "no run waits for approval."
