"""Champions, checked again: fetch the version, measure in a child process, tell MLflow.

The measuring is `infalign.deployment.monitor`; nothing here computes. The checks that were made are
MLflow's runs; the page and the artifact of an objective show them over time.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.children.processes import Tell, child_environment, run_child
from flows.project.versions import StageKilled
from flows.registry.registry import Registry, model_name, open_registry
from flows.runs.drift_page import CHECKED, Past, as_markdown, write_page
from flows.serving.log import asked_lately
from infalign.errors import InputError
from infalign.files.workspace import write_json
from infalign.settings.params import Params, load_params

SOURCES = {
    "fresh": "fresh prompts",
    "log": "logged prompts",
    "suite": "pinned prompts",
}
REMEMBERED = 1000  # checks of an objective, the newest ones


@dataclass(frozen=True)
class Check:
    """What was found for one objective's champion on one kind of prompts."""

    objective: str
    version: str
    numbers: dict[str, Any]

    @property
    def alarm(self) -> bool:
        """Whether something has drifted."""
        return bool(self.numbers.get("alarm"))

    @property
    def skipped(self) -> str | None:
        """Why nothing was measured, if nothing was."""
        return self.numbers.get("too_few")

    def sentence(self) -> str:
        """The numbers in words."""
        whom = f"{model_name(self.objective)} version {self.version}"
        if self.skipped:
            return f"{whom}: {self.skipped}"
        if "suites" in self.numbers:
            said = "; ".join(_suite(*pair) for pair in self.numbers["suites"].items())
        else:
            said = self._moved()
        return f"{whom}: {said}" + (": DRIFT." if self.alarm else ".")

    def _moved(self) -> str:
        won, found = self.numbers["win_rate"], self.numbers
        said = [
            f"win rate {won['now']:.3f} on {found['prompts']} {SOURCES[found['source']]}, "
            f"{won['before']:.3f} when it was evaluated (p = {won['p_value']:.2g})"
        ]
        for name, words in CHECKED.items():
            about = found.get(name)
            if about is not None and name != "win_rate":
                said.append(f"{words} {about['size']:.3f} (p = {about['p_value']:.2g})")
        which = [CHECKED[name] for name in CHECKED if (found.get(name) or {}).get("alarm")]
        return "; ".join(said) + (f"; beyond its bound: {', '.join(which)}" if which else "")

    def row(self) -> dict[str, Any]:
        """The numbers as a row of a table."""
        about = {"objective": self.objective, "version": self.version}
        return about | {"prompts_from": self.numbers["source"]} | metrics(self.numbers)


def _suite(name: str, about: dict[str, Any]) -> str:
    return (
        f"suite {name} {about['now']:.3f} on {about['prompts']} prompts (bound {about['bound']:g})"
    )


def metrics(numbers: dict[str, Any]) -> dict[str, float]:
    """The numbers, flat."""
    flat: dict[str, float] = {}
    for name, about in {**numbers, **numbers.get("suites", {})}.items():
        prefix = f"suite.{name}" if name in numbers.get("suites", {}) else name
        if isinstance(about, dict) and name != "suites":
            flat |= {f"{prefix}.{key}": float(value) for key, value in about.items()}
        elif isinstance(about, int | float):
            flat[prefix] = float(about)
    return flat


async def check_all(
    root: Path, params: Params, alias: str, sources: Sequence[str], tell: Tell
) -> list[Check]:
    """Every objective that has a version with the alias, on every kind of prompts, in turn."""
    seed = int(time.strftime("%Y%m%d", time.gmtime()))  # other prompts every day
    found = []
    suites = {name: params.promotion.suites_of(name) for name in params.run.objectives}
    if "suite" in sources and not any(suites.values()):
        raise InputError(
            "promotion.suites has no suite of any objective: name one, or check the champions on "
            "fresh or logged prompts."
        )
    for objective in params.run.objectives:
        for source in sources:
            if source == "suite" and not suites[objective]:
                tell(f"{objective} has no suite: nothing is checked on pinned prompts.")
                continue
            check = await check_champion(str(root), objective, alias, seed, source)
            if check is not None:
                tell(check.sentence())
                found.append(check)
    return found


def chosen(prompts: str | Iterable[str]) -> list[str]:
    """Kinds of prompts, or one sentence."""
    words = [prompts] if isinstance(prompts, str) else list(dict.fromkeys(prompts))
    for word in words:
        if word not in SOURCES:
            raise InputError(f"prompts {word!r} is none of {', '.join(SOURCES)}.")
    if not words:
        raise InputError(f"prompts is empty: give some of {', '.join(SOURCES)}.")
    return words


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="check@{objective}-{source}")
async def check_champion(
    root: str, objective: str, alias: str, seed: int, source: str = "fresh"
) -> Check | None:
    """Measure one champion; None where there is none.

    Args:
        root: the project's folder.
        objective: whose champion.
        alias: by which it is found.
        seed: of the choice of prompts, and of sampling.
        source: of SOURCES.
    """
    folder = Path(root)
    registry = await asyncio.to_thread(open_registry, folder)
    version = await asyncio.to_thread(registry.champions(objective).aliases)
    number = version.get(alias)
    if number is None:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        more = [] if source == "fresh" else ["--source", source]
        if source == "log":
            asked = await asyncio.to_thread(_logged, folder, objective)
            write_json(place / "logged.json", asked)
            more += ["--logged", str(place / "logged.json")]
        model = await asyncio.to_thread(registry.package, objective, number, place)
        out = place / "monitor.json"
        numbers = await _measure(folder, objective, seed, more, (model, out))
    check = Check(objective, str(number), numbers)
    if not check.skipped:
        await asyncio.to_thread(_record, registry, check)
    return check


def _logged(root: Path, objective: str) -> list[dict[str, str]]:
    """What users asked the objective's model lately."""
    drift = load_params(root / "params.yaml").drift
    place = drift.logs.get(objective)
    if place is None:
        raise InputError(
            f"drift.logs names no log of {objective}: write the folder of `infalign serve --log` "
            f"there, as in {{{objective}: logs/{objective}}}."
        )
    return asked_lately(root / place, model_name(objective), drift.log_days)


async def _measure(
    root: Path, objective: str, seed: int, more: Sequence[str], places: tuple[Path, Path]
) -> dict[str, Any]:
    """Run the monitor.

    Args:
        more: of its options.
        places: the package, and where the numbers go.
    """
    model, out = places
    command = [sys.executable, "-m", "infalign.deployment.monitor", "--objective", objective]
    command += ["--seed", str(seed), *more, str(model), str(out)]
    done = await run_child(command, root, child_environment(), lambda line: print(line, flush=True))
    if done.returncode == 2:
        raise InputError((done.lines or ("monitor failed",))[-1].removeprefix("monitor: "))
    if done.returncode:
        raise StageKilled(f"monitor@{objective} ended with {done.returncode}.")
    numbers: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return numbers


def _record(registry: Registry, check: Check) -> None:
    """A run of its own in MLflow, so that the numbers can be followed over time, and the page."""
    from mlflow.entities import Metric, RunTag

    moved = [name for name in CHECKED if (check.numbers.get(name) or {}).get("alarm")]
    moved += [f"suite {n}" for n, a in check.numbers.get("suites", {}).items() if a["alarm"]]
    tags = {
        "infalign.stage": "monitor",
        "infalign.instance": f"monitor@{check.objective}",
        "infalign.objective": check.objective,
        "infalign.version": check.version,
        "infalign.prompts": check.numbers["source"],
        "infalign.alarm": str(check.alarm).lower(),
        "infalign.drifted": ", ".join(moved),
        "mlflow.note.content": check.sentence(),
    }
    client, now = registry.client, int(time.time() * 1000)
    run = client.create_run(registry.experiment, run_name=f"check {check.objective}")
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(k, v, now, 0) for k, v in metrics(check.numbers).items()],
        tags=[RunTag(k, v) for k, v in tags.items()],
    )
    page = write_page(registry.root, check.objective, past(registry, check.objective))
    client.log_artifact(run.info.run_id, str(page), "drift")
    client.set_terminated(run.info.run_id)


def past(registry: Registry, objective: str) -> list[Past]:
    """The checks that were made of an objective's champions, the oldest first."""
    wanted = f"tags.`infalign.stage` = 'monitor' and tags.`infalign.objective` = '{objective}'"
    runs = registry.client.search_runs(
        [registry.experiment], wanted, max_results=REMEMBERED, order_by=["start_time DESC"]
    )
    return [
        Past(
            run.info.start_time / 1000.0,
            run.data.tags.get("infalign.version", ""),
            run.data.tags.get("infalign.prompts", "fresh"),  # older ones do not say
            dict(run.data.metrics),
        )
        for run in reversed(runs)
        if run.data.metrics  # the others were killed
    ]


async def publish(root: Path, checks: Sequence[Check]) -> None:
    """The numbers as artifacts of Prefect's: today's, and each objective's over time."""
    measured = [check for check in checks if not check.skipped]
    await acreate_table_artifact(
        table=[check.row() for check in measured],
        key="champions",
        description="Champions, checked again.",
    )
    registry = await asyncio.to_thread(open_registry, root)
    for objective in dict.fromkeys(check.objective for check in measured):
        known = await asyncio.to_thread(past, registry, objective)
        key = "drift-" + re.sub(r"[^a-z0-9]+", "-", objective.lower())
        await acreate_markdown_artifact(key=key, markdown=as_markdown(objective, known))
