"""The gate: every rule passes and fails on tables made by hand; refusals; time."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from promotion_case import bounds, changed, evidence

from infalign.deployment.evidence import read_evidence, write_evidence
from infalign.deployment.gate import differences, judge_candidate, own_wins
from infalign.errors import InputError

RULES = ["win_rate", "comparable", "champion", "kl", "length_ratio", "truncated"]
RULES += ["calibration_error", "judge", "other_harmless", "rolled_back"]


def rule(verdict, name):
    return next(r for r in verdict.rules if r.name == name)


def test_a_better_candidate_passes_every_rule_and_says_each_number():
    verdict = judge_candidate(evidence(1.2), evidence(0.8, seed=2), bounds())
    assert [r.name for r in verdict.rules] == RULES
    assert verdict.passed
    assert verdict.failed == ()
    assert rule(verdict, "kl").number == 0.5
    assert rule(verdict, "length_ratio").number == 1.0
    assert rule(verdict, "calibration_error").number == 0.06
    assert json.loads(json.dumps(verdict.as_tree()))["passed"] is True
    for found in verdict.rules:
        assert found.number is not None
        assert found.bound
        assert found.words


def test_the_first_candidate_has_no_champion_to_beat():
    verdict = judge_candidate(evidence(), None, bounds())
    assert verdict.passed
    assert [r.name for r in verdict.rules] == [r for r in RULES if r not in RULES[1:3]]


CASE = evidence(1.0)
PROMPTS = len(CASE.prompt_ids)
FAILING = {
    "win_rate": (evidence(0.0, seed=5), None),
    "champion": (evidence(0.6, seed=3), evidence(1.0)),
    "kl": (changed(CASE, kl=np.full(PROMPTS, 0.551)), None),
    "length_ratio": (changed(CASE, n_tokens=np.full(PROMPTS, 30.0)), None),
    "truncated": (changed(CASE, finished=np.full(PROMPTS, 0.9)), None),
    "calibration_error": (evidence(calibration_error=0.2), None),
    "judge": (evidence(1.5, judge_gain=0.0), None),
    "other_harmless": (evidence(other_gain=-0.2), None),
}


@pytest.mark.parametrize("name", FAILING)
def test_each_rule_fails_alone_on_its_own_fault(name):
    candidate, champion = FAILING[name]
    verdict = judge_candidate(candidate, champion, bounds())
    assert verdict.failed == (name,)
    assert not verdict.passed
    assert rule(verdict, name).number is not None


def test_lengths_fail_on_both_sides_and_bounds_belong_to_the_good_side():
    short = changed(CASE, n_tokens=np.full(PROMPTS, 15.0))
    assert judge_candidate(short, None, bounds()).failed == ("length_ratio",)
    exact = changed(CASE, kl=np.full(PROMPTS, 1.0), n_tokens=np.full(PROMPTS, 25.0))
    assert judge_candidate(exact, None, bounds(kl_nats=1.0)).passed


def with_kl(kl, budget):
    return changed(evidence(kl_nats=budget), kl=np.full(PROMPTS, kl))


@pytest.mark.parametrize(
    ("kl", "budget", "bound", "passed", "shown"),
    [
        (1.011, 1.0, None, True, "<= 1.1"),
        (1.036, 1.0, None, True, "<= 1.1"),
        (1.11, 1.0, None, False, "<= 1.1"),
        (1.0, 0.5, None, False, "<= 0.55"),
        (1.9, 2.0, 1.0, False, "<= 1"),  # a number bounds the KL itself, whatever the budget
        (0.9, None, 1.0, True, "<= 1"),
        (0.1, None, None, False, "promotion.kl_nats, which must be a number"),
    ],
)
def test_the_kl_follows_the_policys_own_budget_or_a_number(kl, budget, bound, passed, shown):
    found = rule(judge_candidate(with_kl(kl, budget), None, bounds(kl_nats=bound)), "kl")
    assert found.passed is passed
    assert found.number == pytest.approx(kl)
    assert shown in found.bound
    assert budget is None or bound is not None or f"budget {budget:g}" in found.words


def test_what_was_rolled_back_does_not_pass_again():
    assert judge_candidate(CASE, None, bounds(), rolled_back=True).failed == ("rolled_back",)


@pytest.mark.parametrize(
    ("what", "champion"),
    [
        ("data", evidence(0.1, data="other")),
        ("procedure", evidence(0.1, procedure="best_of:2")),
        ("judge", evidence(0.1, judge="other")),
        ("reference", evidence(0.1, reference="other")),
        ("data", replace(evidence(0.1), prompt_ids=tuple(f"{i:016x}" for i in range(1, 61)))),
    ],
)
def test_what_was_measured_differently_is_not_compared(what, champion):
    verdict = judge_candidate(CASE, champion, bounds())
    assert verdict.failed == ("comparable", "champion")
    assert rule(verdict, "comparable").words.endswith(f": {what}")
    assert rule(verdict, "champion").number is None


def test_other_samples_of_the_reference_are_another_reference():
    shifted = replace(
        CASE, reference=replace(CASE.reference, selecting=CASE.reference.selecting + 1e-9)
    )
    assert differences(CASE, shifted) == ["reference"]
    assert differences(CASE, evidence(0.2, seed=9)) == []


def test_the_same_policy_is_not_worse_than_itself():
    verdict = judge_candidate(CASE, CASE, bounds(champion_margin=0.0))
    assert rule(verdict, "champion").number == 0.0
    assert verdict.passed


def test_the_difference_is_paired_by_prompt_against_plain_loops():
    # Prompts differ much more than policies do: only the paired interval can tell them apart.
    ours, theirs = evidence(1.0, prompts=30, samples=5), evidence(0.9, prompts=30, samples=5)
    stake = np.random.default_rng(3).normal(size=(30, 1)) * 1.5
    ours = changed(ours, selecting=ours.policy.selecting + stake)
    theirs = changed(theirs, selecting=theirs.policy.selecting + stake)
    slow = []
    for case in (ours, theirs):
        wins = []
        for policy, reference in zip(case.policy.selecting, case.reference.selecting, strict=True):
            picks = itertools.product(itertools.combinations(range(5), 4), repeat=2)
            pairs = [(max(policy[list(a)]), max(reference[list(b)])) for a, b in picks]
            wins.append(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
        slow.append(np.array(wins))
        np.testing.assert_allclose(own_wins(case), wins, atol=1e-12)
    gap = slow[0] - slow[1]
    rng = np.random.default_rng(0)
    draws = gap[rng.integers(0, 30, (200, 30), dtype=np.int32)].mean(1)
    verdict = judge_candidate(ours, theirs, bounds())
    assert rule(verdict, "champion").number == pytest.approx(np.quantile(draws, 0.025), abs=1e-12)


def test_evidence_comes_back_as_it_was_written(tmp_path):
    write_evidence(tmp_path, CASE)
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    found = read_evidence(tmp_path)
    assert found.facts == CASE.facts
    assert found.prompt_ids == CASE.prompt_ids
    for name in ("selecting", "independent", "kl", "n_tokens", "finished"):
        for side in ("policy", "reference"):
            expected = getattr(getattr(CASE, side), name)
            np.testing.assert_array_equal(getattr(getattr(found, side), name), expected)
    np.testing.assert_array_equal(found.other["harmless"], CASE.other["harmless"])
    write_evidence(tmp_path / "again", found)
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == first


def test_evidence_from_before_the_budget_is_read_and_names_none(tmp_path):
    write_evidence(tmp_path, CASE)
    facts = json.loads((tmp_path / "facts.json").read_text())
    del facts["kl_nats"]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    assert read_evidence(tmp_path).facts == replace(CASE.facts, kl_nats=None)


def test_spoilt_evidence_is_one_sentence(tmp_path):
    write_evidence(tmp_path, CASE)
    (tmp_path / "facts.json").write_text("{}")
    with pytest.raises(InputError, match=r"facts\.json does not say what was measured"):
        read_evidence(tmp_path)
    ragged = changed(
        CASE, selecting=[row[: 8 - i % 2] for i, row in enumerate(CASE.policy.selecting)]
    )
    write_evidence(tmp_path, ragged)
    with pytest.raises(InputError, match="every prompt needs as many samples"):
        read_evidence(tmp_path)


def test_ten_thousand_prompts_are_judged(tmp_path):
    write_evidence(tmp_path / "a", evidence(1.0, prompts=10_000, samples=64))
    write_evidence(tmp_path / "b", evidence(0.9, seed=2, prompts=10_000, samples=64))
    ours, theirs = read_evidence(tmp_path / "a"), read_evidence(tmp_path / "b")
    assert judge_candidate(ours, theirs, bounds(bootstrap=1000)).passed
