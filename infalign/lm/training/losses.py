"""Losses as pure functions of log-probabilities and rewards."""

from __future__ import annotations

from typing import NamedTuple

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


class RlooLoss(NamedTuple):
    """One on-policy step.

    Attributes:
        loss: scalar whose gradient is RLOO's.
        advantage: [prompts, samples], in the reward's unit; sums to zero over a prompt's samples.
    """

    loss: torch.Tensor
    advantage: torch.Tensor


def rloo_loss(
    reward: torch.Tensor, logp: torch.Tensor, reference_logp: torch.Tensor, beta: float
) -> RlooLoss:
    """REINFORCE leave-one-out with the KL in the reward (Ahmadian et al. 2024, arXiv 2402.14740).

    Every response's return is R - beta (log pi - log ref); its advantage is the return less the
    mean return of the prompt's other responses. Log-probabilities are sums over tokens. At the
    optimum pi ∝ ref exp(R / beta) every return of a prompt is equal and the gradient vanishes
    sample by sample; the gradient is that of beta/2 times the variance of the returns over a
    prompt's responses, whatever policy drew them, so that no ratio is needed off-policy.

    Args:
        reward: R [prompts, samples].
        logp: log pi of each response, nats, with gradient [prompts, samples].
        reference_logp: log ref of each response, nats [prompts, samples].
        beta: KL weight, in the reward's unit a nat.
    """
    returns = reward - beta * (logp.detach() - reference_logp)
    samples = returns.shape[1]
    advantage = (returns - returns.mean(1, keepdim=True)) * (samples / (samples - 1))
    return RlooLoss(-(advantage * logp).mean(), advantage)
