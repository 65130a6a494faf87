"""What of a ready classifier goes into a package: all that inference needs, and no pickle."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from infalign.data.framing import asked
from infalign.errors import InputError
from infalign.files.tables import PROMPTS, write_table
from infalign.files.workspace import Workspace
from infalign.rewards.classifier import Passes, ready_classifier
from infalign.rewards.description import described
from infalign.rewards.packaged import open_packaged, pack_source
from infalign.settings.params import check_params

PROMPT = asked("one two")
LEFT_OVER = ("optimizer.pt", "rng_state.pth", "scaler.pkl", "training_args.bin", "step.ckpt")


@pytest.fixture
def ready(tmp_path: Path, tokenizer: Any) -> Path:
    """A trained classifier's folder as trainers leave it."""
    folder = tmp_path / "models/ready"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), num_hidden_layers=1, num_labels=1, **sizes)
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    own.save_pretrained(folder)
    for name in LEFT_OVER:
        (folder / name).write_bytes(b"left over")
    return folder


def packed(root: Path, tree: dict[str, Any]) -> Path:
    """The reward of a package, made of what is in the folder now."""
    tree = copy.deepcopy(tree)
    reward = {"kind": "model", "path": "models/ready"}
    tree["objectives"]["helpful"] |= {"reward": reward, "judge": None}
    params = check_params(tree, "test")
    row = {"prompt_id": PROMPT.id, "objective": "helpful", "split": "test", "source": "made"}
    row |= {"dialogue": PROMPT.text, "columns": "{}"}
    table = root / "results/prepare/prompts.parquet"
    write_table(table, {name: [value] for name, value in row.items()}, PROMPTS)
    (root / "results/sources").mkdir(exist_ok=True)
    about = described(params.objectives["helpful"], root)
    (root / "results/sources/helpful.json").write_text(json.dumps(about))
    pack_source(Workspace(params, root, "package"), "helpful", root / "deployed")
    return root / "deployed"


def test_what_a_trainer_left_over_stays_behind_and_the_rewards_are_the_same(
    ready: Path, smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    deployed = packed(tmp_path, smoke_tree)
    here = {path.name for path in ready.iterdir()}
    assert {path.name for path in (deployed / "reward").iterdir()} == here - set(LEFT_OVER)
    source = open_packaged(deployed, "cpu", "float32", Passes())
    plain = ready_classifier(ready, None, None, ("cpu", "float32"), Passes())
    said = ["three", "four five six"]
    assert source.rewards([PROMPT] * 2, said).tolist() == plain.rewards([PROMPT] * 2, said).tolist()


def test_weights_that_are_pickled_alone_are_one_sentence(
    ready: Path, smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    (ready / "model.safetensors").rename(ready / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        packed(tmp_path, smoke_tree)
