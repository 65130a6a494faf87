"""The page's first screen: may this policy replace what is deployed, and what speaks against it.

Yes or no is the gate's own word, by the rules that results answer; which rules they do not answer
is said beside it. What speaks against a policy is computed from the same rows as the tables below.
"""

from __future__ import annotations

from collections.abc import Iterator

from infalign.deployment.gate import Rule
from infalign.files.names import INDEPENDENT, SELECTING
from infalign.page.data import ObjectiveData
from infalign.page.markup import Html, join, table, tag
from infalign.page.results import flag, policy_key
from infalign.page.words import (
    JUDGES,
    decimal,
    listed,
    percent,
    percent_range,
    points,
    points_range,
    procedure_words,
)

STANDARD = ("standard", "best_of:1", "worst_of:1")  # three names of one procedure
WORST_NAMED = 2  # other procedures that are named with their numbers
BUILTIN_NOTE = (
    "The built-in corpus was made for this project, and rebuilt while its trainer was tuned: the "
    "numbers show that the method does what its theory says, not what it gains on other data."
)
GATE_NOTE = (
    "Every policy by the rules that results answer, with the bounds of params.yaml (promotion). "
    "The lower end of an interval counts, not its middle."
)


def card(data: ObjectiveData, budget: float | None) -> Html:
    """One objective's answer, its three numbers, and what speaks against it."""
    name = data.leader
    merits, against = (_listed(of(data, name)) for of in (_merits, caveats))
    return tag(
        "article",
        tag("h3", f"{data.name}, deployed behind {procedure_words(data.procedure)}"),
        framed(data.name, answer_line(answer(data), _is_yes(data), _in_words(data))),
        _three(data, name, budget),
        tag("h4", "For it"),
        merits,
        tag("h4", "Against it"),
        against,
        class_="card",
    )


def _listed(sentences: Iterator[str]) -> Html:
    """Sentences as a list; a number stays on the line of its sign."""
    return tag("ul", *(tag("li", text.replace(" %", "\u00a0%")) for text in sentences))


def _is_yes(data: ObjectiveData) -> bool:
    return data.candidate is not None and data.gate[data.candidate].passed


def answer(data: ObjectiveData) -> str:
    """Yes or no, and which policy."""
    if data.candidate is None:
        return "No: promotion.variant names a policy that was not trained."
    if _is_yes(data):
        return f"Yes: {data.candidate} may be deployed, as far as these results tell."
    return f"No: {data.candidate} may not replace what is deployed."


def framed(objective: str, part: Html) -> Html:
    """A part of the page that its published copy says anew, where the whole gate was asked."""
    return Html(f"<!--gate {objective}-->{part}<!--/gate {objective}-->")


def answer_line(text: str, yes: bool, reasons: str) -> Html:
    """The answer and the rules behind it."""
    kind = "yes" if yes else "no"
    return join([tag("p", text, class_=f"answer {kind}"), tag("p", reasons, class_="note")])


def _in_words(data: ObjectiveData) -> Html:
    rules = data.gate[data.leader].rules
    failed = [rule.reason() for rule in rules if not rule.passed]
    said = f"It fails {listed(failed)}" if failed else f"It passes all {len(rules)} rules"
    asked = ", ".join(data.not_asked)
    return join(
        [
            f"{said} of the gate that these results answer. Not asked here: {asked}; ",
            tag("code", "infalign promote --dry-run"),
            " asks them.",
        ]
    )


def _three(data: ObjectiveData, name: str, budget: float | None) -> Html:
    """Win rate, share of the limit, KL."""
    row = data.row(name, SELECTING, data.procedure)
    limit = row["limit"] if row.get("tied_limit") is None else row["tied_limit"]
    spent = "β was given" if budget is None else f"budget {decimal(budget)}"
    numbers = (
        (
            "wins over reference",
            f"{percent(row['win_rate'])} %",
            f"{percent_range(row['low'], row['high'])}, 50 is no change",
        ),
        (
            "of the possible gain",
            f"{percent(row['efficiency'], 0)} %",
            f"limit {percent(limit)} % at its KL",
        ),
        (
            "KL from reference",
            f"{decimal(row['kl'])} nats",
            f"± {decimal(row['kl_se'], 3)}, {spent}",
        ),
    )
    pairs = (
        tag("div", tag("dt", term), tag("dd", tag("b", value), note))
        for term, value, note in numbers
    )
    return tag("dl", *pairs, class_="three")


def _merits(data: ObjectiveData, name: str) -> Iterator[str]:
    """Whom it beats where it is deployed, and that others see the gain too."""
    own = procedure_words(data.procedure)
    ahead = []
    for rival in _rivals(data, name):
        mean, low, high = data.gap(name, rival, SELECTING, data.procedure)
        if low > 0:
            ahead.append(f"{rival} by {points(mean)} points {points_range(low, high)}")
    if ahead:
        yield f"Under {own} it is ahead of {listed(ahead)}."
    if _gains(data, name):
        yield _judged(data, name)


def _gains(data: ObjectiveData, name: str) -> bool:
    """Whether it clearly beats the reference where it is deployed, by its own reward."""
    return float(data.row(name, SELECTING, data.procedure)["low"]) > 0.5


def _judged(data: ObjectiveData, name: str) -> str:
    """How much of the gain other judges see."""
    rates = {judge: data.row(name, judge, data.procedure)["win_rate"] for judge in data.judges}
    own = rates.pop(SELECTING)
    if not rates:
        return f"By the reward that it was trained on it wins {percent(own)} %."
    seen = [
        f"the {JUDGES[judge]} sees {points(rate - 0.5)} "
        f"({percent(max(0.0, rate - 0.5) / (own - 0.5), 0)} % of it)"
        for judge, rate in rates.items()
    ]
    return (
        f"Its own reward sees a gain of {points(own - 0.5)} points over the reference; "
        f"{listed(seen)}."
    )


def caveats(data: ObjectiveData, name: str) -> Iterator[str]:
    """What a deployer must know of a policy, the most important first."""
    if not _gains(data, name):
        row, own = data.row(name, SELECTING, data.procedure), procedure_words(data.procedure)
        yield (
            f"Under {own} it does not clearly beat the reference: it wins "
            f"{percent(row['win_rate'])} % {percent_range(row['low'], row['high'])} by its own "
            "reward."
        )
    yield from _own_procedure(data, name)
    yield from _without(data, name)
    yield from _elsewhere(data, name)
    yield from _judges(data, name)


def _rivals(data: ObjectiveData, name: str) -> list[str]:
    return [other for other in data.variants if other != name]


def _own_procedure(data: ObjectiveData, name: str) -> Iterator[str]:
    """Rivals that it does not beat where it is to be deployed."""
    own = procedure_words(data.procedure)
    for rival in _rivals(data, name):
        mean, low, high = data.gap(name, rival, SELECTING, data.procedure)
        if high < 0:
            yield f"Under {own} itself {rival} is better, by {points(-mean)} points."
        elif low <= 0:
            spread = points_range(low, high)
            yield f"Under {own} it is not clearly ahead of {rival}: {points(mean)} {spread} points."


def _behind(data: ObjectiveData, name: str, procedure: str) -> list[tuple[float, str]]:
    """Rivals that are clearly better under a procedure, with the difference, the best first."""
    gaps = ((data.gap(name, rival, SELECTING, procedure), rival) for rival in _rivals(data, name))
    return sorted((gap[0], rival) for gap, rival in gaps if gap[2] < 0)


def _rate(data: ObjectiveData, name: str, procedure: str) -> str:
    return percent(data.row(name, SELECTING, procedure)["win_rate"])


def _without(data: ObjectiveData, name: str) -> Iterator[str]:
    """Standard sampling, where another procedure is deployed."""
    if data.procedure in STANDARD or "standard" not in data.procedures:
        return
    own, rate = procedure_words(data.procedure), _rate(data, name, "standard")
    behind = _behind(data, name, "standard")
    if behind:
        better = [f"{_rate(data, rival, 'standard')} % of {rival}" for _, rival in behind]
        yield (
            f"Without {own} it is worse than its rivals: a single response wins {rate} %, against "
            f"{listed(better)}. Deploy it behind {own} only."
        )
    elif _rivals(data, name):
        yield f"Without {own} a single response wins {rate} %, no rival’s clearly more."


def _elsewhere(data: ObjectiveData, name: str) -> Iterator[str]:
    """What it loses under the other procedures."""
    others = [p for p in data.procedures if p not in (*STANDARD, data.procedure)]
    lost = [(found[0], p) for p in others if (found := _behind(data, name, p))]
    if lost:
        lost.sort()
        named = [
            f"{procedure_words(p)} {_rate(data, name, p)} % against {_rate(data, rival, p)} % of "
            f"{rival}"
            for (_, rival), p in lost[:WORST_NAMED]
        ]
        more = [procedure_words(p) for _, p in lost[WORST_NAMED:]]
        yield (
            f"Under other procedures it loses to a rival: {listed(named)}"
            + (f"; also under {listed(more)}." if more else ".")
        )
    below = [
        procedure_words(p)
        for p in [*others, *(["standard"] if "standard" in data.procedures else [])]
        if data.row(name, SELECTING, p)["high"] < 0.5
    ]
    if below:
        yield f"It is worse than the reference itself under {listed(below)}."


def _judges(data: ObjectiveData, name: str) -> Iterator[str]:
    """Where those who did not train it see less."""
    if INDEPENDENT not in data.judges:
        yield "There is no independent judge: nothing here tells how much is reward hacking."
    for judge in data.judges[1:]:
        unsure = []
        for rival in _rivals(data, name):
            low = data.gap(name, rival, judge, data.procedure)[1]
            if low <= 0 < data.gap(name, rival, SELECTING, data.procedure)[1]:
                unsure.append(rival)
        if unsure:
            yield f"By the {JUDGES[judge]} it is not clearly ahead of {listed(unsure)}."
    rates = {judge: data.row(name, judge, data.procedure)["win_rate"] for judge in data.judges}
    least = min(rates, key=lambda judge: float(rates[judge]))
    if least != SELECTING and _gains(data, name):
        yield (
            f"The {JUDGES[least]} sees less of the gain than its own reward: it wins "
            f"{percent(rates[least])} % by that one, {percent(rates[SELECTING])} % by its own."
        )


def gate_table(data: ObjectiveData) -> Html:
    """Every rule that results answer, for every policy."""
    rows = []
    for place, rule in enumerate(data.gate[data.variants[0]].rules):
        cells: list[str] = [rule.name, _asks(rule), _bound(rule)]
        for name in data.variants:
            found = data.gate[name].rules[place]
            number = "–" if found.number is None else decimal(found.number, 3)
            word = flag("passes", "ok") if found.passed else flag("fails", "look")
            cells.append(join([tag("b", number), word], " "))
        rows.append(cells)
    head = ["rule", "what", "bound", *(policy_key(data, name) for name in data.variants)]
    return table(head, rows, f"{data.name}: the gate’s rules", words=(1,))


def _asks(rule: Rule) -> str:
    """What a rule measures, without the number of one policy."""
    return rule.words.partition(" (")[0]


def _bound(rule: Rule) -> str:
    return rule.bound.replace(">=", "≥").replace("<=", "≤")


def not_asked(data: ObjectiveData) -> Html:
    """The rules that results do not answer."""
    items = (tag("li", tag("code", name), f": {words}") for name, words in data.not_asked.items())
    return join([tag("p", "Not asked here:"), tag("ul", *items, class_="plain")])
