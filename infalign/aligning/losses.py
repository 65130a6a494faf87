"""The losses of CTRL and of its baselines, as pure functions.

Everywhere a response's log-probability and its log-ratio log pi - log ref are **sums over its
tokens**, EOS included, in nats; the losses are means over pairs or responses. Nothing is divided by
length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

EULER = 0.5772156649015329
DENSEST = 3.0  # nats over the reference, beyond which a response weighs no more in a regression
SAME_NATS = 1e-3  # between two log-ratios whose densities are alike
LEAST_WEIGHT = 0.05  # of a response that neither the policy nor the optimum gives


def distillation_loss(best_logp: torch.Tensor) -> torch.Tensor:
    """Best-of-n distillation: the mean over responses of -log pi(best), a sum over tokens.

    Args:
        best_logp: of the best of n responses [responses].
    """
    return -best_logp.mean()


def ipo_loss(chosen_ratio: torch.Tensor, rejected_ratio: torch.Tensor, tau: float) -> torch.Tensor:
    """Identity preference optimisation: mean of (h - 1/(2 tau))^2 (Azar et al. 2024, 2310.12036).

    h is the log-ratio of the chosen less that of the rejected response. On pairs of fresh reference
    samples the minimum is ref * exp(C / tau): the calibrated reward itself.

    Args:
        chosen_ratio, rejected_ratio: log pi - log ref, sums over tokens [pairs].
        tau: the KL weight.
    """
    return (chosen_ratio - rejected_ratio - 1 / (2 * tau)).square().mean()


def dpo_loss(chosen_ratio: torch.Tensor, rejected_ratio: torch.Tensor, beta: float) -> torch.Tensor:
    """Direct preference optimisation: mean of -log sigmoid(beta h) (Rafailov et al. 2023).

    With labels drawn by Bradley-Terry from rewards the minimum is ref * exp(r / beta): raw RLHF.

    Args:
        chosen_ratio, rejected_ratio: log pi - log ref, sums over tokens [pairs].
        beta: the KL weight, in the reward's unit a nat.
    """
    return -F.logsigmoid(beta * (chosen_ratio - rejected_ratio)).mean()


def regression_loss(ratio: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """CTRL without generating: half the weighted mean of (log pi - log ref - target)^2.

    With target = Phi(C)/beta - log Z every term of the minimum is 0 at the optimum of
    E[Phi(C)] - beta KL, whatever policy drew the responses (InfAlign, arXiv 2412.19792; unweighted
    and with the identity it is QRPO's loss, arXiv 2507.08068).

    A response of the reference counts as much as the policy or the optimum gives it, by the
    logarithmic mean of both densities over the reference's, and a little more. So the gradient is
    nearly that of the KL of the optimum from the policy, (pi - pi*)/ref times that of log pi:
    how deep an unlikely response lies matters little, where it would carry a plain square away.

    Args:
        ratio: log pi - log ref, sums over tokens, nats, of any shape.
        target: what it should be, of the same shape.
    """
    own, wanted = ratio.detach().clamp(max=DENSEST), target.clamp(max=DENSEST)
    apart = own - wanted
    same = apart.abs() < SAME_NATS
    mean = (own.exp() - wanted.exp()) / torch.where(same, torch.ones_like(apart), apart)
    weight = torch.where(same, own.exp(), mean) + LEAST_WEIGHT
    return 0.5 * (weight * (ratio - target).square()).mean()


def bonbon_loss(
    best_logp: torch.Tensor,
    best_ratio: torch.Tensor,
    worst_ratio: torch.Tensor,
    n: float,
    alpha: float,
) -> torch.Tensor:
    """BoNBoN: alpha * distillation + (1 - alpha) * IPO at `bonbon_beta` (Gui et al. 2024).

    Args:
        best_logp: of the best of n responses, sums over tokens [pairs].
        best_ratio, worst_ratio: log pi - log ref of the best and the worst, likewise [pairs].
        n: responses that the best and the worst were chosen from.
        alpha: weight of the likelihood.
    """
    pair = ipo_loss(best_ratio, worst_ratio, bonbon_beta(n))
    return alpha * distillation_loss(best_logp) + (1 - alpha) * pair


def bonbon_beta(n: float) -> float:
    """1 / (2 (n-1) H_{n-1}): the Best-of-n policy has mean h = (n-1) H_{n-1} over its pairs.

    H is the harmonic number, which the digamma function gives for every real n > 1.
    """
    harmonic = float(torch.digamma(torch.tensor(n, dtype=torch.float64))) + EULER
    return 1 / (2 * (n - 1) * harmonic)


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
    sample by sample; the gradient is that of 1 / (2 beta) times the variance (over samples - 1) of
    the returns over a prompt's responses, whatever policy drew them, so that no ratio is needed
    off-policy: d/dpi of the variance is -2 beta / (samples - 1) times the centred returns.

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
