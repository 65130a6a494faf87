"""Everything the report says, put together as one HTML text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infalign.page import health, results, verdict
from infalign.page.data import ObjectiveData
from infalign.page.examples import examples
from infalign.page.markup import Chapter, Html, document, facts, join, table, tag
from infalign.page.plates import Plate
from infalign.page.published import RUN
from infalign.page.sections import sections
from infalign.page.words import GLOSSARY, JUDGES, READING, decimal, procedure_words

TITLE = "Alignment report"
BUILTIN = "results/corpus"  # where data.path says that the data is the built-in corpus
EXAMPLES_NOTE = (
    "The first prompts in the order of their hashes, so nobody picked them. Each policy drew as "
    "many responses as the objective’s procedure draws, and kept the marked one; every policy "
    "shows draws of other numbers, because equal numbers share random numbers. C is a response’s "
    "win rate against the reference’s responses to the same prompt."
)


def render(
    objectives: Sequence[ObjectiveData],
    drawn: Mapping[str, Mapping[str, Sequence[Plate]]],
    metrics: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> str:
    """The page as one HTML text that needs nothing else; every value is escaped.

    Args:
        drawn: objective to its figures by chapter.
        metrics: `prepare`, `sft`, `sample` to the stage's metrics.json; `reward` to those of
            every objective.
        settings: `model`, `data`, `seed`, `kl_nats` (None: a beta was given) and `examples`.
    """
    budget = settings["kl_nats"]
    lines = health.lines(metrics, objectives, budget)
    names = ", ".join(f"{data.name} ({procedure_words(data.procedure)})" for data in objectives)
    lead = f"Policies aligned for the procedure they are used with, and what that gained: {names}."
    chapters = [
        Chapter("verdict", "May it replace what is deployed?", _first(objectives, lines, settings)),
        Chapter("results", "Results", _results(objectives, budget)),
        Chapter("gate", "The gate", _gate(objectives)),
        Chapter("health", "Health of each stage", _health(lines)),
        *sections(objectives, drawn),
        Chapter("responses", "Responses, side by side", _responses(objectives, settings)),
        Chapter("reading", "How to read this page", join(tag("p", text) for text in READING)),
        Chapter("glossary", "Glossary", _glossary()),
    ]
    header = join([tag("p", lead, class_="lead"), facts(_facts(settings)), RUN])
    return document(TITLE, header, chapters)


def _facts(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    budget = settings["kl_nats"]
    return [
        ("Model", settings["model"]),
        ("Data", settings["data"]),
        ("Seed", str(settings["seed"])),
        ("KL budget", "none: β was given" if budget is None else f"{decimal(budget)} nats"),
    ]


def _first(
    objectives: Sequence[ObjectiveData], lines: Sequence[health.Line], settings: Mapping[str, Any]
) -> Html:
    """The answer for every objective, and what holds for all of them."""
    cards = (verdict.card(data, settings["kl_nats"]) for data in objectives)
    notes = [verdict.BUILTIN_NOTE] if settings["data"] == BUILTIN else []
    notes.append(f"Health of the stages behind this: {health.verdict(lines)}.")
    return join([tag("div", *cards, class_="cards"), tag("p", " ".join(notes), class_="note")])


def _results(objectives: Sequence[ObjectiveData], budget: float | None) -> Html:
    parts: list[Html] = []
    for data in objectives:
        parts += [
            tag("h3", f"{data.name}, under ", tag("code", data.procedure)),
            tag("p", results.verdict(data), class_="verdict"),
            results.headline(data, budget),
            results.gains(data),
            facts(_maximised(data)),
        ]
    note = (
        "Win rates over the reference under the objective’s own procedure, selected and judged by "
        "the selecting reward. Brackets: 95 % intervals over prompts. The limit is that of any "
        f"policy at the same KL; the method’s limit is no bound; {_budget_words(budget)}."
    )
    return join([*parts, tag("p", note, class_="note")])


def _budget_words(budget: float | None) -> str:
    if budget is None:
        return "there was no budget, because β was given"
    return (
        f"the budget was {decimal(budget)} nats, and policies within a tenth of it count as on "
        "budget"
    )


def _maximised(data: ObjectiveData) -> list[tuple[str, str]]:
    """What training maximised, and who rewards and judges."""
    said = ", ".join(f"{name}: {method}" for name, method in data.methods.items())
    found = [("Maximised", said)]
    return found + [(JUDGES[judge], words) for judge, words in data.sources.items()]


def _gate(objectives: Sequence[ObjectiveData]) -> Html:
    parts = [tag("p", verdict.GATE_NOTE)]
    for data in objectives:
        title = f"{data.name}, {procedure_words(data.procedure)}"
        parts += [tag("h3", title), verdict.gate_table(data), verdict.not_asked(data)]
    return join(parts)


def _health(lines: Sequence[health.Line]) -> Html:
    rows = [
        [
            tag("code", line.stage),
            results.flag("fine", "ok") if line.healthy else results.flag("look here", "look"),
            line.text,
        ]
        for line in lines
    ]
    said = table(["stage", "looks", "what it measured"], rows, "Health of the stages", (2,))
    return join([tag("p", f"{health.verdict(lines)}."), said])


def _responses(objectives: Sequence[ObjectiveData], settings: Mapping[str, Any]) -> Html:
    parts = [tag("p", EXAMPLES_NOTE)]
    for data in objectives:
        title = f"{data.name}, {procedure_words(data.procedure)}"
        parts += [tag("h3", title), examples(data, settings["examples"])]
    return join(parts)


def _glossary() -> Html:
    pairs = (join([tag("dt", term), tag("dd", meaning)]) for term, meaning in GLOSSARY)
    return tag("dl", *pairs)
