"""What a run tells MLflow and Prefect about each stage: parameters, data, numbers, files.

Reads dvc.lock and results/; writes nothing there.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    acreate_link_artifact,
    acreate_markdown_artifact,
    acreate_table_artifact,
)

from flows.project.versions import COMPARISON, Plan, entry_digest, git_state, lock_entries
from flows.tracking.tracker import MADE, PARENT, Tracker
from infalign.files.tables import SELECTING
from infalign.files.weights import NONE
from infalign.settings.params import Params

# MLflow's client gives up sooner by itself; its first import on a busy machine takes long.
MAKER_SECONDS = 60.0
HEADLINE = ("win_rate", "low", "high", "limit", "efficiency", "kl")
_EVIDENCE_FILES = {".json", ".html", ".png", ".svg"}
_EVIDENCE_BYTES = 10_000_000


def begin_run(tracker: Tracker, root: Path, params: Params, name: str, plan: Plan) -> None:
    """The parent run: the commit, all parameters, what is stale."""
    state = git_state(root)
    tags = {
        "mlflow.source.git.commit": state["commit"],
        "infalign.dirty": state["dirty"],
        "infalign.stale": ", ".join(plan.stale)[:4000] or "nothing",
    }
    tracker.begin(PARENT, name, tags)
    tracker.params(PARENT, flatten(params.model_dump(mode="json")))


def end_run(
    tracker: Tracker, root: Path, params: Params, target: str, report: Path | None = None
) -> None:
    """The parent's evidence: dvc.lock, report or comparison, plots, headline numbers.

    Args:
        report: the folder of the report as it is published.
    """
    for name in ("dvc.lock", "dvc.yaml", "params.yaml"):
        if (root / name).is_file():
            tracker.artifact(PARENT, root / name)
    if target == COMPARISON:
        _end_comparison(tracker, root, params)
        return
    if report is not None:
        tracker.artifact(PARENT, report, "report")
    metrics = [
        (f"{row['objective']}/{row['policy']}/{key}", float(row[key]), 0)
        for row in headline(root, params)
        for key in HEADLINE
        if isinstance(row.get(key), int | float)
    ]
    if metrics:
        tracker.metrics(PARENT, metrics)


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


def gains(root: Path, params: Params) -> list[dict[str, Any]]:
    """The rows of the gain table of every compared objective."""
    rows: list[dict[str, Any]] = []
    for objective in params.compare.objectives:
        path = root / "results" / "compare" / objective / "comparison.json"
        found = json.loads(path.read_text(encoding="utf-8"))["gains"] if path.exists() else []
        rows += [{"objective": objective} | row for row in found]
    return rows


def names_of(instance: str) -> dict[str, str]:
    """What an instance's name says: `contend@helpful-ctrl-0.5-0` is a variant, budget and seed."""
    names = instance.partition("@")[2].split("-")
    return dict(zip(("objective", "variant", "kl_nats", "seed"), filter(None, names), strict=False))


def begin_stage(tracker: Tracker, instance: str) -> None:
    """The child run of an instance."""
    tags = {f"infalign.{key}": value for key, value in names_of(instance).items()}
    tracker.begin(instance, instance, {"infalign.stage": instance.partition("@")[0]} | tags)


async def end_stage(
    tracker: Tracker, root: Path, params: Params, instance: str, outcome: str
) -> str | None:
    """The child's evidence, or a link to the run that has it; that run's id.

    What DVC made without us (`dvc repro`) is recorded now.
    """
    entry = lock_entries(root).get(instance)
    if entry is None:
        return None
    outputs = [root / out["path"] for out in entry.get("outs", [])]
    tracker.finish(instance, outputs if outcome == "made" else [])
    digest = entry_digest(entry)
    tags = {"infalign.outcome": outcome, "infalign.digest": digest}
    maker = None if outcome == "made" else await _maker(tracker, digest)
    if maker is not None:
        words = "Unchanged" if outcome == "unchanged" else "Restored from DVC's cache"
        note = f"{words}. Made by run [{maker}](../{maker})."
        tracker.tags(instance, tags | {"infalign.made_by": maker, "mlflow.note.content": note})
        return maker
    tracker.tags(instance, tags | {MADE: digest})
    _record(tracker, root, instance, entry)
    return tracker.run_id(instance)


async def _maker(tracker: Tracker, digest: str) -> str | None:
    try:
        future = asyncio.wrap_future(tracker.maker(digest))
        return await asyncio.wait_for(future, MAKER_SECONDS)
    except TimeoutError:
        return None


def _record(tracker: Tracker, root: Path, instance: str, entry: dict[str, Any]) -> None:
    """Parameters, inputs by DVC hash, final numbers and small files of one instance."""
    params = {k: v for keys in entry.get("params", {}).values() for k, v in keys.items()}
    # Names as parameters too: MLflow's page groups and compares runs by parameters.
    params |= names_of(instance)
    if params:
        tracker.params(instance, flatten(params))
    deps = entry.get("deps", [])
    inputs = [dep for dep in deps if not dep["path"].endswith(".py") and dep["path"] != NONE]
    if inputs:
        tracker.inputs(
            instance,
            [
                {
                    "name": dep["path"][-500:],
                    "digest": str(dep.get("md5", "unknown"))[:36],
                    "source": json.dumps({"path": dep["path"], "dvc": dep.get("md5")}),
                }
                for dep in inputs
            ],
        )
    for output in (root / out["path"] for out in entry.get("outs", [])):
        files = sorted(output.rglob("*")) if output.is_dir() else [output]
        base = output if output.is_dir() else output.parent
        for path in files:
            _record_file(tracker, instance, path, base)


def _record_file(tracker: Tracker, instance: str, path: Path, base: Path) -> None:
    if path.name == "metrics.json":
        numbers = flatten(json.loads(path.read_text(encoding="utf-8")))
        rows = [
            (f"final/{key}", float(value), 0)
            for key, value in numbers.items()
            if isinstance(value, int | float)
        ]
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


def summary(root: Path) -> list[dict[str, Any]]:
    """The rows of results/report/summary.json, none if there is no report."""
    path = root / "results" / "report" / "summary.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [row for row in tree if isinstance(row, dict)] if isinstance(tree, list) else []


def headline(root: Path, params: Params) -> list[dict[str, Any]]:
    """Each policy under its objective's own procedure, by the selecting reward."""
    own = {name: objective.procedure for name, objective in params.objectives.items()}
    return [
        row
        for row in summary(root)
        if row.get("judge") == SELECTING
        and row.get("procedure") == own.get(str(row.get("objective")))
    ]


async def publish_artifacts(root: Path, tracker: Tracker, params: Params, target: str) -> None:
    """Prefect's artifacts: the win rates, the report as markdown, a link to the MLflow run."""
    rows = summary(root)
    if target == COMPARISON:
        table = gains(root, params)
        if table:
            await acreate_table_artifact(table=table, key="gains", description="Gains, equal KL.")
    elif rows:
        await acreate_table_artifact(table=rows, key="win-rates", description="Win rates.")
        await acreate_markdown_artifact(key="report", markdown=report_markdown(root, rows))
    served = tracker.served_by()
    await acreate_link_artifact(
        link=tracker.page(),
        key="mlflow-run",
        link_text="The run in MLflow",
        description=f"Serve it with `{served}`." if served else None,
    )


def report_markdown(root: Path, rows: list[dict[str, Any]]) -> str:
    """The report's table in markdown, and where the page is."""
    columns = ["objective", "policy", "judge", "procedure", *HEADLINE, "kl_se", "response_tokens"]
    lines = [f"Report: `{root / 'results' / 'report' / 'index.html'}`", ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [row.get(column) for column in columns]
        shown = [f"{c:.4g}" if isinstance(c, float) else "" if c is None else str(c) for c in cells]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"
