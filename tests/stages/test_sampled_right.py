"""Every stage that samples stops, in one sentence, where a model's steps are not its forward."""

import importlib
import json
from dataclasses import replace

import pytest
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from infalign.data.dialogue import read_prompts
from infalign.deployment import package
from infalign.deployment.remeasuring import Remeasuring
from infalign.errors import InputError
from infalign.lm.models import load_tokenizer, save_model
from infalign.lm.sampling import ways


@pytest.fixture
def nothing_is_right(monkeypatch):
    """No way is near enough to the plain forward."""
    monkeypatch.setattr(ways, "BOUND", -1.0)


@pytest.mark.parametrize(
    ("stage", "names"),
    [("sft", []), ("sample", []), ("align", ["helpful", "ctrl"]), ("evaluate", ["helpful"])],
)
def test_a_stage_stops_and_leaves_nothing(stage, names, workspace, nothing_is_right):
    made = workspace("-".join([stage, *names]))
    with pytest.raises(InputError, match="LlamaForCausalLM cannot be sampled from") as error:
        importlib.import_module(f"infalign.stages.{stage}").run(made, *names)
    assert "\n" not in str(error.value)
    assert not list(made.out.iterdir())
    steps = made.work / "history.jsonl"
    assert not steps.exists() or steps.read_text() == ""


def test_packaging_stops(finished, workspace, nothing_is_right):
    params = workspace("package").params
    with pytest.raises(InputError, match="cannot be sampled from"):
        package._other_wins(finished / "results", params, "helpful", "ctrl", "harmless")


def test_monitoring_stops(finished, workspace, tmp_path, nothing_is_right):
    (tmp_path / "policy").symlink_to(finished / "results/sft/policy")
    (tmp_path / "reward").symlink_to(finished / "results/reward/helpful/selecting")
    (tmp_path / "settings.json").write_text(json.dumps({"response_tokens": 8}))
    prompts = read_prompts(finished / "results/prepare/prompts.parquet", "helpful", "test")
    folders = (tmp_path, finished / "results/sft/policy")
    measuring = Remeasuring(workspace("monitor").params, folders, {})
    with pytest.raises(InputError, match="cannot be sampled from"):
        measuring.rewards(prompts, 0)


def test_what_cannot_be_sampled_from_is_not_trained(finished, workspace, tmp_path):
    """A model that knows no cache; it is told of before its first step."""
    tokenizer = load_tokenizer(finished / "results/prepare/tokenizer")
    sizes = {"n_positions": 128, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = OpenAIGPTConfig(vocab_size=len(tokenizer), **sizes)
    save_model(OpenAIGPTLMHeadModel(config), tokenizer, tmp_path / "gpt")
    made = workspace("sft")
    chosen = made.params.model.model_copy(
        update=dict.fromkeys(("name_or_path", "folder"), str(tmp_path / "gpt"))
    )
    made = replace(made, params=made.params.model_copy(update={"model": chosen}))
    with pytest.raises(InputError, match="OpenAIGPTLMHeadModel cannot be sampled from"):
        importlib.import_module("infalign.stages.sft").run(made)
    steps = made.work / "history.jsonl"
    assert not steps.exists() or steps.read_text() == ""
