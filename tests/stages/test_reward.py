"""reward: accuracy and its interval, halves, and folders that open elsewhere."""

import json
from dataclasses import replace

import numpy as np
import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from infalign.aligning.reward_models import accuracy
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
    metrics = json.loads((finished / "results/reward/metrics.json").read_text())
    for objective in smoke_tree["run"]["objectives"]:
        assert 0.5 < metrics[objective]["accuracy_ceiling"] < 1
        for half in HALVES:
            found = metrics[objective][half]
            assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks what is about to be renamed
def test_an_adapter_is_merged_and_the_head_is_trained_with_it(workspace):
    made = workspace("reward")
    settings = made.params.reward.model_copy(update={"lora_rank": 4})
    made = replace(made, params=made.params.model_copy(update={"reward": settings}))
    reward.run(made)
    folder = made.out / "reward" / "helpful" / "selecting"
    after = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    policy = made.results("sft", "policy")
    before = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    moved = {n for n, value in after.items() if n in before and not value.equal(before[n])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    assert after["score.weight"].std() != pytest.approx(0.02, rel=1e-3), "it has left its start"
