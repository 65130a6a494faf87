"""Models that process 0 deals out are those that are loaded whole, and no one else has one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from infalign.lm.models import save_model
from tests.lm.families import FAMILIES, saved

SCRIPT = Path(__file__).with_name("dealing.py")
ROOT = SCRIPT.parents[3]
LARGE = {"vocab_size": 512, "hidden_size": 512, "intermediate_size": 2048}  # of 134 MB
LAYERS = {"num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 4}


def deal(folder: Path, parts: list[str], processes: int = 2) -> None:
    """Compare the parts in several processes."""
    torch.manual_seed(0)
    large = LlamaForCausalLM(LlamaConfig(**LARGE, **LAYERS))
    large.save_pretrained(folder / "large", max_shard_size="40MB")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += [str(SCRIPT), str(folder), ",".join(parts)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = sum(weight.nbytes for weight in large.parameters())
    for rank in range(processes):
        grown, held = json.loads((folder / f"grown-{rank}.json").read_text())
        assert held == pytest.approx(whole / processes, rel=0.01)
        # What is on its way, in pieces and as it comes; and what the allocator keeps of that.
        assert grown < (0 if rank else whole) + held + whole / 4, rank


def test_two_processes_have_what_the_files_say_and_no_more_than_their_shares(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Tied and untied, converted experts, alibi, what an encoder lacks, an adapter, a resize."""
    for family in ("llama", "gpt2", "gemma2", "mixtral", "bloom"):
        saved(family, tokenizer, tmp_path / family)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": 32}
    layers = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    save_model(BertForMaskedLM(BertConfig(**sizes, **layers)), tokenizer, tmp_path / "bert")
    parts = ["llama:policy", "llama:adapter", "llama:reward", "gpt2:adapter", "gemma2:frozen"]
    deal(tmp_path, [*parts, "mixtral:policy", "bloom:policy", "bert:reward"])


@pytest.mark.soak
def test_every_family_in_three_processes(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    for family in FAMILIES:
        saved(family, tokenizer, tmp_path / family)
    deal(tmp_path, [f"{name}:{what}" for name in FAMILIES for what in ("policy", "frozen")], 3)
