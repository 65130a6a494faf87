"""reward: accuracy and its interval, halves, and folders that open elsewhere."""

import json

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infalign.aligning.reward_models import accuracy


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
