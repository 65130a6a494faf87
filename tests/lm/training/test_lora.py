"""Adapters: nothing at first, switched off the reference, merged a plain model."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
)

from infalign.errors import InputError
from infalign.lm.models import load_policy, save_model
from infalign.lm.scoring.vocabulary import token_log_probs, token_scores
from infalign.lm.text import make_batch
from infalign.lm.training.loop import Schedule, Step, optimise
from infalign.lm.training.lora import add_adapter, merge_adapter, without_adapter
from infalign.lm.training.losses import likelihood_loss
from infalign.lm.training.parallel import Trainable
from infalign.planning.shapes import shape_of
from tests.lm.families import FAMILIES, saved

CPU = torch.device("cpu")
BIASED = ("weight", "bias")


@pytest.fixture
def batch():
    rows = torch.randint(5, 290, (4, 9), generator=torch.Generator().manual_seed(1)).tolist()
    return make_batch([r[:3] for r in rows], [r[3:] for r in rows], 0, torch.device("cpu"))


def test_begins_as_the_reference_and_ends_as_a_plain_model(policy, tokenizer, batch, tmp_path):
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    first = token_log_probs(policy, batch).detach()
    model = add_adapter(policy, 4, seed=3)
    assert model is policy
    trainable = Trainable(model)

    def reference():
        return without_adapter(model)

    scores = trainable(token_scores, reference, batch)
    assert scores.kl.abs().max() == 0
    assert torch.equal(scores.logp, scores.reference_logp)
    assert torch.allclose(scores.logp, first, atol=1e-5)  # a plain small Llama has a shorter way
    first = scores.reference_logp
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * 7 * 2  # two factors, seven linear layers, two layers
    assert all("lora_" in name for name in trained)

    def take(number):
        loss = likelihood_loss(trainable(token_log_probs, batch))
        trainable(token_scores, reference, batch)  # switching off and on leaves training alone
        return Step(loss, {}, 1)

    optimise(trainable, Schedule(20, 3e-2, 0.1), take, tmp_path / "work", name="toy")
    kept = torch.load(tmp_path / "work" / "checkpoint.pt", weights_only=True)["model"]
    assert set(kept) == set(trained)  # not the embedding, though the head is tied to it
    scores = trainable(token_scores, reference, batch)
    assert scores.logp.mean() > first.mean() + 0.5
    assert torch.equal(scores.reference_logp, first)
    plain = merge_adapter(trainable.plain())
    assert plain.state_dict().keys() == before.keys()
    torch.testing.assert_close(token_log_probs(plain, batch), scores.logp, atol=1e-4, rtol=1e-4)
    save_model(plain, tokenizer, tmp_path / "policy")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert loaded.state_dict().keys() == before.keys()
    assert torch.equal(token_log_probs(loaded, batch), token_log_probs(plain, batch))
    moved = [name for name, value in loaded.state_dict().items() if not value.equal(before[name])]
    assert len(moved) == 2 * 7


def test_the_seed_draws_the_first_factor(tokenizer):
    from infalign.lm.models import build_tiny
    from infalign.settings.params import Tiny

    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=1, heads=2)
    made = [
        add_adapter(build_tiny(sizes, tokenizer, 64, torch.device("cpu"), 1), 2, seed).state_dict()
        for seed in (3, 3, 4)
    ]
    factors = [name for name in made[0] if "lora_A" in name]
    assert factors
    assert all(made[0][name].equal(made[1][name]) for name in factors)
    assert not any(made[0][name].equal(made[2][name]) for name in factors)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks what is about to be renamed
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_every_family(family, tokenizer, tmp_path):
    """In the trunk's linear layers, as `infalign plan` counts them; merged, a model as it was."""
    folder = saved(family, tokenizer, tmp_path)
    model = load_policy(folder, CPU)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    if "mamba" in family or family == "falcon_h1":
        with pytest.raises(InputError, match=r"sft\.lora_rank: peft has no adapter for"):
            add_adapter(model, 4, seed=3, section="sft")
        return
    shape = shape_of(model.config, family)
    add_adapter(model, 4, seed=3)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert sum(weight.numel() for weight in trained) == sum(w.count for w in shape.adapter(4))
    for weight in trained:
        weight.data += 0.01
    merged = merge_adapter(model).state_dict()
    assert merged.keys() == before.keys()
    moved = [name for name, value in merged.items() if not value.equal(before[name])]
    assert len(moved) == len(trained) // 2
    model.save_pretrained(tmp_path / "merged")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_a_classifier_lacked_is_trained_with_its_adapter(tmp_path):
    """A masked language model has neither a classifier's head nor a pooler."""
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(**sizes, **layers)).save_pretrained(tmp_path)
    model = BertForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    add_adapter(model, 4, seed=3, section="reward")
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    new = {name for name in trained if "lora_" not in name}
    assert new == {f"{m}.{w}" for m in ("classifier", "bert.pooler.dense") for w in BIASED}
