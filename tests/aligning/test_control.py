"""The KL budget: how beta reacts, and that the last move meets the budget."""

import copy

import pytest
import torch

from infalign.aligning.control import BetaControl, check_start, settle
from infalign.errors import CheckFailed


def test_beta_rises_above_the_budget_and_falls_below_it():
    control = BetaControl(1.0, 0.5, 100)
    for number in range(20):
        control.update(number, 1.0)
    raised = control.beta
    assert raised > 1.0
    for number in range(60, 100):
        control.update(number, 0.1)
    assert control.beta < raised


def test_where_kl_is_spent_at_the_start_it_is_measured_against_the_whole_budget():
    cold, warm = BetaControl(1.0, 0.5, 100), BetaControl(1.0, 0.5, 100, warm=True)
    for control in (cold, warm):
        control.update(0, 0.5)
    assert warm.beta == pytest.approx(1.0)  # it is on target
    assert cold.beta > 1.5  # of which a run that starts at the reference knows nothing yet


NONE, LITTLE = torch.zeros(4), torch.full((4,), 1e-5)  # log-ratios of four responses


@pytest.mark.parametrize(
    ("kl", "log_ratio", "device", "holds"),
    [
        (0.0, NONE, "cpu", True),
        (1e-12, NONE, "cpu", False),  # to the last bit
        (0.0, LITTLE, "cpu", False),
        (float("nan"), NONE, "cpu", False),
        (0.0, NONE, "cuda", True),
        (0.09, NONE, "cuda", True),  # ten tokens a response, 0.01 nats each
        (-0.09, LITTLE, "cuda", True),
        (0.11, NONE, "cuda", False),
        (0.0, torch.tensor([0.4, -0.4, 0.5, -0.6]), "cuda", True),  # 1.9 nats in 40 tokens
        (0.0, torch.tensor([0.4, -0.4, 0.5, -0.8]), "cuda", False),
        (0.0, torch.full((4,), float("nan")), "cuda", False),
    ],
)
def test_training_starts_at_the_reference_exactly_or_on_a_gpu_nearly(kl, log_ratio, device, holds):
    if holds:
        check_start(kl, log_ratio, 40, device)
        return
    with pytest.raises(CheckFailed, match="the policy is not the reference") as failure:
        check_start(kl, log_ratio, 40, device)
    assert "\n" not in str(failure.value)


def test_the_target_rises_to_the_budget():
    early, late = BetaControl(1.0, 0.5, 100), BetaControl(1.0, 0.5, 100)
    early.update(8, 0.5 / 3)  # a third of the way up
    late.update(90, 0.5 / 3)
    assert early.beta == pytest.approx(1.0)
    assert late.beta < 1.0


def test_a_lasting_error_is_learnt():
    """A KL that answers to beta as KL = 0.8 - beta meets the budget, not a little beside it."""
    control = BetaControl(0.6, 0.5, 400)
    for number in range(400):
        control.update(number, 0.8 - control.beta)
    assert control.beta == pytest.approx(0.3, rel=0.2)


def test_a_short_run_does_not_lose_its_beta():
    """Six steps without any KL yet: beta stays near where the theory puts it."""
    control = BetaControl(1.0, 0.5, 6)
    for number in range(6):
        control.update(number, 0.0)
    assert 0.3 < control.beta < 1.0


def test_a_fixed_beta_stays():
    control = BetaControl(1.0, None, 100)
    control.update(0, 9.0)
    assert control.beta == 1.0


def test_a_checkpoint_holds_the_whole_state():
    first, second = BetaControl(1.0, 0.5, 100), BetaControl(9.0, 0.5, 100)
    first.update(60, 1.0)
    second.load_state_dict(first.state_dict())
    for control in (first, second):
        control.update(61, 0.2)
    assert first.beta == second.beta


@pytest.mark.parametrize("size", [0.8, 0.95, 1.2])
def test_settling_meets_the_budget(policy, size):
    torch.manual_seed(0)
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.02 * size * torch.randn_like(weight))
    ids = torch.randint(3, 200, (8, 12))

    def measure():
        with torch.no_grad():
            ours, theirs = (torch.log_softmax(m(ids).logits, -1) for m in (policy, reference))
        return float((ours.exp() * (ours - theirs)).sum(-1).mean()) * 1e3

    budget = measure() / size**2
    found = settle(policy, reference.parameters(), measure, budget)
    assert found.kl == measure() == pytest.approx(budget, rel=0.011)
    assert found.scale == pytest.approx(1 / size, rel=0.1)
