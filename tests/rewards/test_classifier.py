"""A ready classifier: plain transformers' rewards, its own template, one chosen output."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.rewards.classifier import Passes, chosen_label, ready_classifier
from infalign.rewards.preflight import check_model
from infalign.settings.rewards import ModelReward

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED = [
    Dialogue.of([("system", "one two"), ("user", "three four?")]),
    Dialogue.of([("user", "five"), ("assistant", "six"), ("user", "seven eight nine")]),
]
DIALOGUES = [ASKED[0]] * 3 + [ASKED[1]] * 3
SAID = ["four", "five six seven eight", "", "ten", "nine nine nine", "one two three four five"]


@pytest.fixture
def write(tokenizer: Any, tmp_path: Path) -> Any:
    """A function that writes a small classifier with random weights."""

    def made(labels: int = 1, template: str | None = None, **changes: Any) -> Path:
        own = copy.deepcopy(tokenizer)
        if template:
            own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
            own.chat_template = template
        torch.manual_seed(3)
        settings = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        settings |= {"num_attention_heads": 2, "max_position_embeddings": 128}
        settings |= {"vocab_size": len(own), "num_labels": labels, "pad_token_id": own.pad_token_id}
        model = LlamaForSequenceClassification(LlamaConfig(**(settings | changes))).eval()
        torch.nn.init.normal_(model.score.weight)
        folder = tmp_path / "ready"
        model.save_pretrained(folder)
        own.save_pretrained(folder)
        return folder

    return made


def plain(folder: Path, texts: list[str], label: int = 0) -> list[float]:
    """The rewards of transformers alone, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        ids = [tokenizer(t, add_special_tokens=False, return_tensors="pt") for t in texts]
        return [float(model(input_ids=i["input_ids"]).logits[0, label]) for i in ids]


def rewards(folder: Path, label: int | str | None = None) -> np.ndarray:
    source = ready_classifier(folder, None, label, ("cpu", "float32"), Passes(4))
    return source.rewards(DIALOGUES, SAID)


def whole(folder: Path) -> list[str]:
    """Every dialogue with its response, as the model's own template renders it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        tokenizer.apply_chat_template(
            [*dialogue.messages, {"role": "assistant", "content": said}], tokenize=False
        )
        for dialogue, said in zip(DIALOGUES, SAID, strict=True)
    ]


def test_rewards_are_those_of_plain_transformers(write: Any) -> None:
    folder = write(template=CHATML)
    before = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    found = rewards(folder)
    assert found == pytest.approx(plain(folder, whole(folder)), abs=1e-5)
    assert len(set(found)) == len(found)
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == before


def test_where_padding_ends_a_turn_it_is_read_before_it_as_transformers_does(
    write: Any, tokenizer: Any
) -> None:
    template = CHATML.replace("<|im_end|>\n", tokenizer.eos_token)
    folder = write(template=template, pad_token_id=tokenizer.eos_token_id)
    assert whole(folder)[0].endswith(tokenizer.eos_token)
    assert rewards(folder) == pytest.approx(plain(folder, whole(folder)), abs=1e-5)


def test_without_a_template_it_reads_markers(write: Any, tokenizer: Any) -> None:
    folder = write()
    texts = [
        f"{d.marked} {said}{tokenizer.eos_token}"
        for d, said in zip(DIALOGUES, SAID, strict=True)
        if said
    ]
    kept = [place for place, said in enumerate(SAID) if said]
    assert rewards(folder)[kept] == pytest.approx(plain(folder, texts), abs=1e-5)


def test_a_label_is_chosen_by_number_or_name(write: Any) -> None:
    folder = write(3, CHATML, id2label={0: "bad", 1: "good", 2: "odd"})
    expected = plain(folder, whole(folder), label=1)
    assert rewards(folder, 1) == pytest.approx(expected, abs=1e-5)
    assert rewards(folder, "good") == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match=r"3 outputs, and no label is chosen: .*1: good, 2: odd"):
        rewards(folder)
    with pytest.raises(InputError, match="label = 'god' is none of them"):
        rewards(folder, "god")


def test_an_encoder_gives_its_chosen_output(tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertForSequenceClassification(config).eval()
    folder = tmp_path / "encoder"
    model.save_pretrained(folder)
    own = copy.deepcopy(tokenizer)
    own.chat_template = CHATML
    own.save_pretrained(folder)
    assert rewards(folder, 1) == pytest.approx(plain(folder, whole(folder), 1), abs=1e-5)


def test_a_language_model_is_no_source_of_rewards(tokenizer: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=300, num_attention_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is no sequence classifier \(\['LlamaForCausalLM'\]\)"):
        rewards(tmp_path)


def test_preflight_finds_what_cannot_be_read(write: Any) -> None:
    folder = write(template=CHATML, max_position_embeddings=32)
    settings = ModelReward(kind="model", path=str(folder))
    check_model("objectives.a.reward.path", settings, Path(), ([], []), 8)
    with pytest.raises(InputError, match=r"objectives\.a\.reward\.path = .* at most 32 tokens"):
        check_model("objectives.a.reward.path", settings, Path(), (DIALOGUES, SAID), 8)
    (folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(InputError, match="its weights are damaged or incomplete"):
        check_model("objectives.a.reward.path", settings, Path(), ([], []), 8)


def test_with_prompts_alone_the_longest_response_must_fit_too(write: Any) -> None:
    settings = ModelReward(kind="model", path=str(write(template=CHATML)))
    check_model("objectives.a.reward.path", settings, Path(), (DIALOGUES, []), 8)
    with pytest.raises(InputError, match=r"at most 128 tokens, and a prompt with a response may"):
        check_model("objectives.a.reward.path", settings, Path(), (DIALOGUES, []), 120)


def test_a_number_that_is_a_name_as_well_is_a_number() -> None:
    config = LlamaConfig(num_labels=2, id2label={0: "7", 1: "8"})
    config.architectures = ["LlamaForSequenceClassification"]
    assert chosen_label(config, "8", "m") == 1
    assert chosen_label(config, 0, "m") == 0
