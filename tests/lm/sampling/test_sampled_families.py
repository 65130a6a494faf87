"""Responses of every family of models are drawn from the model's own distribution.

Tiny models with random weights: the sampler's log-probability of each response against the plain
forward of the whole sequence, alone, without padding and without a cache.
"""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from infalign.data.framing import asked
from infalign.lm.sampling import static, ways
from infalign.lm.sampling.sampler import sample_responses
from tests.lm.families import FAMILIES, sizes_of

DECODED = {"llama": ways.LLAMA, "lfm2 with biases": ways.ALONE}  # the others: ROOMY
NOT_STATIC = {"falcon with alibi"}  # its plain cache is not enough: it needs the mask of the tokens
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PROMPTS = [asked(" ".join(WORDS[:n])) for n in (1, 9, 4)]
IDS = ["00000000000000aa", "ffffffffffffff01", "1234567812345678"]


def model_of(family, tokenizer):
    """A tiny model with random weights, biases included, of the family's word."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(family.split()[0], **sizes_of(family))
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.3)
    return model


def sample(model, form, n=4, longest=12, **more):
    indices = np.tile(np.arange(n), (len(PROMPTS), 1))
    return sample_responses(
        model, form, PROMPTS, IDS, indices, seed=5, longest=longest, batch_size=64, **more
    )


@torch.inference_mode()
def plain_logp(model, form, responses, temperature=1.0):
    """Log-probability of each response, nats, by the model's plain forward alone."""
    prompts = [p for p in form.encode_prompts(PROMPTS) for _ in range(4)]
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
        logp = (logits[len(prompt) - 1 : -1].double() / temperature).log_softmax(-1)
        found.append(float(logp.gather(1, torch.tensor(response)[:, None]).sum()))
    return np.array(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_the_models_own(family, form, capsys):
    model = model_of(family, form.tokenizer)
    found = sample(model, form)
    assert found.n_tokens.max() > 8  # than the window
    np.testing.assert_allclose(found.logp, plain_logp(model, form, found.tokens), atol=1e-4, rtol=0)
    way = DECODED.get(family, ways.ROOMY)
    assert model.ways[0] == {way.name: ways.TOKENS}
    assert ("is decoded by" in capsys.readouterr().err) == (way is ways.ALONE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_cache_is_used_where_it_is_right(family, form, monkeypatch, capsys):
    """As on CUDA, whose graph records the same steps."""
    monkeypatch.setattr(ways, "can_be_static", static.has_plain_cache)
    model = model_of(family, form.tokenizer)
    is_plain = static.has_plain_cache(model)
    found = sample(model, form)
    np.testing.assert_allclose(found.logp, plain_logp(model, form, found.tokens), atol=1e-4, rtol=0)
    is_static = is_plain and family not in NOT_STATIC
    assert (ways.STATIC.name in model.ways[0]) == is_static
    assert ("is decoded by" in capsys.readouterr().err) == (
        is_plain != is_static or family == "lfm2 with biases"
    )


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("way", ["steps of our own", "a static cache", "its own steps"])
def test_logits_are_divided_by_the_temperature(way, temperature, form, monkeypatch):
    if way == "a static cache":
        monkeypatch.setattr(ways, "can_be_static", static.has_plain_cache)
    model = model_of("qwen2" if way == "its own steps" else "llama", form.tokenizer)
    found = sample(model, form, temperature=temperature)
    assert next(iter(model.ways[0])).startswith(way)
    expected = plain_logp(model, form, found.tokens, temperature)
    np.testing.assert_allclose(found.logp, expected, atol=1e-4, rtol=0)
    assert found.tokens != sample(model, form).tokens
