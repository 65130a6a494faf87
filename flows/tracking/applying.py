"""What each entry of a journal does in MLflow. Doing it twice is the same as doing it once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.tracking.journal import Journal

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT = "pipeline"  # the key of the run of which all others are children


def apply(client: MlflowClient, experiment: str, journal: Journal, entry: dict[str, Any]) -> None:
    """Do what one entry of a journal says. Doing it twice is the same as doing it once."""
    from mlflow.entities import Metric, Param, RunTag

    op, key = entry["op"], entry["key"]
    if op == "begin":
        journal.run_ids[key] = _begin(client, experiment, journal, entry)
        return
    run_id = journal.run_ids[key]
    if op == "metrics":
        rows = [Metric(_name(n), v, t, s) for n, v, s, t in entry["rows"]]
        for first in range(0, len(rows), 900):
            client.log_batch(run_id, metrics=rows[first : first + 900])
    elif op == "params":
        params = [Param(_name(k), v[:6000]) for k, v in entry["params"].items()]
        for first in range(0, len(params), 90):
            client.log_batch(run_id, params=params[first : first + 90])
    elif op == "tags":
        client.log_batch(run_id, tags=[RunTag(k, v) for k, v in entry["tags"].items()])
    elif op == "inputs":
        client.log_inputs(run_id, datasets=_datasets(entry["datasets"]))
    elif op == "artifact":
        log = client.log_artifacts if Path(entry["path"]).is_dir() else client.log_artifact
        log(run_id, entry["path"], entry["folder"] or None)
    elif op == "end":
        client.set_terminated(run_id, entry["status"], entry["time"])


def _begin(client: MlflowClient, experiment: str, journal: Journal, entry: dict[str, Any]) -> str:
    """Create a run, unless it is there: begun before, or by an answer that got lost."""
    if entry["key"] in journal.run_ids:
        return journal.run_ids[entry["key"]]
    mark = f"{journal.path.stem}/{entry['key']}"
    if journal.doubtful:
        found = client.search_runs([experiment], f"tags.`infalign.key` = '{mark}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
    tags = {"infalign.key": mark, **entry["tags"]}
    if entry["key"] != PARENT:
        tags["mlflow.parentRunId"] = journal.run_ids[PARENT]
    run = client.create_run(experiment, entry["time"], tags, entry["name"])
    return str(run.info.run_id)


def _datasets(datasets: list[dict[str, str]]) -> list[Any]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(d["name"], d["digest"], "local", d["source"]),
            [InputTag("mlflow.data.context", d["context"])],
        )
        for d in datasets
    ]


def _name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "/_-. :" else "_" for c in text)
