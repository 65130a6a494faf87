"""align: what each variant maximises, and that a killed run resumes exactly."""

import json
import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from infalign.aligning import ctrl, policy
from infalign.aligning.budget import read_budget
from infalign.aligning.goals import make_goal, turned
from infalign.errors import InputError
from infalign.files.history import read_history
from infalign.stages import align
from infalign.theory.frontier import solve_beta


def test_goals(workspace):
    params = workspace("align").params
    references = np.sort(np.random.default_rng(0).normal(size=(20, 32)), axis=1)
    ctrl = make_goal(params, "harmless", "ctrl", references)
    assert ctrl.spelling == "exp:-10"
    assert ctrl.beta == pytest.approx(solve_beta("exp:-10", params.align.kl_nats))
    raw = make_goal(params, "harmless", "rlhf", references)
    rewards = np.array([[0.3, -2.0]])
    assert raw(rewards, references[:1]).tolist() == rewards.tolist()
    plain = make_goal(params, "helpful", "identity", references)
    below = (references[0] < 0.3).sum()
    assert plain(rewards, references[:1])[0, 0] == pytest.approx(below / 32)


@pytest.mark.parametrize("spelling", ["optimal", "auto", "log", "exp:5", "table:0,0.1,1"])
def test_any_transformation_can_be_a_goal(workspace, spelling):
    params = workspace("align").params
    objectives = {
        name: objective.model_copy(update={"transform": spelling})
        for name, objective in params.objectives.items()
    }
    params = params.model_copy(update={"objectives": objectives})
    references = np.sort(np.random.default_rng(0).normal(size=(2, 32)), axis=1)
    for objective in objectives:
        goal = make_goal(params, objective, "ctrl", references)
        rewards = np.linspace(-3, 3, 9)[None].repeat(2, 0)
        found = goal.floored(goal(rewards, references), goal.beta)
        assert np.isfinite(found).all()
        assert (np.diff(found, axis=1) >= 0).all()
        assert found[0, -1] > found[0, 0]


def test_the_mean_of_the_transformed_reward_is_the_transformation(workspace):
    """Over many prompts with references of their own, and over the stored samples of one."""
    params = workspace("align").params
    references = np.sort(np.random.default_rng(0).uniform(size=(20_000, 32)), axis=1)
    goal = make_goal(params, "helpful", "ctrl", references[:3])
    found = goal(np.full((20_000, 1), 0.8), references)
    error = found.std() / 20_000**0.5
    assert found.mean() == pytest.approx(math.exp(8), abs=4 * error)
    stored = goal.of_references(references[:3])  # every count once: no noise
    assert stored.mean(1) == pytest.approx((math.exp(10) - 1) / 10, rel=1e-6)


def test_rewards_far_below_the_top_are_alike(workspace):
    params = workspace("align").params
    references = np.sort(np.random.default_rng(0).normal(size=(20, 32)), axis=1)
    goal = make_goal(params, "harmless", "ctrl", references)
    top = float(goal.transform(1.0))
    values = np.array([top, top - 7.9 * goal.beta, top - 8.1 * goal.beta, top - 80 * goal.beta])
    found = (top - goal.floored(values, goal.beta)) / goal.beta
    assert found.tolist() == pytest.approx([0, 7.9, 8, 8])
    raw = make_goal(params, "harmless", "rlhf", references)
    assert raw.floored(values, 1.0).tolist() == values.tolist()


def test_the_floor_stays_where_rewards_differ_when_beta_falls_far(workspace):
    references = np.sort(np.random.default_rng(0).normal(size=(20, 32)), axis=1)
    goal = make_goal(workspace("align").params, "helpful", "ctrl", references)
    values = goal.transform(np.array([0.7, 0.9, 0.96, 0.99]))
    found = goal.floored(values, goal.beta / 1000)
    assert found[1] < found[2] < found[3]
    assert found.tolist() == goal.floored(values, goal.beta / 4).tolist()


def test_the_calibrated_reward_turns_into_the_transformed_one():
    assert [turned(p, 0.4) for p in (0, 0.2, 0.4)] == [0, 0, 0]
    assert turned(0.6, 0.4) == pytest.approx(0.5)
    assert [turned(p, 0.4) for p in (0.8, 0.99)] == [1, 1]
    assert turned(0.0, 0.0) == 1


def test_raw_beta_grows_with_the_reward_scale(workspace):
    params = workspace("align").params
    references = np.sort(np.random.default_rng(0).normal(size=(20, 32)), axis=1)
    first = make_goal(params, "helpful", "rlhf", references).beta
    second = make_goal(params, "helpful", "rlhf", 3 * references).beta
    assert second == pytest.approx(3 * first, rel=1e-3)


def test_rewards_too_alike_for_the_budget_are_one_sentence(workspace):
    references = np.tile([0.0, 0.0, 0.0, 1.0], (3, 8))  # log 4 nats at most
    params = workspace("align").params
    wanted = params.align.model_copy(update={"kl_nats": 1.5})
    params = params.model_copy(update={"align": wanted})
    with pytest.raises(InputError, match=r"rlhf for helpful \(raw\): kl_nats is 1\.5 but must"):
        make_goal(params, "helpful", "rlhf", references)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_killed_run_resumes_to_the_same_bytes(finished, workspace, monkeypatch, stop):
    made = workspace("align@helpful-ctrl")
    original = ctrl.Trainer.take

    def stopping(self, number):
        if number == stop:
            raise KeyboardInterrupt
        return original(self, number)

    monkeypatch.setattr(ctrl.Trainer, "take", stopping)
    with pytest.raises(KeyboardInterrupt):
        align.run(made, "helpful", "ctrl")
    monkeypatch.setattr(ctrl.Trainer, "take", original)
    align.run(made, "helpful", "ctrl")
    whole = finished / "results/align/helpful/ctrl"
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        mine = made.out / "align/helpful/ctrl" / path.relative_to(whole)
        assert mine.read_bytes() == path.read_bytes(), path


def test_starts_at_the_reference(finished, smoke_tree):
    for objective in smoke_tree["run"]["objectives"]:
        for variant in smoke_tree["run"]["variants"]:
            folder = finished / "results/align" / objective / variant
            history = read_history(folder / "history.jsonl")
            assert [row["step"] for row in history] == list(range(smoke_tree["align"]["steps"]))
            assert history[0]["kl"] == 0
            assert history[0]["log_ratio"] == 0
            assert history[-1]["kl"] > 0
            assert json.loads((folder / "metrics.json").read_text())["beta"] > 0


def test_the_budget_is_said_and_a_given_beta_has_none(finished, workspace, smoke_tree):
    budget = smoke_tree["align"]["kl_nats"]
    assert read_budget(finished / "results/align/helpful/ctrl") == (budget, budget)
    folder, _ = ran(workspace("align@helpful-ctrl"), beta=0.1, steps=2)
    assert read_budget(folder) == (None, budget)


def ran(made, run=None, **settings):
    """The folder that `align` writes with other settings, and its history."""
    updates = {"run": made.params.run.model_copy(update=run or {})}
    updates["align"] = made.params.align.model_copy(update=settings)
    params = made.params.model_copy(update=updates)
    align.run(type(made)(params, made.root, made.instance), "helpful", "ctrl")
    folder = made.out / "align/helpful/ctrl"
    return folder, read_history(folder / "history.jsonl")


@pytest.mark.parametrize("run", [{"batch_tokens": 500}, {"recompute": True}], ids=lambda r: str(r))
def test_parts_and_recomputing_give_the_same_history(finished, workspace, run, capsys):
    _, history = ran(workspace("align@helpful-ctrl"), run)
    expected = read_history(finished / "results/align/helpful/ctrl/history.jsonl")
    assert history[0]["kl"] == history[0]["log_ratio"] == 0
    for mine, other in zip(history, expected, strict=True):
        for name, value in other.items():  # the loss is the difference of large terms
            bound = 2e-3 if name == "loss" else 1e-4
            assert mine[name] == pytest.approx(value, rel=1e-4, abs=bound), name
    assert history != expected
    assert "memory ran out" not in capsys.readouterr().err


def test_begins_at_the_reference_in_bfloat16(finished, workspace):
    _, history = ran(workspace("align@helpful-ctrl"), {"precision": "bfloat16"})
    assert history[0]["kl"] == history[0]["log_ratio"] == 0
    assert history[-1]["kl"] > 0


def test_a_run_may_begin_with_the_calibrated_reward(finished, workspace):
    """Its first step is that of `identity`; later ones are not, and not the plain run's."""
    _, begun = ran(workspace("align@helpful-ctrl"), identity_share=0.3)
    plain, identity = (
        read_history(finished / "results/align/helpful" / variant / "history.jsonl")
        for variant in ("ctrl", "identity")
    )
    assert begun[0]["loss"] == pytest.approx(identity[0]["loss"], rel=1e-5)
    assert begun[0]["loss"] != pytest.approx(plain[0]["loss"], rel=0.05)
    assert begun[-1]["loss"] != pytest.approx(identity[-1]["loss"], rel=0.05)
    assert begun[-1]["transformed"] > 100  # of exp:10, at its end too


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks what is about to be renamed
def test_an_adapter_ends_as_a_plain_policy(finished, workspace):
    folder, history = ran(workspace("align@helpful-ctrl"), lora_rank=4, learning_rate=5e-3)
    assert history[0]["kl"] == history[0]["log_ratio"] == 0
    assert history[-1]["kl"] > 0
    weights = [
        AutoModelForCausalLM.from_pretrained(path).state_dict()
        for path in (folder / "policy", finished / "results/sft/policy")
    ]
    assert weights[0].keys() == weights[1].keys()
    moved = {name for name, value in weights[0].items() if not value.equal(weights[1][name])}
    assert moved == {name for name in weights[0] if name.endswith("_proj.weight")}
    told = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "results/sft/policy"
    base = AutoModelForCausalLM.from_pretrained(finished / "results/sft/policy")
    adapted = peft.PeftModel.from_pretrained(base, folder / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(folder / "policy")
    ids = torch.arange(12)[None]
    logits = [model.eval()(ids).logits for model in (adapted, merged)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


def test_an_adapter_without_peft_is_one_sentence(workspace, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"align\.lora_rank needs peft, which is not installed"):
        ran(workspace("align@helpful-ctrl"), lora_rank=4)


def test_a_policy_that_runs_away_stops_with_a_remedy(workspace, monkeypatch):
    take = ctrl.Trainer.take

    def far_after_the_first_checkpoint(self, number):
        step = take(self, number)
        return replace(step, metrics=step.metrics | {"kl": 36.0}) if number == 3 else step

    monkeypatch.setattr(ctrl.Trainer, "take", far_after_the_first_checkpoint)
    made = workspace("align@helpful-ctrl")
    with pytest.raises(
        InputError, match=r"kl is 36, above 20 at step 3: lower learning_rate, or raise warmup"
    ):
        ran(made)
    assert (made.work / "checkpoint.pt").exists()
    assert not (made.out / "align").exists()


def warm(workspace, start, steps=3):
    """A workspace whose align starts from a policy in champion/helpful."""
    made = workspace("align@helpful-ctrl")
    shutil.copytree(start, made.root / "champion" / "helpful" / "policy")
    settings = made.params.align.model_copy(update={"start": "champion", "steps": steps})
    return replace(made, params=made.params.model_copy(update={"align": settings}))


@pytest.mark.parametrize("from_champion", [True, False])
def test_a_start_from_the_champion_counts_its_kl_from_the_reference(workspace, from_champion):
    made = workspace("align@helpful-ctrl")
    reference = made.results("sft", "policy")
    champion = made.results("align", "helpful", "ctrl", "policy")
    work = warm(workspace, champion if from_champion else reference)
    assert "champion/helpful" in align.needs(work.params, "helpful", "ctrl").inputs
    assert policy.start_of(work, "helpful", "ctrl") is not None
    assert policy.start_of(work, "harmless", "ctrl") is None  # so far nobody: the reference
    assert policy.start_of(made, "helpful", "ctrl") is None
    align.run(work, "helpful", "ctrl")
    first = read_history(work.out / "align" / "helpful" / "ctrl" / "history.jsonl")[0]
    if from_champion:
        assert first["kl"] > 0.01
    else:
        assert first["kl"] == 0.0
    settled = json.loads((work.out / "align" / "helpful" / "ctrl" / "metrics.json").read_text())
    assert settled["kl"] > 0


def test_a_champion_of_another_tokenizer_is_refused(workspace, policy, tokenizer, tmp_path_factory):
    from infalign.lm.models import save_model

    folder = tmp_path_factory.mktemp("other") / "policy"
    save_model(policy, tokenizer, folder)
    with pytest.raises(InputError, match=r"of another model or tokenizer.*set align\.start"):
        align.run(warm(workspace, folder), "helpful", "ctrl")
