"""The short way through a Llama gives what transformers' way gives, and is taken only by Llamas."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from infalign.data.framing import asked
from infalign.lm.llama import passes
from infalign.lm.llama.decoding import LlamaDecoder
from infalign.lm.llama.fused import compared
from infalign.lm.sampling import sampler
from infalign.lm.sampling.ways import LLAMA, ROOMY, ways_of
from infalign.lm.scoring.scorer import token_log_probs, token_scores
from infalign.lm.text import make_batch

LENGTHS = ([3, 7, 5], [[4, 1, 6], [2, 2, 2], [5, 6, 3]])  # of prompts, of their responses


def config(keys, **changes):
    return LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=keys,
        initializer_range=0.2,
        attn_implementation="sdpa",
        pad_token_id=0,
        **changes,
    )


def shaken(model):
    """The model with norms that are not all ones."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight += 0.3 * torch.randn_like(weight)
    return model.eval()


@pytest.fixture(params=[4, 2], ids=["own keys", "shared keys"])
def model(request):
    torch.manual_seed(0)
    return shaken(LlamaForCausalLM(config(request.param, tie_word_embeddings=True)))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 50, n).tolist() for n in LENGTHS[0]]
    responses = [rng.integers(1, 50, n).tolist() for row in LENGTHS[1] for n in row]
    return make_batch(prompts, responses, 0, torch.device("cpu"))


@pytest.fixture
def both_ways(monkeypatch):
    """Run something by the short way, then by transformers'."""

    def run(work):
        short = work()
        with monkeypatch.context() as patch:
            patch.setattr(passes, "fits", lambda model: False)
            return short, work()

    return run


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_alike(pairs):
    short, usual = pairs
    torch.testing.assert_close(short, usual, atol=5e-5, rtol=1e-4)


def test_log_probabilities_and_their_gradients(model, batch, both_ways):
    def work():
        model.zero_grad(set_to_none=True)
        logp = token_log_probs(model, batch)
        (logp * torch.linspace(-1, 1, len(logp))).mean().backward()
        return logp.detach(), gradients(model)

    assert passes.fits(model)
    assert_alike(both_ways(work))


def test_scores_beside_a_reference(model, batch, both_ways):
    torch.manual_seed(5)
    other = shaken(LlamaForCausalLM(model.config))

    def work():
        model.zero_grad(set_to_none=True)
        scores = token_scores(model, other, batch)
        scores.logp.square().mean().backward()  # all gradients about 1
        return *(x.detach() for x in scores), gradients(model)

    found = both_ways(work)
    assert_alike(found)
    assert found[0][2].min() > 0


def test_a_policy_that_is_its_reference_has_no_divergence(model, batch):
    scores = token_scores(model, model, batch)
    assert scores.kl.eq(0).all()
    assert torch.equal(scores.logp, scores.reference_logp)


def test_many_parts_are_one_whole(monkeypatch):
    """Whether logits come in one piece or in many changes nothing but rounding."""
    torch.manual_seed(0)
    states, others = torch.randn(2, 100, 8)
    weight, other_weight = torch.randn(2, 40, 8)
    tokens, found = torch.randint(0, 40, (100,)), []
    for cached in (40 * 16, 10**6):
        monkeypatch.setattr("infalign.lm.llama.fused.CACHED", cached)
        leaves = [states.clone().requires_grad_(), weight.clone().requires_grad_()]
        logp, other_logp, kl = compared(*leaves, others, other_weight, tokens)
        logp.exp().sum().backward()
        found.append((logp.detach(), other_logp, kl, *(leaf.grad for leaf in leaves)))
    assert_alike(found)
    plain = torch.log_softmax(states @ weight.t(), -1)
    assert_alike((found[0][0], plain.gather(1, tokens[:, None])[:, 0]))
    usual = torch.log_softmax(others @ other_weight.t(), -1)
    assert_alike((found[0][2], (plain.exp() * (plain - usual)).sum(-1)))


@pytest.mark.parametrize("lengths", [[5, 5, 5], [2, 6, 4]], ids=["no padding", "padding"])
def test_decoding_draws_the_same(model, lengths, both_ways):
    prompts = [list(range(3, 3 + n)) for n in lengths]
    keys, indices = torch.arange(3) ^ 7, torch.arange(12).view(3, 4)
    ways = []

    def decode(eos):
        limits = sampler._Limits(longest=6, ends=(eos,), pad=0, temperature=1.0)
        way = next(ways_of(model))
        ways.append(way)
        return sampler._decode(model, way, prompts, keys, indices, limits)

    often = decode(eos=-1)[0][0][2]  # a token that some response does have
    (short, logp), (usual, usual_logp) = both_ways(lambda: decode(often))
    assert ways == [LLAMA, LLAMA, ROOMY]
    assert short == usual
    assert len({len(r) for r in short}) > 1  # some ended early and left the batch
    np.testing.assert_allclose(logp, usual_logp, atol=1e-4)


def test_the_sampler_decodes_with_it(policy, form, monkeypatch):
    steps = []
    plain = LlamaDecoder.__call__
    monkeypatch.setattr(
        LlamaDecoder, "__call__", lambda self, token: steps.append(1) or plain(self, token)
    )
    sampler.sample_responses(
        policy, form, [asked("one")], ["0"], np.zeros((1, 1)), seed=0, longest=4, batch_size=1
    )
    assert steps


def test_what_is_not_a_plain_llama_goes_the_usual_way(model):
    assert passes.fits(model)
    model.recomputes = True
    assert not passes.fits(model)
    for change in (
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ):
        assert not passes.fits(LlamaForCausalLM(config(4, **change)))
    hooked = LlamaForCausalLM(config(4))
    hooked.model.layers[0].register_forward_hook(lambda *a: None)
    assert not passes.fits(hooked)
    assert not passes.fits(LlamaForCausalLM(config(4)).double())
