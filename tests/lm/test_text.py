"""Text to tokens: EOS, masks, cutting."""

import pytest
import torch

from infalign.lm.text import (
    by_length,
    cut_responses,
    decode_responses,
    encode_prompts,
    encode_responses,
    make_batch,
    shared_prompts,
)

PROMPT = "\n\nHuman: one two\n\nAssistant:"


def test_responses_end_in_eos_unless_cut(tokenizer):
    whole = encode_responses(tokenizer, ["four five six"])[0]
    assert whole[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in whole[:-1]
    cut = encode_responses(tokenizer, ["four five six"], longest=len(whole) - 1)[0]
    assert cut == whole[:-1]


def test_prompts_carry_no_eos(tokenizer):
    assert tokenizer.eos_token_id not in encode_prompts(tokenizer, [PROMPT])[0]
    assert encode_prompts(tokenizer, []) == encode_responses(tokenizer, []) == []


def test_decoding_returns_the_text(tokenizer):
    texts = ["four five six", "ten!", "Ünïcode – and   spaces"]
    assert decode_responses(tokenizer, encode_responses(tokenizer, texts)) == texts


def test_prompt_and_response_join_as_one_text(tokenizer):
    joined = encode_prompts(tokenizer, [PROMPT])[0] + encode_responses(tokenizer, ["four"])[0]
    together = encode_prompts(tokenizer, [f"{PROMPT} four"])[0]
    assert joined[:-1] == together


def test_cut_responses_equals_cutting_tokens(tokenizer):
    texts = ["four five six seven", "ten"]
    short, kept = cut_responses(tokenizer, texts, 3)
    assert texts[0].startswith(short)
    assert len(short) < len(texts[0])
    assert encode_responses(tokenizer, [kept]) == encode_responses(tokenizer, ["ten"])


def test_masks_come_from_lengths_even_where_pad_is_eos():
    cpu = torch.device("cpu")
    batch = make_batch([[5, 6], [7]], [[8, 2], [2], [3, 2], [4]], pad=2, device=cpu)
    assert batch.prompts.tolist() == [[5, 6], [2, 7]]
    assert batch.prompt_mask.tolist() == [[True, True], [False, True]]
    assert batch.responses.tolist() == [[8, 2], [2, 2], [3, 2], [4, 2]]
    assert batch.mask.tolist() == [[True, True], [True, False], [True, True], [True, False]]
    assert batch.tokens.tolist() == [8, 2, 2, 3, 2, 4]
    assert batch.samples == 2
    with pytest.raises(ValueError, match="3 responses do not divide among 2 prompts"):
        make_batch([[5], [6]], [[1], [1], [1]], pad=2, device=cpu)


def test_shared_prompts():
    assert shared_prompts(["a"] * 4 + ["b"] * 4, most=8) == 4
    assert shared_prompts(["a"] * 4 + ["b"] * 6, most=8) == 2
    assert shared_prompts(["a"] * 4 + ["b"], most=8) == 1
    assert shared_prompts(["a"] * 12, most=8) == 4


def test_batches_of_alike_length_hold_every_row_once():
    chosen = by_length([5, 1, 3, 1, 9], 2)
    assert [c.tolist() for c in chosen] == [[1, 3], [2, 0], [4]]
