"""`infalign evaluate-champion`: the flow of the schedule, once, now."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.children.processes import redact
from flows.project import versions
from flows.services.prefect_server import prefect_server, prepare_environment
from infalign.settings.params import load_params


def evaluate(root: Path, alias: str, prompts: Sequence[str]) -> None:
    """Check the champions; exits with 1 where something has drifted, or a check was killed."""
    versions.check_project(root)
    load_params(root / "params.yaml")
    logging.raiseExceptions = False
    prepare_environment(root)
    with prefect_server(root) as server:
        from flows.runs.champion_check import chosen
        from flows.runs.drift_page import page_path
        from flows.runs.nightly import evaluate_champion

        wanted = chosen(prompts)
        server.wait()
        call: Any = evaluate_champion
        state = asyncio.run(call(str(root), alias, wanted, return_state=True))
    if state.name == "Skipped":  # the flow has said why
        return
    if state.name == "Drift":
        print(f"infalign: {redact(state.message or '')}", file=sys.stderr)
    elif state.is_failed() or state.is_crashed():
        _raise(state)
    for objective in load_params(root / "params.yaml").run.objectives:
        if page_path(root, objective).exists():
            print(f"Page     {page_path(root, objective).relative_to(root)}", flush=True)
    if state.name == "Drift":
        sys.exit(1)


def _raise(state: Any) -> None:
    """What went wrong: a user's mistake as such, a killed child as one sentence."""
    try:
        asyncio.run(state.aresult())
    except versions.StageKilled as error:
        print(f"infalign: {error} Run again.", file=sys.stderr)
        sys.exit(1)
