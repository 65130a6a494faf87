"""A plan's bytes are those of real models; what it says of two known ones; what it refuses."""

import json

import pytest
import torch
from smoke import ROOT
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from typer.testing import CliRunner

from flows.cli import app
from flows.project.configuration import planned
from flows.project.recipes import read_recipe
from infalign.errors import InputError
from infalign.lm.freezing import freeze
from infalign.lm.models import _ready
from infalign.lm.training.loop import Schedule, optimiser_of
from infalign.lm.training.lora import add_adapter
from infalign.planning import memory
from infalign.planning.load import load_of
from infalign.planning.plan import as_json, as_text, plan
from infalign.planning.shapes import counted_shape, named_shape, shape_of

PARAMS = ROOT / "params.yaml"
LLAMA = "meta-llama/Llama-3.1-8B"
CPU = torch.device("cpu")
SMALL = LlamaConfig(
    vocab_size=203,
    hidden_size=32,
    intermediate_size=600,  # too long a side for a basis of its own
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)


def held(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def asked(recipe, *assignments, **machine):
    settings = read_recipe(ROOT, recipe) if recipe else []
    return load_of(planned(PARAMS, assignments, settings), **machine)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_bytes_of_a_real_model():
    shape = shape_of(SMALL, "small")
    model = _ready(LlamaForCausalLM(SMALL), CPU, "bfloat16")
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.frozen(halved=False) == held(model.parameters())
    optimiser = optimiser_of("soap", list(model.parameters()), Schedule(1, 1e-3, 0.1))
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimiser.step()
    state = held(v for s in optimiser.state.values() for v in s.values() if v.dim())
    assert state == 4 * sum(memory._soap(weight, 1) for weight in shape.weights)
    classifier = LlamaForSequenceClassification(SMALL)
    assert shape.classifier().parameters == sum(
        p.numel() for name, p in classifier.named_parameters() if name != "score.weight"
    )
    assert shape.frozen(halved=True) == held(freeze(model).parameters())
    adapted = add_adapter(_ready(LlamaForCausalLM(SMALL), CPU, "bfloat16"), 4, 1)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == sum(weight.count for weight in shape.adapter(4))


def test_published_sizes(offline):
    assert named_shape(LLAMA).parameters == 8_030_261_248
    assert named_shape("Qwen/Qwen2.5-0.5B").parameters == 494_032_768
    assert counted_shape("8b").parameters == pytest.approx(8e9, rel=0.1)
    assert counted_shape("350m").parameters == pytest.approx(350e6, rel=0.2)


def test_eight_billion_on_eight_gpus(offline):
    """All weights: shares of 16 bytes a parameter, and what is whole beside them."""
    load = asked("llama3.1-8b-8gpu", "align.lora_rank=null", f"model.name_or_path={LLAMA}", gpus=8)
    parts = {part.name: part.bytes for part in memory.peak(load, "align")}
    each = 8_030_261_248 * 4 / 8
    assert parts["weights"] == parts["gradients"] == pytest.approx(each, rel=1e-3)
    assert parts["optimiser"] >= 2 * each
    assert parts["sampling copy"] == pytest.approx(2 * 6.98e9 + 4 * 1.05e9, rel=0.01)
    assert parts["reference"] == pytest.approx(2 * 6.98e9 / 8 + 4 * 1.05e9, rel=0.01)
    without_passes = sum(b for name, b in parts.items() if name not in ("passes", "process"))
    assert without_passes < 64e9
    assert plan(load).remedies == ("run.batch_tokens=8192",)


def test_half_a_billion_on_one_gpu(offline):
    made = plan(asked("qwen2.5-0.5b-1gpu", gpus=1))
    assert made.fits
    found = as_json(made, 2.0)
    assert found["parameters"] == 494_032_768
    assert found["cost"] == pytest.approx(2 * found["hours"])
    assert found["stages"]["align"]["tokens"] > 1e8
    assert all(stage["bytes"] > 0 for stage in found["stages"].values())
    text = as_text(made, 2.0)
    assert "It fits: 75 GiB a process" in text
    assert "494 million parameters" in text


def test_a_base_in_4_bits():
    shape = shape_of(SMALL, "small")
    numbers = sum(w.count for w in shape.weights if not w.linear)
    bits = 0
    for weight in (w for w in shape.weights if w.linear):
        blocks = -(-weight.count // 64)
        scales = blocks + 4 * -(-blocks // 256) + 4  # a byte each, and what these are scaled by
        bits += weight.count / 2 + scales + 4 * (16 + 256)
    assert shape.quantised(halved=True) == 4 * numbers + bits
    adapter = ("align.lora_rank=16", "run.device=cuda")
    loads = [asked("qwen2.5-0.5b-1gpu", *adapter, *more, gpus=1) for more in ((), BITS)]
    plain, small = ({p.name: p for p in memory.peak(load, "align")} for load in loads)
    base = "base under the adapter"
    assert small[base].why == "in 4 bits"
    rest = 4 * sum(w.count for w in loads[1].policy.weights if not w.linear)
    biases = 2 * sum(w.count for w in loads[1].policy.weights if w.linear and len(w.shape) == 1)
    matrices = sum(w.count for w in loads[1].policy.weights if w.linear and len(w.shape) == 2)
    assert small[base].bytes - rest - biases == pytest.approx(0.516 * matrices, rel=0.001)
    assert {n: p for n, p in small.items() if n != base} == {
        n: p for n, p in plain.items() if n != base
    }


BITS = ("align.lora_bits=4",)


def test_other_kinds_of_models():
    def shape(kind, classifies=False, **sizes):
        return shape_of(AutoConfig.for_model(kind, **sizes), kind, classifies=classifies)

    mixtral = shape("mixtral")
    assert mixtral.parameters == pytest.approx(46.7e9, rel=0.01)
    assert mixtral.active == pytest.approx(12.9e9, rel=0.01)  # two of eight experts
    gpt2 = shape("gpt2")
    assert sum(weight.count for weight in gpt2.adapter(16)) > 0  # its layers are no Linear
    assert gpt2.frozen(halved=True) < 0.7 * gpt2.frozen(halved=False)
    encoder = shape("bert", classifies=True)
    assert encoder.frozen(halved=True) < 0.65 * encoder.frozen(halved=False)
    assert shape("mamba").cached == 0
    assert shape("falcon").cached == 2 * 64  # one head of keys for all queries
    with pytest.raises(InputError, match="has no classifier of the type 'granite'"):
        shape("granite", classifies=True)


def test_rewards_that_are_sums_count_whole(offline):
    part = "{kind: train, weight: 1.0}"
    one, both = (
        plan(asked(None, "objectives.helpful.reward=" + reward, "run.objectives=[helpful]"))
        for reward in ("{kind: train}", "{kind: sum, parts: [" + f"{part}, {part}" + "]}")
    )
    assert both.work["reward"].tokens == one.work["reward"].tokens > 0
    names = [part.name for part in both.parts["calibrate"]]
    assert names.count("reward model") == 2
    assert both.peaks["calibrate"] > one.peaks["calibrate"]


def test_processes_that_a_plan_counts_are_among_its_settings(offline):
    made = plan(asked(None, parameters="8b", gpus=8))
    assert made.remedies[:2] == ("run.processes=8", "run.sharding=fsdp2")


def test_the_largest_variant_counts_wherever_it_stands():
    first, last = (
        plan(asked(None, f"run.variants=[{names}]", "promotion.variant=dpo", parameters="1b"))
        for names in ("offline,dpo", "dpo,offline")
    )
    assert first.peaks["align"] == last.peaks["align"]


def test_what_would_make_it_fit_does(offline):
    made = plan(asked("qwen2.5-0.5b-1gpu", gpus=1, gpu="l4-24g"))
    assert not made.fits
    assert made.remedies
    again = asked("qwen2.5-0.5b-1gpu", *made.remedies, gpus=1, gpu="l4-24g")
    assert plan(again).fits
    assert "it would with --set run." in as_text(made, None)
    hopeless = plan(asked(None, parameters="400b", gpus=1))
    assert not hopeless.remedies
    assert "no setting makes it" in as_text(hopeless, None)


def test_more_processes_take_fewer_bytes_and_hours(offline):
    one, two = (
        plan(asked("llama3.1-8b-8gpu", "align.lora_rank=null", gpus=8, nodes=nodes))
        for nodes in (1, 2)
    )
    assert two.peaks["align"] < one.peaks["align"]
    assert two.hours < one.hours


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "h900", "--gpus", "1"], "--gpu 'h900' is not known"),
        (["--parameters", "many"], "--parameters 'many' must be a number"),
        (["--parameters", "8b", "--model", "x"], "give one of them"),
        (["--lengths", "9"], "--lengths '9' must be two numbers"),
        (["--nodes", "2"], "with GPUs for several"),
        (["--set", "align.nonsense=1"], "align.nonsense"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(options, words):
    with pytest.raises(InputError, match=words):
        CliRunner().invoke(app, ["plan", "--params", str(PARAMS), *options], catch_exceptions=False)


def test_the_command_prints_the_default_run_on_this_machine():
    done = CliRunner().invoke(app, ["plan", "--params", str(PARAMS), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["machine"] == "cpu"
    words = ["sft", "sample", "reward", "calibrate", "align", "evaluate"]
    assert list(found["stages"]) == words
