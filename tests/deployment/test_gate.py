"""The gate: every rule passes and fails on tables made by hand; refusals; time."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from promotion_case import ROOT, bounds, changed, evidence, met

from infalign.deployment.bouts import FORMER, Bouts, Suited, read_bouts, write_bouts
from infalign.deployment.evidence import read_evidence, write_evidence
from infalign.deployment.gate import differences, judge_candidate, own_wins
from infalign.errors import InputError
from infalign.files.tables import INDEPENDENT, SELECTING
from infalign.settings.params import check_params, load_params
from infalign.theory.looks import look_level, lower_bound
from infalign.theory.winrates import bootstrap_interval

RULES = ["win_rate", "comparable", "champion", "kl", "length_ratio", "truncated"]
RULES += ["calibration_error", "judge", "other_harmless", "rolled_back"]


def against(candidate, champion, **changes):
    """The verdict of a candidate that has met the champion."""
    bouts = None if champion is None else met(candidate, champion)
    return judge_candidate(candidate, champion, bounds(**changes), bouts)


def rule(verdict, name):
    return next(r for r in verdict.rules if r.name == name)


def test_a_better_candidate_passes_every_rule_and_says_each_number():
    verdict = against(evidence(1.2), evidence(0.5, seed=2))
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


CASE = replace(evidence(1.0), trained=frozenset(f"{i:016x}" for i in (3, 2**64 - 1)))
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
    verdict = against(candidate, champion)
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
        ("procedure (best_of:2, now best_of:4)", evidence(0.1, procedure="best_of:2")),
        ("temperature (0.7, now 1.0)", evidence(0.1, temperature=0.7)),
        ("judge", evidence(0.1, judge="other")),
        ("reference", evidence(0.1, reference="other")),
        ("data", replace(evidence(0.1), prompt_ids=tuple(f"{i:016x}" for i in range(1, 61)))),
    ],
)
def test_what_was_measured_differently_is_named_and_refuses_nothing(what, champion):
    verdict = against(CASE, champion)
    assert verdict.passed
    said = rule(verdict, "comparable").words
    assert said.endswith(f"measured differently, and compared all the same: {what}")
    assert differences(CASE, evidence(0.2, seed=9)) == []


NO_JUDGE = {"judged_by": None}


def test_another_objective_or_no_judge_at_all_is_not_comparable_and_says_so():
    verdict = against(CASE, evidence(0.1, objective="harmless"))
    assert verdict.failed == ("comparable", "champion")
    assert "another objective (harmless, now helpful)" in rule(verdict, "comparable").words
    ours, theirs = evidence(**NO_JUDGE), evidence(0.1, reward="another", **NO_JUDGE)
    verdict = against(ours, theirs)
    assert verdict.failed == ("comparable", "champion")
    assert "neither has an independent judge" in rule(verdict, "comparable").words
    assert rule(verdict, "champion").number is None


def test_without_a_judge_the_reward_that_both_select_by_compares():
    ours, theirs = evidence(**NO_JUDGE), evidence(0.1, seed=3, **NO_JUDGE)
    wins = met(ours, theirs).wins[SELECTING]
    verdict = judge_candidate(ours, theirs, bounds(), Bouts(ours.prompt_ids, {SELECTING: wins}))
    assert verdict.passed
    assert "by the reward that both select by" in rule(verdict, "champion").words


def test_the_judge_that_it_was_promoted_under_has_a_word_as_well():
    theirs = evidence(0.5, seed=2, judged_by="another")
    found = met(CASE, theirs)
    good, bad = found.wins[INDEPENDENT], 1 - found.wins[INDEPENDENT]
    for former, failed in ((good, ()), (bad, ("champion_judge",))):
        bouts = replace(found, wins={**found.wins, FORMER: former})
        verdict = judge_candidate(CASE, theirs, bounds(), bouts)
        assert verdict.failed == failed
        assert "the judge it was promoted under" in rule(verdict, "champion_judge").words


def test_who_has_not_met_the_champion_is_not_promoted():
    verdict = judge_candidate(CASE, evidence(0.1), bounds())
    assert verdict.failed == ("champion",)
    assert "have not met" in rule(verdict, "champion").words
    few = replace(met(CASE, CASE), wins={INDEPENDENT: np.ones(1)}, trained=59)
    verdict = judge_candidate(CASE, evidence(0.1), bounds(), few)
    assert verdict.failed == ("champion",)
    assert rule(verdict, "champion").words == (
        "1 prompts are left; 59 prompts that either was trained on are left out"
    )


def test_the_bound_is_for_all_looks_and_the_words_say_the_interval():
    ours, theirs = evidence(1.0), evidence(0.2, seed=2)
    bouts = met(ours, theirs, trained=7, too_long=2, unknown=("champion",))
    verdict = judge_candidate(ours, theirs, bounds(looks=100, looks_level=0.05), bouts)
    found, wins = rule(verdict, "champion"), bouts.wins[INDEPENDENT]
    assert found.number == lower_bound(wins, look_level(0.05, 100))
    low, high = bootstrap_interval(wins, replicates=200, seed=0)
    for words in (
        "lower bound for 100 looks",
        f"({wins.mean():.3f} on average of 60 prompts, 95 % interval {low:.3f} to {high:.3f}",
        f"over their references {own_wins(ours).mean():.3f} and {own_wins(theirs).mean():.3f}",
        "7 prompts that either was trained on are left out",
        "and 2 that are too long for either",
        "the champion does not say what it was trained on",
    ):
        assert words in found.words
    often = judge_candidate(ours, theirs, bounds(looks=1, looks_level=0.05), bouts)
    assert rule(often, "champion").number > found.number


def test_a_refused_rule_says_by_how_much_and_what_would_have_passed():
    ours, theirs = FAILING["champion"]
    verdict = against(ours, theirs)
    found, wins = rule(verdict, "champion"), met(ours, theirs).wins[INDEPENDENT]
    assert found.short == pytest.approx(0.49 - found.number)
    enough = wins.mean() + found.short
    assert found.wanted == f"{enough:.3f} on average would have passed, it was {wins.mean():.3f}"
    assert found.reason() == (
        f"champion ({found.number:.3f}, must be >= 0.49, short by {found.short:.3g}; "
        f"{found.wanted})"
    )
    moved = np.clip(wins + (enough + 0.01 - wins.mean()), 0, 1)
    bouts = replace(met(ours, theirs), wins={INDEPENDENT: moved, SELECTING: wins})
    assert judge_candidate(ours, theirs, bounds(), bouts).passed


@pytest.mark.parametrize(
    ("rule_of", "found", "failed"),
    [
        ({"rule": "mean", "at_least": 1.0}, Suited(5, 1.2), ()),
        ({"rule": "mean", "at_least": 1.0}, Suited(5, 0.9), ("suite_safety",)),
        ({"rule": "share", "above": 0.5, "at_most": 0.1}, Suited(5, 0.2), ("suite_safety",)),
        (
            {"rule": "share", "above": 0.5, "at_most": 0.3, "margin": 0.05},
            Suited(5, 0.2, 0.1),
            ("suite_safety_champion",),
        ),
        ({"rule": "mean", "at_least": 0.0, "margin": 0.2}, Suited(5, 0.9, 1.0), ()),
        (
            {"rule": "win_rate", "at_least": 0.5, "margin": 0.02},
            Suited(5, 0.8, 0.8, 0.47),
            ("suite_safety_champion",),
        ),
    ],
)
def test_a_suite_has_a_bound_and_a_margin_to_the_champion(rule_of, found, failed):
    champion = evidence(0.1, seed=2)
    bouts = replace(met(CASE, champion), suites={"safety": found})
    limits = bounds(suites={"safety": rule_of})
    assert judge_candidate(CASE, champion, limits, bouts).failed == failed
    assert judge_candidate(CASE, champion, limits, met(CASE, champion)).failed == ("suite_safety",)
    other = bounds(suites={"safety": rule_of | {"objective": "harmless"}})
    assert judge_candidate(CASE, champion, other, bouts).passed


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rule": "mean"}, "give at_least or at_most"),
        ({"rule": "mean", "at_least": 0.1, "at_most": 0.2}, "give at_least or at_most"),
        ({"rule": "share", "at_most": 0.2}, "above belongs to rule: share"),
        ({"rule": "win_rate", "at_most": 0.2}, "has at_least alone"),
    ],
)
def test_a_suite_that_means_nothing_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        bounds(suites={"safety": wrong})


def test_the_suites_of_the_page_are_settings():
    page = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    tree = load_params(ROOT / "params.yaml").model_dump(mode="json")
    for section, about in shown.items():
        tree[section] |= about
    params = check_params(tree, "the page")
    assert set(params.promotion.suites_of("helpful")) == {"safety", "customer"}
    assert set(params.promotion.suites_of("harmless")) == {"safety"}
    tree["data"]["suites"] = {}
    with pytest.raises(InputError, match=r"prompts that data\.suites does not name: add safety"):
        check_params(tree, "the page")


def test_bouts_come_back_as_they_were_written(tmp_path):
    suites = {"safety": Suited(5, 0.9, 1.0)}
    bouts = met(CASE, evidence(0.1, seed=2), trained=3, unknown=("champion",), suites=suites)
    write_bouts(tmp_path, bouts)
    found = read_bouts(tmp_path)
    assert replace(found, wins={}) == replace(bouts, wins={})
    assert list(found.wins) == list(bouts.wins)
    for judge, wins in bouts.wins.items():
        np.testing.assert_array_equal(found.wins[judge], wins)
    (tmp_path / "facts.json").write_text("{}")
    with pytest.raises(InputError, match="does not say what came of the arena"):
        read_bouts(tmp_path)


def test_evidence_comes_back_as_it_was_written(tmp_path):
    write_evidence(tmp_path, CASE)
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    found = read_evidence(tmp_path)
    assert found.facts == CASE.facts
    assert found.trained == CASE.trained
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
    assert against(ours, theirs, bootstrap=1000).passed


def test_a_rule_says_where_another_temperature_is_deployed_than_it_measured() -> None:
    rules = [
        judge_candidate(evidence(1.0, **about), None, bounds()).rules[0]
        for about in ({}, {"temperature": 0.7})
    ]
    assert "temperature" not in rules[0].words
    assert rules[1].words.endswith("measured at temperature 1; deployed at 0.7")
