"""The tokenizer trained on the data."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from infalign.data.dialogue import ASSISTANT, HUMAN
from infalign.data.tokenizer import train_tokenizer

TEXTS = [f"{HUMAN} How do I bake bread?{ASSISTANT}", " Sure, first mix the flour.", " Mix well."]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 20, 280)


def test_special_tokens_are_distinct_and_markers_are_one_token(tokenizer) -> None:  # type: ignore[no-untyped-def]
    special = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert len(special) == 3
    for marker in (HUMAN, ASSISTANT):
        assert len(tokenizer(marker)["input_ids"]) == 1
    ids = tokenizer(TEXTS[0])["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids(HUMAN)
    assert ids[-1] == tokenizer.convert_tokens_to_ids(ASSISTANT)
    assert not special & set(ids)  # nothing is added silently


def test_vocabulary_is_as_large_as_asked_or_as_the_text_allows(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert len(tokenizer) == 280
    assert len(train_tokenizer(TEXTS, 5000)) < 400


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives(tokenizer, text: str) -> None:  # type: ignore[no-untyped-def]
    ids = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == f" {text}"


def test_saves_the_same_bytes_and_loads_as_auto_tokenizer(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tokenizer.save_pretrained(tmp_path / "a")
    train_tokenizer(TEXTS * 20, 280).save_pretrained(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    for text in TEXTS:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.pad_token_id == tokenizer.pad_token_id
    assert loaded.eos_token_id == tokenizer.eos_token_id
