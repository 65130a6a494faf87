"""Smoke params: the whole pipeline in about a minute."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

SMOKE: dict[str, dict[str, Any]] = {
    "corpus": {"train_prompts": 60, "test_prompts": 24, "pairs_per_prompt": 2},
    "model": {
        "tiny": {
            "vocab_size": 768,
            "hidden_size": 32,
            "intermediate_size": 48,
            "layers": 1,
            "heads": 2,
        }
    },
    "sft": {"epochs": 4.0, "batch_size": 32},
    "reward": {"batch_size": 16},
    "sample": {
        "train_prompts": 12,
        "test_prompts": 8,
        "train_samples": 8,
        "test_samples": 8,
        "large_prompts": 4,
        "large_samples": 16,
        "shard_responses": 32,
    },
    "calibrate": {"error_references": [4, 8]},
    "align": {
        "steps": 6,
        "prompts_per_step": 4,
        "samples_per_prompt": 2,
        "reference_samples": 2,
        "checkpoint_every": 2,
    },
    "evaluate": {"best_of": [1, 2], "bootstrap": 100},
    "report": {"examples": 2},
}


def merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a nested mapping with some values replaced."""
    result = copy.deepcopy(tree)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result
