"""The first task of a night: is the data fit to train on? A breach stops the night.

The numbers and the bounds are `infalign.deployment.intake`'s; the verdict stays readable in
`.infalign/intake/` and in Prefect.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from flows.children.processes import Tell
from flows.project.intake import examine, sentence
from infalign.files.workspace import write_json
from infalign.settings.params import Params, load_params

BREACH = "DataRefused"


class Breach(Exception):
    """The data of some objective is outside of a bound; the message says of which."""


def place(root: Path) -> Path:
    """Where verdicts are kept, one file an objective."""
    return root / ".infalign" / "intake"


async def check_data_gate(root: Path, params: Params, tell: Tell) -> None:
    """Examine every objective's data.

    Raises:
        Breach: where one is refused; nothing has been trained then.
    """
    refused = []
    for objective in params.run.objectives:
        call: Any = data_gate
        state = await call(str(root), objective, return_state=True)
        verdict: dict[str, Any] = await state.aresult()
        tell(sentence(verdict))
        if not verdict["passed"]:
            refused.append(sentence(verdict))
    if refused:
        raise Breach(f"{' '.join(refused)} The champion stays.")


@task(name="data-gate", task_run_name="data-gate@{objective}", cache_policy=NO_CACHE)
async def data_gate(root: str, objective: str) -> Any:
    """The verdict on one objective's data; a refusal is no failure of the task."""
    folder = Path(root)
    params = load_params(folder / "params.yaml")
    verdict = await examine(folder, params, objective)
    write_json(place(folder) / f"{objective}.json", verdict)
    key = "data-gate-" + re.sub(r"[^a-z0-9]+", "-", objective.lower())
    await acreate_markdown_artifact(key=key, markdown=markdown(verdict))
    return _state(verdict)


def _state(verdict: dict[str, Any]) -> State:
    name = "Completed" if verdict["passed"] else BREACH
    return Completed(name=name, message=sentence(verdict), data=verdict)


def markdown(verdict: dict[str, Any]) -> str:
    """The bounds as a table."""
    lines = [sentence(verdict), "", "| bound | number | allowed | |", "| --- | --- | --- | --- |"]
    for bound in verdict["bounds"]:
        number = "not measured" if bound["number"] is None else f"{bound['number']:.4g}"
        passed = "passed" if bound["passed"] else "failed"
        lines.append(f"| {bound['name']} | {number} | {bound['bound'] or 'any'} | {passed} |")
    return "\n".join(lines) + "\n"
