"""Loading: what is refused and how, what is drawn and what is kept, adapters, padding."""

import json
import shlex
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
)

from infalign.data.framing import asked
from infalign.errors import InputError
from infalign.lm.models import (
    build_reward_model,
    load_format,
    load_policy,
    load_reward_model,
    load_tokenizer,
    own_padding,
    save_model,
)
from infalign.lm.preflight import check_weights
from infalign.lm.scoring.scorer import score_responses

CPU = torch.device("cpu")
PROMPTS = [asked("one"), asked("two three nine")]
RESPONSES = ["four five six seven", "ten"]


@pytest.fixture
def folder(policy, tokenizer, tmp_path):
    """A tiny language model on disk."""
    save_model(policy, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def pickled(folder: Path) -> None:
    """The folder's weights as they were stored before safetensors."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


LOADERS = [load_policy, load_reward_model, lambda name, device: check_weights(name)]


def test_a_pickle_is_refused_and_the_sentence_converts_it(folder, monkeypatch):
    weights = load_file(folder / "model.safetensors")
    pickled(folder)
    for load in LOADERS:
        with pytest.raises(InputError, match=r"\.bin is a pickle.*python -c") as caught:
            load(folder, CPU)
    command = shlex.split(str(caught.value).split("convert it once: ")[1].removesuffix("."))
    assert command[0] == "python"
    assert command[1] == "-c"
    monkeypatch.setattr(sys, "argv", command[1:])
    exec(command[2], {"__name__": "__main__"})
    for name, weight in load_policy(folder, CPU).state_dict().items():
        assert torch.equal(weight, weights.get(name, weight))


@pytest.mark.parametrize("load", LOADERS)
def test_weights_cut_short_or_lost_are_one_sentence(folder, load):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged or incomplete: download or copy it again"):
        load(folder, CPU)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="damaged or incomplete"):
        load(folder, CPU)
    path.unlink()
    with pytest.raises(InputError, match="cannot be loaded: give a local"):
        load(folder, CPU)
    (folder / "model.safetensors").write_bytes(whole)
    path.rename(folder / "model-00001-of-00002.safetensors")
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(load_names(whole), "model-00002.safetensors"),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model-00002\.safetensors"):
        load(folder, CPU)


def load_names(content: bytes) -> list[str]:
    length = int.from_bytes(content[:8], "little")
    return [name for name in json.loads(content[8 : 8 + length]) if name != "__metadata__"]


def test_a_config_that_cannot_be_read_is_one_sentence(folder):
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "many"}')
    for load in (load_policy, load_reward_model):
        with pytest.raises(InputError, match="cannot be loaded"):
            load(folder, CPU)
    (folder / "config.json").write_text('{"model_type": "nobodys"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        load_policy(folder, CPU)


def test_half_a_model_is_no_policy(policy, tokenizer, tmp_path):
    """A classifier has no output embedding; transformers would draw one and say nothing."""
    policy.config.tie_word_embeddings = False
    policy.config.num_labels = 1
    classifier = LlamaForSequenceClassification(policy.config)
    save_model(classifier, tokenizer, tmp_path)
    with pytest.raises(InputError, match=r"no weights for lm_head\.weight"):
        load_policy(tmp_path, CPU)


def test_a_language_model_gets_a_head_from_the_seed_and_is_no_finished_reward_model(
    folder, tokenizer
):
    with pytest.raises(InputError, match=r"no weights for score\.weight"):
        load_reward_model(folder, CPU)
    first, again, other = (build_reward_model(folder, tokenizer, CPU, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert float(first.score.weight.detach().std()) == pytest.approx(0.02, rel=0.6)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_reward_model_keeps_its_head(kind, folder, tokenizer, tmp_path):
    if kind == "llama":
        given = build_reward_model(folder, tokenizer, CPU, seed=3)
    else:
        given = BertForSequenceClassification(bert_config(len(tokenizer)))
    save_model(given, tokenizer, tmp_path / "given")
    built = build_reward_model(tmp_path / "given", tokenizer, CPU, seed=9)
    for name, weight in given.state_dict().items():
        assert torch.equal(built.state_dict()[name], weight), name


def test_an_encoder_that_lacks_its_head_gets_one(tokenizer, tmp_path):
    from transformers import BertForMaskedLM

    save_model(BertForMaskedLM(bert_config(len(tokenizer))), tokenizer, tmp_path)
    first, other = (build_reward_model(tmp_path, tokenizer, CPU, seed=s) for s in (3, 4))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert float(first.classifier.weight.detach().std()) == pytest.approx(0.02, rel=0.6)
    embeddings = (m.bert.embeddings.word_embeddings.weight for m in (first, other))
    assert torch.equal(*embeddings)


def test_a_classifier_with_two_labels_is_no_reward_model(tokenizer, tmp_path):
    config = bert_config(len(tokenizer), num_labels=2)
    save_model(BertForSequenceClassification(config), tokenizer, tmp_path)
    for load in (
        lambda: build_reward_model(tmp_path, tokenizer, CPU, seed=1),
        lambda: load_reward_model(tmp_path, CPU),
    ):
        with pytest.raises(InputError, match="classifier with 2 labels"):
            load()


def bert_config(vocabulary: int, **more: int) -> BertConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_labels": 1} | more
    return BertConfig(
        vocab_size=vocabulary, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0, **sizes
    )


def adapter_of(folder: Path, tokenizer, out: Path, **options) -> float:
    """A LoRA adapter of a folder's model that says something; how far it moves a weight."""
    import peft

    settings = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, **options)
    torch.manual_seed(4)
    with warnings.catch_warnings():  # peft asks what transformers is about to rename
        warnings.simplefilter("ignore", FutureWarning)
        adapted = peft.get_peft_model(load_policy(folder, CPU), settings)
    adapted.save_pretrained(out)
    tokenizer.save_pretrained(out)
    before = load_file(folder / "model.safetensors")
    merged = adapted.merge_and_unload().state_dict()
    return max(float((merged[name] - before[name]).abs().max()) for name in before)


def test_an_adapter_is_merged_into_its_model(folder, tokenizer, tmp_path):
    moved = adapter_of(folder, tokenizer, tmp_path / "adapter", task_type="CAUSAL_LM")
    assert moved > 1e-3
    plain, merged = load_policy(folder, CPU), load_policy(tmp_path / "adapter", CPU)
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert all(weight.requires_grad for weight in merged.parameters())
    differences = [
        float((a - b).detach().abs().max())
        for a, b in zip(merged.parameters(), plain.parameters(), strict=True)
    ]
    assert max(differences) == pytest.approx(moved, rel=1e-3)
    check_weights(tmp_path / "adapter")
    judge = build_reward_model(tmp_path / "adapter", tokenizer, CPU, seed=3)
    query = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(judge.state_dict()[query], merged.state_dict()[query])
    assert float(judge.score.weight.detach().abs().max()) > 0


def test_an_adapter_without_its_model_or_with_a_pickle_is_refused(folder, tokenizer, tmp_path):
    adapter_of(folder, tokenizer, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    for load in (load_policy, lambda name, device: check_weights(name)):
        with pytest.raises(InputError, match=r"save it once more with"):
            load(tmp_path / "adapter", CPU)
    settings = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps(content | {"base_model_name_or_path": "nobody/nothing"}))
    with pytest.raises(InputError, match="'nobody/nothing' cannot be loaded"):
        load_policy(tmp_path / "adapter", CPU)
    settings.write_text(json.dumps(content | {"base_model_name_or_path": None}))
    with pytest.raises(InputError, match="does not say of which model"):
        load_policy(tmp_path / "adapter", CPU)


@pytest.fixture
def end_is_padding(tokenizer, tmp_path):
    """A tokenizer that has EOS and no padding, in its own folder with a GPT-2 of its size."""
    tokenizer.save_pretrained(tmp_path / "gpt2")
    bare = AutoTokenizer.from_pretrained(tmp_path / "gpt2")
    bare.pad_token = None
    config = GPT2Config(
        vocab_size=len(bare), n_embd=16, n_layer=1, n_head=2, n_positions=64, initializer_range=0.2
    )
    config.bos_token_id, config.eos_token_id = bare.bos_token_id, bare.eos_token_id
    torch.manual_seed(2)
    save_model(GPT2LMHeadModel(config), bare, tmp_path / "gpt2")
    return tmp_path / "gpt2"


def plain_rewards(folder: Path) -> tuple[list[float], list[float]]:
    """Rewards of the texts by transformers alone: one by one, and as a padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    end = tokenizer.eos_token or ""
    texts = [f"{p.marked} {r}{end}" for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    with torch.no_grad():
        alone = [float(model(**tokenizer(text, return_tensors="pt")).logits) for text in texts]
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
    return alone, together.tolist()


def test_a_saved_reward_model_gives_the_same_rewards_where_padding_was_eos(
    end_is_padding, tmp_path
):
    tokenizer = load_tokenizer(end_is_padding)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    words = len(tokenizer)
    tokenizer = own_padding(tokenizer)
    model = build_reward_model(end_is_padding, tokenizer, CPU, seed=3)
    assert tokenizer.pad_token_id == model.config.pad_token_id == words
    save_model(model, tokenizer, tmp_path / "reward")
    loaded, own = load_reward_model(tmp_path / "reward", CPU), load_format(tmp_path / "reward")
    found = score_responses(loaded, own, PROMPTS, RESPONSES, batch_size=2).tolist()
    alone, together = plain_rewards(tmp_path / "reward")
    assert alone == pytest.approx(found, abs=1e-5)
    assert together == pytest.approx(found, abs=1e-5)
    assert abs(found[0] - found[1]) > 1e-2


def test_padding_of_its_own_stays(tokenizer, folder):
    before = tokenizer.pad_token_id, len(tokenizer)
    model = build_reward_model(folder, own_padding(tokenizer), CPU, seed=3)
    assert (tokenizer.pad_token_id, len(tokenizer)) == before
    assert len(model.get_input_embeddings().weight) == model.config.vocab_size == len(tokenizer)


@pytest.fixture
def encoder(tmp_path):
    """A BERT reward model, whose tokenizer has [CLS] and [SEP] and no EOS."""
    texts = [*(prompt.turns[-1].content for prompt in PROMPTS), *RESPONSES]
    words = ["human", "assistant", ":", *" ".join(texts).lower().split()]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(words)]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    torch.manual_seed(2)
    model = BertForSequenceClassification(bert_config(len(words), initializer_range=0.3))
    save_model(model, tokenizer, tmp_path / "bert")
    return tmp_path / "bert"


def test_a_reward_model_needs_no_eos(encoder):
    form = load_format(encoder)
    tokenizer = own_padding(form.tokenizer)
    assert tokenizer.eos_token_id is None
    assert tokenizer.pad_token == "[PAD]"
    prompts, responses = form.encode_prompts(PROMPTS), form.encode_responses(RESPONSES)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert prompt[0] == tokenizer.cls_token_id
        whole = f"{PROMPTS[row].marked} {RESPONSES[row]}"
        assert prompt + response == tokenizer(whole)["input_ids"]
    assert form.decode(responses) == RESPONSES
    model = build_reward_model(encoder, tokenizer, CPU, seed=1)
    found = score_responses(model, form, PROMPTS, RESPONSES, batch_size=2).tolist()
    alone, together = plain_rewards(encoder)
    assert alone == pytest.approx(found, abs=1e-5)
    assert together == pytest.approx(found, abs=1e-5)
    assert abs(found[0] - found[1]) > 1e-3


def test_a_tokenizer_that_can_end_nothing_is_refused(encoder):
    path = encoder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"sep_token": None}))
    with pytest.raises(InputError, match="neither an EOS nor a SEP token"):
        load_tokenizer(encoder)
