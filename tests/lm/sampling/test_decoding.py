"""Decoding's cache gives what transformers' own gives."""

import pytest
import test_sampler
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from infalign.lm.decoding import OwnForward, Room, prefill, roomy_cache
from infalign.lm.sampling import static, ways


@pytest.fixture
def grouped():
    """A model whose four query heads share two key heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def decoded(model, cache, prompts):
    """Logits of five tokens, one at a time, rows doubled and one of them dropped."""
    found = prefill(model, cache, prompts, 2, pad=0)
    decoder = OwnForward(model, cache, found.mask, found.positions, 4)
    decoder.keep(torch.tensor([True, True, False, True]))
    kept = found.logits[torch.tensor([0, 1, 3])]
    return torch.stack([kept, *(decoder(torch.full((3,), 7 + step)) for step in range(4))])


@pytest.mark.parametrize("padding", [0, 3])
def test_same_logits_as_of_the_models_own_cache(grouped, padding):
    ids = torch.randint(3, 50, (2, 8), generator=torch.Generator().manual_seed(1)).tolist()
    prompts = [ids[0][padding:], ids[1]]
    usual = decoded(grouped, DynamicCache(config=grouped.config), prompts)
    ours = decoded(grouped, roomy_cache(grouped, 4), prompts)
    torch.testing.assert_close(ours, usual, atol=1e-5, rtol=1e-5)


def test_the_cache_never_moves(grouped):
    """Room is made once: later tokens are written into the same memory."""
    cache = roomy_cache(grouped, 3)
    assert all(isinstance(layer, Room) for layer in cache.layers)
    with torch.inference_mode():
        grouped(input_ids=torch.tensor([[4, 5]]), past_key_values=cache)
        place = cache.layers[0].keys.data_ptr()
        for _ in range(3):
            grouped(input_ids=torch.tensor([[6]]), past_key_values=cache)
    assert cache.layers[0].keys.data_ptr() == place
    assert cache.get_seq_length() == 5


def test_decoding_in_place_gives_the_same_tokens(policy, form, monkeypatch):
    """The steps that CUDA records as a graph; here they run without one."""
    with torch.no_grad():  # make EOS likely, so that sequences leave
        policy.model.norm.weight.mul_(3)
    usual = test_sampler.sample(policy, form, n=32, longest=24)
    monkeypatch.setattr(ways, "can_be_static", static.has_plain_cache)
    monkeypatch.setattr(static.StaticDecoder, "leaving_share", 0.05)
    test_sampler.sample(policy, form, n=1, longest=24)  # finds out that it is right
    steps = []
    original = static.StaticDecoder.__call__
    monkeypatch.setattr(
        static.StaticDecoder, "__call__", lambda *a: steps.append(len(a[1])) or original(*a)
    )
    found = test_sampler.sample(policy, form, n=32, longest=24)
    assert found.tokens == usual.tokens
    torch.testing.assert_close(found.logp, usual.logp, atol=1e-4, rtol=1e-4)
    assert steps[0] == 64  # two prompts, then the third
    assert set(steps) > {64, 32}  # some had left


def test_a_sliding_window_is_decoded_the_usual_way(grouped):
    assert static.has_plain_cache(grouped)
    assert not static.can_be_static(grouped)
    grouped.config.layer_types = ["sliding_attention"] * 2
    grouped.config.sliding_window = 4
    assert not static.has_plain_cache(grouped)
