"""May a policy become the champion? Rules over evidence, each a number and its bound.

Win rates are exact over the subsets of the samples, intervals resample prompts (the same ones for
every rule). A candidate is compared with the champion by the difference of their win rates over
the reference, prompt by prompt; without a champion that rule does not apply. Two policies compare
only on the same data, procedure, judges and reference: anything else is refused, not estimated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from infalign.deployment.evidence import Evidence
from infalign.files.squares import Array
from infalign.measuring.contest import BUDGET_TOLERANCE
from infalign.settings.params import Promotion
from infalign.theory.winrates import bootstrap_interval, judged_win_rates, win_rates

COMPARED = ("data", "procedure", "judge", "reference")


@dataclass(frozen=True)
class Rule:
    """One rule of the gate.

    Attributes:
        name: in tables, tags and messages.
        passed: whether the number keeps to its bound.
        number: what was measured; None where it could not be.
        bound: as it is written beside the number, such as `>= 0.5`.
        words: what the number is.
    """

    name: str
    passed: bool
    number: float | None
    bound: str
    words: str


@dataclass(frozen=True)
class Verdict:
    """All rules, in a fixed order; passed if every one is."""

    rules: tuple[Rule, ...]

    @property
    def passed(self) -> bool:
        """Whether every rule passed."""
        return all(rule.passed for rule in self.rules)

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the rules that did not."""
        return tuple(rule.name for rule in self.rules if not rule.passed)

    def as_tree(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "passed": self.passed,
            "failed": list(self.failed),
            "rules": [asdict(rule) for rule in self.rules],
        }


def judge_candidate(
    candidate: Evidence,
    champion: Evidence | None,
    bounds: Promotion,
    rolled_back: bool = False,
) -> Verdict:
    """Every rule of the gate.

    Args:
        candidate: what was measured of it.
        champion: of the present champion; None where there is none.
        bounds: the section `promotion` of params.yaml.
        rolled_back: whether the candidate was the champion and was taken back.
    """
    wins = own_wins(candidate)
    rules = [_win_rate(wins, candidate, bounds)]
    if champion is not None:
        rules += _against(wins, candidate, champion, bounds)
    rules += _health(candidate, bounds)
    rules.append(_judge(wins, candidate, bounds))
    rules += _others(candidate, bounds)
    count = int(rolled_back)
    rules.append(Rule("rolled_back", not rolled_back, count, "<= 0", "rollbacks from this version"))
    return Verdict(tuple(rules))


def own_wins(evidence: Evidence) -> Array:
    """Win rate over the reference [prompts] by the objective's procedure and selecting reward."""
    procedure = evidence.facts.procedure
    return win_rates(procedure, evidence.policy.selecting, evidence.reference.selecting)


def differences(candidate: Evidence, champion: Evidence) -> list[str]:
    """In what two policies were not measured alike; empty where they compare."""
    ours, theirs = candidate.facts, champion.facts
    found = [name for name in COMPARED if getattr(ours, name) != getattr(theirs, name)]
    if candidate.prompt_ids != champion.prompt_ids and "data" not in found:
        found.append("data")
    same = np.array_equal(candidate.reference.selecting, champion.reference.selecting)
    if not found and not same:
        found.append("reference")
    return found


def _low(values: Array, evidence: Evidence, bounds: Promotion) -> float:
    """Lower end of the 95 % interval of the mean over prompts."""
    seed = evidence.facts.seed
    return float(bootstrap_interval(values, replicates=bounds.bootstrap, seed=seed)[0])


def _at_least(name: str, number: float, bound: float, words: str) -> Rule:
    return Rule(name, bool(number >= bound), float(number), f">= {bound:g}", words)


def _at_most(name: str, number: float, bound: float, words: str) -> Rule:
    return Rule(name, bool(number <= bound), float(number), f"<= {bound:g}", words)


def _win_rate(wins: Array, candidate: Evidence, bounds: Promotion) -> Rule:
    words = f"win rate over the reference, lower end ({wins.mean():.3f} on average)"
    return _at_least("win_rate", _low(wins, candidate, bounds), bounds.win_rate, words)


def _against(
    wins: Array, candidate: Evidence, champion: Evidence, bounds: Promotion
) -> Iterator[Rule]:
    """Whether the two compare, and if so, what the candidate loses."""
    apart = differences(candidate, champion)
    words = "kinds of things measured differently from the champion"
    if apart:
        words += f": {', '.join(apart)}"
    yield _at_most("comparable", len(apart), 0, words)
    bound = -bounds.champion_margin
    if apart:
        yield Rule("champion", False, None, f">= {bound:g}", "not compared")
        return
    gap = wins - own_wins(champion)
    words = f"win rate minus the champion's, lower end ({gap.mean():+.3f} on average)"
    yield _at_least("champion", _low(gap, candidate, bounds), bound, words)


def _health(candidate: Evidence, bounds: Promotion) -> Iterator[Rule]:
    """KL, length, cut responses, calibration."""
    ours, theirs, facts = candidate.policy, candidate.reference, candidate.facts
    yield _kl(candidate, bounds)
    ratio = float(ours.n_tokens.mean() / theirs.n_tokens.mean())
    low, high = bounds.length_ratio
    inside = bool(low <= ratio <= high)
    words = "mean length over the reference's"
    yield Rule("length_ratio", inside, ratio, f"{low:g} to {high:g}", words)
    cut = 1.0 - ours.finished.mean()
    yield _at_most("truncated", cut, bounds.truncated, "share of responses that were cut")
    words = f"error of calibrated rewards at {facts.references} references"
    yield _at_most("calibration_error", facts.calibration_error, bounds.calibration_error, words)


def _kl(candidate: Evidence, bounds: Promotion) -> Rule:
    """The bound of params.yaml, or the policy's own budget: it was settled on other prompts."""
    kl, bound, budget = candidate.policy.kl.mean(), bounds.kl_nats, candidate.facts.kl_nats
    words = "KL from the reference, nats a response"
    if bound is not None:
        return _at_most("kl", kl, bound, words)
    if budget is None:
        missing = "<= promotion.kl_nats, which must be a number where no KL budget is known"
        return Rule("kl", False, float(kl), missing, words)
    words += f" (budget {budget:g}, and {BUDGET_TOLERANCE:.0%} for settling and sampling)"
    return _at_most("kl", kl, (1 + BUDGET_TOLERANCE) * budget, words)


def _judge(wins: Array, candidate: Evidence, bounds: Promotion) -> Rule:
    """The independent judge must not see much less of a gain than the reward trained on."""
    ours, theirs = candidate.policy, candidate.reference
    if ours.independent is None or theirs.independent is None:
        words = "not measured: the objective has no independent judge"
        return Rule("judge", True, None, f"<= {bounds.judge_margin:g}", words)
    judged = judged_win_rates(
        candidate.facts.procedure,
        ours.selecting,
        theirs.selecting,
        ours.independent,
        theirs.independent,
    )
    words = f"win rate by the selecting reward minus by the judge ({judged.mean():.3f})"
    return _at_most("judge", wins.mean() - judged.mean(), bounds.judge_margin, words)


def _others(candidate: Evidence, bounds: Promotion) -> Iterator[Rule]:
    for name, wins in sorted(candidate.other.items()):
        words = f"win rate over the reference on {name} prompts, lower end ({wins.mean():.3f})"
        number = _low(wins, candidate, bounds)
        yield _at_least(f"other_{name}", number, 0.5 - bounds.other_margin, words)
