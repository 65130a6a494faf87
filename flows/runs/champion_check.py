"""Champions on fresh prompts: fetch the version, measure in a child process, tell MLflow.

The measuring is `infalign.deployment.monitor`; nothing here computes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import acreate_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.children.processes import Tell, child_environment, run_child
from flows.project.versions import StageKilled
from flows.registry.registry import model_name, open_registry
from infalign.errors import InputError
from infalign.settings.params import Params


@dataclass(frozen=True)
class Check:
    """What was found for one objective's champion."""

    objective: str
    version: str
    numbers: dict[str, Any]

    @property
    def alarm(self) -> bool:
        """Whether something has drifted."""
        return bool(self.numbers["alarm"])

    def sentence(self) -> str:
        """The numbers in words."""
        won, rewards = self.numbers["win_rate"], self.numbers["reference_reward"]
        return (
            f"{model_name(self.objective)} version {self.version}: win rate {won['now']:.3f} on "
            f"{self.numbers['prompts']} fresh prompts, {won['before']:.3f} when it was evaluated "
            f"(p = {won['p_value']:.3f}); the reference's rewards are {rewards['size']:.3f} apart "
            f"(p = {rewards['p_value']:.3f})" + (": DRIFT." if self.alarm else ".")
        )

    def row(self) -> dict[str, Any]:
        """The numbers as a row of a table."""
        return {"objective": self.objective, "version": self.version, **metrics(self.numbers)}


def metrics(numbers: dict[str, Any]) -> dict[str, float]:
    """The numbers, flat."""
    flat = {
        f"{k}.{name}": float(v)
        for k in ("win_rate", "reference_reward")
        for name, v in numbers[k].items()
    }
    return flat | {"prompts": float(numbers["prompts"]), "alarm": float(numbers["alarm"])}


async def check_all(root: Path, params: Params, alias: str, tell: Tell) -> list[Check]:
    """Every objective that has a version with the alias, one after the other."""
    seed = int(time.strftime("%Y%m%d", time.gmtime()))  # other prompts every day
    found = []
    for objective in params.run.objectives:
        check = await check_champion(str(root), objective, alias, seed)
        if check is not None:
            tell(check.sentence())
            found.append(check)
    return found


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="check@{objective}")
async def check_champion(root: str, objective: str, alias: str, seed: int) -> Check | None:
    """Measure one champion; None where there is none.

    Args:
        root: the project's folder.
        objective: whose champion.
        alias: by which it is found.
        seed: of the choice of prompts, and of sampling.
    """
    folder = Path(root)
    registry = await asyncio.to_thread(open_registry, folder)
    version = await asyncio.to_thread(registry.champions(objective).aliases)
    number = version.get(alias)
    if number is None:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        model = await asyncio.to_thread(registry.package, objective, number, place)
        out = place / "monitor.json"
        numbers = await _measure(folder, objective, seed, model, out)
    check = Check(objective, str(number), numbers)
    await asyncio.to_thread(_record, registry, check)
    return check


async def _measure(root: Path, objective: str, seed: int, model: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "infalign.deployment.monitor", "--objective", objective]
    command += ["--seed", str(seed), str(model), str(out)]
    done = await run_child(command, root, child_environment(), lambda line: print(line, flush=True))
    if done.returncode == 2:
        raise InputError((done.lines or ("monitor failed",))[-1].removeprefix("monitor: "))
    if done.returncode:
        raise StageKilled(f"monitor@{objective} ended with {done.returncode}.")
    numbers: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return numbers


def _record(registry: Any, check: Check) -> None:
    """A run of its own in MLflow, so that the numbers can be followed over time."""
    from mlflow.entities import Metric, RunTag

    tags = {
        "infalign.stage": "monitor",
        "infalign.objective": check.objective,
        "infalign.version": check.version,
        "infalign.alarm": str(check.alarm).lower(),
        "mlflow.note.content": check.sentence(),
    }
    client, now = registry.client, int(time.time() * 1000)
    run = client.create_run(registry.experiment, run_name=f"monitor@{check.objective}")
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(k, v, now, 0) for k, v in metrics(check.numbers).items()],
        tags=[RunTag(k, v) for k, v in tags.items()],
    )
    client.set_terminated(run.info.run_id)


async def publish(checks: Sequence[Check]) -> None:
    """The numbers as an artifact of Prefect's."""
    await acreate_table_artifact(
        table=[check.row() for check in checks],
        key="champions",
        description="Champions on fresh prompts.",
    )
