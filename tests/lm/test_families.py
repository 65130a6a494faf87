"""Every family of models is read as plain transformers reads it, one unpadded sequence at a time.

Tiny models with random weights, dropout set to a half: log-probabilities of responses along every
path (a shared prompt, all of it joined, logits in slices), divergences, and rewards.
"""

import pytest
import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from infalign.data.framing import asked
from infalign.errors import InputError
from infalign.lm.models import build_reward_model, load_policy, save_model, without_dropout
from infalign.lm.scoring import vocabulary
from infalign.lm.scoring.scorer import divergence, pooled_rewards, score_responses
from infalign.lm.scoring.vocabulary import has_plain_head, is_joined, token_log_probs, token_scores
from infalign.lm.text import make_batch
from infalign.lm.training.parallel import Trainable, recompute
from tests.lm.families import FAMILIES, config_of, saved

CPU = torch.device("cpu")
JOINED = {"lfm2", "lfm2 with biases", "mamba", "mamba2", "falcon_h1"}
HEADLESS = {"xglm", "granite", "cohere", *JOINED}  # no sequence classifier
NOT_PLAIN = {"gemma2", "granite", "cohere"}
PROMPTS = [
    asked("one"),
    asked("two three nine eight seven one two three"),
]
RESPONSES = ["four five six seven", "ten", "", "one two three one two three nine ten ten"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tokenizer, tmp_path_factory):
    """A family's word, and a folder with a model of it."""
    return request.param, saved(request.param, tokenizer, tmp_path_factory.mktemp(request.param))


def models(folder):
    """A policy and a reference, which has moved."""
    policy, reference = (load_policy(folder, CPU) for _ in range(2))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return policy, reference


def sequences(form):
    """Prompts and the tokens of two responses to each; the last one is cut, without EOS."""
    responses = form.encode_responses(RESPONSES)
    return form.encode_prompts(PROMPTS), [*responses[:3], responses[3][:-1]]


@torch.inference_mode()
def plain_log_probs(model, prompts, responses):
    """Log-probabilities over the vocabulary at every response token, one sequence at a time."""
    found = []
    for row, response in enumerate(responses):
        prompt = prompts[row // 2]
        logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0]
        found.append(logits[len(prompt) - 1 : -1].double().log_softmax(-1))
    return torch.cat(found)


def test_log_probs_are_the_models_own(family, form, monkeypatch):
    word, folder = family
    policy, reference = models(folder)
    prompts, responses = sequences(form)
    batch = make_batch(prompts, responses, form.pad, CPU)
    ours, theirs = (plain_log_probs(m, prompts, responses) for m in (policy, reference))
    chosen = batch.tokens[:, None]
    expected = (ours.gather(1, chosen)[:, 0], theirs.gather(1, chosen)[:, 0])
    expected = (*expected, (ours.exp() * (ours - theirs)).sum(-1))
    assert expected[2].min() > 1e-6

    def check():
        for found in (token_scores(policy, reference, batch), [token_log_probs(policy, batch)]):
            for values, right in zip(found, expected, strict=False):
                torch.testing.assert_close(values.double(), right, atol=1e-4, rtol=1e-4)

    assert is_joined(policy) == (word in JOINED)
    with torch.inference_mode():
        check()
        monkeypatch.setattr(vocabulary, "LOGITS", 300 * 4)  # four tokens at a time
        check()
        monkeypatch.setattr(vocabulary, "is_joined", lambda model: True)
        check()


def test_divergences_are_the_models_own(family, form):
    policy, reference = models(family[1])
    prompts, responses = sequences(form)
    ours, theirs = (plain_log_probs(m, prompts, responses) for m in (policy, reference))
    kl = (ours.exp() * (ours - theirs)).sum(-1).split([len(r) for r in responses])
    each = [prompt for prompt in PROMPTS for _ in range(2)]
    found = divergence(policy, reference, form, each, responses, batch_size=4)
    assert found.kl.tolist() == pytest.approx([float(k.sum()) for k in kl], abs=1e-3)
    itself = divergence(policy, policy, form, each, responses, batch_size=4)
    assert (itself.kl == 0).all()


def test_rewards_are_the_classifiers_own(family, form):
    word, folder = family
    assert (word in HEADLESS) == (
        type(config_of(word)) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    )
    if word in HEADLESS:
        with pytest.raises(
            InputError, match=f"no sequence classifier for the model type '{word.split()[0]}'"
        ):
            build_reward_model(folder, form.tokenizer, CPU, seed=3)
        return
    model = build_reward_model(folder, form.tokenizer, CPU, seed=3)
    each = [prompt for prompt in PROMPTS for _ in range(2)]
    found = score_responses(model, form, each, RESPONSES, batch_size=4)
    save_model(model, form.tokenizer, folder / "reward")
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "reward").eval()
    prompts, replies = form.encode_prompts(each), form.encode_responses(RESPONSES)
    rows = [p + r for p, r in zip(prompts, replies, strict=True)]
    with torch.inference_mode():
        alone = [float(plain(torch.tensor([row])).logits) for row in rows]
        padded = form.tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
        together = plain(**padded).logits[:, 0].tolist()
    assert found.tolist() == pytest.approx(alone, abs=1e-4, rel=1e-4)
    assert together == pytest.approx(alone, abs=1e-4, rel=1e-4)
    assert found.std() > 1e-3


def test_dropout_is_off_in_training_mode_too(family, form):
    """Most families have some, as modules or as numbers; with it two passes would differ."""
    torch.manual_seed(1)
    model = without_dropout(AutoModelForCausalLM.from_config(config_of(family[0]))).train()
    prompts, responses = sequences(form)
    ids = torch.tensor([prompts[1] + responses[3]])
    first, second = (model(ids, use_cache=False).logits for _ in range(2))
    assert torch.equal(first, second)


def test_layers_are_computed_again_to_the_same_gradients(family, form):
    policy, _ = models(family[1])
    prompts, responses = sequences(form)
    batch = make_batch(prompts, responses, form.pad, CPU)
    gradients = []
    for again in (False, True):
        if again:
            if not policy.supports_gradient_checkpointing:
                with pytest.raises(InputError, match="cannot compute its layers again"):
                    recompute(policy)
                return
            recompute(policy)
        policy.zero_grad()
        Trainable(policy)(token_log_probs, batch).sum().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        scale = float(value.abs().max()) + 1e-3
        torch.testing.assert_close(gradients[1][name], value, atol=2e-3 * scale, rtol=1e-2)


def test_heads_with_a_cap_or_a_scale_are_told_from_plain_ones(family):
    policy, _ = models(family[1])
    assert has_plain_head(policy) == (family[0] not in NOT_PLAIN)
    with torch.no_grad():
        policy.get_output_embeddings().weight.mul_(1e-3)  # where a cap is nearly a line
    policy.has_plain_head = None
    assert has_plain_head(policy) == (family[0] not in NOT_PLAIN)


def test_a_reward_is_pooled_from_joined_sequences_alike(family, form):
    word, folder = family
    if word in HEADLESS:
        assert type(config_of(word)) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        return
    model = build_reward_model(folder, form.tokenizer, CPU, seed=3)
    prompts, responses = sequences(form)
    batch = make_batch(prompts, responses, form.pad, CPU)
    with torch.inference_mode():
        shared = pooled_rewards(model, batch)
        model.recomputes = True
        torch.testing.assert_close(pooled_rewards(model, batch), shared, atol=1e-4, rtol=1e-4)
