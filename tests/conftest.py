"""Tiny models and smoke params shared by all tests."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import yaml
from smoke import ROOT, SMOKE, merged


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
