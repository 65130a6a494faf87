"""report: one page for people, one summary for programs.

Reads results/{prepare,sft,sample}/metrics.json, results/prepare/prompts.parquet and, for every
objective, results/reward/O/metrics.json, results/calibrate/O, results/evaluate/O and
results/align/O/V/{history.jsonl, metrics.json}. Writes results/report/{index.html, summary.json,
metrics.json, plots/*.png,
headline/O-V.json, data/NAME/O.json}. The page is one file that opens from disk and loads nothing,
and begins with the gate's verdict by the rules that results answer; summary.json has a row per
objective, policy, judge and procedure; the last two are for `dvc metrics` and `dvc plots`
(infalign.page.series).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from infalign.aligning.budget import common_budget
from infalign.data.dialogue import read_prompts
from infalign.deployment.gate import judge_results, not_asked
from infalign.deployment.measured import measured
from infalign.errors import InputError
from infalign.files.history import read_history
from infalign.files.sources import check_listed, items
from infalign.files.squares import Square
from infalign.files.tables import (
    CALIBRATED,
    DIFFERENCES,
    EVALUATION,
    EVALUATION_REWARDS,
    EVALUATION_SAMPLES,
    REFERENCE,
    SELECTING,
    read_table,
)
from infalign.files.workspace import Needs, Workspace, write_json, write_text
from infalign.page.data import ObjectiveData
from infalign.page.figures import save_png
from infalign.page.render import render
from infalign.page.results import summary_rows
from infalign.page.sections import plates
from infalign.page.series import headlines, overlays
from infalign.rewards.description import FIELDS, REWARDS, in_words, kinds, settings_of
from infalign.settings.params import Objective, Params
from infalign.theory.calibration import calibrate

MEASURED = ("prepare", "sft", "sample")
BOUNDS = tuple(  # what the gate's verdict on the page goes by, and nothing else of the section
    f"promotion.{name}"
    for name in (
        "variant",
        "win_rate",
        "kl_nats",
        "length_ratio",
        "truncated",
        "calibration_error",
        "judge_margin",
        "bootstrap",
        "suites",
    )
)


def needs(params: Params) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=(
            "results/prepare",
            *(f"results/{word}/metrics.json" for word in MEASURED[1:]),
            *items("report", params, ""),
        ),
        params=(
            "run.seed",
            "run.threads",
            "run.objectives",
            "run.variants",
            "data.path",
            "model.name_or_path",
            "objectives",
            "align.variants",
            "sample.train_samples",
            "report",
            *BOUNDS,
        ),
        outputs=("results/report",),
    )


def run(workspace: Workspace) -> None:
    """Read everything, draw, word, write."""
    check_listed("report", workspace.params, workspace.root)
    params, out = workspace.params, workspace.out / "report"
    objectives = [read_objective(workspace, name) for name in params.run.objectives]
    budget = common_budget(
        workspace.results("align", objective, variant)
        for objective in params.run.objectives
        for variant in params.run.variants
    ).kl_nats
    drawn = {data.name: plates(data, budget) for data in objectives}
    for chapters in drawn.values():
        for plate in (plate for chapter in chapters.values() for plate in chapter):
            save_png(plate.figure, out / "plots" / f"{plate.name}.png")
    settings = {
        "model": params.model.name_or_path,
        "data": ", ".join(dict.fromkeys(map(params.data_path, params.run.objectives))),
        "seed": params.run.seed,
        "kl_nats": budget,
        "examples": params.report.examples,
    }
    metrics = {word: _json(workspace.results(word, "metrics.json")) for word in MEASURED}
    metrics["reward"] = {
        name: _json(workspace.results("reward", name, "metrics.json"))
        for name in params.run.objectives
    }
    write_text(out / "index.html", render(objectives, drawn, metrics, settings))
    write_json(out / "summary.json", summary_rows(objectives))
    measured = {data.name: data.metrics["evaluate"] for data in objectives}
    write_json(out / "metrics.json", measured)
    for data in objectives:
        for name, numbers in headlines(data).items():
            write_text(out / "headline" / f"{name}.json", json.dumps(numbers, indent=2) + "\n")
        for name, rows in overlays(data).items():
            write_text(out / "data" / name / f"{data.name}.json", json.dumps(rows) + "\n")


def read_objective(workspace: Workspace, objective: str) -> ObjectiveData:
    """Everything that was measured for an objective."""
    params = workspace.params
    folder = workspace.results("evaluate", objective)
    sampled, rewarded = folder / "samples.parquet", folder / "rewards.parquet"
    samples = read_table(sampled, EVALUATION_SAMPLES)
    judged = read_table(rewarded, EVALUATION_REWARDS).filter(pc.field("judge") == SELECTING)
    names = [REFERENCE, *params.run.variants]
    squares = {name: Square(samples.filter(pc.field("policy") == name), sampled) for name in names}
    rewards = {
        name: Square(judged.filter(pc.field("policy") == name), rewarded)["reward"]
        for name in names
    }
    columns = ("response", "finished", "n_tokens")
    arrays = {column: {name: squares[name][column] for name in names} for column in columns}
    prompts = read_prompts(workspace.results("prepare", "prompts.parquet"), objective)
    calibration = workspace.results("calibrate", objective)
    sources = _sources(params.objectives[objective])
    variants, bounds = params.run.variants, params.promotion
    evidence = measured(workspace.results(), params, objective, variants)
    others = [name for name in params.run.objectives if name != objective]
    return ObjectiveData(
        name=objective,
        procedure=params.objectives[objective].procedure,
        methods={v: params.reward_spelling(objective, v) for v in params.run.variants},
        rows=read_table(folder / "evaluation.parquet", EVALUATION).to_pylist(),
        differences=read_table(folder / "differences.parquet", DIFFERENCES).to_pylist(),
        curves=_json(folder / "curves.json"),
        prompts=[prompts[prompt].marked for prompt in squares[REFERENCE].prompt_ids],
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
            "rewards": _json(calibration / REWARDS) if sources else {},
        },
        gate={v: judge_results(evidence[v], bounds) for v in variants},
        not_asked=not_asked(bounds, objective, others),
        candidate=bounds.variant if bounds.variant in variants else None,
        sources=sources,
    )


def _sources(objective: Objective) -> dict[str, str]:
    """Who rewards an objective's responses, where it is not as the page's fixed texts say."""
    if all(kind == "train" for kind in kinds(objective)):
        return {}
    return {judge: in_words(settings_of(objective, judge)) for judge in FIELDS}


def _calibrated(path: Path, rewards: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Calibrated rewards [prompts, samples]: the reference's leave-one-out."""
    known = Square(read_table(path, CALIBRATED).filter(pc.field("split") == "test"), path)
    reference = rewards[REFERENCE]
    return {
        name: known["calibrated"] if name == REFERENCE else calibrate(values, reference)
        for name, values in rewards.items()
    }


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run the stage that writes it.") from None
