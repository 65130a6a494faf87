"""Everything the page says, put together and rendered to one HTML text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from infalign.page import health, results
from infalign.page.data import ObjectiveData
from infalign.page.examples import Example, examples
from infalign.page.sections import TEXTS, Plate, Section, sections
from infalign.page.style import STYLE
from infalign.page.template import TEMPLATE
from infalign.page.words import GLOSSARY, JUDGES, READING, decimal, procedure_words


class Objective(NamedTuple):
    """One objective's results and examples, as text."""

    name: str
    procedure: str
    verdict: str
    reference: results.Policy
    rows: list[results.Row]
    judges: list[str]
    gains: list[results.Gain]
    examples: list[Example]


class Page(NamedTuple):
    """Everything that the template shows."""

    title: str
    lead: str
    facts: list[tuple[str, str]]
    objectives: list[Objective]
    results_note: str
    health: list[health.Line]
    health_verdict: str
    sections: list[Section]
    examples_note: str
    reading: Sequence[str]
    glossary: Sequence[tuple[str, str]]


def page(
    objectives: Sequence[ObjectiveData],
    drawn: Mapping[str, Mapping[str, Sequence[Plate]]],
    metrics: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> Page:
    """Word and arrange the whole page.

    Args:
        drawn: objective to its figures by chapter.
        metrics: `prepare`, `sft`, `reward` and `sample` to the stage's metrics.json.
        settings: `model`, `data`, `seed`, `kl_nats` (None: a beta was given) and `examples`.
    """
    budget = settings["kl_nats"]
    lines = health.lines(metrics, objectives, budget)
    names = ", ".join(f"{data.name} ({procedure_words(data.procedure)})" for data in objectives)
    return Page(
        "Alignment report",
        f"Policies aligned for the procedure they are used with, and what that gained: {names}.",
        [*_facts(objectives, settings), ("Health", health.count(lines))],
        [_objective(data, budget, settings["examples"]) for data in objectives],
        "Win rates over the reference under the objective’s own procedure, selected and judged by "
        "the selecting reward. Brackets: 95 % intervals over prompts. The limit is that of any "
        f"policy at the same KL; {_budget_words(budget)}.",
        lines,
        health.verdict(lines),
        sections(objectives, drawn),
        "The first prompts in the order of their hashes, so nobody picked them. Each policy drew "
        "as many responses as the objective’s procedure draws, and this is the one it kept; C is "
        "its win rate against the reference’s responses to the same prompt.",
        READING,
        GLOSSARY,
    )


def _budget_words(budget: float | None) -> str:
    if budget is None:
        return "there was no budget, because β was given"
    return (
        f"the budget was {decimal(budget)} nats, and policies within a tenth of it count as on "
        "budget"
    )


def _facts(
    objectives: Sequence[ObjectiveData], settings: Mapping[str, Any]
) -> list[tuple[str, str]]:
    budget = settings["kl_nats"]
    facts = [
        ("Model", settings["model"]),
        ("Data", settings["data"]),
        ("Seed", str(settings["seed"])),
        ("KL budget", "none: β was given" if budget is None else f"{decimal(budget)} nats"),
    ]
    for data in objectives:
        maximised = ", ".join(f"{name}: {method}" for name, method in data.methods.items())
        facts.append((f"{data.name} maximised", maximised))
        facts += [(f"{data.name}, {JUDGES[judge]}", words) for judge, words in data.sources.items()]
    return facts


def _objective(data: ObjectiveData, budget: float | None, count: int) -> Objective:
    return Objective(
        data.name,
        data.procedure,
        results.verdict(data),
        results.reference_policy(data),
        results.headline(data, budget),
        [JUDGES[judge] for judge in data.judges],
        results.gains(data),
        examples(data, count),
    )


def render(content: Page) -> str:
    """The page as one HTML text that needs nothing else; every value is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    contents = [
        ("results", "Results"),
        ("health", "Health"),
        *((anchor, title) for anchor, (title, _) in TEXTS.items()),
        ("responses", "Responses"),
        ("reading", "How to read this"),
        ("glossary", "Glossary"),
    ]
    template = environment.from_string(TEMPLATE)
    text = template.render(page=content, contents=contents, style=Markup(STYLE))
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
