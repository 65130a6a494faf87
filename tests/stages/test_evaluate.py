"""evaluate: statistics against hand counts and plain loops, and what a resumed stage writes."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from report_case import case_params, run_evaluate, write_inputs

from infalign.errors import InputError
from infalign.files.tables import (
    DIFFERENCES,
    EVALUATION,
    EVALUATION_REWARDS,
    EVALUATION_SAMPLES,
    read_table,
)
from infalign.files.workspace import Workspace
from infalign.measuring import answers
from infalign.measuring.answers import evaluation_prompts, finish, part_path
from infalign.measuring.contest import (
    Contest,
    PolicyResponses,
    above_limit,
    kl_disagrees,
    measure,
    off_budget,
    prompt_wins,
    summarise,
    theory_curves,
)
from infalign.stages import evaluate
from infalign.theory.procedures import parse_procedure


def responses(train, judge=None, kl=0.5, gold=None) -> PolicyResponses:
    """Made-up responses with the given rewards [prompts, samples]."""
    train = np.asarray(train, float)
    rewards = {
        "selecting": train,
        "independent": train if judge is None else np.asarray(judge, float),
    }
    if gold is not None:
        rewards["gold"] = np.asarray(gold, float)
    flat = np.full(train.shape, float(kl))
    return PolicyResponses(
        rewards, flat, flat, np.full(train.shape, 5), np.ones(train.shape, dtype=bool)
    )


def contest(own="best_of:2", names=("standard", "best_of:2"), methods=None) -> Contest:
    return Contest(
        parse_procedure(own),
        tuple(parse_procedure(name) for name in names),
        methods or {"ctrl": "exp:10"},
        0.5,
        200,
        0,
    )


def slow_wins(procedure, policy, reference, judge) -> np.ndarray:
    """Every pair of N-subsets, one prompt after another; the selecting reward selects."""
    wins = []
    keep = max if procedure.startswith("best") else min
    n = int(procedure.split(":")[1])
    for p in range(len(policy.kl)):
        total, count = 0.0, 0
        indices = range(policy.kl.shape[1])
        for ours, theirs in itertools.product(itertools.combinations(indices, n), repeat=2):
            i = keep(ours, key=lambda s: policy.rewards["selecting"][p, s])
            j = keep(theirs, key=lambda s: reference.rewards["selecting"][p, s])
            a, b = policy.rewards[judge][p, i], reference.rewards[judge][p, j]
            total, count = total + (a > b) + 0.5 * (a == b), count + 1
        wins.append(total / count)
    return np.array(wins)


def test_win_rates_by_hand():
    # Policy 3, 1; reference 2, 0: 3 beats both, 1 beats 0 only, so 3 of 4 pairs are won.
    policy, reference = responses([[3, 1]]), responses([[2, 0]])
    assert prompt_wins(parse_procedure("standard"), policy, reference, "selecting") == [0.75]
    # Best of 2 keeps 3 and 2, worst of 2 keeps 1 and 0: both are won.
    for name in ("best_of:2", "worst_of:2"):
        assert prompt_wins(parse_procedure(name), policy, reference, "selecting") == [1.0]


def test_the_training_reward_selects_whoever_judges():
    # Best of 2 by selecting reward keeps the policy's second response, which the judge likes less.
    policy = responses([[1, 2]], judge=[[9, 0]])
    reference = responses([[1, 2]], judge=[[5, 5]])
    assert prompt_wins(parse_procedure("best_of:2"), policy, reference, "independent") == [0.0]
    assert prompt_wins(parse_procedure("worst_of:2"), policy, reference, "independent") == [1.0]


@pytest.mark.parametrize("procedure", ["best_of:1", "best_of:3", "worst_of:2"])
@pytest.mark.parametrize("judge", ["selecting", "independent", "gold"])
def test_win_rates_against_all_subsets(procedure, judge):
    rng = np.random.default_rng(0)
    sides = [
        responses(rng.normal(size=(3, 5)), rng.normal(size=(3, 5)), gold=rng.integers(0, 3, (3, 5)))
        for _ in range(2)
    ]
    fast = prompt_wins(parse_procedure(procedure), *sides, judge)
    np.testing.assert_allclose(fast, slow_wins(procedure, *sides, judge), atol=1e-12)


def test_the_reference_against_itself_wins_half():
    rng = np.random.default_rng(1)
    reference = responses(rng.normal(size=(4, 8)), rng.normal(size=(4, 8)), kl=0.0)
    found = measure({"reference": reference, "ctrl": reference}, contest())
    for row in found.rows:
        if row["judge"] == "selecting":
            assert row["win_rate"] == pytest.approx(0.5, abs=1e-12)
        assert row["limit"] == row["method_limit"] == 0.5
        assert row["efficiency"] is row["method_efficiency"] is None
        assert not above_limit(row)


def tilted(exponent: float, prompts: int, samples: int, rng) -> np.ndarray:
    """Calibrated rewards with density proportional to exp(exponent * u), by inverse CDF."""
    uniform = rng.random((prompts, samples))
    return np.log1p(uniform * np.expm1(exponent)) / exponent


def test_an_exact_optimum_has_efficiency_one():
    # Phi = u with beta = 1/t: win rate 1/(1 - e^-t) - 1/t, KL = tW - ln((e^t - 1)/t).
    t = 3.0
    win_rate = 1 / (1 - np.exp(-t)) - 1 / t
    kl = t * win_rate - np.log(np.expm1(t) / t)
    rng = np.random.default_rng(2)
    policies = {
        "reference": responses(rng.random((400, 64)), kl=0.0),
        "plain": responses(tilted(t, 400, 64, rng), kl=kl),
    }
    row = measure(policies, contest("standard", ["standard"], {"plain": "identity"})).rows[0]
    assert row["limit"] == pytest.approx(win_rate, abs=1e-4)
    assert row["method_limit"] == pytest.approx(win_rate, abs=1e-6)
    assert row["low"] < win_rate < row["high"]
    assert row["efficiency_low"] < 1.0 < row["efficiency_high"]
    assert not above_limit(row)
    # The same responses at a fraction of the KL are impossible, and said to be.
    policies["plain"] = responses(policies["plain"].rewards["selecting"], kl=kl / 3)
    rows = measure(policies, contest("standard", ["standard"], {"plain": "identity"})).rows
    assert [above_limit(row) for row in rows if row["judge"] == "selecting"] == [True]
    assert not any(above_limit(row) for row in rows if row["judge"] != "selecting")


def test_a_raw_rewards_limit_comes_from_the_reference_and_has_an_error():
    rng = np.random.default_rng(3)
    policies = {
        "reference": responses(rng.normal(size=(50, 32)) * rng.exponential(size=(50, 1)), kl=0.0),
        "rlhf": responses(rng.normal(size=(50, 32)) + 0.5),
    }
    row = measure(policies, contest(methods={"rlhf": "raw"})).rows[-1]
    assert 0.5 < row["method_limit"] < row["limit"]
    assert row["method_limit_error"] > 0


def test_differences_are_paired():
    # Prompts differ a lot, policies by the same 0.5 within each: the paired interval is a point.
    reference = responses([[0.0, 1.0]] * 4, kl=0.0)
    first = responses([[2, 2], [0.5, 0.5], [2, 2], [0.5, 0.5]])
    second = responses([[0.5, 0.5], [-1, -1], [0.5, 0.5], [-1, -1]])
    policies = {"reference": reference, "a": first, "b": second}
    found = measure(policies, contest("standard", ["standard"], {"a": "identity", "b": "identity"}))
    gap = found.differences[0]
    assert (gap["first"], gap["second"]) == ("a", "b")
    assert gap["difference"] == gap["low"] == gap["high"] == 0.5
    assert found.rows[0]["high"] > found.rows[0]["low"]


def test_kl_error_is_clustered_by_prompt():
    # Two prompts with means 0.2 and 0.6: error = std([0.2, 0.6], ddof=1) / sqrt(2) = 0.2.
    policy = responses(np.zeros((2, 3)))
    policy = PolicyResponses(
        policy.rewards,
        np.array([[0.1, 0.2, 0.3], [0.6, 0.6, 0.6]]),
        policy.log_ratio,
        policy.n_tokens,
        policy.finished,
    )
    reference = responses(np.ones((2, 3)), kl=0.0)
    row = measure(
        {"reference": reference, "a": policy}, contest("standard", ["standard"], {"a": "identity"})
    ).rows[0]
    assert row["kl"] == pytest.approx(0.4)
    assert row["kl_se"] == pytest.approx(0.2)


def test_health_flags():
    assert off_budget(0.551, 0.5)
    assert not off_budget(0.549, 0.5)
    apart = {"kl": 0.5, "log_ratio": 0.6, "kl_se": 0.01, "log_ratio_se": 0.01}
    assert kl_disagrees(apart)
    assert not kl_disagrees({**apart, "log_ratio": 0.54})


def test_curves_start_at_one_half_and_stay_below_the_limit():
    rng = np.random.default_rng(4)
    policies = {
        "reference": responses(rng.random((20, 32)), kl=0.0),
        "a": responses(rng.random((20, 32))),
    }
    rows = theory_curves(policies, contest(methods={"a": "exp:10"}))
    curves: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        curves.setdefault((row["procedure"], row["curve"]), []).append(row["win_rate"])
    assert set(curves) == set(itertools.product(("best_of:2", "standard"), ("limit", "method a")))
    for procedure in ("best_of:2", "standard"):
        limit, method = curves[procedure, "limit"], curves[procedure, "method a"]
        assert limit[0] == method[0] == 0.5
        assert limit == sorted(limit)
        assert (np.array(method) <= np.array(limit) + 1e-5).all()


def test_metrics_hold_the_objectives_own_procedure():
    rng = np.random.default_rng(5)
    policies = {
        "reference": responses(rng.random((5, 8)), kl=0.0),
        "ctrl": responses(rng.random((5, 8))),
    }
    found = measure(policies, contest())
    numbers = summarise(found, policies, contest())
    row = next(r for r in found.rows if (r["judge"], r["procedure"]) == ("selecting", "best_of:2"))
    assert numbers["ctrl"]["win_rate"] == row["win_rate"]
    assert set(numbers["ctrl"]) >= {"kl", "limit", "efficiency", "win_rate_independent"}
    assert numbers["health"]["prompts"] == 5
    json.dumps(numbers, allow_nan=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project in which evaluate ran from samples and rewards that were there already."""
    root = tmp_path_factory.mktemp("evaluate")
    params = case_params()
    write_inputs(root, params)
    run_evaluate(root, params)
    return root, params


def test_exact_files(finished):
    root, params = finished
    wanted = {
        "samples.parquet",
        "rewards.parquet",
        "evaluation.parquet",
        "differences.parquet",
        "curves.json",
        "metrics.json",
    }
    for objective in params.run.objectives:
        folder = root / "results" / "evaluate" / objective
        assert {path.name for path in folder.iterdir()} == wanted


def test_tables_are_complete(finished):
    root, params = finished
    folder = root / "results" / "evaluate" / "helpful"
    samples = read_table(folder / "samples.parquet", EVALUATION_SAMPLES).to_pylist()
    rewards = read_table(folder / "rewards.parquet", EVALUATION_REWARDS)
    rows = read_table(folder / "evaluation.parquet", EVALUATION)
    differences = read_table(folder / "differences.parquet", DIFFERENCES)
    prompts, size = params.sample.test_prompts, params.sample.test_samples
    assert len(samples) == 4 * prompts * size
    assert rewards.num_rows == 3 * len(samples)
    assert all(row["kl"] == 0 for row in samples if row["policy"] == "reference")
    procedures = 1 + 2 * len(params.evaluate.best_of)
    assert rows.num_rows == 3 * 3 * procedures
    assert differences.num_rows == 3 * 3 * procedures
    assert set(rows["n_prompts"].to_pylist()) == {prompts}


def test_nothing_is_sampled_again(finished, tmp_path, monkeypatch):
    """Work that is there is used, and gives the same bytes."""
    _, params = finished
    write_inputs(tmp_path, params)

    def refuse(*arguments):
        raise AssertionError("sampled although the work was there")

    monkeypatch.setattr(answers, "_policy_samples", refuse)
    monkeypatch.setattr(answers, "_source_rewards", refuse)
    run_evaluate(tmp_path, params)
    for path in (finished[0] / "results" / "evaluate").rglob("*.*"):
        again = tmp_path / path.relative_to(finished[0])
        assert again.read_bytes() == path.read_bytes(), path.name


def test_stage_names_every_policy_and_reward_model():
    stage = evaluate.needs(case_params(), "helpful")
    assert stage.outputs == ("results/evaluate/helpful",)
    assert "results/reward/helpful" in stage.inputs
    policies = {path for path in stage.inputs if path.startswith("results/align/")}
    assert policies == {f"results/align/helpful/{v}" for v in case_params().run.variants}
    assert "objectives.helpful.procedure" in stage.params
    assert "align.kl_nats" not in stage.params


def test_models_sample_score_and_measure(tmp_path, policy, tokenizer):
    """A policy equal to the reference: no KL, other samples than the reference's own."""
    import torch

    from infalign.files.workspace import Workspace
    from infalign.lm.models import build_reward_model, save_model

    params = case_params(prompts=3, samples=4, run={"objectives": ["helpful"], "device": "cpu"})
    write_inputs(tmp_path, params)
    results = tmp_path / "results"
    save_model(policy, tokenizer, results / "sft" / "policy")
    save_model(policy, tokenizer, results / "align" / "helpful" / "ctrl" / "policy")
    for seed, judge in enumerate(("selecting", "independent")):
        model = build_reward_model(results / "sft" / "policy", tokenizer, torch.device("cpu"), seed)
        save_model(model, tokenizer, results / "reward" / "helpful" / judge)
    workspace = Workspace(params, tmp_path, "evaluate@helpful")
    for word in ("samples", "rewards"):
        (workspace.work / "policies" / f"ctrl.{word}.parquet").unlink()
    evaluate.run(workspace, "helpful")
    folder = workspace.out / "evaluate" / "helpful"
    rows = read_table(folder / "samples.parquet", EVALUATION_SAMPLES).to_pylist()
    ours = [row for row in rows if row["policy"] == "ctrl"]
    assert len(ours) == 3 * 4
    assert max(abs(row["kl"]) + abs(row["log_ratio"]) for row in ours) == 0.0
    theirs = {row["response"] for row in rows if row["policy"] == "reference"}
    assert not theirs & {row["response"] for row in ours}
    rewards = read_table(folder / "rewards.parquet", EVALUATION_REWARDS).to_pylist()
    found = {
        judge: [r["reward"] for r in rewards if (r["policy"], r["judge"]) == ("ctrl", judge)]
        for judge in ("selecting", "independent", "gold")
    }
    assert found["selecting"] != found["independent"]
    assert len(found["gold"]) == 12


def test_gold_judges_the_objective_whose_data_it_made_alone(tmp_path):
    params = case_params(prompts=3, samples=4)
    write_inputs(tmp_path, params)
    path = tmp_path / "results/prepare/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["objectives"]["harmless"]["gold"] = None  # data of its own
    path.write_text(json.dumps(metrics))
    for objective, judges in (("helpful", 3), ("harmless", 2)):
        workspace = Workspace(params, tmp_path, f"evaluate@{objective}")
        finish(workspace, objective, "reference", evaluation_prompts(workspace, objective))
        rewards = read_table(part_path(workspace, "reference", "rewards"), EVALUATION_REWARDS)
        assert len(set(rewards["judge"].to_pylist())) == judges


def trained(root, beta):
    """What evaluate reads of two policies, trained with this `align.beta`; the params."""
    one = {"objectives": ["helpful"], "variants": ["ctrl", "rlhf"]}
    params = case_params(prompts=3, samples=4, run=one, align={"beta": beta})
    write_inputs(root, params)
    return params


def test_the_budget_is_the_one_that_was_trained_not_what_params_say_now(tmp_path):
    params = trained(tmp_path, None)
    later = params.model_copy(update={"align": params.align.model_copy(update={"kl_nats": 3.0})})
    run_evaluate(tmp_path, later)
    folder = tmp_path / "results/evaluate/helpful"
    top = max(row["kl"] for row in json.loads((folder / "curves.json").read_text()))
    assert top < 1.0  # of a budget of 0.5; it would be 4.8
    assert json.loads((folder / "metrics.json").read_text())["health"]["off_budget"] == 0


def test_without_a_budget_no_policy_misses_it(tmp_path):
    params = trained(tmp_path, 0.1)
    for variant in params.run.variants:  # the KL is about 0.5: far from what began the training
        path = tmp_path / f"results/align/helpful/{variant}/metrics.json"
        assert json.loads(path.read_text()) == {"kl_nats": None, "theory_kl_nats": 0.5}
        path.write_text(json.dumps({"kl_nats": None, "theory_kl_nats": 0.1}))
    run_evaluate(tmp_path, params)
    found = json.loads((tmp_path / "results/evaluate/helpful/metrics.json").read_text())
    assert found["ctrl"]["kl"] > 0.3
    assert found["health"]["off_budget"] == 0


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"kl_nats": 1.0, "theory_kl_nats": 1.0}, r"budgets differ \(ctrl: 0.5, rlhf: 1.0\)"),
        ({"beta": 0.1}, "does not say the KL budget .*run align again"),
    ],
)
def test_policies_of_other_budgets_are_not_measured_together(tmp_path, said, words):
    params = trained(tmp_path, None)
    (tmp_path / "results/align/helpful/rlhf/metrics.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=words):
        run_evaluate(tmp_path, params)


def test_no_gold_judge_outside_the_built_in_corpus(tmp_path):
    params = case_params(
        prompts=3, samples=4, run={"objectives": ["helpful"], "variants": ["ctrl"]}
    )
    write_inputs(tmp_path, params, gold=False)
    run_evaluate(tmp_path, params)
    rows = read_table(tmp_path / "results/evaluate/helpful/evaluation.parquet", EVALUATION)
    assert set(rows["judge"].to_pylist()) == {"selecting", "independent"}
