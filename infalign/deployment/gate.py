"""May a policy become the champion? Rules over evidence, each a number and its bound.

Win rates are exact over the subsets of the samples. A candidate meets the champion itself: how
often its kept answer beats the champion's, by today's judge and by the one under which the champion
was promoted (`bouts.py`), with a bound that many looks do not wear out (`theory.looks`). What was
measured differently is named, and refuses nothing. Without a champion these rules do not apply.
Other intervals resample prompts, the same ones for every rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from infalign.deployment.bouts import FORMER, Bouts
from infalign.deployment.evidence import Evidence
from infalign.files.squares import Array
from infalign.files.tables import INDEPENDENT, SELECTING
from infalign.measuring.contest import BUDGET_TOLERANCE
from infalign.settings.params import Promotion
from infalign.theory.looks import look_level, lower_bound
from infalign.theory.winrates import bootstrap_interval, judged_win_rates, win_rates

COMPARED = ("data", "procedure", "temperature", "judge", "reference")
FEWEST = 2  # prompts that are a comparison


@dataclass(frozen=True)
class Rule:
    """One rule of the gate.

    Attributes:
        name: in tables, tags and messages.
        passed: whether the number keeps to its bound.
        number: what was measured; None where it could not be.
        bound: as it is written beside the number, such as `>= 0.5`.
        words: what the number is.
        short: by how much it misses the bound; None where it does not, or was not measured.
        wanted: what would have passed, in words; empty where the bound says it.
    """

    name: str
    passed: bool
    number: float | None
    bound: str
    words: str
    short: float | None = None
    wanted: str = ""

    def reason(self) -> str:
        """Why it failed: number, bound, by how much, and what would have passed."""
        if self.number is None:
            return f"{self.name} (not measured: {self.words}; must be {self.bound})"
        short = "" if self.short is None else f", short by {self.short:.3g}"
        wanted = f"; {self.wanted}" if self.wanted else ""
        return f"{self.name} ({self.number:.3f}, must be {self.bound}{short}{wanted})"


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
    bouts: Bouts | None = None,
    rolled_back: bool = False,
) -> Verdict:
    """Every rule of the gate.

    Args:
        candidate: what was measured of it.
        champion: of the present champion; None where there is none.
        bounds: the section `promotion` of params.yaml.
        bouts: the candidate against that champion; None where they did not meet.
        rolled_back: whether the candidate was the champion and was taken back.
    """
    first, *more = judge_results(candidate, bounds).rules
    rules = [first]
    if champion is not None:
        rules += _against((candidate, champion), bouts, bounds)
    rules += _suites(candidate, champion is not None, bouts, bounds)
    rules += more
    rules += _others(candidate, bounds)
    count = int(rolled_back)
    rules.append(Rule("rolled_back", not rolled_back, count, "<= 0", "rollbacks from this version"))
    return Verdict(tuple(rules))


def judge_results(candidate: Evidence, bounds: Promotion) -> Verdict:
    """The rules that the results of a run answer by themselves, without registry and champion."""
    wins = own_wins(candidate)
    health = _health(candidate, bounds)
    return Verdict((_win_rate(wins, candidate, bounds), *health, _judge(wins, candidate, bounds)))


def not_asked(bounds: Promotion, objective: str, others: Sequence[str]) -> dict[str, str]:
    """The rules that results cannot answer, and what each of them asks.

    Args:
        others: the other objectives.
    """
    asked = {"champion": "does its kept answer beat the champion’s, where there is one"}
    for name in bounds.suites_of(objective):
        asked[f"suite_{name}"] = "the pinned prompts of this suite"
    for name in sorted(others):
        asked[f"other_{name}"] = f"what it costs on {name} prompts"
    return asked | {"rolled_back": "was it the champion, and taken back"}


def own_wins(evidence: Evidence) -> Array:
    """Win rate over the reference [prompts] by the objective's procedure and selecting reward."""
    procedure = evidence.facts.procedure
    return win_rates(procedure, evidence.policy.selecting, evidence.reference.selecting)


def differences(candidate: Evidence, champion: Evidence) -> list[str]:
    """In what two systems were not made or measured alike, in words."""
    ours, theirs = candidate.facts, champion.facts
    found = [name for name in COMPARED if getattr(ours, name) != getattr(theirs, name)]
    words = {
        name: f"{name} ({getattr(theirs, name)}, now {getattr(ours, name)})"
        for name in ("procedure", "temperature")
    }
    if candidate.prompt_ids != champion.prompt_ids and "data" not in found:
        found.insert(0, "data")
    return [words.get(name, name) for name in found]


def obstacles(candidate: Evidence, champion: Evidence) -> list[str]:
    """Why two systems cannot be compared at all, in words."""
    ours, theirs = candidate.facts, champion.facts
    found = []
    if ours.objective != theirs.objective:
        found.append(f"another objective ({theirs.objective}, now {ours.objective})")
    same_reward = ours.reward is not None and ours.reward == theirs.reward
    if not (ours.judged_by or theirs.judged_by or same_reward):
        found.append("neither has an independent judge, and their selecting rewards differ")
    return found


def _low(values: Array, evidence: Evidence, bounds: Promotion) -> float:
    """Lower end of the 95 % interval of the mean over prompts."""
    seed = evidence.facts.seed
    return float(bootstrap_interval(values, replicates=bounds.bootstrap, seed=seed)[0])


def _at_least(name: str, number: float, bound: float, words: str, wanted: str = "") -> Rule:
    passed = bool(number >= bound)
    short = None if passed else float(bound - number)
    return Rule(name, passed, float(number), f">= {bound:g}", words, short, wanted)


def _at_most(name: str, number: float, bound: float, words: str) -> Rule:
    passed = bool(number <= bound)
    short = None if passed else float(number - bound)
    return Rule(name, passed, float(number), f"<= {bound:g}", words, short)


def _win_rate(wins: Array, candidate: Evidence, bounds: Promotion) -> Rule:
    words = f"win rate over the reference, lower end ({wins.mean():.3f} on average)"
    if candidate.facts.temperature != 1.0:
        words += f", measured at temperature 1; deployed at {candidate.facts.temperature:g}"
    return _at_least("win_rate", _low(wins, candidate, bounds), bounds.win_rate, words)


def _against(
    systems: tuple[Evidence, Evidence], bouts: Bouts | None, bounds: Promotion
) -> Iterator[Rule]:
    """Whether the two compare, and how often the candidate's kept answer beats the champion's."""
    apart, against = differences(*systems), obstacles(*systems)
    words = "; ".join(["reasons why the champion cannot be compared", *against])
    if apart:
        words += f"; measured differently, and compared all the same: {', '.join(apart)}"
    yield _at_most("comparable", len(against), 0, words)
    bound = f">= {0.5 - bounds.champion_margin:g}"
    if against or bouts is None or not bouts.wins:
        words = "not comparable" if against else "the two have not met in the arena"
        yield Rule("champion", False, None, bound, words)
        return
    for name, judge, wins in _judged(systems, bouts):
        if len(wins) < FEWEST:
            left = f"{len(wins)} prompts are left{_left_out(bouts)}"
            yield Rule(name, False, None, bound, left)
        else:
            yield _met(name, judge, wins, (systems, bouts, bounds))


def _judged(systems: tuple[Evidence, Evidence], bouts: Bouts) -> Iterator[tuple[str, str, Array]]:
    """The rules' names, who judges in words, and the win rates by them [prompts]."""
    if INDEPENDENT in bouts.wins:
        yield "champion", "today's judge", bouts.wins[INDEPENDENT]
    if FORMER in bouts.wins:
        yield "champion_judge", "the judge it was promoted under", bouts.wins[FORMER]
    if not {INDEPENDENT, FORMER} & set(bouts.wins):
        yield "champion", "the reward that both select by", bouts.wins[SELECTING]


def _met(
    name: str,
    judge: str,
    wins: Array,
    about: tuple[tuple[Evidence, Evidence], Bouts, Promotion],
) -> Rule:
    """One judge's word on the two, with the bound for all looks."""
    (candidate, champion), bouts, bounds = about
    number = lower_bound(wins, look_level(bounds.looks_level, bounds.looks))
    seed = candidate.facts.seed
    low, high = bootstrap_interval(wins, replicates=bounds.bootstrap, seed=seed)
    mean, floor = float(wins.mean()), 0.5 - bounds.champion_margin
    over = [float(own_wins(one).mean()) for one in (candidate, champion)]
    words = (
        f"how often its kept answer beats the champion's by {judge}, lower bound for "
        f"{bounds.looks} looks ({mean:.3f} on average of {len(wins)} prompts, 95 % interval "
        f"{low:.3f} to {high:.3f}; by the selecting reward {bouts.wins[SELECTING].mean():.3f}; "
        f"over their references {over[0]:.3f} and {over[1]:.3f}{_left_out(bouts)})"
    )
    wanted = f"{mean + floor - number:.3f} on average would have passed, it was {mean:.3f}"
    return _at_least(name, number, floor, words, wanted)


def _left_out(bouts: Bouts) -> str:
    """Which prompts the two did not meet on."""
    said = f"; {bouts.trained} prompts that either was trained on are left out"
    if bouts.too_long:
        said += f", and {bouts.too_long} that are too long for either"
    if bouts.unknown:
        said += f"; the {' and the '.join(bouts.unknown)} does not say what it was trained on"
    return said


def _suites(
    candidate: Evidence, has_champion: bool, bouts: Bouts | None, bounds: Promotion
) -> Iterator[Rule]:
    """Pinned prompts: absolute bounds, and what may be lost against the champion.

    The prompts are all that there are, so nothing is resampled; draws are exact.
    """
    for name, suite in bounds.suites_of(candidate.facts.objective).items():
        found = None if bouts is None else bouts.suites.get(name)
        more = suite.at_least is not None
        bound = suite.at_least if suite.at_least is not None else suite.at_most
        assert bound is not None
        what = f"{suite.rule.replace('_', ' ')} on {found.prompts if found else 'its'} prompts"
        rule = _at_least if more else _at_most
        if found is None:
            shown = f"{'>=' if more else '<='} {bound:g}"
            yield Rule(f"suite_{name}", False, None, shown, "the suite was not measured")
            continue
        yield rule(f"suite_{name}", found.candidate, bound, what)
        if suite.margin is None or not has_champion:
            continue
        against = f"suite_{name}_champion"
        if found.against is not None:
            words = f"how often its kept answer beats the champion's on {found.prompts} prompts"
            yield _at_least(against, found.against, 0.5 - suite.margin, words)
        elif found.champion is not None:
            apart, words = found.candidate - found.champion, f"{what}, minus the champion's"
            margin = -suite.margin if more else suite.margin
            yield rule(against, apart, margin, words)


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
