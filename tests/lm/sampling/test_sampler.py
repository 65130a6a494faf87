"""Sampling: what it draws from, and what must not change it."""

import numpy as np
import pytest
import torch

from infalign.data.framing import asked
from infalign.lm.sampling.sampler import draw, sample_responses
from infalign.lm.scoring.scorer import sum_responses, token_log_probs
from infalign.lm.text import make_batch

PROMPTS = [
    asked("one"),
    asked("two three nine ten seven"),
    asked("Human: one\n\nAssistant: four five\n\nHuman: six"),
]
IDS = ["00000000000000aa", "ffffffffffffff01", "1234567812345678"]


def sample(policy, form, prompts=PROMPTS, ids=IDS, first=0, n=4, batch_size=64, longest=9):
    indices = np.tile(np.arange(first, first + n), (len(prompts), 1))
    return sample_responses(
        policy, form, prompts, ids, indices, seed=5, longest=longest, batch_size=batch_size
    )


def test_draws_from_the_softmax():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.5]])
    uniform = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    token, logp = draw(logits.expand(40_000, 4), uniform)
    expected = torch.softmax(logits[0].double(), 0)
    shares = torch.bincount(token, minlength=4) / 40_000
    assert torch.allclose(shares.double(), expected, atol=1e-4)
    assert torch.allclose(logp.exp(), expected[token])


def test_never_draws_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]] * 2)
    token, logp = draw(logits, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64))
    assert token.tolist() == [1, 1]
    assert logp.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_batch_size_changes_nothing(policy, form, batch_size):
    whole, cut = sample(policy, form), sample(policy, form, batch_size=batch_size)
    assert whole.tokens == cut.tokens
    assert np.allclose(whole.logp, cut.logp, atol=1e-4)


def test_order_and_company_change_nothing(policy, form):
    whole = sample(policy, form)
    reverse = sample(policy, form, PROMPTS[::-1], IDS[::-1])
    assert reverse.tokens == whole.tokens[8:] + whole.tokens[4:8] + whole.tokens[:4]
    later = sample(policy, form, first=2, n=2)
    assert later.tokens == [t for i, t in enumerate(whole.tokens) if i % 4 >= 2]


def test_log_probs_agree_with_a_full_pass(policy, form):
    found = sample(policy, form)
    prompts = [p for p in form.encode_prompts(PROMPTS) for _ in range(4)]
    batch = make_batch(prompts, found.tokens, form.pad, policy.device)
    with torch.inference_mode():
        full = sum_responses(token_log_probs(policy, batch).double(), batch)
    assert np.allclose(full.numpy(), found.logp, atol=1e-4)


def test_ends_at_eos_or_at_the_longest_length(policy, form):
    with torch.no_grad():  # make EOS likely, so that both cases happen
        policy.model.norm.weight.mul_(3)
    found = sample(policy, form, n=64, longest=12)
    eos = form.end
    for tokens, finished in zip(found.tokens, found.finished, strict=True):
        assert eos not in tokens[:-1]
        assert (tokens[-1] == eos) == finished
        assert len(tokens) == 12 or finished
    assert 0 < found.finished.mean() < 1
    assert (found.n_tokens <= 12).all()


def test_frequencies_match_the_model(policy, form):
    found = sample(policy, form, PROMPTS[:1], IDS[:1], n=4000, longest=1, batch_size=4000)
    with torch.inference_mode():
        ids = torch.tensor([form.encode_prompts(PROMPTS[:1])[0]])
        expected = torch.softmax(policy(ids).logits[0, -1].double(), 0).numpy()
    counts = np.bincount([t[0] for t in found.tokens], minlength=len(expected))
    chi = ((counts - 4000 * expected) ** 2 / (4000 * expected)).sum()
    assert chi < len(expected) + 5 * np.sqrt(2 * len(expected))
