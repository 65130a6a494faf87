"""report: one page for people, one summary for programs.

Reads results/{prepare,sft,reward,sample}/metrics.json, results/prepare/prompts.parquet and, for
every objective, results/calibrate/O, results/align/O/V/history.jsonl and results/evaluate/O.
Writes results/report/{index.html, summary.json, metrics.json, plots/*.png}. The page is one file
that opens from disk and loads nothing; summary.json has a row per objective, policy, judge and
procedure; metrics.json is the headline for `dvc metrics`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from infalign.errors import InputError
from infalign.files.history import read_history
from infalign.files.tables import (
    CALIBRATED,
    DIFFERENCES,
    EVALUATION,
    EVALUATION_REWARDS,
    EVALUATION_SAMPLES,
    read_prompts,
    read_table,
)
from infalign.files.workspace import Needs, Workspace, write_json, write_text
from infalign.measuring.contest import REFERENCE, SELECTING
from infalign.page.data import ObjectiveData
from infalign.page.figures import save_png
from infalign.page.render import page, render
from infalign.page.results import summary_rows
from infalign.page.sections import plates
from infalign.settings.params import Params
from infalign.theory.calibration import calibrate

MEASURED = ("prepare", "sft", "reward", "sample")


def needs(params: Params) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=(
            "results/prepare",
            *(f"results/{word}/metrics.json" for word in MEASURED[1:]),
            *(f"results/calibrate/{objective}" for objective in params.run.objectives),
            *(f"results/align/{objective}" for objective in params.run.objectives),
            *(f"results/evaluate/{objective}" for objective in params.run.objectives),
        ),
        params=(
            "run.seed",
            "run.threads",
            "run.objectives",
            "run.variants",
            "data.path",
            "model.name_or_path",
            "objectives",
            "align.kl_nats",
            "align.variants",
            "report",
        ),
        outputs=("results/report",),
    )


def run(workspace: Workspace) -> None:
    """Read everything, draw, word, write."""
    params, out = workspace.params, workspace.out / "report"
    objectives = [read_objective(workspace, name) for name in params.run.objectives]
    budget = params.align.kl_nats
    drawn = {data.name: plates(data, budget) for data in objectives}
    for chapters in drawn.values():
        for plate in (plate for chapter in chapters.values() for plate in chapter):
            save_png(plate.figure, out / "plots" / f"{plate.name}.png")
    settings = {
        "model": params.model.name_or_path,
        "data": params.data.path,
        "seed": params.run.seed,
        "kl_nats": budget,
        "examples": params.report.examples,
    }
    metrics = {word: _json(workspace.results(word, "metrics.json")) for word in MEASURED}
    write_text(out / "index.html", render(page(objectives, drawn, metrics, settings)))
    write_json(out / "summary.json", summary_rows(objectives))
    measured = {data.name: data.metrics["evaluate"] for data in objectives}
    write_json(out / "metrics.json", measured)


def read_objective(workspace: Workspace, objective: str) -> ObjectiveData:
    """Everything that was measured for an objective."""
    params = workspace.params
    folder = workspace.results("evaluate", objective)
    samples = _by_policy(folder / "samples.parquet")
    names, shape = [REFERENCE, *params.run.variants], _shape(samples[REFERENCE])
    arrays = {
        column: {name: _square(samples[name], column, shape) for name in names}
        for column in ("response", "finished", "n_tokens")
    }
    rewards = _rewards(folder / "rewards.parquet", names, shape)
    ids = [row["prompt_id"] for row in samples[REFERENCE]][:: shape[1]]
    prompts = read_prompts(workspace.results("prepare", "prompts.parquet"), objective)
    calibration = workspace.results("calibrate", objective)
    return ObjectiveData(
        name=objective,
        procedure=params.objectives[objective].procedure,
        methods={v: params.reward_spelling(objective, v) for v in params.run.variants},
        rows=read_table(folder / "evaluation.parquet", EVALUATION).to_pylist(),
        differences=read_table(folder / "differences.parquet", DIFFERENCES).to_pylist(),
        curves=_json(folder / "curves.json"),
        prompts=[prompts[prompt] for prompt in ids],
        responses=arrays["response"],
        finished=arrays["finished"],
        n_tokens=arrays["n_tokens"],
        rewards=rewards,
        calibrated=_calibrated(calibration / "calibrated.parquet", rewards),
        histories={
            v: read_history(workspace.results("align", objective, v, "history.jsonl"))
            for v in params.run.variants
        },
        calibration_errors=_json(calibration / "errors.json"),
        metrics={
            "calibrate": _json(calibration / "metrics.json"),
            "evaluate": _json(folder / "metrics.json"),
        },
    )


def _by_policy(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of evaluation samples a policy, in the order of prompts and samples."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_table(path, EVALUATION_SAMPLES).to_pylist():
        found.setdefault(row["policy"], []).append(row)
    for rows in found.values():
        rows.sort(key=lambda row: (row["prompt_id"], row["sample_index"]))
    return found


def _shape(rows: list[dict[str, Any]]) -> tuple[int, int]:
    prompts = len({row["prompt_id"] for row in rows})
    return prompts, len(rows) // prompts


def _square(rows: list[dict[str, Any]], column: str, shape: tuple[int, int]) -> Any:
    values = [row[column] for row in rows]
    return np.array(values, dtype=object if column == "response" else None).reshape(shape)


def _rewards(path: Path, names: list[str], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Training rewards of every policy [prompts, samples]."""
    rows = [r for r in read_table(path, EVALUATION_REWARDS).to_pylist() if r["judge"] == SELECTING]
    rows.sort(key=lambda row: (row["prompt_id"], row["sample_index"]))
    return {
        name: np.array([row["reward"] for row in rows if row["policy"] == name]).reshape(shape)
        for name in names
    }


def _calibrated(path: Path, rewards: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Calibrated rewards [prompts, samples]: the reference's leave-one-out."""
    rows = [row for row in read_table(path, CALIBRATED).to_pylist() if row["split"] == "test"]
    rows.sort(key=lambda row: (row["prompt_id"], row["sample_index"]))
    reference = rewards[REFERENCE]
    known = np.array([row["calibrated"] for row in rows]).reshape(reference.shape)
    return {
        name: known if name == REFERENCE else calibrate(values, reference)
        for name, values in rewards.items()
    }


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run the stage that writes it.") from None
