"""A way to decode is used once it was seen to draw from the model's own distribution."""

import numpy as np
import pytest
import test_sampler
import torch
from test_sampled_families import model_of
from transformers import LlamaConfig, LlamaForCausalLM, OpenAIGPTConfig, OpenAIGPTLMHeadModel

from infalign.errors import InputError
from infalign.lm.llama.decoding import LlamaDecoder
from infalign.lm.sampling import sampler, ways
from infalign.lm.sampling.ways import departure, proven_way

PROMPT = [5, 6, 7, 8, 9, 10, 11]


class Forgetful(LlamaForCausalLM):
    """A model that is another one behind a cache."""

    missing = 0.5

    def forward(self, *arguments, **named):
        found = super().forward(*arguments, **named)
        if named["input_ids"].shape[1] == 1:
            found.logits[..., 7] += self.missing
        return found


@pytest.fixture
def forgetful(policy):
    policy.__class__ = Forgetful
    return policy


def broken(change):
    """The Llama's own steps with another first logit."""
    original = LlamaDecoder.__call__

    def call(self, token):
        logits = original(self, token)
        logits[:, 7] += change
        return logits

    return call


@pytest.mark.parametrize("change", [0.05, float("nan")])
def test_a_fast_way_that_is_wrong_gives_place(policy, form, monkeypatch, capsys, change):
    monkeypatch.setattr(LlamaDecoder, "__call__", broken(change))
    found = test_sampler.sample(policy, form)
    assert policy.ways[0] == {ways.ROOMY.name: ways.TOKENS}
    told = capsys.readouterr().err
    assert told.startswith(f"sampling: LlamaForCausalLM is decoded by {ways.ROOMY.name}, not ")
    assert "not steps of our own, which differs from a full forward pass by" in told
    assert told.count("\n") == 1
    monkeypatch.undo()
    again = test_sampler.sample(policy, form)  # what was found out stays
    assert again.logp.tobytes() == found.logp.tobytes()
    assert capsys.readouterr().err == ""


def test_a_fast_way_that_fails_gives_place(policy, form, monkeypatch, capsys):
    monkeypatch.setattr(LlamaDecoder, "keep", None)
    test_sampler.sample(policy, form)
    assert policy.ways[0] == {ways.ROOMY.name: ways.TOKENS}
    assert "not steps of our own, which ends in TypeError: " in capsys.readouterr().err


def test_a_model_whose_own_steps_are_wrong_stops_before_anything_is_drawn(
    forgetful, form, monkeypatch, capsys
):
    monkeypatch.setattr(sampler, "_decode", None)
    with pytest.raises(InputError) as error:
        test_sampler.sample(forgetful, form)
    assert "Forgetful cannot be sampled from token by token" in str(error.value)
    assert "differs from a full forward pass by" in str(error.value)
    assert "set model.name_or_path to another model" in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""


def test_a_model_without_a_cache_is_one_sentence(form):
    sizes = {"vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**sizes)).eval()
    with pytest.raises(InputError, match="OpenAIGPTLMHeadModel cannot be sampled from") as error:
        test_sampler.sample(model, form)
    assert "\n" not in str(error.value)


def test_a_model_is_looked_at_once_and_again_for_longer_responses(policy, monkeypatch):
    looked = []
    original = ways.departure

    def spy(*arguments):
        looked.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(ways, "departure", spy)
    for longest in (3, 2, 3, 30, 40, 1):
        assert proven_way(policy, PROMPT, longest) is ways.LLAMA
    assert looked == [3, ways.TOKENS]


def test_bfloat16_has_a_bound_of_its_own(forgetful):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=300, num_hidden_layers=2, initializer_range=0.2, **sizes)
    model = LlamaForCausalLM(config).eval()
    model.autocast_dtype = torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = departure(model, ways.ROOMY, [list(range(5, 65)), PROMPT], 2, ways.TOKENS)
    assert ways.BOUND < found < ways.BFLOAT16_BOUND / 5
    assert proven_way(model, PROMPT, 8) is ways.ROOMY
    forgetful.autocast_dtype, forgetful.missing = torch.bfloat16, 7.0
    with pytest.raises(InputError, match=r"more than 0\.2"):
        proven_way(forgetful, PROMPT, 8)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "lfm2", "mamba", "falcon"])
def test_rounding_is_far_below_the_bound(family, tokenizer):
    model = model_of(family, tokenizer)
    for way in (ways.ROOMY, ways.OWN):
        assert departure(model, way, [PROMPT, PROMPT[3:]], 2, 16) < ways.BOUND / 20


def test_finding_out_changes_no_random_numbers(policy):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    proven_way(policy, PROMPT, 8)
    np.testing.assert_array_equal(torch.rand(4), expected)
