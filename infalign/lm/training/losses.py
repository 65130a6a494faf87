"""Losses as pure functions of log-probabilities and rewards."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def likelihood_loss(token_logp: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of response tokens, nats a token.

    Args:
        token_logp: [response tokens of the batch], EOS included, prompts not.
    """
    return -token_logp.mean()


def preference_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Bradley-Terry: mean of -log sigmoid(r(chosen) - r(rejected)) (Bradley and Terry 1952).

    Args:
        chosen, rejected: rewards [pairs].
    """
    return -F.logsigmoid(chosen - rejected).mean()
