"""Token ids as batches: masks, prompts that responses share, alike lengths together."""

import pytest
import torch

from infalign.lm.text import by_length, make_batch, shared_prompts


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
