"""Data that comes in, examined in a process of its own: `infalign.deployment.intake`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from flows.children.processes import child_environment, run_child
from flows.project import data_versions, versions
from flows.project.versions import StageKilled
from infalign.errors import InputError
from infalign.settings.params import Params


async def examine(root: Path, params: Params, objective: str) -> dict[str, Any]:
    """The numbers and bounds of one objective's data, in a process of its own.

    Where it is what was trained on last, there is nothing to ask.
    """
    path = params.data_path(objective)
    last = data_versions.trained_on(root, params, objective)
    plan = await versions.read_plan(root, print, target="prepare")
    if Path(path).parts[:1] == ("results",) or "prepare" not in plan.stale:
        return {"objective": objective, "passed": True, "failed": [], "bounds": [], "new_pairs": 0}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "intake.json"
        command = [sys.executable, "-m", "infalign.deployment.intake", "--objective", objective]
        if last is not None:
            into = Path(temporary) / "before"
            before = await data_versions.unpacked(root, last, Path(path).name, into)
            if before is None:
                raise InputError(
                    f"data-gate: the version of {path} that was trained on last is not in DVC's "
                    "cache, so that the new one cannot be compared with it: bring it with `dvc "
                    "fetch`, or train on today's by hand, with `infalign run`."
                )
            command += ["--before", str(before)]
        done = await run_child([*command, str(out)], root, child_environment(), print)
        if done.returncode == 2:
            raise InputError((done.lines or ("intake failed",))[-1].removeprefix("intake: "))
        if done.returncode:
            raise StageKilled(f"data-gate@{objective} ended with {done.returncode}.")
        verdict: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return verdict


def sentence(verdict: dict[str, Any]) -> str:
    """The verdict in words."""
    name = verdict["objective"]
    if not verdict["passed"]:
        return f"The data of {name} is refused: {'; '.join(verdict['failed'])}."
    if not verdict["bounds"]:
        return f"The data of {name} is what was trained on last."
    return f"The data of {name} is taken: {verdict['new_pairs']} new pairs."
