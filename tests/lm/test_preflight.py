"""What a named model cannot do is said by prepare, in one sentence, before anything is trained."""

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BertConfig
from transformers import BertForSequenceClassification as Bert

from infalign.data.framing import asked
from infalign.errors import InputError
from infalign.files.workspace import Lengths
from infalign.lm.models import load_format, save_model
from infalign.lm.preflight import check_models, check_texts
from infalign.settings.params import check_params
from tests.lm.holes import with_far_end

PROMPTS = [asked("one"), asked("two three nine")]
RESPONSES = ["four five six seven", "ten"]


@pytest.fixture
def check(smoke_tree, form):
    """A function that checks a policy's model and a reward model on some texts."""

    def ask(policy="tiny", reward="sft", **model):
        tree = copy.deepcopy(smoke_tree)
        tree["model"] |= {"name_or_path": str(policy), **model}
        tree["reward"]["name_or_path"] = str(reward)
        params = check_params(tree, "test")
        own = form if policy == "tiny" else load_format(policy)
        lengths = Lengths(params.model.prompt_tokens, params.model.response_tokens)
        check_models(params, own, lengths)
        check_texts(params, own, lengths, PROMPTS, list(zip(PROMPTS, RESPONSES, strict=True)))

    return ask


@pytest.fixture
def model_of(tokenizer, tmp_path):
    """A function that writes a tiny language model of a family."""

    def make(family: str, **more) -> Path:
        sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16}
        heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
        config = AutoConfig.for_model(family, **sizes | heads | {"pad_token_id": 0} | more)
        folder = tmp_path / family
        save_model(AutoModelForCausalLM.from_config(config), tokenizer, folder)
        return folder

    return make


@pytest.fixture
def encoder(tokenizer, tmp_path):
    """A function that writes a tiny encoder as a reward model."""

    def make(**more) -> Path:
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            **{"num_labels": 1} | more,
        )
        save_model(Bert(config), tokenizer, tmp_path / "encoder")
        return tmp_path / "encoder"

    return make


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks what is about to be renamed
def test_an_adapters_model_is_no_dependency_it_says(check, model_of, tokenizer, tmp_path, capsys):
    base = model_of("llama")
    check(base)
    assert capsys.readouterr().out == ""
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    check(tmp_path / "adapter")
    assert f"adapter of the local model '{base}'" in capsys.readouterr().out


def test_what_can_serve_is_let_through(check, model_of, encoder):
    check()
    check(model_of("llama"))
    check(model_of("opt", ffn_dim=16, word_embed_proj_dim=16), encoder())


def test_a_family_without_classifiers_needs_another_reward_model(check, model_of, encoder):
    cohere = model_of("cohere")
    with pytest.raises(InputError, match="no sequence classifier for the model type 'cohere'"):
        check(cohere)
    check(cohere, encoder())
    with pytest.raises(InputError, match="no sequence classifier"):
        check("tiny", cohere)


def test_a_reward_model_has_one_output_and_positions_enough(check, encoder):
    with pytest.raises(InputError, match="classifier with 2 labels"):
        check("tiny", encoder(num_labels=2))
    with pytest.raises(InputError, match=r"reads at most 6 tokens, and .* response may have \d+"):
        check("tiny", encoder(max_position_embeddings=6))


def test_a_policy_has_positions_for_prompt_response_and_eos(check, model_of):
    opt = model_of("opt", ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=40)
    check(opt, prompt_tokens=28, response_tokens=11)
    with pytest.raises(InputError, match=r"has 40 positions, and .* with EOS need 41: lower"):
        check(opt, prompt_tokens=28, response_tokens=12)
    check(model_of("bloom"), prompt_tokens=2000, response_tokens=2000)  # which has no bound


def test_every_token_that_occurs_has_a_row(check, model_of, tokenizer):
    folder = model_of("llama")
    more = AutoTokenizer.from_pretrained(folder)
    more.add_tokens(["<unheard>"])
    more.save_pretrained(folder)
    check(folder)  # what never occurs needs none
    more.add_tokens(["seven"])
    more.save_pretrained(folder)
    with pytest.raises(InputError, match=rf"gives 'seven' the id {len(tokenizer) + 1}, .* rows"):
        check(folder)
    with pytest.raises(InputError, match=r"reward.name_or_path = .* gives 'seven' the id"):
        check("tiny", folder)


def test_an_end_behind_holes_has_a_row_too(check, model_of, tokenizer):
    folder = model_of("llama", vocab_size=len(tokenizer) + 10)
    with_far_end(folder, len(tokenizer) + 9)
    check(folder)
    folder = model_of("llama", vocab_size=len(tokenizer) + 9)
    with_far_end(folder, len(tokenizer) + 9)
    with pytest.raises(InputError, match=rf"gives '<far end>' the id {len(tokenizer) + 9}, .*"):
        check(folder)


def test_a_reward_model_reads_the_longest_response_that_a_policy_may_write(check, encoder, form):
    """Those of the data may be shorter than model.response_tokens."""
    longest = max(map(len, form.encode_prompts(PROMPTS)))
    check("tiny", encoder(max_position_embeddings=longest + 30), response_tokens=30)
    with pytest.raises(InputError, match=rf"a response may have {longest + 31}: lower"):
        check("tiny", encoder(max_position_embeddings=longest + 30), response_tokens=31)


def test_padding_has_a_row_too(check, model_of, tokenizer):
    folder = model_of("llama")
    more = AutoTokenizer.from_pretrained(folder)
    more.add_special_tokens({"pad_token": "[new]"})
    more.save_pretrained(folder)
    with pytest.raises(InputError, match=r"gives '\[new\]' the id"):
        check(folder)


def test_a_policy_continues_text_and_can_end(check, model_of, encoder, tokenizer):
    folder = model_of("llama")
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps(content | {"eos_token": None, "sep_token": "</s>"}))
    with pytest.raises(InputError, match="no EOS token, so that responses could not end"):
        check(folder)
    config = AutoConfig.for_model("t5", d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    config.save_pretrained(folder.with_name("t5"))
    tokenizer.save_pretrained(folder.with_name("t5"))
    with pytest.raises(InputError, match="no causal language model of the type 't5'"):
        check(folder.with_name("t5"))


def test_a_reward_models_template_says_the_same_tomorrow(check, encoder):
    judge = encoder()
    own = AutoTokenizer.from_pretrained(judge)
    own.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    own.save_pretrained(judge)
    check("tiny", judge)
    own.chat_template += "{{ strftime_now('%d %B %Y') }}"
    own.save_pretrained(judge)
    with pytest.raises(InputError, match=r"reward\.name_or_path = .* writes today's date"):
        check("tiny", judge)


def test_weights_are_looked_at_before_training(check, model_of, encoder):
    judge, policy = encoder(), model_of("llama")
    path = judge / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(InputError, match="damaged or incomplete"):
        check(policy, judge)
    torch.save({}, path.with_name("pytorch_model.bin"))
    path.unlink()
    with pytest.raises(InputError, match="is a pickle"):
        check(policy, judge)
