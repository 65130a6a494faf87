"""sft: what the loss covers, and what the reference policy is."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infalign.files.history import read_history
from infalign.lm.models import load_format, load_policy
from infalign.lm.scoring.scorer import token_log_probs
from infalign.processes.ranks import ALONE
from infalign.stages import sft
from infalign.stages.sft import read_pairs


def test_loss_covers_the_response_and_eos_only(finished, workspace):
    made = workspace("sft")
    form = load_format(finished / "results/prepare/tokenizer")
    data = read_pairs(made, form, "train")
    batch = data.batch(np.arange(4), torch.device("cpu"))
    for row, response in enumerate(r for pair in data.responses[:4] for r in pair):
        assert batch.responses[row][batch.mask[row]].tolist() == response
        prompt = row // 2
        real = batch.prompts[prompt][batch.prompt_mask[prompt]]
        assert real.tolist() == data.prompts[prompt]
    assert sum(r[-1] == form.end for pair in data.responses for r in pair) > 0


def test_learns(finished):
    losses = [row["loss"] for row in read_history(finished / "results/sft/history.jsonl")]
    assert losses[-1] < 0.7 * losses[0]
    metrics = json.loads((finished / "results/sft/metrics.json").read_text())
    assert 1 < metrics["held_out_perplexity"] < 200
    assert 0 <= metrics["ended_share"] <= 1


def test_folder_opens_with_plain_transformers(finished):
    folder = finished / "results/sft/policy"
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    ids = tokenizer("\n\nHuman: one\n\nAssistant:", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=2).shape[1] > ids["input_ids"].shape[1]


def test_perplexity_keeps_to_the_budget_of_tokens(finished, workspace, monkeypatch):
    made = workspace("sft")
    form = load_format(finished / "results/prepare/tokenizer")
    policy = load_policy(finished / "results/sft/policy", torch.device("cpu"))
    data, widths = sft.read_pairs(made, form, "test"), []

    def watched(policy, batch):
        widths.append(batch.responses.shape[0] * (batch.prompts.shape[1] + batch.mask.shape[1]))
        return token_log_probs(policy, batch)

    monkeypatch.setattr(sft, "token_log_probs", watched)
    found = {}
    for tokens in (65536, 100, 40):  # of a pair's two sequences: both, or one at a time
        run = made.params.run.model_copy(update={"batch_tokens": tokens})
        params = made.params.model_copy(update={"run": run})
        widths.clear()
        found[tokens] = sft._perplexity(policy, data, params, ALONE)
        assert max(widths) <= max(tokens, 48)
    assert found[100] == pytest.approx(found[65536], rel=1e-5)
    assert found[40] == pytest.approx(found[65536], rel=1e-5)
    metrics = json.loads((finished / "results/sft/metrics.json").read_text())
    assert found[65536] == metrics["held_out_perplexity"]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks what is about to be renamed
def test_an_adapter_is_merged_into_the_reference(workspace):
    made = workspace("sft")
    settings = made.params.sft.model_copy(update={"lora_rank": 4, "learning_rate": 5e-3})
    made = replace(made, params=made.params.model_copy(update={"sft": settings}))
    sft.run(made)
    folder = made.out / "sft"
    losses = [row["loss"] for row in read_history(folder / "history.jsonl")]
    assert losses[-1] < losses[0]
    form = load_format(made.results("prepare", "tokenizer"))
    before = sft._build(made, form, torch.device("cpu"), "float32").state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder / "policy").state_dict()
    assert after.keys() == before.keys()
    moved = {name for name, value in after.items() if not value.equal(before[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
