"""How MLflow's pages show an experiment: its description, and the columns of the table of runs."""

from __future__ import annotations

import json

from flows.services.mlflow_pages import SHARED

REGISTRY = "-registry"  # the experiment of registered models: their runs, moves and checks
METRICS = ("win_rate", "kl", "efficiency", "limit", "win_rate_independent")
PARAMETERS = ("objective", "variant", "kl_nats", "seed", "reward")

_COLUMNS = [
    *(f"metrics.`{name}`" for name in METRICS),
    *(f"params.`{name}`" for name in PARAMETERS),
    "attributes.`Dataset`",
    "attributes.`Source`",
]
_RUNS = (
    "A run of infalign has a child for each stage that it made. Those of policies carry the "
    "numbers of their evaluation: the win rate over the reference under the objective's own "
    "procedure, the KL that was spent (nats a response), the limit at that KL, and the share of "
    "the possible gain that was reached."
)
_MODELS = (
    "What happens to registered models: a run for each version, with its package and the gate's "
    "verdicts, the history of champions, and the checks of champions on fresh, logged and pinned "
    "prompts."
)


def _shared() -> str:
    """The view as MLflow's page reads it from the experiment: policies alone, newest first.

    Without a filter they would be hidden below their parents.
    """
    state = {"selectedColumns": _COLUMNS, "columnOrder": _COLUMNS}
    newest = {"orderByKey": "attributes.end_time", "orderByAsc": False}
    return json.dumps(state | newest | {"searchFilter": "params.variant LIKE '%'"})


ABOUT = {
    "": {"mlflow.note.content": _RUNS, f"mlflow.sharedViewState.{SHARED}": _shared()},
    REGISTRY: {"mlflow.note.content": _MODELS},
}
