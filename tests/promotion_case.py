"""Made-up candidates: evidence with known win rates, tiny models, packages and their project."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from infalign.data.framing import asked
from infalign.deployment.bouts import Bouts, bouts_folder, bouts_name, write_bouts
from infalign.deployment.evidence import Evidence, Facts, Side, write_evidence
from infalign.files.tables import INDEPENDENT, PROMPTS, SELECTING, write_table
from infalign.settings.params import Params, Promotion, load_params
from infalign.theory.rivals import head_to_head

ROOT = Path(__file__).parents[1]
FACTS = Facts(
    "helpful",
    "ctrl",
    "best_of:4",
    "data",
    "judge",
    "reference",
    0.06,
    32,
    0,
    0.5,
    reward="its reward",
    judged_by="its judge",
)
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PROMPT = "\n\nHuman: one two three\n\nAssistant:"


def bounds(**changes: Any) -> Promotion:
    """The shipped bounds, some of them changed; fewer replicates, and one look."""
    tree = load_params(ROOT / "params.yaml").promotion.model_dump()
    few = {"bootstrap": 200, "looks": 1, "looks_level": 0.025}
    return Promotion.model_validate(tree | few | changes)


def evidence(
    gain: float = 1.0,
    judge_gain: float | None = None,
    other_gain: float = 0.0,
    prompts: int = 60,
    samples: int = 8,
    seed: int = 1,
    **facts: Any,
) -> Evidence:
    """A policy whose rewards are `gain` standard deviations above the reference's."""
    rng, reference_rng = np.random.default_rng(seed), np.random.default_rng(0)
    shape = (prompts, samples)

    def side(stream: np.random.Generator, up: float, judge_up: float, kl: float) -> Side:
        train = stream.normal(size=shape)
        judge = 0.9 * train + 0.1 * stream.normal(size=shape)
        ones = np.ones(prompts)
        return Side(train + up, judge + judge_up, kl * ones, 20.0 * ones, ones)

    theirs = side(reference_rng, 0.0, 0.0, 0.0)
    ours = side(rng, gain, gain if judge_gain is None else judge_gain, 0.5)
    other = np.clip(0.5 + 0.1 * rng.normal(size=30) + other_gain, 0, 1)
    ids = tuple(f"{i:016x}" for i in range(prompts))
    return Evidence(replace(FACTS, **facts), ids, ours, theirs, {"harmless": other})


def met(candidate: Evidence, champion: Evidence, **about: Any) -> Bouts:
    """The two on the prompts that both were evaluated on, as an arena would find it."""
    procedures = (candidate.facts.procedure, champion.facts.procedure)
    both = (candidate.policy, champion.policy)
    selecting = tuple(side.selecting[:, :16] for side in both)
    wins = {SELECTING: head_to_head(procedures, selecting, selecting)}
    if candidate.policy.independent is not None and champion.policy.independent is not None:
        judged = tuple(side.independent[:, :16] for side in both if side.independent is not None)
        wins[INDEPENDENT] = head_to_head(procedures, selecting, (judged[0], judged[1]))
    return Bouts(candidate.prompt_ids, wins, selecting[0].shape[1], **about)


def write_met(root: Path, params: Params, candidate: Evidence, champion: Evidence) -> None:
    """Keep what came of the arena of the two where it is looked for."""
    prompts = root / "results" / "prepare" / "prompts.parquet"
    if not prompts.exists():
        empty: dict[str, list[str]] = {name: [] for name in PROMPTS.schema.names}
        write_table(prompts, empty, PROMPTS)
    objective = candidate.facts.objective
    name = bouts_name(root, params, candidate, champion)
    write_bouts(bouts_folder(root, objective, name), met(candidate, champion))


def changed(case: Evidence, **sides: Any) -> Evidence:
    """The evidence with some of the policy's arrays replaced."""
    return replace(case, policy=replace(case.policy, **sides))


def tiny_models(folder: Path, tokenizer: Any) -> None:
    """`policy/` and `reward/`, two-layer Llamas with random weights."""
    import torch

    from infalign.lm.models import build_reward_model, build_tiny, save_model
    from infalign.settings.params import Tiny

    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
    cpu = torch.device("cpu")
    policy = build_tiny(sizes, tokenizer, 96, cpu, seed=1)
    save_model(policy, tokenizer, folder / "policy")
    reward = build_reward_model(folder / "policy", tokenizer, cpu, seed=2)
    save_model(reward, tokenizer, folder / "reward")


def write_settings(folder: Path, **changes: Any) -> None:
    """What a packaged policy says of itself, and one prompt's references."""
    from infalign.deployment.deployed import REFERENCES

    settings = {
        "objective": "helpful",
        "variant": "ctrl",
        "procedure": "best_of:4",
        "prompt_tokens": 64,
        "response_tokens": 12,
        "threads": 1,
        "device": "cpu",
    }
    (folder / "settings.json").write_text(json.dumps(settings | changes))
    columns = {"dialogue": [asked(PROMPT).text], "rewards": [[-0.05, 0.0, 0.05, 0.1]]}
    write_table(folder / "references.parquet", columns, REFERENCES)


def write_package(folder: Path, models: Path, case: Evidence) -> Path:
    """A package of tiny models with this evidence."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(models, folder / "deployed")
    write_settings(folder / "deployed", objective=case.facts.objective)
    write_evidence(folder / "evidence", case)
    return folder


def project_params() -> Params:
    """The project's own."""
    return load_params(ROOT / "params.yaml")


def write_lock(root: Path, result: str, objectives: tuple[str, ...] = ("helpful",)) -> None:
    """A dvc.lock in which evaluate found `result`; params.yaml beside it."""
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    stages = {
        f"evaluate@{objective}": {
            "deps": [{"path": "results/prepare", "md5": "d4ta.dir"}],
            "outs": [{"path": f"results/evaluate/{objective}", "md5": f"{result}.dir"}],
        }
        for objective in objectives
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


COPY = '''"""Copies made-up results, worse ones where few steps are asked for."""
import shutil
import sys
from pathlib import Path

import yaml

steps = yaml.safe_load(Path("params.yaml").read_text())["align"]["steps"]
for name in sys.argv[1:]:
    source = Path("made", name)
    if steps < 10 and Path("worse", name).exists():
        source = Path("worse", name)
    shutil.rmtree(Path("results", name), ignore_errors=True)
    shutil.copytree(source, Path("results", name))
'''
STAGES = """\
stages:
  prepare:
    cmd: python copy_made.py prepare sft reward calibrate align
    deps: [copy_made.py]
    params: [align.steps]
    outs: [results/prepare, results/sft, results/reward, results/calibrate, results/align]
  evaluate:
    matrix:
      objective: ${run.objectives}
    cmd: python copy_made.py evaluate/${item.objective}
    deps: [results/prepare, results/align]
    params: [align.steps]
    outs: ["results/evaluate/${item.objective}"]
  report:
    cmd: mkdir -p results/report && cp params.yaml results/report
    deps: [results/evaluate]
    outs: [results/report]
"""


def write_made(root: Path, tokenizer: Any) -> None:
    """A project whose stages copy made-up results: `made/`, and worse evaluations in `worse/`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from infalign.files.tables import EVALUATION_REWARDS, read_table
    from tests.stages.report_case import case_params, run_evaluate, write_inputs

    promotion = bounds(judge_margin=0.5, other_margin=0.5, other_samples=2, bootstrap=100)
    run = {"objectives": ["helpful"], "variants": ["ctrl"], "device": "cpu"}
    params = case_params(prompts=40, run=run, promotion=promotion.model_dump())
    made = root / "case"
    write_inputs(made, params)
    run_evaluate(made, params)
    results = root / "made"
    shutil.move(made / "results", results)
    shutil.rmtree(made)
    _shorten(results / "prepare" / "prompts.parquet")
    models = root / "models"
    tiny_models(models, tokenizer)
    shutil.copytree(models / "policy", results / "sft" / "policy")
    for objective in params.run.objectives:
        _write_models(results, objective, models)
        path = Path("evaluate", objective, "rewards.parquet")
        table = read_table(results / path, EVALUATION_REWARDS)
        fall = pc.if_else(pc.equal(table["policy"], "ctrl"), 2.0, 0.0)
        worse = {name: table[name] for name in table.column_names}
        worse["reward"] = pa.chunked_array([pc.subtract(table["reward"], fall).combine_chunks()])
        shutil.copytree(results / path.parent, root / "worse" / path.parent)
        write_table(root / "worse" / path, worse, EVALUATION_REWARDS)
    shutil.rmtree(models)
    (root / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    (root / "dvc.yaml").write_text(STAGES)
    (root / "copy_made.py").write_text(COPY)


def _shorten(path: Path) -> None:
    """Prompts that a tiny policy takes, in the place of longer ones."""
    from infalign.files.tables import read_table

    table = read_table(path, PROMPTS)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    columns["dialogue"] = [
        asked(f"{WORDS[n % 10]} {WORDS[n // 10 % 10]}").text for n in range(len(table))
    ]
    write_table(path, columns, PROMPTS)


def _write_models(results: Path, objective: str, models: Path) -> None:
    """Tiny models where package looks for them, and the tables that report_case leaves out."""
    from infalign.files.tables import CALIBRATED, CALIBRATION, PREFERENCES, read_table
    from infalign.files.workspace import write_json

    for half in ("selecting", "independent"):
        shutil.copytree(models / "reward", results / "reward" / objective / half)
    shutil.copytree(models / "policy", results / "align" / objective / "ctrl" / "policy")
    folder = results / "calibrate" / objective
    rows = read_table(folder / "calibrated.parquet", CALIBRATED).to_pylist()
    ids = sorted({row["prompt_id"] for row in rows})
    rewards = [sorted(row["reward"] for row in rows if row["prompt_id"] == i) for i in ids]
    columns = {
        "prompt_id": ids,
        "split": ["test"] * len(ids),
        "n_reference": [len(row) for row in rewards],
        "rewards": rewards,
    }
    write_table(folder / "calibration.parquet", columns, CALIBRATION)
    write_json(folder / "metrics.json", {"calibration_error": {"16": 0.08, "32": 0.06}})
    empty: dict[str, list[str]] = {name: [] for name in PREFERENCES.schema.names}
    write_table(results / "prepare" / "preferences.parquet", empty, PREFERENCES)
