"""Tiny models and smoke params shared by all tests."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import yaml

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
    "align": {"steps": 6, "prompts_per_step": 4, "samples_per_prompt": 4, "checkpoint_every": 2},
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


@pytest.fixture(scope="session")
def params_tree() -> dict[str, Any]:
    """The project's params.yaml as it is."""
    tree: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    return tree


@pytest.fixture(scope="session")
def smoke_tree(params_tree: dict[str, Any]) -> dict[str, Any]:
    """params.yaml made small enough for the whole pipeline to run in about a minute."""
    return merged(params_tree, SMOKE)


@pytest.fixture(scope="session")
def tokenizer():  # type: ignore[no-untyped-def]
    """A byte-level BPE tokenizer of 300 tokens, with BOS, EOS and padding of their own."""
    from infalign.data.tokenizer import train_tokenizer

    texts = ["\n\nHuman: one two three\n\nAssistant: four five six", " seven eight nine ten"]
    return train_tokenizer(texts, 300)


@pytest.fixture
def policy(tokenizer):  # type: ignore[no-untyped-def]
    """A two-layer Llama with random weights."""
    import torch

    from infalign.lm.models import build_tiny
    from infalign.params import Tiny

    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
    return build_tiny(sizes, tokenizer, 64, torch.device("cpu"), seed=1)
