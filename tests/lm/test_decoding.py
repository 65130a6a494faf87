"""Decoding's cache and attention give what transformers' own give."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from infalign.lm.decoding import Room, fast_decoding, roomy_cache


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


def decoded(model, cache, ids, mask):
    """Logits of four more tokens, one at a time, rows doubled and one of them dropped."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    kept = torch.tensor([0, 1, 3])
    cache.batch_select_indices(kept)
    mask = mask.repeat_interleave(2, 0)[kept]
    found = []
    for step in range(4):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        token = torch.full((len(mask), 1), 7 + step)
        found.append(
            model(
                input_ids=token,
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
            ).logits
        )
    return torch.stack(found)


@pytest.mark.parametrize("padding", [0, 3])
def test_same_logits_as_the_models_own_attention_and_cache(grouped, padding):
    ids = torch.randint(3, 50, (2, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    with torch.inference_mode():
        usual = decoded(grouped, DynamicCache(config=grouped.config), ids, mask)
        with fast_decoding(grouped):
            ours = decoded(grouped, roomy_cache(grouped, 4), ids, mask)
    torch.testing.assert_close(ours, usual, atol=1e-5, rtol=1e-5)


def test_the_models_attention_is_given_back(grouped):
    with fast_decoding(grouped):
        assert grouped.config._attn_implementation != "sdpa"
    assert grouped.config._attn_implementation == "sdpa"


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
