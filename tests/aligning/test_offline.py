"""CTRL without generating: the partition function, the optimum, and that a step learns it."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from infalign.aligning.goals import TrainingPrompts, calibrated_goal
from infalign.aligning.losses import regression_loss
from infalign.aligning.offline import OfflineSteps, divergence_of, weight_sums
from infalign.errors import CheckFailed, InputError
from infalign.lm.models import build_tiny
from infalign.lm.scoring.scorer import sum_responses
from infalign.lm.scoring.vocabulary import token_log_probs
from infalign.lm.text import make_batch
from infalign.lm.training.loop import Schedule, optimise
from infalign.lm.training.parallel import Trainable
from infalign.settings.params import Tiny, check_params
from infalign.theory.frontier import log_partition, solve_beta
from infalign.theory.transforms import parse_transform

SIZES = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)


@pytest.mark.parametrize("beta", [0.05, 0.3, 2.0])
def test_the_partition_function_in_closed_form(beta):
    assert log_partition("identity", beta) == pytest.approx(
        math.log(beta * math.expm1(1 / beta)), abs=1e-10
    )
    assert log_partition("log", beta) == pytest.approx(-math.log1p(1 / beta), abs=1e-10)


@pytest.mark.parametrize("spelling", ["exp:10", "exp:-10", "exp:3", "table:0,0.1,1"])
def test_the_partition_function_by_another_quadrature(spelling):
    beta = solve_beta(spelling, 0.5)
    phi = parse_transform(spelling)
    top = float(phi(1.0))
    found, _ = quad(lambda u: math.exp((float(phi(u)) - top) / beta), 0, 1, points=[0.5], limit=200)
    assert log_partition(spelling, beta) == pytest.approx(top / beta + math.log(found), abs=1e-8)


def test_no_partition_function_without_a_kl_weight():
    with pytest.raises(ValueError, match="beta must be finite and above 0, found 0"):
        log_partition("identity", 0.0)


@pytest.mark.parametrize("spelling", ["identity", "exp:10", "exp:-10"])
def test_the_exact_optimum_has_no_gradient(spelling):
    """40 responses of unlike probability, each a cell of the calibrated reward."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(40, generator=generator, dtype=torch.float64)
    reference /= reference.sum()
    beta = solve_beta(spelling, 0.5)
    edges = np.concatenate([[0.0], np.cumsum(reference.numpy())])
    phi = parse_transform(spelling)
    tilts = [
        quad(lambda u: math.exp(float(phi(u)) / beta), low, min(high, 1.0))[0] / (high - low)
        for low, high in itertools.pairwise(edges)
    ]
    target = torch.tensor(np.log(tilts)) - log_partition(spelling, beta)
    optimum = reference.log() + target
    assert float(optimum.exp().sum()) == pytest.approx(1, abs=1e-8)
    for shift, zero in ((0.0, True), (0.1, False)):
        logits = (optimum + shift * torch.arange(40) / 40).requires_grad_()
        ratio = torch.log_softmax(logits, 0) - reference.log()
        loss = regression_loss(ratio, target)
        loss.backward()
        assert (float(logits.grad.abs().max()) < 1e-9) == zero
        assert (float(loss.detach()) < 1e-12) == zero


def test_a_response_weighs_as_the_policy_and_the_optimum_give_it():
    target = torch.tensor([0.5, -8.0, -8.0, 2.0], dtype=torch.float64)
    ratio = torch.tensor([0.0, 0.0, -6.0, 2.0 + 1e-6], dtype=torch.float64, requires_grad=True)
    regression_loss(ratio, target).backward()
    plain = (ratio - target).detach() / 4
    kl = (ratio.exp() - target.exp()).detach() / 4
    expected = kl + 0.05 * plain
    assert torch.allclose(ratio.grad, expected, atol=1e-9)
    assert abs(float(ratio.grad[2])) < 0.15 * abs(float(ratio.grad[1]))  # deep enough


def test_the_kl_from_responses_of_the_reference():
    rng = np.random.default_rng(0)
    reference = rng.dirichlet(np.ones(6))
    policy = rng.dirichlet(np.ones(6))
    ratio = np.log(policy / reference)
    drawn = ratio[rng.choice(6, p=reference, size=400_000)]
    exact = float((policy * ratio).sum())
    error = (np.exp(drawn) * (drawn - 1 - exact)).std() / len(drawn) ** 0.5
    assert divergence_of(weight_sums(drawn)) == pytest.approx(exact, abs=4 * error)
    halves = weight_sums(drawn[:1000]) + weight_sums(drawn[1000:])
    assert halves == pytest.approx(weight_sums(drawn))
    assert divergence_of(weight_sums(np.zeros((3, 2)))) == 0.0


class FixedBeta:
    """A controller that keeps beta."""

    def __init__(self, beta):
        self.beta, self.seen = beta, []

    def update(self, number, kl):
        self.seen.append(kl)


def case(reference, tokenizer, rewards):
    """As many prompts as rewards have rows, with responses of two to five tokens."""
    rng = np.random.default_rng(0)
    encoded = [[5, 6, 7 + row] for row in range(len(rewards))]
    tokens = [
        [[int(t) for t in rng.integers(10, 200, rng.integers(2, 6))] for _ in row]
        for row in rewards
    ]
    prompts = TrainingPrompts(
        [str(i) for i in range(len(rewards))], [], rewards, tokens, np.zeros(rewards.shape), {}
    )
    logp = np.array([scored(reference, encoded[i], row) for i, row in enumerate(tokens)])
    return TrainingPrompts(prompts.ids, [], rewards, tokens, logp, {}), encoded


def scored(policy, prompt, responses):
    batch = make_batch([prompt], responses, 0, policy.device)
    with torch.no_grad():
        return sum_responses(token_log_probs(policy, batch), batch).double().numpy()


def steps_of(policy, tokenizer, rewards, *, spelling="exp:3", beta=None, budget=None):
    reference = build_tiny(SIZES, tokenizer, 64, torch.device("cpu"), seed=0)
    prompts, encoded = case(reference, tokenizer, rewards)
    goal = calibrated_goal(parse_transform(spelling), 0.5)
    control = FixedBeta(beta or goal.beta)
    trainable = policy if isinstance(policy, Trainable) else Trainable(policy)
    if budget is not None:
        trainable.budget.tokens = budget
    made = OfflineSteps(trainable, prompts, encoded, goal, control, responses=6, seed=0, pad=0)
    return made, prompts, encoded, control


@pytest.fixture
def policy(tokenizer):
    return build_tiny(SIZES, tokenizer, 64, torch.device("cpu"), seed=0)


def test_a_policy_learns_the_log_ratios_of_the_optimum(policy, tokenizer, tmp_path):
    rewards = np.random.default_rng(1).normal(size=(2, 6))
    steps, prompts, encoded, control = steps_of(policy, tokenizer, rewards)
    history = []

    def take(number):
        step = steps.take(number, np.array([0, 1]))
        history.append(step.metrics)
        return step

    optimise(policy, Schedule(150, 3e-3, 0.1), take, tmp_path, name="test")
    assert control.seen[0] == pytest.approx(0, abs=1e-9)
    assert history[0]["residual"] > 100 * history[-1]["residual"]
    transform = parse_transform("exp:3")
    for row, asked in enumerate(encoded):
        ratio = scored(policy, asked, prompts.tokens[row]) - prompts.logp[row]
        rank = np.argsort(np.argsort(rewards[row]))
        expected = transform.least_biased(rank, 5) / control.beta
        expected -= log_partition("exp:3", control.beta)
        assert ratio == pytest.approx(expected, abs=0.15)


def test_the_gradient_does_not_depend_on_the_number_of_parts(policy, tokenizer):
    rewards = np.random.default_rng(1).normal(size=(4, 6))
    found = []
    for budget in (100_000, 60):
        steps, *_ = steps_of(policy, tokenizer, rewards, budget=budget)
        policy.zero_grad()
        step = steps.take(3, np.arange(4))
        step.loss.backward()
        for again in step.parts:
            again()
        assert bool(step.parts) == (budget == 60)
        found.append([p.grad.clone() for p in policy.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_prompt_whose_samples_all_tie_is_left_alone_whatever_the_others_are(policy, tokenizer):
    rewards = np.random.default_rng(1).normal(size=(5, 6))
    rewards[0] = 0.0
    rewards[1] = [0, 0, 0, 1, 1, 1]
    steps, *_ = steps_of(policy, tokenizer, rewards)
    targets = steps._targets(0.4)
    assert targets[0] == pytest.approx(0, abs=1e-12)
    assert np.exp(targets[1]).mean() == pytest.approx(1)
    whole = parse_transform("exp:3").least_biased(np.arange(6.0), 5)
    expected = np.sort(steps._goal.floored(whole, 0.4) / 0.4 - log_partition("exp:3", 0.4))
    assert np.sort(targets[2:], axis=1) == pytest.approx(np.tile(expected, (3, 1)))


def test_of_few_levels_every_prompt_has_a_partition_function_of_its_own(policy, tokenizer):
    rewards = np.array([[0.0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 1, 1]])
    steps, *_ = steps_of(policy, tokenizer, rewards)
    targets = steps._targets(0.4)
    assert np.exp(targets).mean(axis=1) == pytest.approx(1)
    assert len(np.unique(targets[0])) == 2
    assert targets[0, 5] > targets[1, 5]


def test_another_model_than_the_one_that_was_sampled_is_refused(tokenizer):
    other = build_tiny(SIZES, tokenizer, 64, torch.device("cpu"), seed=1)
    steps, *_ = steps_of(other, tokenizer, np.random.default_rng(1).normal(size=(2, 6)))
    with pytest.raises(CheckFailed, match=r"differ by .* nats a token .* run `sample` again"):
        steps.take(0, np.array([0, 1]))


def test_raw_rewards_are_refused(smoke_tree):
    tree = smoke_tree | {
        "align": smoke_tree["align"]
        | {"variants": {"ctrl": {}, "bare": {"method": "offline", "reward": "raw"}}}
    }
    with pytest.raises(InputError, match=r"align\.variants\.bare.*no partition function"):
        check_params(tree, "params.yaml")
