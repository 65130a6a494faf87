"""A given model as the reference: taken as it is, or trained and compared with what it was."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from infalign.data.dialogue import read_prompts
from infalign.errors import InputError
from infalign.files.tables import PREFERENCES, read_table
from infalign.lm.models import load_format
from infalign.processes.one_stage import main
from infalign.settings.params import check_params
from tests.lm.holes import with_far_end
from tests.smoke import merged

CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Run = Callable[..., Path]


@pytest.fixture
def given(finished: Path, tmp_path: Path) -> Path:
    """A language model with a chat template and rows in its embedding that no token has."""
    source, folder = finished / "results/sft/policy", tmp_path / "given"
    model = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model.resize_token_embeddings(len(tokenizer) + 7)
    model.config.max_position_embeddings = 512
    tokenizer.chat_template = CHAT
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(finished: Path, smoke_tree: dict[str, Any], given: Path, tmp_path: Path) -> Run:
    """A function that prepares data and makes the reference; the folder of results."""

    def start(**changes: dict[str, Any]) -> Path:
        model = {"name_or_path": str(given), "folder": str(given), "kind": "instruct"}
        own = {"model": model | {"prompt_tokens": 40}, "sft": {"epochs": 0.0}}
        own["data"] = {"path": str(finished / "results/corpus")}
        tree = merged(merged(smoke_tree, own), changes)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
        with contextlib.chdir(tmp_path):
            assert [main([stage]) for stage in ("prepare", "sft")] == [0, 0]
        return tmp_path / "results"

    return start


def test_no_epochs_take_it_as_it_is_without_the_rows_that_no_token_has(run: Run, given: Path):
    results = run()
    before = load_file(given / "model.safetensors")
    after = load_file(results / "sft/policy/model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(results / "sft/policy")
    assert after.keys() == before.keys()
    for name, weight in before.items():
        assert torch.equal(after[name], weight[: len(after[name])]), name
    assert len(after["model.embed_tokens.weight"]) == len(tokenizer)
    assert (results / "sft/history.jsonl").read_text() == ""
    metrics = json.loads((results / "sft/metrics.json").read_text())
    assert metrics["responses"] == 0
    assert metrics["held_out_perplexity"] == pytest.approx(perplexity(results), rel=1e-4)


def perplexity(results: Path) -> float:
    """Of the responses of the held-out pairs, by plain transformers, one text at a time."""
    form = load_format(results / "sft/policy")
    model = AutoModelForCausalLM.from_pretrained(results / "sft/policy").eval()
    prompts = read_prompts(results / "prepare/prompts.parquet", "helpful")
    prompts |= read_prompts(results / "prepare/prompts.parquet", "harmless")
    lengths = json.loads((results / "prepare/lengths.json").read_text())
    logp: list[float] = []
    for row in read_table(results / "prepare/preferences.parquet", PREFERENCES).to_pylist():
        if row["split"] != "test":
            continue
        [asked] = form.encode_prompts([prompts[row["prompt_id"]]])
        for side in ("chosen", "rejected"):
            [said] = form.encode_responses([row[side]], lengths["response_tokens"])
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([asked + said])).logits[0]
            rows = logits[len(asked) - 1 : -1].log_softmax(-1)
            logp += rows[range(len(said)), said].tolist()
    return math.exp(-sum(logp) / len(logp))


def test_an_end_behind_holes_keeps_its_row_and_the_policy_says_where_it_stops(
    run: Run, given: Path
):
    rows = len(load_file(given / "model.safetensors")["model.embed_tokens.weight"])
    with_far_end(given, rows - 3)
    policy = run() / "sft/policy"
    assert len(load_file(policy / "model.safetensors")["model.embed_tokens.weight"]) == rows - 2
    assert json.loads((policy / "generation_config.json").read_text())["eos_token_id"] == [
        rows - 3,
        2,  # of its generation_config
    ]


def test_prompts_are_what_the_template_asks(run: Run, given: Path):
    results = run()
    form = load_format(results / "sft/policy")
    tokenizer = AutoTokenizer.from_pretrained(given)
    prompts = list(read_prompts(results / "prepare/prompts.parquet", "helpful").values())
    ids = form.encode_prompts(prompts)
    for dialogue, found in zip(prompts, ids, strict=True):
        asked = tokenizer.apply_chat_template(dialogue.messages, add_generation_prompt=True)
        assert found == asked["input_ids"]


def test_a_rate_that_harms_is_told(run: Run, capfd: pytest.CaptureFixture[str]):
    results = run(sft={"epochs": 0.5, "learning_rate": 0.05})
    metrics = json.loads((results / "sft/metrics.json").read_text())
    assert metrics["held_out_perplexity"] > metrics["given_perplexity"]
    said = capfd.readouterr().out
    assert f"was {metrics['given_perplexity']:.4g} before training: lower sft.learning_rate" in said


def test_lengths_follow_the_data_by_the_quantile(run: Run):
    found = {}
    for share in (0.5, 0.999):
        model = {"prompt_tokens": None, "response_tokens": None, "length_quantile": share}
        results = run(model=model)
        found[share] = json.loads((results / "prepare/lengths.json").read_text())
        counts = json.loads((results / "prepare/metrics.json").read_text())["objectives"]
        assert found[share]["prompt_tokens"] >= max(
            counts[name]["prompt_tokens"]["max"] for name in counts
        )
    assert found[0.5]["prompt_tokens"] < found[0.999]["prompt_tokens"]
    assert found[0.5]["response_tokens"] < found[0.999]["response_tokens"]


def test_random_weights_are_no_reference(smoke_tree: dict[str, Any]):
    with pytest.raises(InputError, match=r"sft\.epochs = 0 takes .* `tiny` has random weights"):
        check_params(merged(smoke_tree, {"sft": {"epochs": 0.0}}), "params.yaml")
