"""Chat templates of well-known families, by their documented form, and tokenizers to stand on.

Each writes what its family's own writes around turns; what no test asks of it (tool calls, images,
default system turns of many lines) is left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Which colour has the sky? Blue, mostly. Answer as briefly as you can.",
    "How do I bake bread? First mix the flour and 500 g of water, then wait for 12 hours.",
    "system user assistant model tool\nHuman: one\n\nAssistant: two\n<|im_start|> [INST] [/INST]",
]

LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]["role"] == "system" %}
    {%- set said = messages[0]["content"] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set said = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + said + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- message.content | tojson + "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" }}
        {{- message["content"] | trim + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""

QWEN_2_5 = """{%- if messages[0]["role"] == "system" %}
    {{- "<|im_start|>system\\n" + messages[0]["content"] + "<|im_end|>\\n" }}
{%- else %}
    {{- "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or message.role == "assistant" %}
        {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>" + "\\n" }}
    {%- elif message.role == "tool" %}
        {{- "<|im_start|>user\\n<tool_response>\\n" + message.content }}
        {{- "\\n</tool_response><|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
"""

QWEN_3 = """{%- if messages[0].role == "system" %}
    {{- "<|im_start|>system\\n" + messages[0].content + "<|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == "user" %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- "<|im_start|>user\\n" + message.content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" %}
        {%- set content, thought = message.content, "" %}
        {%- if "</think>" in content %}
            {%- set thought = content.split("</think>")[0].split("<think>")[-1].strip("\\n") %}
            {%- set content = content.split("</think>")[-1].lstrip("\\n") %}
        {%- endif %}
        {{- "<|im_start|>assistant\\n" }}
        {%- if loop.index0 > ns.last %}
            {{- "<think>\\n" + thought + "\\n</think>\\n\\n" + content.lstrip("\\n") }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- "<|im_end|>\\n" }}
    {%- elif message.role == "tool" %}
        {{- "<|im_start|>user\\n<tool_response>\\n" + message.content }}
        {{- "\\n</tool_response><|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- "<think>\\n\\n</think>\\n\\n" }}
    {%- endif %}
{%- endif %}
"""

GEMMA_3 = """{{ bos_token }}
{%- if messages[0]["role"] == "system" -%}
    {%- set prefix = messages[0]["content"] + "\\n\\n" -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message["role"] == "assistant" else message["role"] -%}
    {{ "<start_of_turn>" + role + "\\n" + (prefix if loop.first else "") }}
    {{- message["content"] | trim }}{{ "<end_of_turn>\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ "<start_of_turn>model\\n" }}
{%- endif -%}
"""

GEMMA_2 = """{{ bos_token }}
{%- if messages[0]["role"] == "system" %}{{ raise_exception("System role not supported") }}
{%- endif %}
{%- for message in messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate") }}
    {%- endif %}
    {%- set role = "model" if message["role"] == "assistant" else message["role"] %}
    {{- "<start_of_turn>" + role + "\\n" + message["content"] | trim + "<end_of_turn>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<start_of_turn>model\\n" }}{% endif %}"""

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}"
)

PHI_3 = (
    "{% for message in messages %}"
    "{% if message['role'] in ('system', 'user', 'assistant') %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)

PHI_3_FIRST = (  # which drops system turns, and asks for an answer whether or not it is wanted
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '<|end|>\n<|assistant|>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + '<|end|>\n' }}"
    "{% endif %}{% endfor %}"
)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SMOLLM_2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    + CHATML.removeprefix("{% for message in messages %}")
)

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""


@dataclass(frozen=True)
class Family:
    """A template and what it stands on.

    Attributes:
        pieces: whether the tokenizer is of words' pieces with `▁` for spaces, not of bytes.
        prefix: whether such a one begins every text with a space.
        strips: whether its special tokens take the whitespace behind them.
        bos, eos, pad: None where there is none.
        end: what ends a turn.
        more: other special tokens.
        words: added tokens that are part of the language.
        keeps_system, keeps_tools: whether the template shows such turns.
        arguments: with which it is asked.
    """

    template: str
    eos: str
    end: str
    bos: str | None = None
    pad: str | None = None
    more: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    pieces: bool = False
    prefix: bool = True
    strips: bool = False
    keeps_system: bool = True
    keeps_tools: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>", "<|eom_id|>")
CHAT_ML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
GEMMA = ("<start_of_turn>", "<end_of_turn>")
LINES = ("\n", "\n\n", "▁▁")  # Gemma's tokenizers have some as added tokens
PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
FAMILIES = {
    "llama 3": Family(
        LLAMA_3,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        end="<|eot_id|>",
        more=HEADERS,
        keeps_tools=True,
        arguments={"date_string": "26 Jul 2024"},
    ),
    "qwen 2.5": Family(
        QWEN_2_5,
        eos="<|im_end|>",
        end="<|im_end|>",
        pad="<|endoftext|>",
        more=CHAT_ML,
        keeps_tools=True,
    ),
    "qwen 3": Family(
        QWEN_3,
        eos="<|im_end|>",
        end="<|im_end|>",
        pad="<|endoftext|>",
        more=CHAT_ML,
        words=("<think>", "</think>"),
        keeps_tools=True,
        arguments={"enable_thinking": False},
    ),
    "gemma 3": Family(
        GEMMA_3,
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        end="<end_of_turn>",
        more=GEMMA,
        words=LINES,
        pieces=True,
        prefix=False,
    ),
    "gemma 2": Family(
        GEMMA_2,
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        end="<end_of_turn>",
        more=GEMMA,
        words=LINES,
        pieces=True,
        prefix=False,
        keeps_system=False,
    ),
    "mistral": Family(MISTRAL, bos="<s>", eos="</s>", end="</s>", pieces=True, keeps_system=False),
    "phi 3": Family(
        PHI_3,
        bos="<s>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        end="<|end|>",
        more=PHI,
        pieces=True,
        strips=True,
    ),
    "first phi 3": Family(
        PHI_3_FIRST,
        bos="<s>",
        eos="<|endoftext|>",
        end="<|end|>",
        more=PHI,
        pieces=True,
        keeps_system=False,
    ),
    "smollm 2": Family(
        SMOLLM_2,
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|im_end|>",
        end="<|im_end|>",
        more=CHAT_ML,
        keeps_tools=True,
    ),
    "chatml": Family(CHATML, eos="<|endoftext|>", end="<|im_end|>", more=CHAT_ML, keeps_tools=True),
    "zephyr": Family(ZEPHYR, bos="<s>", eos="</s>", pad="</s>", end="</s>", pieces=True),
}


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """A family's tokenizer, its own at every call, with its template."""
    family = FAMILIES[name]
    backend = Tokenizer.from_str(_trained(family.pieces, family.prefix))
    for text in (family.bos, family.eos, family.pad, *family.more):
        if text is not None:
            token = AddedToken(text, special=True, normalized=False, rstrip=family.strips)
            backend.add_special_tokens([token])
    backend.add_tokens([AddedToken(text, normalized=False) for text in family.words])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        chat_template=family.template,
        model_max_length=512,
    )


@cache
def _trained(pieces: bool, prefix: bool) -> str:
    if pieces:
        backend = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        spaces = [normalizers.Replace(" ", "▁")]
        backend.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")  # which no piece goes across
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁")] * prefix + spaces)
        back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(back + [decoders.Strip(" ", 1, 0)] * prefix)
        given = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=given, show_progress=False)
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, show_progress=False
        )
    backend.train_from_iterator(TEXTS * 3, trainer)
    tree = json.loads(backend.to_str())
    tree["added_tokens"] = tree["added_tokens"][:1] if pieces else []  # bytes are no special tokens
    return json.dumps(tree)
