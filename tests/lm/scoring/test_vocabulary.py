"""Log-probabilities in slices are those of all logits at once, and no tensor is as large."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from infalign.lm.memory import autocast
from infalign.lm.models import load_policy, save_model
from infalign.lm.scoring import vocabulary
from infalign.lm.scoring.vocabulary import has_plain_head, token_log_probs, token_scores
from infalign.lm.text import make_batch
from infalign.lm.training.parallel import Trainable, recompute


@pytest.fixture(autouse=True)
def as_any_model(monkeypatch):
    """Small Llamas have a way of their own (test_llama.py); these tests are of everyone else's."""
    monkeypatch.setattr("infalign.lm.llama.passes.fits", lambda model: False)


@pytest.fixture
def batch():
    """Three prompts with two responses each, all of different lengths."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda n: torch.randint(5, 290, (n,), generator=generator).tolist()  # noqa: E731
    prompts = [draw(n) for n in (3, 7, 5)]
    return make_batch(prompts, [draw(n) for n in (4, 9, 1, 6, 2, 8)], 0, torch.device("cpu"))


def moved(policy):
    """The policy after its weights moved a little."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return policy


@pytest.fixture
def reference(tokenizer):
    from infalign.lm.models import build_tiny
    from infalign.settings.params import Tiny

    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
    return build_tiny(sizes, tokenizer, 64, torch.device("cpu"), seed=1)


def gradients(policy, work):
    policy.zero_grad()
    work().backward()
    return {name: weight.grad.clone() for name, weight in policy.named_parameters()}


@pytest.mark.parametrize("how", ["sliced", "recomputed"])
def test_the_same_values_and_gradients(policy, reference, batch, monkeypatch, how):
    moved(policy)
    weights = torch.linspace(-1, 1, len(batch.tokens))
    whole = token_scores(policy, reference, batch)
    alone = token_log_probs(policy, batch)
    expected = gradients(
        policy, lambda: (weights * token_scores(policy, reference, batch)[0]).sum()
    )
    if how == "recomputed":
        recompute(policy)
    monkeypatch.setattr(vocabulary, "LOGITS", 300 * 4)  # four tokens at a time
    trainable = Trainable(policy)
    sliced = trainable(token_scores, reference, batch)
    for ours, theirs in zip(sliced, whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(trainable(token_log_probs, batch), alone, atol=2e-5, rtol=1e-4)
    for work in (lambda: trainable(token_scores, reference, batch)[0], None):
        found = gradients(
            policy,
            lambda w=work: (weights * (w() if w else trainable(token_log_probs, batch))).sum(),
        )
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)
    assert sliced.kl.min() > 0


@pytest.mark.parametrize("how", ["whole", "sliced", "recomputed"])
def test_a_policy_that_is_the_reference_has_no_kl(policy, reference, batch, monkeypatch, how):
    if how != "whole":
        monkeypatch.setattr(vocabulary, "LOGITS", 300 * 4)
    if how == "recomputed":
        recompute(policy)
    scores = Trainable(policy)(token_scores, reference, batch)
    assert scores.kl.abs().max() == 0
    assert torch.equal(scores.logp, scores.reference_logp)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation gives, in values."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else (found,):
            if isinstance(value, torch.Tensor):
                self.values = max(self.values, value.numel())
        return found


def test_no_tensor_is_as_large_as_all_logits(policy, reference, batch, monkeypatch):
    for limit in (2**25, 300 * 16):
        monkeypatch.setattr(vocabulary, "LOGITS", limit)
        with Largest() as largest:
            token_scores(policy, reference, batch)[0].sum().backward()
            token_log_probs(policy, batch).sum().backward()
        weights = max(p.numel() for p in policy.parameters())
        assert (largest.values > max(weights, 300 * 16)) == (limit == 2**25)


def test_a_model_that_caps_its_logits_is_not_cut_at_its_head(batch, monkeypatch):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
    )
    model = Gemma2ForCausalLM(config).eval()
    whole = token_log_probs(model, batch)
    monkeypatch.setattr(vocabulary, "LOGITS", 300 * 4)
    assert not has_plain_head(model)
    torch.testing.assert_close(token_log_probs(model, batch), whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("limit", [2**25, 2000 * 16], ids=["whole", "sliced"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_passes_in_bfloat16_do_not_bias_the_kl(family, limit, tokenizer, tmp_path, monkeypatch):
    """Logits rounded to bfloat16 add 0.004 nats a response of 14 tokens to a KL of 0.008."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 2000, "hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    more = {"initializer_range": 0.1, "tie_word_embeddings": False, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **sizes, **heads, **more)
    model = AutoModelForCausalLM.from_config(config)
    for name, scale in (("policy", 5.0), ("reference", 1.0)):
        with torch.no_grad():
            head = model.get_output_embeddings().weight.mul_(scale)
            head.add_(0.01 * head.std() * torch.randn(head.shape))
        save_model(model, tokenizer, tmp_path / name)
    draw = lambda n: torch.randint(5, 1990, (n,)).tolist()  # noqa: E731
    cpu = torch.device("cpu")
    batch = make_batch([draw(9) for _ in range(8)], [draw(14) for _ in range(32)], 0, cpu)
    monkeypatch.setattr(vocabulary, "LOGITS", limit)
    found = {}
    for precision in ("float32", "bfloat16"):
        pair = [load_policy(tmp_path / n, cpu, precision) for n in ("policy", "reference")]
        with torch.no_grad(), autocast(pair[0]):
            found[precision] = 14 * float(token_scores(*pair, batch).kl.mean())
    assert found["float32"] > 2e-3
    assert abs(found["bfloat16"] - found["float32"]) < 2e-4
