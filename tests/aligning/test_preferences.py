"""Steps on stored responses: who is drawn, what is learnt, and that nothing depends on padding."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from infalign.aligning.preferences import Method, PreferenceSteps, Stored, best_and_worst
from infalign.errors import CheckFailed
from infalign.lm.models import build_tiny
from infalign.lm.scoring.scorer import sum_responses
from infalign.lm.scoring.vocabulary import token_log_probs
from infalign.lm.text import make_batch
from infalign.lm.training.loop import Schedule, optimise
from infalign.lm.training.parallel import Trainable
from infalign.settings.params import Tiny


def test_best_and_worst_are_those_of_n_draws_with_replacement():
    rewards = np.array([[3.0, -1.0, 2.0]])
    order = np.argsort(rewards, axis=1)
    best, worst = best_and_worst(order, 3, 200_000, np.random.default_rng(0))
    outcomes = list(itertools.product(range(3), repeat=3))
    for chosen, pick in ((best, max), (worst, min)):
        kept = [pick(draws, key=lambda i: rewards[0, i]) for draws in outcomes]
        for arm in range(3):
            expected = kept.count(arm) / len(outcomes)
            assert (chosen == arm).mean() == pytest.approx(expected, abs=0.005)
    pairs = [
        (max(d, key=lambda i: rewards[0, i]), min(d, key=lambda i: rewards[0, i])) for d in outcomes
    ]
    joint = np.mean((best == 0) & (worst == 1))
    assert joint == pytest.approx(pairs.count((0, 1)) / len(outcomes), abs=0.005)


@pytest.mark.parametrize("n", [1.3, 2.0, 4.7])
def test_n_need_not_be_whole(n):
    order = np.arange(4096)[None]
    best, worst = best_and_worst(order, n, 4000, np.random.default_rng(1))
    assert (worst <= best).all()
    uniform = ((best[0] + 0.5) / 4096) ** n
    assert kstest(uniform, "uniform").pvalue > 1e-3


class FixedBeta:
    """A controller that keeps beta."""

    def __init__(self, beta):
        self.beta, self.seen = beta, []

    def update(self, number, kl):
        self.seen.append((number, kl))


def stored_case(tokenizer):
    """Two prompts with four responses each, rewarded by their first token."""
    rng = np.random.default_rng(0)
    prompts = [[5, 6, 7], [8, 9]]
    responses = [
        [[int(t) for t in rng.integers(10, 200, size)] for size in (2, 5, 3, 4)] for _ in prompts
    ]
    return Stored(prompts, responses, 3 * rng.normal(size=(2, 4)), tokenizer.pad_token_id)


def logps(policy, stored, prompt):
    batch = make_batch(
        [stored.prompts[prompt]], stored.responses[prompt], stored.pad, policy.device
    )
    with torch.no_grad():
        return sum_responses(token_log_probs(policy, batch), batch).numpy()


@pytest.mark.parametrize("name", ["bon_distillation", "bonbon", "ipo", "dpo"])
def test_the_best_responses_gain_on_the_worst(name, policy, tokenizer, tmp_path):
    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
    reference = build_tiny(sizes, tokenizer, 64, torch.device("cpu"), seed=1)
    stored = stored_case(tokenizer)
    control = FixedBeta(0.3)
    steps = PreferenceSteps(Trainable(policy), reference, stored, Method(name, 0.1, 8, 0), control)
    chosen = np.array([0, 1])
    history = []

    def take(number):
        step = steps.take(number, chosen, lambda *_: {"kl": 0.125 * number})
        history.append(step.metrics)
        return step

    optimise(policy, Schedule(60, 3e-3, 0.1), take, tmp_path, name="test")
    assert control.seen[:2] == [(0, 0.0), (1, 0.125)]
    assert history[0]["margin"] == 0.0
    assert np.mean([row["margin"] for row in history[-10:]]) > 0.5
    for prompt in chosen:
        ratio = logps(policy, stored, prompt) - logps(reference, stored, prompt)
        order = np.argsort(stored.rewards[prompt])
        assert ratio[order[-1]] > ratio[order[0]] + 0.5


def test_a_step_takes_as_many_responses_as_the_trainer(policy, tokenizer):
    stored = stored_case(tokenizer)
    watched = []

    def watch(number, chosen):
        watched.append((number, list(chosen)))
        return {"kl": 0.0}

    for name, paired in (("ipo", True), ("bon_distillation", False)):
        method = Method(name, 0.0, 8, 0)
        assert method.paired == paired
        assert method.draws * (2 if paired else 1) == 8
        steps = PreferenceSteps(Trainable(policy), policy, stored, method, FixedBeta(0.5))
        step = steps.take(3, np.array([1, 0]), watch)
        assert step.metrics["beta"] == 0.5
        assert 16 * 2 <= step.tokens <= 16 * 5
    assert watched == [(3, [1, 0])] * 2


def test_a_policy_that_is_not_the_reference_is_refused(policy, tokenizer):
    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
    other = build_tiny(sizes, tokenizer, 64, torch.device("cpu"), seed=2)
    steps = PreferenceSteps(
        Trainable(policy), other, stored_case(tokenizer), Method("ipo", 0, 4, 0), FixedBeta(1)
    )
    with pytest.raises(CheckFailed, match="not the reference"):
        steps.take(0, np.array([0]), lambda *_: {"kl": 0.0})
