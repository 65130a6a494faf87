"""One line a stage: what it measured about itself, and whether that looks right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from infalign.files.tables import INDEPENDENT, SELECTING
from infalign.measuring.contest import off_budget
from infalign.page.data import ObjectiveData
from infalign.page.words import decimal, percent, percent_range
from infalign.theory.levels import FEW_LEVELS, MANY_ALIKE

DROPPED_AT_MOST = 0.2  # share of pairs
EMPTY_AT_MOST = 0.5  # share of samples without a word
ENDED_AT_LEAST = 0.9  # share of sampled responses that end by themselves
TRUNCATED_AT_MOST = 0.1
TIED_AT_MOST = 0.05  # share of reference samples that tie with another one
KS_AT_MOST = 0.05
LAST_SHARE = 0.1  # of the training steps, whose mean KL is compared with the budget


class Line(NamedTuple):
    """A stage instance, whether it looks right, and its numbers in words."""

    stage: str
    healthy: bool
    text: str


def lines(
    metrics: Mapping[str, Mapping[str, Any]],
    objectives: Sequence[ObjectiveData],
    budget: float | None,
) -> list[Line]:
    """A line for every stage instance up to evaluate.

    Args:
        metrics: `prepare`, `sft`, `sample` to the stage's metrics.json; `reward` to those of
            every objective.
        budget: the KL budget, nats; None where there was none.
    """
    found = [
        *(_prepare(data.name, metrics["prepare"]) for data in objectives),
        _sft(metrics["sft"]),
        *(_reward(data, half, metrics) for data in objectives for half in (SELECTING, INDEPENDENT)),
        _sample(metrics["sample"]),
    ]
    found += [_calibrate(data) for data in objectives]
    found += [line for data in objectives for line in _align(data, budget)]
    return found + [_evaluate(data) for data in objectives]


def verdict(found: Sequence[Line]) -> str:
    """How many lines look right, and the names of those that do not."""
    wrong = [line.stage for line in found if not line.healthy]
    return f"{count(found)}; look at {', '.join(wrong)}" if wrong else count(found)


def count(found: Sequence[Line]) -> str:
    """How many lines look right."""
    return f"{sum(line.healthy for line in found)} of {len(found)} fine"


def _prepare(objective: str, metrics: Mapping[str, Any]) -> Line:
    counts = metrics["objectives"][objective]
    dropped = {reason: n for reason, n in counts["dropped"].items() if n}
    why = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in dropped.items())
    pairs, prompts = counts["pairs"], counts["prompts"]
    rows = sum(pairs.values())
    kept = f"{prompts['train']} training and {prompts['test']} held-out prompts, no pairs"
    if rows:
        kept = (
            f"{pairs['train']} training and {pairs['test']} held-out pairs on {prompts['train']} "
            f"and {prompts['test']} prompts"
        )
    text = (
        f"{kept}; dropped: {why or 'none'}; dialogues shortened: {counts['dialogues_cut']}; "
        f"responses longer than the model’s: {counts['responses_cut']}"
    )
    lost = sum(dropped.values())
    share = lost / max(1, lost + (rows or sum(prompts.values())))
    return Line(f"prepare {objective}", share <= DROPPED_AT_MOST, text)


def _sft(metrics: Mapping[str, Any]) -> Line:
    perplexity, empty = metrics["held_out_perplexity"], metrics["empty_share"]
    known = "" if perplexity is None else f"held-out perplexity {decimal(perplexity)}; "
    text = (
        f"{metrics['parameters']:,} parameters; {known}{percent(metrics['ended_share'])} % of "
        "samples end by themselves" + (f"; {percent(empty)} % are empty" if empty else "")
    )
    return Line("sft", metrics["ended_share"] >= ENDED_AT_LEAST and empty <= EMPTY_AT_MOST, text)


def _reward(data: ObjectiveData, half: str, metrics: Mapping[str, Mapping[str, Any]]) -> Line:
    """A source of rewards: how right it is about pairs, and what a sum is made of."""
    trained = metrics["reward"][data.name].get(half)
    words = [] if not data.sources else [data.sources[half]]
    about = data.metrics["rewards"].get(half, {}) if data.sources else {}
    found = trained or about.get("pairs")
    healthy = True
    if found:
        ceiling = metrics["prepare"]["objectives"][data.name].get("accuracy_ceiling")
        text = (
            f"held-out accuracy {percent(found['accuracy'])} % "
            f"{percent_range(found['accuracy_low'], found['accuracy_high'])} on "
            f"{found['held_out_pairs']} pairs"
        )
        words.append(text + (f"; the best possible is {percent(ceiling)} %" if ceiling else ""))
        healthy = found["accuracy_low"] > 0.5
    if about.get("parts"):
        shares = (f"{part['name']} {percent(part['contribution'])} %" for part in about["parts"])
        words.append(f"what the sum tells apart comes from {', '.join(shares)}")
    if columns := about.get("columns"):
        words.append(f"it is given the columns {', '.join(columns)}, and served without them")
    if alike := about.get("alike_share"):
        words.append(f"all samples of a prompt are alike for {percent(alike)} % of the prompts")
        healthy = healthy and alike <= MANY_ALIKE
    if not about and not trained:
        words = ["there is no independent judge, so that nothing here tells reward hacking"]
    return Line(f"reward {data.name} {half}", healthy, "; ".join(words))


def _sample(metrics: Mapping[str, Any]) -> Line:
    text = (
        f"{metrics['responses']:,} responses of {decimal(metrics['response_tokens'], 1)} tokens; "
        f"{percent(metrics['truncated_share'])} % cut; {percent(metrics['repeated_share'])} % "
        "repeat another one to the same prompt"
    )
    return Line("sample", metrics["truncated_share"] <= TRUNCATED_AT_MOST, text)


def _calibrate(data: ObjectiveData) -> Line:
    found = data.metrics["calibrate"]
    tied, distance = found["test_tied_share"], found["uniformity_ks"]
    text = (
        f"{percent(tied)} % of reference samples tie with another; distance from uniform "
        f"(Kolmogorov-Smirnov) {decimal(distance, 3)}; change under another reward scale "
        f"{decimal(found['scale_change'], 3)}"
    )
    if tied > FEW_LEVELS:  # of a rule, say: no calibrated reward can be uniform
        text += "; a reward of few levels, whose limit is not reached: see the estimate with ties"
        return Line(f"calibrate@{data.name}", found["scale_change"] == 0, text)
    healthy = tied <= TIED_AT_MOST and distance <= KS_AT_MOST and found["scale_change"] == 0
    return Line(f"calibrate@{data.name}", healthy, text)


def _align(data: ObjectiveData, budget: float | None) -> Iterator[Line]:
    of = "" if budget is None else f" of {decimal(budget, 3)}"
    for variant, history in data.histories.items():
        last = history[-max(1, round(LAST_SHARE * len(history))) :]
        kl = float(np.mean([row["kl"] for row in last]))
        text = (
            f"maximised {data.methods[variant]} for {len(history)} steps; KL at the end "
            f"{decimal(kl, 3)} nats{of}; calibrated reward "
            f"{decimal(history[0]['calibrated'])} to {decimal(last[-1]['calibrated'])}"
        )
        yield Line(f"align@{data.name}-{variant}", not off_budget(kl, budget), text)


def _evaluate(data: ObjectiveData) -> Line:
    found = data.metrics["evaluate"]["health"]
    text = (
        f"{found['prompts']} prompts × {found['samples']} responses a policy; above the limit: "
        f"{found['above_limit']}; KL estimates that disagree: {found['kl_disagrees']}; policies "
        f"off the KL budget: {found['off_budget']}"
    )
    healthy = not (found["above_limit"] or found["kl_disagrees"] or found["off_budget"])
    return Line(f"evaluate@{data.name}", healthy, text)
