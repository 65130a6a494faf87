"""Losses of the baselines: numbers by hand, and the optimum that each paper proves."""

import math

import pytest
import torch

from infalign.aligning.losses import (
    bonbon_beta,
    bonbon_loss,
    distillation_loss,
    dpo_loss,
    ipo_loss,
)

CHOSEN, REJECTED = torch.tensor([1.0, -0.5]), torch.tensor([0.25, 0.5])  # h = 0.75, -1


def test_distillation_is_a_mean_over_responses_of_sums_over_tokens():
    assert float(distillation_loss(torch.tensor([-12.0, -8.0, -1.0]))) == 7.0


def test_ipo_by_hand():
    found = float(ipo_loss(CHOSEN, REJECTED, tau=0.25))  # 1 / (2 tau) = 2
    assert found == pytest.approx((1.25**2 + 3**2) / 2)


def test_dpo_by_hand():
    found = float(dpo_loss(CHOSEN, REJECTED, beta=0.4))
    expected = (math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(0.4))) / 2
    assert found == pytest.approx(expected)


def test_bonbon_by_hand():
    found = float(bonbon_loss(torch.tensor([-3.0, -5.0]), CHOSEN, REJECTED, n=2.0, alpha=0.25))
    pair = ((0.75 - 1) ** 2 + (-1 - 1) ** 2) / 2  # (n - 1) H_{n-1} = 1 at n = 2
    assert found == pytest.approx(0.25 * 4 + 0.75 * pair)


@pytest.mark.parametrize(("n", "beta"), [(2, 0.5), (3, 1 / 6), (8, 0.0275482)])
def test_bonbon_beta_is_the_papers(n, beta):
    assert bonbon_beta(float(n)) == pytest.approx(beta, rel=1e-6)
    harmonic = sum(1 / k for k in range(1, n))
    assert bonbon_beta(float(n)) == pytest.approx(1 / (2 * (n - 1) * harmonic), rel=1e-9)


def test_bonbon_beta_is_what_the_best_of_n_policy_has():
    """1 / (2 beta) is the mean over best and worst of n of h = (n - 1) log(u / v)."""
    n = 3.5
    rng = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 400_000, generator=rng, dtype=torch.float64)
    best = first ** (1 / n)
    worst = best * (1 - second ** (1 / (n - 1)))
    mean = float(((n - 1) * (best / worst).log()).mean())
    assert mean == pytest.approx(1 / (2 * bonbon_beta(n)), rel=0.01)


def minimise(loss, arms):
    """The log-ratios of a bandit's arms, uniform under the reference, that minimise a loss."""
    ratio = torch.zeros(arms, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([ratio], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = loss(ratio - (ratio.exp().mean()).log())
        value.backward()
        return value

    optimiser.step(closure)
    return (ratio - ratio.exp().mean().log()).detach()


def test_the_minimum_of_ipo_is_the_calibrated_reward():
    arms, tau = 9, 0.3
    higher, lower = torch.tril_indices(arms, arms, -1)
    found = minimise(lambda r: ipo_loss(r[higher], r[lower], tau), arms)
    calibrated = (torch.arange(arms) + 0.5) / arms
    # Over the arms^2 ordered pairs, of which these are all that differ.
    expected = calibrated / tau
    expected = (expected - expected.mean()).double()
    assert torch.allclose(found - found.mean(), expected, atol=1e-4)


def test_the_minimum_of_dpo_on_bradley_terry_labels_is_the_raw_reward():
    reward, beta = torch.tensor([0.0, 0.7, 1.1, 2.5], dtype=torch.float64), 0.6
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T

    def loss(ratio):
        weight = torch.sigmoid(reward[pairs[0]] - reward[pairs[1]])
        each = [dpo_loss(ratio[i][None], ratio[j][None], beta) for i, j in pairs.T]
        return (weight * torch.stack(each)).sum()

    found = minimise(loss, 4)
    expected = reward / beta
    assert torch.allclose(found - found.mean(), expected - expected.mean(), atol=1e-4)
