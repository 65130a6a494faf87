"""reward: accuracy and its interval, halves, and folders that open elsewhere."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
)

from infalign.aligning.reward_models import accuracy, train_model
from infalign.lm.models import save_model
from infalign.stages import reward


def test_accuracy_by_hand():
    found = accuracy(np.array([1.0, 2.0, 0.0, -1.0]))
    assert found["accuracy"] == 2.5 / 4
    # Wilson's interval for 2.5 of 4
    z, n, p = 1.959963984540054, 4, 0.625
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert found["accuracy_low"] == pytest.approx(centre - half)
    assert found["accuracy_high"] == pytest.approx(centre + half)
    assert found["held_out_loss"] == pytest.approx(np.mean(np.log1p(np.exp([-1.0, -2, 0, 1]))))


def test_models_learn_from_different_pairs_and_differ(finished, smoke_tree):
    for objective in smoke_tree["run"]["objectives"]:
        folder = finished / "results/reward" / objective
        train, judge = ((folder / half / "model.safetensors").read_bytes() for half in HALVES)
        assert train != judge


HALVES = ("selecting", "independent")


def test_folders_open_with_plain_transformers(finished):
    folder = finished / "results/reward/helpful/selecting"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model(**tokenizer("one", return_tensors="pt")).logits.shape == (1, 1)


def test_metrics_name_the_ceiling(finished, smoke_tree):
    for objective in smoke_tree["run"]["objectives"]:
        path = finished / "results/reward" / objective / "metrics.json"
        metrics = json.loads(path.read_text())
        assert 0.5 < metrics["accuracy_ceiling"] < 1
        for half in HALVES:
            found = metrics[half]
            assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks what is about to be renamed
def test_an_adapter_is_merged_and_the_head_is_trained_with_it(workspace):
    made = workspace("reward@helpful")
    settings = made.params.reward.model_copy(update={"lora_rank": 4})
    made = replace(made, params=made.params.model_copy(update={"reward": settings}))
    reward.run(made, "helpful")
    folder = made.out / "reward" / "helpful" / "selecting"
    after = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    policy = made.results("sft", "policy")
    before = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    moved = {n for n, value in after.items() if n in before and not value.equal(before[n])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    assert after["score.weight"].std() != pytest.approx(0.02, rel=1e-3), "it has left its start"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_encoders_adapter_in_bfloat16_is_merged_into_its_float32_weights(workspace, tmp_path):
    """The base is frozen in bfloat16 while the adapter, the pooler and the head are trained."""
    made = workspace("reward")
    tokenizer = AutoTokenizer.from_pretrained(made.results("sft", "policy"))
    sizes = {"hidden_size": 32, "intermediate_size": 48}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(2)
    given = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes, **layers))
    save_model(given, tokenizer, tmp_path / "encoder")
    where = {name: str(tmp_path / "encoder") for name in ("name_or_path", "folder")}
    changes = where | {"lora_rank": 4, "learning_rate": 0.01, "epochs": 4.0}
    settings = made.params.reward.model_copy(update=changes)
    run = made.params.run.model_copy(update={"precision": "bfloat16"})
    made = replace(made, params=made.params.model_copy(update={"reward": settings, "run": run}))
    found = train_model(made, "helpful", "selecting")
    assert found["held_out_loss"] < np.log(2), "it has learnt nothing"
    folder = made.out / "reward" / "helpful" / "selecting"
    after = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    before = given.state_dict()
    assert all(weight.dtype is torch.float32 for weight in after.values())
    stayed = {name for name in before if name in after and after[name].equal(before[name])}
    moved = {name for name in before if name in after} - stayed
    linear = ("query", "key", "value", "dense")
    assert moved == {n for n in before if n.endswith(".weight") and n.split(".")[-2] in linear} - {
        n for n in before if n.startswith("cls.")
    }
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= set(after) - set(before)
