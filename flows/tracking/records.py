"""What a run tells MLflow and Prefect about each stage: parameters, data, numbers, files.

Reads dvc.lock and results/; writes nothing there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    acreate_link_artifact,
    acreate_markdown_artifact,
    acreate_table_artifact,
)

from flows.children.processes import user
from flows.project.versions import COMPARISON, Plan, entry_digest, git_state, lock_entries
from flows.tracking.naming import about, evaluated, finals, names_of, policy_words, run_name
from flows.tracking.results import gains, headline
from flows.tracking.tracker import MADE, PARENT, Tracker
from infalign.files.names import HEADLINE, SELECTING
from infalign.files.sources import data_paths
from infalign.files.stages import STAGES
from infalign.files.weights import NONE
from infalign.settings.params import Params

# MLflow's client gives up sooner by itself; its first import on a busy machine takes long.
MAKER_SECONDS = 60.0
TABLE = ("objective", "policy", *HEADLINE, "procedure")
_LONGEST = 4900  # characters of a note or a tag; MLflow takes 5,000
_EVIDENCE_FILES = {".json", ".html", ".png", ".svg"}
_EVIDENCE_BYTES = 10_000_000


def begin_run(tracker: Tracker, root: Path, params: Params, name: str, plan: Plan) -> None:
    """The parent run: the commit, all parameters, the data, what is stale."""
    state = git_state(root)
    tags = _source(root, "infalign") | {
        "infalign.instance": PARENT,
        "infalign.dirty": state["dirty"],
        "infalign.stale": ", ".join(plan.stale)[:4000] or "nothing",
    }
    tracker.begin(PARENT, name, tags)
    tracker.params(PARENT, flatten(params.model_dump(mode="json")))


def _source(root: Path, name: str) -> dict[str, str]:
    """Whose run it is and what made it, as MLflow's pages show it."""
    return {
        "mlflow.source.name": name,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git_state(root)["commit"],
        "mlflow.user": user(),
    }


def end_run(
    tracker: Tracker,
    root: Path,
    params: Params,
    target: str,
    outcomes: Mapping[str, str],
    report: Path | None = None,
) -> None:
    """The parent's evidence: dvc.lock, report or comparison, plots; what it found as its note.

    Args:
        report: the folder of the report as it is published.
    """
    for name in ("dvc.lock", "dvc.yaml", "params.yaml"):
        if (root / name).is_file():
            tracker.artifact(PARENT, root / name)
    tracker.inputs(PARENT, _data(root, params))
    if target == COMPARISON:
        _end_comparison(tracker, root, params)
        return
    if report is not None:
        tracker.artifact(PARENT, report, "report")
    done = [f"- {one}: {outcome}" for one, outcome in outcomes.items() if outcome != "unchanged"]
    lines = ["The report is among the artifacts: `report/index.html`.", "", *done]
    note = headline_markdown(headline(root, params)) + "\n".join(lines)
    tracker.tags(PARENT, {"mlflow.note.content": note[:_LONGEST]})


def _end_comparison(tracker: Tracker, root: Path, params: Params) -> None:
    """Every objective's page and plots, and the gains as metrics whose step is the KL in millinats.

    So that MLflow draws a gain against KL.
    """
    for objective in params.compare.objectives:
        tracker.artifact(PARENT, root / "results" / "compare" / objective, f"compare/{objective}")
    metrics = [
        (f"{row['objective']}/gain/{row['variant']}/{key}", float(row[key]), millinats(row))
        for row in gains(root, params)
        for key in ("difference", "low", "high")
        if row["judge"] == SELECTING
    ]
    if metrics:
        tracker.metrics(PARENT, metrics)


def millinats(row: dict[str, Any]) -> int:
    """A KL budget as a whole number."""
    return round(1000 * float(row["kl_nats"]))


def begin_stage(tracker: Tracker, root: Path, params: Params, instance: str) -> None:
    """The child run of an instance, which is there once there is anything to say of it."""
    word = instance.partition("@")[0]
    tags = {f"infalign.{key}": value for key, value in names_of(instance).items()}
    tags |= _source(root, f"infalign/stages/{word}.py")
    tags |= {"infalign.stage": word, "infalign.instance": instance}
    tracker.begin(instance, run_name(instance, params), tags, late=True)


async def end_stage(
    tracker: Tracker, root: Path, params: Params, instance: str, outcome: str
) -> str | None:
    """The child's evidence, or nothing where an earlier run has it; the id of the run with it.

    What DVC made without us (`dvc repro`) is recorded now.
    """
    entry = lock_entries(root).get(instance)
    if entry is None:
        return None
    outputs = [root / out["path"] for out in entry.get("outs", [])]
    tracker.finish(instance, outputs if outcome == "made" else [])
    digest = entry_digest(entry)
    maker = None if outcome == "made" else await _maker(tracker, digest)
    if maker is not None:
        return maker
    tags = {"infalign.outcome": outcome, "infalign.digest": digest, MADE: digest}
    tracker.tags(instance, tags)
    _record(tracker, root, params, instance, entry)
    if instance.startswith("evaluate@"):
        _record_policies(tracker, root, params, instance)
    return tracker.run_id(instance)


def _record_policies(tracker: Tracker, root: Path, params: Params, instance: str) -> None:
    """The numbers of an evaluation, in the runs of its policies; new ones of those not trained now.

    So that the table of runs shows a policy with its win rate and what it was trained with.
    """
    objective = names_of(instance)["objective"]
    try:
        path = root / "results" / "evaluate" / objective / "metrics.json"
        measured = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for variant in params.run.variants:
        numbers = measured.get(variant)
        rows = evaluated(numbers) if isinstance(numbers, dict) else []
        if not rows:
            continue
        policy = STAGES["align"].instance(objective, variant)
        trained_now = tracker.has(policy)
        if not trained_now:
            begin_stage(tracker, root, params, policy)
            tracker.params(policy, about(policy, params))
            tracker.inputs(policy, _data(root, params, objective))
        tracker.metrics(policy, rows)
        note = policy_words(numbers, params.objectives[objective].procedure)
        tracker.tags(policy, {"mlflow.note.content": note})
        if not trained_now:
            tracker.end(policy, "FINISHED")


async def _maker(tracker: Tracker, digest: str) -> str | None:
    try:
        future = asyncio.wrap_future(tracker.maker(digest))
        return await asyncio.wait_for(future, MAKER_SECONDS)
    except TimeoutError:
        return None


def _record(
    tracker: Tracker, root: Path, params: Params, instance: str, entry: dict[str, Any]
) -> None:
    """Parameters, data and inputs by DVC's hash, final numbers and small files of one instance."""
    read = {k: v for keys in entry.get("params", {}).values() for k, v in keys.items()}
    # Names as parameters too: MLflow's page groups and compares runs by parameters.
    tracker.params(instance, flatten(read) | about(instance, params))
    tracker.inputs(instance, _data(root, params, names_of(instance).get("objective")))
    deps = entry.get("deps", [])
    inputs = {d["path"]: d.get("md5") for d in deps if not d["path"].endswith(".py")}
    inputs.pop(NONE, None)
    tracker.tags(instance, {"infalign.inputs": json.dumps(inputs)[:_LONGEST]})
    for output in (root / out["path"] for out in entry.get("outs", [])):
        files = sorted(output.rglob("*")) if output.is_dir() else [output]
        base = output if output.is_dir() else output.parent
        for path in files:
            _record_file(tracker, instance, path, base)


def _data(root: Path, params: Params, objective: str | None = None) -> list[dict[str, str]]:
    """The preference data of a run by DVC's hash: an objective's, or all of it."""
    entry = lock_entries(root).get("prepare", {})
    known = {dep["path"]: str(dep.get("md5", "unknown")) for dep in entry.get("deps", [])}
    paths = data_paths(params) if objective is None else (params.data_path(objective),)
    return [
        {
            "name": path[-500:],
            "digest": known.get(path, "unknown")[:36],
            "source": json.dumps({"path": path, "dvc": known.get(path)}),
            "context": "training",
        }
        for path in paths
    ]


def _record_file(tracker: Tracker, instance: str, path: Path, base: Path) -> None:
    if path.name == "metrics.json" and path.parent == base:
        rows = finals(instance, json.loads(path.read_text(encoding="utf-8")))
        if rows:
            tracker.metrics(instance, rows)
    # A model's own files stay with DVC, which has their hash.
    inside_model = (path.parent / "config.json").exists()
    if path.suffix not in _EVIDENCE_FILES or inside_model or not path.is_file():
        return
    if path.stat().st_size <= _EVIDENCE_BYTES:
        folder = path.parent.relative_to(base).as_posix()
        tracker.artifact(instance, path, "" if folder == "." else folder)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


async def publish_artifacts(root: Path, tracker: Tracker, params: Params, target: str) -> None:
    """Prefect's artifacts: the headline, the report's table and page, a link to the MLflow run."""
    rows = headline(root, params)
    if target == COMPARISON:
        table = gains(root, params)
        if table:
            await acreate_table_artifact(table=table, key="gains", description="Gains, equal KL.")
    elif rows:
        await acreate_table_artifact(
            table=[{key: row[key] for key in TABLE if key in row} for row in rows],
            key="win-rates",
            description="Win rate over the reference under each objective's own procedure.",
        )
        markdown = report_markdown(root, tracker.artifacts_page("report/index.html"), params)
        words = "Where the report's page is, and its headline."
        await acreate_markdown_artifact(key="report", markdown=markdown, description=words)
    served = tracker.served_by()
    await acreate_link_artifact(
        link=tracker.page(),
        key="mlflow-run",
        link_text="The run in MLflow",
        description="Metrics, models and files of this run."
        + (f" Serve it with `{served}`." if served else ""),
    )


def report_markdown(root: Path, page: str, params: Params) -> str:
    """Where the report's page is, then the headline, in markdown.

    Args:
        page: the address of the report in MLflow.
    """
    place = root / "results" / "report" / "index.html"
    lines = [f"[The report]({page}) in MLflow; on this machine: `{place}`.", ""]
    return "\n".join(lines) + "\n" + headline_markdown(headline(root, params))


def headline_markdown(rows: list[dict[str, Any]]) -> str:
    """The headline as a table in markdown; nothing without one."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(TABLE) + " |", "|" + " --- |" * len(TABLE)]
    for row in rows:
        cells = [row.get(column) for column in TABLE]
        shown = [f"{c:.3f}" if isinstance(c, float) else "" if c is None else str(c) for c in cells]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n\n"
