"""How models see dialogues: `plain` markers, and chat templates as transformers renders them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from infalign.data.dialogue import Dialogue, Turn
from infalign.data.framing import asked
from infalign.data.kept import last_exchanges
from infalign.errors import InputError
from infalign.lm.formats import Format, with_arguments
from infalign.lm.models import (
    load_format,
    load_policy,
    load_reward_model,
    named_format,
    save_model,
)
from infalign.lm.sampling.sampler import sample_responses
from infalign.lm.scoring.scorer import Output, score_responses
from infalign.settings.params import Model
from tests.lm.templates import CHATML, FAMILIES, MISTRAL, tokenizer_of

PROMPT = asked("one two")


def test_responses_end_in_eos_unless_cut(form):
    whole = form.encode_responses(["four five six"])[0]
    assert whole[-1] == form.end == form.tokenizer.eos_token_id
    assert form.end not in whole[:-1]
    cut = form.encode_responses(["four five six"], longest=len(whole) - 1)[0]
    assert cut == whole[:-1]


def test_prompts_carry_no_eos(form):
    assert form.end not in form.encode_prompts([PROMPT])[0]
    assert form.encode_prompts([]) == form.encode_responses([]) == []


def test_decoding_returns_the_text(form):
    texts = ["four five six", "ten!", "Ünïcode – and   spaces"]
    assert form.decode(form.encode_responses(texts)) == texts


def test_prompt_and_response_join_as_one_text(form):
    joined = form.encode_prompts([PROMPT])[0] + form.encode_responses(["four"])[0]
    together = form.tokenizer([f"{PROMPT.marked} four"])["input_ids"][0]
    assert joined[:-1] == together


def test_cut_responses_equals_cutting_tokens(form):
    texts = ["four five six seven", "ten"]
    short, kept = form.cut_responses(texts, 3)
    assert texts[0].startswith(short)
    assert len(short) < len(texts[0])
    assert form.encode_responses([kept]) == form.encode_responses(["ten"])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_response_is_encoded_alone_as_behind_its_marker(form, text):
    [ids] = form.encode_responses([text])
    assert ids[:-1] == form.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]


# Chat templates

WORDS = "Wait 12 hours: it's 500 g!\n\n- So?  \t Ünïcode 😀"
DIALOGUES = [
    asked("Which colour has the sky?"),
    asked(f"Human: {WORDS}\n\nAssistant: 12\n\nHuman: Why?\n\nAssistant: Oh.\n\nHuman: So."),
    Dialogue.of([("user", "  bread? "), ("assistant", " Yes.\n"), ("user", "\nThen?")]),
]
RESPONSES = ["Blue, mostly.", "12", "<b>", "", "\n\nx", WORDS, "- one\n- two", "é", "Human: no"]
SYSTEM = Turn("system", "Answer as briefly as you can.")


def settings_of(folder, **more):
    return Model.model_validate({"name_or_path": str(folder), "folder": str(folder)} | more)


@pytest.fixture
def chat(tmp_path):
    """A function that gives a family's format, read from a folder that was saved by it."""

    def read(name, **more):
        tokenizer_of(name).save_pretrained(tmp_path / "given")
        arguments = {"template_arguments": FAMILIES[name].arguments}
        made = named_format(settings_of(tmp_path / "given", **arguments | more))
        made.save(tmp_path / "saved")
        return load_format(tmp_path / "saved")

    return read


def own_ids(name, dialogue, response=None):
    """What transformers gives for a dialogue, as a list of messages."""
    messages = dialogue.messages
    if response is not None:
        messages = [*messages, {"role": "assistant", "content": response}]
    found = tokenizer_of(name).apply_chat_template(
        messages,
        add_generation_prompt=response is None,
        tokenize=True,
        return_dict=False,
        **FAMILIES[name].arguments,
    )
    return list(found)


def with_system(dialogue):
    return Dialogue((SYSTEM, *dialogue.turns))


def merged(dialogue):
    first, *rest = dialogue.turns
    return Dialogue((Turn("user", f"{SYSTEM.content}\n\n{first.content}"), *rest))


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_transformers_own(name, chat):
    form = chat(name)
    assert form.chat
    expected = [own_ids(name, dialogue) for dialogue in DIALOGUES]
    assert form.encode_prompts(DIALOGUES) == expected
    bos = form.tokenizer.bos_token_id
    if bos is not None and name != "smollm 2":  # whose every turn begins with it
        assert all(ids.count(bos) <= 1 for ids in expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_system_turn_is_kept_or_goes_into_the_users_first(name, chat):
    form, keeps = chat(name), FAMILIES[name].keeps_system
    assert form.takes_system == keeps
    turn = with_system if keeps else merged
    found = form.encode_prompts([with_system(dialogue) for dialogue in DIALOGUES])
    assert found == [own_ids(name, turn(dialogue)) for dialogue in DIALOGUES]
    assert SYSTEM.content in form.prompt_text(with_system(DIALOGUES[0]))


def test_a_system_turn_goes_into_the_users_turn_behind_a_greeting(chat):
    form = chat("first phi 3")
    turns = [SYSTEM, ("assistant", "Hello."), ("user", "Why?")]
    text = form.prompt_text(Dialogue.of(turns))
    assert text == f"<s>Hello.<|end|>\n<|user|>\n{SYSTEM.content}\n\nWhy?<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_are_the_templates_whole_to_the_end_of_the_turn(name, chat):
    form = chat(name)
    assert form.tokenizer.convert_ids_to_tokens(form.end) == FAMILIES[name].end
    texts = [response.strip() for response in RESPONSES]  # as all responses are
    for dialogue in (*DIALOGUES, with_system(DIALOGUES[1])):
        [prompt] = form.encode_prompts([dialogue])
        merges = dialogue.turns[0] == SYSTEM and not form.takes_system
        seen = merged(DIALOGUES[1]) if merges else dialogue
        for text, ids in zip(texts, form.encode_responses(texts), strict=True):
            assert ids[-1] == form.end
            assert form.end not in ids[:-1]
            whole = own_ids(name, seen, text)
            assert whole[: len(prompt) + len(ids)] == prompt + ids, (dialogue, text)
            behind = form.tokenizer.decode(whole[len(prompt) + len(ids) :]).strip()
            assert behind in ("", form.tokenizer.eos_token)
            form.check_whole(dialogue, text)
            assert form.decode([ids]) == [text]
            assert form.encode_responses([text], longest=len(ids) - 1) == [ids[:-1]]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_reward_model_reads_is_transformers_own_whole(name, chat):
    form = chat(name)
    asked_for = [dialogue for dialogue in DIALOGUES for _ in RESPONSES]
    responses = RESPONSES * len(DIALOGUES)
    prompts, replies = form.encode_whole(asked_for, responses)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        assert prompt + reply == own_ids(name, asked_for[row], responses[row])
        assert prompt == prompts[row // len(RESPONSES) * len(RESPONSES)]
        assert prompt
        assert reply


@pytest.mark.parametrize("name", FAMILIES)
def test_tools_turns_are_shown_or_refused(name, chat):
    form = chat(name)
    said = [("user", "Weather?"), ("assistant", "I look."), ("tool", '{"sky": "grey"}')]
    dialogue = Dialogue.of(said)
    assert form.takes_tools == FAMILIES[name].keeps_tools
    if form.takes_tools:
        assert form.encode_prompts([dialogue]) == [own_ids(name, dialogue)]
        assert "grey" in form.prompt_text(dialogue)
        return
    with pytest.raises(InputError, match="does not show the turns of tools"):
        form.encode_prompts([dialogue])


def test_thinking_is_one_sentence_that_shows_both_and_the_setting(chat):
    form = chat("qwen 3", template_arguments={})
    with pytest.raises(InputError) as error:
        form.check_whole(DIALOGUES[0], "Blue.")
    sentence = str(error.value)
    assert r"assistant\nBlue, mostly.', the whole in " in sentence
    assert r"<think>\n\n</think>\n\nBlue, mostly.<|im_end|>\n'" in sentence
    assert "enable_thinking: false" in sentence
    assert "\n" not in sentence
    with pytest.raises(InputError, match="by parts"):
        form.encode_responses(["Blue."])


BROKEN = {
    "another generation prompt": (
        CHATML.replace("assistant\n' }}{% endif", "model\n' }}{% endif"),
        "by parts it ends in",
    ),
    "no whole": (CHATML.replace("message['content'] +", "'' +"), "by parts it ends in"),
    "words before the response": (
        CHATML.replace("message['role'] + '\n'", "message['role'] + '\n' + '> '"),
        "by parts it ends in",
    ),
    "a space where none was asked for": (
        CHATML.replace("'\n' + message['content']", "'\n' + message['content'] + ' '").replace(
            "{% for", "{% if messages|length > 1 and messages|length < 3 %} {% endif %}{% for"
        ),
        "by parts it ends in",
    ),
    "a loop without end": (
        "{% for message in messages %}",
        "fails on a dialogue of the turns user",
    ),
    "a name that nobody gives": ("{{ nobody.name }}", "fails on a dialogue of the turns user"),
    "a refusal": ("{{ raise_exception('no\n\nnever') }}", "turns user: no never: correct"),
    "a division": ("{{ 1 // 0 }}", "fails on a dialogue of the turns user"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_template_is_one_sentence(fault, tmp_path):
    template, words = BROKEN[fault]
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=words) as error:
        named_format(settings_of(tmp_path)).check_whole(DIALOGUES[0], "Blue.")
    assert "\n" not in str(error.value)


def test_parts_that_differ_in_a_longer_dialogue_alone_are_found(chat):
    form = chat("chatml")
    template = form.tokenizer.chat_template
    form.tokenizer.chat_template = template.replace(
        "{% if add", "{% if messages|length == 6 %}{{ 'tail' }}{% endif %}{% if add"
    ).replace("message['content']", "message['content'] | replace('Blue.', 'Red.')")
    form.check_whole(DIALOGUES[0], "Green.")
    with pytest.raises(InputError, match=r"assistant\\nBlue\..*assistant\\nRed\."):
        form.check_whole(DIALOGUES[0], "Blue.")


def test_a_template_without_an_end_is_ended_by_eos(chat):
    form = chat("chatml")
    form.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    [ids] = form.encode_responses(["Blue."])
    assert ids[-1] == form.tokenizer.eos_token_id
    assert form.tokenizer.decode(ids[:-1]) == " Blue."
    form.check_whole(DIALOGUES[1], "Blue.")


def test_a_token_across_the_parts_is_an_error(chat):
    form = chat("chatml")
    form.tokenizer.chat_template = CHATML.replace("role'] + '\n'", "role'] + ' '").replace(
        "assistant\n' }}{% endif", "assistant ' }}{% endif"
    )
    with pytest.raises(InputError, match=r"<\|im_start\|>assistant  Blue.*\|>assistant Blue"):
        form.check_whole(DIALOGUES[0], "Blue.")


def test_what_stands_before_the_end_of_a_turn_belongs_to_the_response(chat):
    form = chat("mistral")
    form.tokenizer.chat_template = MISTRAL.replace(" + eos_token", " + ' ' + eos_token")
    for response in ("Blue.", "12"):
        form.check_whole(DIALOGUES[1], response)
        [ids] = form.encode_responses([response])
        assert form.tokenizer.decode(ids).strip() == f"{response} </s>"
        assert form.decode([ids]) == [response]


def test_an_empty_response_of_words_and_pieces_is_its_end_alone():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "human", "assistant", ":", "why"]
    backend = Tokenizer(WordPiece({word: i for i, word in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = BertPreTokenizer()
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "sep_token": "[SEP]"}
    form = Format(PreTrainedTokenizerFast(tokenizer_object=backend, **named))
    assert form.encode_responses(["", "why"]) == [[3], [7, 3]]


def test_pieces_of_words_join_as_one_text_with_plain_markers(chat):
    """A tokenizer that begins every text with a space would give a response two."""
    form = chat("mistral", format="plain", template_arguments={})
    assert not form.chat
    for response in ("Blue, mostly.", "12"):
        prompt, reply = form.encode_prompts([PROMPT])[0], form.encode_responses([response])[0]
        whole = form.tokenizer(f"{PROMPT.marked} {response}")["input_ids"]
        assert prompt + reply == [*whole, form.end]
        assert form.decode([reply]) == [response]


# What ends a response


def policy_of(form, stops, folder):
    """A random Llama that likes to stop, saved with a generation_config."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(form.tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = list(stops)
    with torch.no_grad():
        model.lm_head.weight[list(stops)] *= 40.0
    save_model(model, form.tokenizer, folder)
    return load_policy(folder, torch.device("cpu"))


def test_every_eos_of_the_generation_config_ends_a_response(chat, tmp_path):
    form = chat("llama 3")
    names = ["<|end_of_text|>", "<|eom_id|>"]
    first, second = form.tokenizer.convert_tokens_to_ids(names)
    policy = policy_of(form, (first, second), tmp_path / "model")
    form = load_format(tmp_path / "model")
    assert form.ends == (form.end, *sorted((first, second)))
    found = sample_responses(
        policy,
        form,
        DIALOGUES[:1],
        ["00000000000000aa"],
        np.arange(256)[None],
        seed=1,
        longest=8,
        batch_size=64,
    )
    last = {tokens[-1] for tokens, done in zip(found.tokens, found.finished, strict=True) if done}
    assert {first, second} <= last <= set(form.ends)
    for tokens, done in zip(found.tokens, found.finished, strict=True):
        assert done == (tokens[-1] in form.ends)
        assert not set(tokens[:-1]) & set(form.ends)
        assert done or len(tokens) == 8
    assert not any(name in text for text in found.text for name in names)
    form.save(tmp_path / "tokenizer")
    assert load_format(tmp_path / "tokenizer").ends == form.ends


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks what is about to be renamed
def test_an_adapter_stops_where_its_base_does(chat, tmp_path):
    form = chat("llama 3")
    stop = form.tokenizer.convert_tokens_to_ids("<|eom_id|>")
    policy = policy_of(form, [stop], tmp_path / "model")
    adapted = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "model")
    adapted.save_pretrained(tmp_path / "adapter")
    form.tokenizer.save_pretrained(tmp_path / "adapter")
    assert stop in load_format(tmp_path / "adapter").ends


def test_the_end_of_a_turn_and_eos_end_a_response_both(chat):
    form = chat("chatml")
    end, eos = form.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert form.ends == (end, eos)
    assert form.pad == eos


@pytest.mark.parametrize("content", ["[", "[1]", '{"eos_token_id": "many"}'])
def test_a_generation_config_that_cannot_be_read_is_one_sentence(content, tmp_path):
    tokenizer_of("chatml").save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=r"generation_config\.json cannot be read"):
        load_format(tmp_path)


# Cutting


@pytest.mark.parametrize("name", ["llama 3", "gemma 2", "zephyr"])
def test_cutting_drops_whole_exchanges_from_the_front_and_no_system_turn(name, chat):
    form = chat(name)
    turns = [SYSTEM]
    for number in range(5):
        turns += [Turn("user", f"why {number}? " * (number + 1)), Turn("assistant", "so " * number)]
    whole = Dialogue.of([*turns, Turn("user", "and then?")])
    lengths = []
    for left in range(5, 0, -1):
        expected = Dialogue((SYSTEM, *whole.turns[-2 * left + 1 :]))
        assert whole.last(left) == expected
        lengths.append(len(form.encode_prompts([expected])[0]))
    assert lengths == sorted(lengths, reverse=True)
    for longest in range(min(lengths) - 1, max(lengths) + 2):
        cut = last_exchanges(whole, form.encode_prompts, longest)
        fits = next((5 - i for i, n in enumerate(lengths) if n <= longest), None)
        assert cut == (None if fits is None else whole.last(fits))


# Rewards


def messages_of(dialogue, response):
    return [*dialogue.messages, {"role": "assistant", "content": response}]


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("name", ["llama 3", "qwen 3", "gemma 3", "phi 3", "smollm 2", "zephyr"])
def test_rewards_are_plain_transformers_own(name, thinks, tmp_path):
    """Padding is EOS and the end of a turn with some: there transformers pools before it."""
    tokenizer = tokenizer_of(name)
    arguments = {} if thinks and name == "qwen 3" else FAMILIES[name].arguments
    tokenizer.chat_template = with_arguments(tokenizer.chat_template, arguments)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_model(LlamaForSequenceClassification(config), tokenizer, tmp_path)
    each = [dialogue for dialogue in (*DIALOGUES, with_system(DIALOGUES[0])) for _ in range(3)]
    replies = ["Blue, mostly.", "", "12", "Oh.", "<think>So.</think> Red.", "No.", *RESPONSES[:6]]
    model, form = load_reward_model(tmp_path, torch.device("cpu")), load_format(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    own = AutoTokenizer.from_pretrained(tmp_path)
    expected = []
    with torch.inference_mode():
        for dialogue, reply in zip(each, replies, strict=True):
            inputs = own.apply_chat_template(
                messages_of(dialogue, reply), return_dict=True, tokenize=True, return_tensors="pt"
            )
            expected.append(float(plain(**inputs).logits[0, 0]))
    for batch_size in (1, 3, 12):
        found = score_responses(
            model, form, each, replies, batch_size=batch_size, output=Output(pad=form.pad)
        )
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.std(expected) > 0.05


# Templates as they are given and kept


def test_a_template_that_writes_todays_date_is_one_sentence(chat, tmp_path):
    with pytest.raises(InputError, match=r"writes today's date .*strftime_now: ") as error:
        chat("llama 3", template_arguments={})
    assert "\n" not in str(error.value)
    form = chat("llama 3", template_arguments={"strftime_now": 'the "26th" \\ 😀'})
    assert 'Today Date: the "26th" \\ 😀\n' in form.prompt_text(PROMPT)
    assert "Today Date: 26 Jul 2024\n" in chat("llama 3").prompt_text(PROMPT)
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = "{% set now = strftime_now('%d') if false else 'x' %}" + CHATML
    tokenizer.save_pretrained(tmp_path / "given")
    named_format(settings_of(tmp_path / "given"))  # which never does


def test_arguments_are_kept_in_the_saved_folder(tmp_path, chat):
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = "\n  {{ a }}|{{ b }}|{{ c }}|{{ d is none }}|{{ e }}\n" + CHATML
    values = {"a": "two\nlines: \"'{{ x }} %} \\n é 😀", "b": True, "c": 1e-07, "d": None, "e": -3}
    tokenizer.save_pretrained(tmp_path / "given")
    form = named_format(settings_of(tmp_path / "given", template_arguments=values))
    form.save(tmp_path / "kept")
    own = AutoTokenizer.from_pretrained(tmp_path / "kept")
    expected = tokenizer.apply_chat_template(
        PROMPT.messages, tokenize=False, add_generation_prompt=True, **values
    )
    found = own.apply_chat_template(PROMPT.messages, tokenize=False, add_generation_prompt=True)
    assert found == expected == load_format(tmp_path / "kept").prompt_text(PROMPT)
    assert not (tmp_path / "kept" / "generation_config.json").exists()


@pytest.mark.parametrize("name", ["enable_thinkng", "messages", "enable-thinking", "assistan"])
def test_an_argument_that_no_template_asks_for_is_refused(name, chat):
    with pytest.raises(InputError, match=f"'{name}' is no name that the chat template asks for"):
        chat("chatml", template_arguments={name: False})


def test_plain_leaves_a_template_aside(chat, tmp_path):
    form = chat("llama 3", format="plain", template_arguments={})
    assert form.prompt_text(DIALOGUES[1]) == DIALOGUES[1].marked
    assert form.end == form.tokenizer.eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template is None
    with pytest.raises(InputError, match=r"template_arguments .* the format is plain"):
        chat("llama 3", format="plain")


def test_a_template_is_taken_where_there_is_one(form, tmp_path):
    form.save(tmp_path / "none")
    assert not named_format(settings_of(tmp_path / "none")).chat
    with pytest.raises(InputError, match=r"has no chat template: set model\.format to plain"):
        named_format(settings_of(tmp_path / "none", format="chat"))


def test_of_several_templates_the_default_is_taken(tmp_path):
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = {"default": CHATML, "tool_use": "never"}
    tokenizer.save_pretrained(tmp_path / "both")
    expected = "<|im_start|>user\none two<|im_end|>\n<|im_start|>assistant\n"
    for read in (load_format, lambda folder: named_format(settings_of(folder))):
        found = read(tmp_path / "both")
        assert found.prompt_text(PROMPT) == expected
        found.save(tmp_path / "saved")
        assert load_format(tmp_path / "saved").prompt_text(PROMPT) == expected
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
    tokenizer.save_pretrained(tmp_path / "neither")
    for read in (load_format, lambda folder: named_format(settings_of(folder))):
        with pytest.raises(InputError, match="chat templates 'rag', 'tool_use', and none of the"):
            read(tmp_path / "neither")
    assert not named_format(settings_of(tmp_path / "neither", format="plain")).chat
