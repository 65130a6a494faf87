"""The RLOO loss: numbers by hand, gradients by definition, a toy with a known optimum."""

import pytest
import torch

from infalign.aligning.losses import rloo_loss


def test_advantage_is_the_return_less_the_others_mean():
    reward = torch.tensor([[1.0, 2.0, 6.0]])
    logp = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    reference = torch.tensor([[-1.5, -2.0, -2.0]])
    found = rloo_loss(reward, logp, reference, beta=2.0)
    returns = [1 - 2 * 0.5, 2.0, 6 - 2 * -1.0]  # 0, 2, 8
    expected = [returns[0] - 5.0, returns[1] - 4.0, returns[2] - 1.0]
    assert found.advantage[0].tolist() == pytest.approx(expected)
    by_hand = -(expected[0] * -1 + expected[1] * -2 + expected[2] * -3) / 3
    assert float(found.loss.detach()) == pytest.approx(by_hand)


def test_gradient_is_that_of_the_variance_of_the_returns():
    torch.manual_seed(0)
    reward, reference = torch.randn(5, 4), torch.randn(5, 4)
    logp = torch.randn(5, 4, requires_grad=True)
    beta = 0.7
    (found,) = torch.autograd.grad(rloo_loss(reward, logp, reference, beta).loss, logp)
    returns = reward - beta * (logp - reference)
    variance = returns.var(dim=1, unbiased=True).mean()
    (expected,) = torch.autograd.grad(variance / (2 * beta), logp)
    # mean over prompts of the sum over samples / (n - 1), against the mean over all responses
    assert torch.allclose(found, expected, atol=1e-6)


def test_no_gradient_at_the_optimum():
    torch.manual_seed(0)
    reward, reference, beta = torch.randn(3, 6), torch.randn(3, 6), 0.5
    logp = (reference + reward / beta - 3.0).requires_grad_()
    (gradient,) = torch.autograd.grad(rloo_loss(reward, logp, reference, beta).loss, logp)
    assert gradient.abs().max() < 1e-6


def test_a_bandit_reaches_the_tilted_reference():
    torch.manual_seed(0)
    reference = torch.log_softmax(torch.randn(6), 0)
    reward, beta = torch.linspace(0, 1, 6), 0.4
    logits = reference.clone().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.05)
    for _ in range(400):
        policy = torch.log_softmax(logits, 0)
        arms = torch.multinomial(policy.detach().exp(), 64, replacement=True)[None]
        step = rloo_loss(reward[arms], policy[arms], reference[arms], beta)
        optimiser.zero_grad()
        step.loss.backward()
        optimiser.step()
    optimum = torch.log_softmax(reference + reward / beta, 0)
    found = torch.log_softmax(logits.detach(), 0)
    assert float((optimum.exp() * (optimum - found)).sum()) < 1e-3
