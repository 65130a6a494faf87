"""Made-up candidates: evidence with known win rates, tiny models, packages and their project."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from infalign.evidence import Evidence, Facts, Side, write_evidence
from infalign.params import Params, Promotion, load_params

ROOT = Path(__file__).parents[1]
FACTS = Facts("helpful", "ctrl", "best_of:4", "data", "judge", "reference", 0.06, 32, 0)
PROMPT = "\n\nHuman: one two three\n\nAssistant:"


def bounds(**changes: Any) -> Promotion:
    """The shipped bounds, some of them changed; fewer replicates."""
    tree = load_params(ROOT / "params.yaml").promotion.model_dump()
    return Promotion.model_validate(tree | {"bootstrap": 200} | changes)


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


def changed(case: Evidence, **sides: Any) -> Evidence:
    """The evidence with some of the policy's arrays replaced."""
    return replace(case, policy=replace(case.policy, **sides))


def tiny_models(folder: Path, tokenizer: Any) -> None:
    """`policy/` and `reward/`, two-layer Llamas with random weights."""
    import torch

    from infalign.lm.models import build_reward_model, build_tiny, save_model
    from infalign.params import Tiny

    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
    cpu = torch.device("cpu")
    policy = build_tiny(sizes, tokenizer, 96, cpu, seed=1)
    save_model(policy, tokenizer, folder / "policy")
    reward = build_reward_model(folder / "policy", tokenizer, cpu, seed=2)
    save_model(reward, tokenizer, folder / "reward")


def write_settings(folder: Path, **changes: Any) -> None:
    """What a packaged policy says of itself, and one prompt's references."""
    from infalign.deployed import REFERENCES
    from infalign.tables import write_table

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
    columns = {"prompt": [PROMPT], "rewards": [[-0.05, 0.0, 0.05, 0.1]]}
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
