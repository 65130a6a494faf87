"""A comparison as one page that opens from disk: the gains, the figures, every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from infalign.files.tables import SELECTING
from infalign.page.palette import series_name
from infalign.page.results import Policy
from infalign.page.rivalry import Panel, lines_of, rivalry, theory_of
from infalign.page.sections import Plate, Sheet, Shown, shown
from infalign.page.style import STYLE
from infalign.page.words import (
    JUDGES,
    Value,
    decimal,
    percent,
    percent_range,
    points,
    procedure_words,
)

Row = Mapping[str, Any]
GAIN_TEXT = (
    "What a method that knows the inference-time procedure wins over the best method that does "
    "not, at the same KL budget, in points of win rate under that procedure, paired on the same "
    "prompts, with 95 % intervals. The best rival is chosen on these prompts, which flatters it. "
    "Allowed: the difference of the two methods’ limits, what exact optimisation would gain."
)
JUDGE_TEXT = (
    "The same policies as other judges see them. The selecting reward selects what is kept and is "
    "what training maximised; where a curve rises with KL under the selecting reward and falls "
    "under the others, the reward is over-optimised."
)
POISON_TEXT = (
    "The same methods when the reward model learnt from preferences in which a spurious phrase "
    "was put into some responses, mostly the preferred ones. How often the policies say the "
    "phrase, and what they win by judges that never saw the poison; the poisoned reward selects."
)


class Comparison(NamedTuple):
    """What was measured for one objective; rows as `infalign.measuring.comparison` gives them.

    Fields: the objective; its procedure's spelling; variant to the spelling of its reward; rows of
    curves, gains and theory; of the poisoned methods rows of curves and of phrases; the phrase, how
    often the reference says it, and what it is worth to either reward model.
    """

    objective: str
    procedure: str
    methods: Mapping[str, str]
    curves: Sequence[Row]
    gains: Sequence[Row]
    theory: Sequence[Row]
    poisoned: Sequence[Row]
    phrases: Sequence[Row]
    poison: Mapping[str, Any]

    @property
    def order(self) -> list[str]:
        """The variants, which fixes their colours."""
        return list(self.methods)

    @property
    def judges(self) -> list[str]:
        """Who judged, the selecting reward first."""
        return list(dict.fromkeys(row["judge"] for row in self.curves))

    @property
    def others(self) -> list[str]:
        """The judges that selected nothing: without the selecting reward."""
        return [judge for judge in self.judges if judge != SELECTING]


def plates(data: Comparison) -> list[Plate]:
    """The figures: the paper's, over-optimisation, poison."""
    own = procedure_words(data.procedure)
    return [
        Plate(
            "frontier",
            rivalry(_procedure_panels(data), data.order, data.methods),
            f"Win rate over the reference against KL, under {own} and standard sampling, judged by "
            "the selecting reward. Marks are trained policies with 95 % intervals over prompts; "
            "dashed lines are what exact optimisation of a method’s reward would reach; no policy "
            "lies in the shaded area but by chance.",
        ),
        Plate(
            "judges",
            rivalry(
                [
                    Panel(f"{JUDGES[judge]}, {own}", lines_of(_own(data.curves, data, judge)), {})
                    for judge in data.judges
                ],
                data.order,
                data.methods,
            ),
            f"The same policies under {own}, judged by each judge.",
        ),
        Plate(
            "poison",
            rivalry(_poison_panels(data), data.order, data.methods),
            f"Policies trained on the poisoned reward: the share of responses with “"
            f"{data.poison['phrase']}”, and win rates under {own} by judges without the poison.",
        ),
    ]


def _own(rows: Sequence[Row], data: Comparison, judge: str) -> list[Row]:
    return [r for r in rows if r["procedure"] == data.procedure and r["judge"] == judge]


def _procedure_panels(data: Comparison) -> list[Panel]:
    seen = [row for row in data.curves if row["judge"] == SELECTING]
    return [
        Panel(
            procedure_words(procedure),
            lines_of([row for row in seen if row["procedure"] == procedure]),
            theory_of(data.theory, procedure),
        )
        for procedure in dict.fromkeys(row["procedure"] for row in data.curves)
    ]


def _poison_panels(data: Comparison) -> list[Panel]:
    share = Panel(
        "Responses with the phrase",
        lines_of(data.phrases, "share"),
        {},
        100 * data.poison["reference_phrase_share"],
        "share of responses (%)",
    )
    return [share] + [
        Panel(JUDGES[judge], lines_of(_own(data.poisoned, data, judge)), {})
        for judge in data.others
    ]


def gain_sheet(data: Comparison) -> Sheet:
    """The one table: the gain at every budget, by every judge."""
    found: dict[tuple[float, str], list[Row]] = {}
    for row in data.gains:
        found.setdefault((row["kl_nats"], row["variant"]), []).append(row)
    rows = []
    for (budget, variant), by_judge in found.items():
        first = next((r for r in by_judge if r["judge"] == SELECTING), by_judge[0])
        spent = f"{decimal(first['kl'], 3)} / {decimal(first['rival_kl'], 3)}"
        cells = [Value(decimal(budget)), Value(first["rival"]), Value(spent)]
        cells += [Value(_points(first["allowed"]))]
        for row in by_judge:
            spread = f"[{points(row['low'])}, {points(row['high'])}]"
            spread += "" if row["rival"] == first["rival"] else f" over {row['rival']}"
            cells.append(Value(points(row["difference"]), spread))
        rows.append((_policy(data, variant), cells))
    columns = ["budget, nats", "best rival", "KL of both, nats", "allowed, points"]
    return Sheet(["method", *columns, *(f"gain, {JUDGES[j]}" for j in data.judges)], rows)


def _points(value: float | None) -> str:
    return "–" if value is None else points(value)


def curve_sheet(data: Comparison) -> Sheet:
    """Every policy under the objective's procedure: KL, win rates, limits, efficiency."""
    rows = []
    for row in _own(data.curves, data, SELECTING):
        cells = [
            Value(decimal(row["kl_nats"])),
            Value(decimal(row["kl"], 3), f"± {decimal(row['kl_se'], 3)}"),
            _win_rate(row),
            *_by_others(data.curves, data, row),
            Value(percent(row["method_limit"])),
            Value(percent(row["limit"])),
            Value(percent(row["efficiency"])),
            Value(percent(row["seed_spread"]), f"of {row['seeds']}" if row["seeds"] > 1 else ""),
        ]
        rows.append((_policy(data, row["variant"]), cells))
    names = [JUDGES[judge] for judge in data.judges]
    columns = ["budget, nats", "KL, nats", *names]
    columns += ["method’s limit, %", "limit, %", "efficiency, %", "spread over seeds"]
    return Sheet(["win rate, %", *columns], rows)


def poison_sheet(data: Comparison) -> Sheet:
    """Who fell for the phrase."""
    rows = []
    for row in data.phrases:
        share = Value(percent(row["share"]), percent_range(row["low"], row["high"]))
        cells = [Value(decimal(row["kl_nats"])), Value(decimal(row["kl"], 3)), share]
        cells += _by_others(data.poisoned, data, row)
        rows.append((_policy(data, row["variant"]), cells))
    columns = ["budget, nats", "KL, nats", "with the phrase, %", *(JUDGES[j] for j in data.others)]
    return Sheet(["method", *columns], rows)


def _by_others(rows: Sequence[Row], data: Comparison, policy: Row) -> list[Value]:
    """A policy's win rates by the judges that selected nothing."""
    key = (policy["variant"], policy["kl_nats"])
    return [
        _win_rate(next(r for r in _own(rows, data, judge) if (r["variant"], r["kl_nats"]) == key))
        for judge in data.others
    ]


def _win_rate(row: Row) -> Value:
    return Value(percent(row["win_rate"]), percent_range(row["low"], row["high"]))


def _policy(data: Comparison, name: str) -> Policy:
    return Policy(name, series_name(data.order.index(name)))


class _Chapter(NamedTuple):
    """A part of the page."""

    title: str
    text: str
    figures: list[Shown]
    sheets: list[Sheet]


def render_comparison(data: Comparison, drawn: Sequence[Plate]) -> str:
    """The page as one HTML text; every value is escaped."""
    frontier, judges, poison = (shown(plate) for plate in drawn)
    worth = "; ".join(
        f"it is worth {decimal(data.poison[f'phrase_worth_{word}'])} standard deviations of the "
        f"reward to the {word} reward model"
        for word in ("poisoned", "clean")
    )
    said = (
        f"{POISON_TEXT} The phrase is “{data.poison['phrase']}”; the reference says it in "
        f"{percent(data.poison['reference_phrase_share'])} % of its responses; {worth}."
    )
    chapters = [
        _Chapter("Gain at equal KL", GAIN_TEXT, [], [gain_sheet(data)]),
        _Chapter("Win rate against KL", "", [frontier], [curve_sheet(data)]),
        _Chapter("Who judges", JUDGE_TEXT, [judges], []),
        _Chapter("A poisoned reward", said, [poison], [poison_sheet(data)]),
    ]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    title = f"Methods at equal KL: {data.objective}, {procedure_words(data.procedure)}"
    text = environment.from_string(TEMPLATE).render(
        title=title, chapters=chapters, style=Markup(STYLE)
    )
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ style }}
.page { display: block; max-width: 70rem; }
</style>
</head>
<body>
<div class="page">
<header><h1>{{ title }}</h1></header>
<main>
{% for chapter in chapters %}
<section>
<h2>{{ chapter.title }}</h2>
{% if chapter.text %}<p>{{ chapter.text }}</p>{% endif %}
{% for figure in chapter.figures %}
<figure>
{{ figure.svg }}
<figcaption>{{ figure.caption }}</figcaption>
</figure>
{% endfor %}
{% for sheet in chapter.sheets %}
<div class="scroll"><table>
<thead><tr>{% for name in sheet.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for policy, cells in sheet.rows %}
<tr><td><span class="key" style="background: var(--{{ policy.color }})"></span>
{{- policy.name }}</td>
{% for cell in cells %}<td>{{ cell.text }}
{%- if cell.spread %} <span class="range">{{ cell.spread }}</span>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
</section>
{% endfor %}
</main>
</div>
</body>
</html>
"""
