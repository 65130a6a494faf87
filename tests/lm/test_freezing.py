"""Frozen models give what autocast gives, to the last bit, in fewer bytes."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from infalign.data.framing import asked
from infalign.lm.freezing import freeze, is_frozen, thaw
from infalign.lm.memory import autocast
from infalign.lm.models import (
    build_reward_model,
    load_classifier,
    load_policy,
    load_reward_model,
    save_model,
)
from infalign.lm.scoring.scorer import pooled_rewards
from infalign.lm.scoring.vocabulary import token_log_probs, token_scores
from infalign.lm.text import make_batch
from infalign.lm.training.lora import add_adapter, merge_adapter, without_adapter
from tests.lm.families import FAMILIES, SIZES, saved

CPU = torch.device("cpu")
PROMPTS = [asked("one"), asked("two three nine eight seven")]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tokenizer, tmp_path_factory):
    return saved(request.param, tokenizer, tmp_path_factory.mktemp(request.param))


def batch_of(form):
    responses = form.encode_responses(["four five six", "ten", "", "one two three nine"])
    return make_batch(form.encode_prompts(PROMPTS), responses, form.pad, CPU)


def test_the_numbers_are_autocasts(folder, form):
    plain = load_policy(folder, CPU, "bfloat16")
    frozen = load_policy(folder, CPU, "bfloat16", frozen=True)
    assert is_frozen(frozen)
    assert not is_frozen(plain)
    batch = batch_of(form)
    with torch.inference_mode(), autocast(plain):
        assert torch.equal(token_log_probs(plain, batch), token_log_probs(frozen, batch))
        assert float(token_scores(plain, frozen, batch).kl.abs().max()) == 0.0


def test_of_float32_passes_nothing_is_frozen(folder):
    assert not is_frozen(load_policy(folder, CPU, frozen=True))


def test_rewards_are_autocasts(policy, tokenizer, form, tmp_path):
    save_model(policy, tokenizer, tmp_path / "policy")
    plain = build_reward_model(tmp_path / "policy", tokenizer, CPU, 3, "bfloat16")
    save_model(plain, tokenizer, tmp_path / "reward")
    frozen = load_reward_model(tmp_path / "reward", CPU, "bfloat16")
    assert is_frozen(frozen)
    batch = batch_of(form)
    with torch.inference_mode(), autocast(plain):
        assert torch.equal(pooled_rewards(plain, batch), pooled_rewards(frozen, batch))


ENCODERS = {
    "bert": {},
    "roberta": {},
    "electra": {"embedding_size": 16},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2},
    "deberta-v2": {"pooler_hidden_size": 32, "relative_attention": True, "pos_att_type": "p2c|c2p"},
    "modernbert": {"cls_token_id": 2, "sep_token_id": 3},
}


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request, tokenizer, tmp_path_factory):
    """A folder with a tiny reward model that reads whole sequences and pools by itself."""
    torch.manual_seed(3)
    sizes = SIZES | ENCODERS[request.param] | {"initializer_range": 0.1, "num_labels": 1}
    config = AutoConfig.for_model(request.param, **sizes)
    folder = tmp_path_factory.mktemp(request.param)
    save_model(AutoModelForSequenceClassification.from_config(config), tokenizer, folder)
    return folder


def test_an_encoders_rewards_are_autocasts_and_its_head_float32(encoder, tokenizer, form):
    plain = build_reward_model(encoder, tokenizer, CPU, 3, "bfloat16")
    exact = load_classifier(encoder, CPU)
    batch = batch_of(form)
    with torch.inference_mode():
        right = pooled_rewards(exact, batch)
        for load in (load_reward_model, load_classifier):
            frozen = load(encoder, CPU, "bfloat16")
            assert is_frozen(frozen)
            with autocast(plain):
                found = pooled_rewards(frozen, batch)
                assert torch.equal(pooled_rewards(plain, batch), found)
            assert found.dtype is torch.float32
            assert not torch.equal(found, found.bfloat16().float())  # which would tie
            torch.testing.assert_close(found, right, atol=0.05, rtol=0.05)


def test_an_encoders_adapter_is_trained_over_a_frozen_base(encoder, tokenizer, form):
    batch = batch_of(form)
    plain, frozen = (
        add_adapter(build_reward_model(encoder, tokenizer, CPU, 3, "bfloat16"), 4, 5, "reward")
        for _ in range(2)
    )
    freeze(frozen)
    gradients = []
    for model in (plain, frozen):
        with autocast(model):
            rewards = pooled_rewards(model, batch)
        rewards.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    halved = {name for name, weight in frozen.named_parameters() if weight.dtype is torch.bfloat16}
    assert halved
    assert all(".base_layer." in name for name in halved)
    trained = {name for name, weight in frozen.named_parameters() if weight.requires_grad}
    assert trained == set(gradients[0]) == set(gradients[1])
    assert any("classifier" in name for name in trained)
    for name, gradient in gradients[0].items():
        assert gradient.dtype is torch.float32
        assert torch.equal(gradient, gradients[1][name]), name


def test_under_an_adapter_only_what_is_trained_is_float32(policy, tokenizer, form, tmp_path):
    save_model(policy, tokenizer, tmp_path)
    batch = batch_of(form)
    plain, frozen = (
        add_adapter(load_policy(tmp_path, CPU, "bfloat16"), 4, seed=5) for _ in range(2)
    )
    freeze(frozen)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for one, other in zip(plain.parameters(), frozen.parameters(), strict=True):
            if one.requires_grad:
                assert other.dtype is torch.float32
                one.add_(0.1 * torch.randn(one.shape, generator=generator))
                other.copy_(one)
    with torch.inference_mode(), autocast(plain):
        assert torch.equal(token_log_probs(plain, batch), token_log_probs(frozen, batch))
        with without_adapter(frozen) as ours, without_adapter(plain) as other:
            assert torch.equal(token_log_probs(ours, batch), token_log_probs(other, batch))
    thaw(frozen, load_policy(tmp_path, CPU))
    merged, right = merge_adapter(frozen), merge_adapter(plain)
    for name, weight in right.named_parameters():
        assert torch.equal(merged.get_parameter(name), weight), name
