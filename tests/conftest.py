"""Tiny models and smoke params shared by all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker's threads would wait for the other's

import pytest
import yaml
from filelock import FileLock
from smoke import ROOT, SMOKE, merged

MakeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """A function that has a named folder made by the first worker to ask; the others read it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, made = base / name, base / f"{name}.made"
        with FileLock(f"{folder}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return folder_of


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


@pytest.fixture(scope="session")
def form(tokenizer):  # type: ignore[no-untyped-def]
    """How the tokenizer's models see dialogues: `plain`."""
    from infalign.lm.formats import Format

    return Format(tokenizer)


@pytest.fixture
def policy(tokenizer):  # type: ignore[no-untyped-def]
    """A two-layer Llama with random weights."""
    import torch

    from infalign.lm.models import build_tiny
    from infalign.settings.params import Tiny

    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
    return build_tiny(sizes, tokenizer, 64, torch.device("cpu"), seed=1)
