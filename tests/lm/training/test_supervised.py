"""Losses of supervised training: numbers by hand."""

import math

import pytest
import torch

from infalign.lm.training.losses import likelihood_loss, preference_loss


def test_likelihood_is_the_mean_over_tokens():
    assert float(likelihood_loss(torch.tensor([-1.0, -2.0, -6.0]))) == 3.0


def test_preference_loss_by_hand():
    found = float(preference_loss(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])))
    assert found == pytest.approx((math.log(1 + math.exp(-1)) + math.log(2)) / 2)
