"""Rewards, log-probabilities and KL: against plain loops, and what padding must not change."""

import numpy as np
import pytest
import torch

from infalign.data.framing import asked
from infalign.lm.models import build_reward_model, build_tiny, save_model
from infalign.lm.scoring.scorer import divergence, pooled_rewards, score_responses, token_log_probs
from infalign.lm.text import Batch, make_batch
from infalign.settings.params import Tiny

PROMPTS = [asked("one"), asked("two three nine")]
RESPONSES = ["four five six seven", "ten"]


@pytest.fixture
def reward_model(policy, tokenizer, tmp_path):
    save_model(policy, tokenizer, tmp_path)
    return build_reward_model(tmp_path, tokenizer, torch.device("cpu"), seed=3)


@pytest.fixture
def other(tokenizer):
    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
    return build_tiny(sizes, tokenizer, 64, torch.device("cpu"), seed=2)


def encoded(form):
    return form.encode_prompts(PROMPTS), form.encode_responses(RESPONSES)


def shifted(batch: Batch, left: int, right: int, pad: int) -> Batch:
    """The same sequences with more padding on both sides."""

    def grow(values, fill, sides):
        return torch.nn.functional.pad(values, sides, value=fill)

    return Batch(
        grow(batch.prompts, pad, (left, 0)),
        grow(batch.prompt_mask, False, (left, 0)),
        grow(batch.responses, pad, (0, right)),
        grow(batch.mask, False, (0, right)),
    )


def test_a_shared_prompt_changes_nothing(policy, reward_model, form):
    prompts, responses = encoded(form)
    replies = [*responses, *responses]
    shared = make_batch(prompts, replies, form.pad, policy.device)
    apart = make_batch([p for p in prompts for _ in range(2)], replies, form.pad, policy.device)
    assert (shared.samples, apart.samples) == (2, 1)
    with torch.inference_mode():
        for read in (
            lambda batch: token_log_probs(policy, batch),
            lambda batch: pooled_rewards(reward_model, batch),
        ):
            assert torch.allclose(read(shared), read(apart), atol=1e-5)


def test_gradients_flow_through_a_shared_prompt(policy, form):
    prompts, responses = encoded(form)
    replies, gradients = [*responses, *responses], []
    for rows in (prompts, [p for p in prompts for _ in range(2)]):
        policy.zero_grad()
        batch = make_batch(rows, replies, form.pad, policy.device)
        token_log_probs(policy, batch).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    assert torch.allclose(*gradients, atol=1e-4)
    assert gradients[0].abs().max() > 0


def test_token_log_probs_against_a_loop(policy, form):
    prompts, responses = encoded(form)
    batch = make_batch(prompts, responses, form.pad, policy.device)
    with torch.inference_mode():
        found = token_log_probs(policy, batch).tolist()
        expected = []
        for prompt, response in zip(prompts, responses, strict=True):
            logits = policy(torch.tensor([prompt + response])).logits[0]
            for i, token in enumerate(response):
                expected.append(float(torch.log_softmax(logits[len(prompt) + i - 1], 0)[token]))
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("left", "right"), [(0, 0), (0, 5), (5, 0), (3, 2)])
def test_rewards_are_read_at_the_last_real_token(reward_model, form, left, right):
    prompts, responses = encoded(form)
    batch = make_batch(prompts, responses, form.pad, reward_model.device)
    with torch.inference_mode():
        alone = [
            float(pooled_rewards(reward_model, make_batch([p], [r], 0, reward_model.device))[0])
            for p, r in zip(prompts, responses, strict=True)
        ]
        padded = pooled_rewards(reward_model, shifted(batch, left, right, form.pad))
    assert padded.tolist() == pytest.approx(alone, abs=1e-5)
    assert abs(alone[0] - alone[1]) > 1e-4


def test_padding_with_eos_changes_nothing(reward_model, form):
    prompts, responses = encoded(form)
    with torch.inference_mode():
        first, second = (
            pooled_rewards(reward_model, make_batch(prompts, responses, pad, reward_model.device))
            for pad in (form.pad, form.end)
        )
    assert torch.equal(first, second)


def test_rewards_equal_the_plain_classifier(reward_model, form):
    found = score_responses(reward_model, form, PROMPTS, RESPONSES, batch_size=2)
    prompts, responses = encoded(form)
    with torch.inference_mode():
        plain = [
            float(reward_model(torch.tensor([p + r])).logits[0, 0])
            for p, r in zip(prompts, responses, strict=True)
        ]
    assert found.tolist() == pytest.approx(plain, abs=1e-5)
    one_by_one = score_responses(reward_model, form, PROMPTS, RESPONSES, batch_size=1)
    assert np.allclose(found, one_by_one, atol=1e-6)


def test_kl_is_zero_of_a_policy_to_itself(policy, form):
    _, responses = encoded(form)
    found = divergence(policy, policy, form, PROMPTS, responses, batch_size=2)
    assert (found.kl == 0).all()
    assert (found.log_ratio == 0).all()


def test_kl_against_a_loop(policy, other, form):
    prompts, responses = encoded(form)
    found = divergence(policy, other, form, PROMPTS, responses, batch_size=2)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids = torch.tensor([prompt + response])
        kl = ratio = 0.0
        with torch.inference_mode():
            ours, theirs = (
                torch.log_softmax(m(ids).logits[0].double(), -1) for m in (policy, other)
            )
        for i, token in enumerate(response):
            p, q = ours[len(prompt) + i - 1], theirs[len(prompt) + i - 1]
            kl += float((p.exp() * (p - q)).sum())
            ratio += float(p[token] - q[token])
        assert found.kl[row] == pytest.approx(kl, abs=1e-5)
        assert found.log_ratio[row] == pytest.approx(ratio, abs=1e-4)
    assert (found.kl > 0).all()


def test_an_encoder_is_a_reward_model_too(form, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(form.tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    alone = score_responses(model, form, PROMPTS, RESPONSES, batch_size=1)
    together = score_responses(model, form, PROMPTS, RESPONSES, batch_size=2)
    assert np.allclose(alone, together, atol=1e-5)
