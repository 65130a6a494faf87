"""A comparison as one page that opens from disk: the gains, the figures, every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from infalign.files.names import SELECTING
from infalign.page.markup import Chapter, Html, document, join, key, measured, table, tag
from infalign.page.palette import series_name
from infalign.page.plates import Plate, shown
from infalign.page.rivalry import Panel, lines_of, rivalry, theory_of
from infalign.page.words import (
    JUDGES,
    decimal,
    percent,
    percent_range,
    points,
    points_range,
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
NO_JUDGE_TEXT = (
    "Only the reward that selects judges here: there is no independent judge, so that nothing on "
    "this page tells reward hacking."
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
    often the reference says it, and what it is worth to either reward model. The last three are
    empty and None where nothing was poisoned.
    """

    objective: str
    procedure: str
    methods: Mapping[str, str]
    curves: Sequence[Row]
    gains: Sequence[Row]
    theory: Sequence[Row]
    poisoned: Sequence[Row] = ()
    phrases: Sequence[Row] = ()
    poison: Mapping[str, Any] | None = None

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
    found = [
        Plate(
            "frontier",
            rivalry(_procedure_panels(data), data.order, data.methods),
            "Win rate against KL",
            f"Win rate over the reference against KL, under {own} and standard sampling, judged by "
            "the selecting reward. Marks are trained policies with 95 % intervals over prompts; "
            "dashed lines are what exact optimisation of a method’s reward would reach; no policy "
            "lies in the shaded area but by chance.",
        ),
    ]
    if data.others:
        drawn = rivalry(
            [
                Panel(f"{JUDGES[judge]}, {own}", lines_of(_own(data.curves, data, judge)), {})
                for judge in data.judges
            ],
            data.order,
            data.methods,
        )
        title = "Win rate against KL by every judge"
        found.append(
            Plate("judges", drawn, title, f"The same policies under {own}, judged by each judge.")
        )
    if data.poison:
        said = (
            f"Policies trained on the poisoned reward: the share of responses with “"
            f"{data.poison['phrase']}”, and win rates under {own} by judges without the poison."
        )
        drawn = rivalry(_poison_panels(data, data.poison), data.order, data.methods)
        title = "A poisoned reward: phrase and win rates against KL"
        found.append(Plate("poison", drawn, title, said))
    return found


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


def _poison_panels(data: Comparison, poison: Row) -> list[Panel]:
    share = Panel(
        "Responses with the phrase",
        lines_of(data.phrases, "share"),
        {},
        100 * poison["reference_phrase_share"],
        "share of responses (%)",
    )
    return [share] + [
        Panel(JUDGES[judge], lines_of(_own(data.poisoned, data, judge)), {})
        for judge in data.others
    ]


def gain_sheet(data: Comparison) -> Html:
    """The one table: the gain at every budget, by every judge."""
    found: dict[tuple[float, str], list[Row]] = {}
    for row in data.gains:
        found.setdefault((row["kl_nats"], row["variant"]), []).append(row)
    rows = []
    for (budget, variant), by_judge in found.items():
        first = next((r for r in by_judge if r["judge"] == SELECTING), by_judge[0])
        spent = f"{decimal(first['kl'], 3)} / {decimal(first['rival_kl'], 3)}"
        cells: list[str] = [decimal(budget), first["rival"], spent, _points(first["allowed"])]
        for row in by_judge:
            spread = points_range(row["low"], row["high"])
            spread += "" if row["rival"] == first["rival"] else f" over {row['rival']}"
            cells.append(measured(points(row["difference"]), spread))
        rows.append([_policy(data, variant), *cells])
    columns = ["method", "budget, nats", "best rival", "KL of both, nats", "allowed, points"]
    columns += [f"gain, {JUDGES[j]}" for j in data.judges]
    return table(columns, rows, "Gain over the best rival at equal KL, points of win rate")


def _points(value: float | None) -> str:
    return "–" if value is None else points(value)


def curve_sheet(data: Comparison) -> Html:
    """Every policy under the objective's procedure: KL, win rates, limits, efficiency."""
    rows = []
    for row in _own(data.curves, data, SELECTING):
        seeds = f"of {row['seeds']}" if row["seeds"] > 1 else ""
        cells = [
            decimal(row["kl_nats"]),
            measured(decimal(row["kl"], 3), f"± {decimal(row['kl_se'], 3)}"),
            _win_rate(row),
            *_by_others(data.curves, data, row),
            percent(row["method_limit"]),
            percent(row["limit"]),
            percent(row["efficiency"]),
            measured(percent(row["seed_spread"]), seeds),
        ]
        rows.append([_policy(data, row["variant"]), *cells])
    names = [JUDGES[judge] for judge in data.judges]
    columns = ["method", "budget, nats", "KL, nats", *names]
    columns += ["method’s limit, %", "limit, %", "efficiency, %", "spread over seeds"]
    caption = f"Win rates, %, under {procedure_words(data.procedure)}"
    return table(columns, rows, caption)


def poison_sheet(data: Comparison) -> Html:
    """Who fell for the phrase."""
    rows = []
    for row in data.phrases:
        share = measured(percent(row["share"]), percent_range(row["low"], row["high"]))
        cells = [decimal(row["kl_nats"]), decimal(row["kl"], 3), share]
        cells += _by_others(data.poisoned, data, row)
        rows.append([_policy(data, row["variant"]), *cells])
    columns = ["method", "budget, nats", "KL, nats", "with the phrase, %"]
    columns += [JUDGES[judge] for judge in data.others]
    return table(columns, rows, "Who says the phrase, and what is won by judges without the poison")


def _by_others(rows: Sequence[Row], data: Comparison, policy: Row) -> list[Html]:
    """A policy's win rates by the judges that selected nothing."""
    wanted = (policy["variant"], policy["kl_nats"])
    return [
        _win_rate(
            next(r for r in _own(rows, data, judge) if (r["variant"], r["kl_nats"]) == wanted)
        )
        for judge in data.others
    ]


def _win_rate(row: Row) -> Html:
    return measured(percent(row["win_rate"]), percent_range(row["low"], row["high"]))


def _policy(data: Comparison, name: str) -> Html:
    return key(name, f"var(--{series_name(data.order.index(name))})")


def render_comparison(data: Comparison, drawn: Sequence[Plate]) -> str:
    """The page as one HTML text; every value is escaped."""
    plate = {plate.name: shown(plate) for plate in drawn}
    judged = [tag("p", JUDGE_TEXT), plate["judges"]] if data.others else [tag("p", NO_JUDGE_TEXT)]
    chapters = [
        Chapter("gain", "Gain at equal KL", join([tag("p", GAIN_TEXT), gain_sheet(data)])),
        Chapter("frontier", "Win rate against KL", join([plate["frontier"], curve_sheet(data)])),
        Chapter("judges", "Who judges", join(judged)),
    ]
    if data.poison:
        parts = [tag("p", _poison_said(data.poison)), plate["poison"], poison_sheet(data)]
        chapters.append(Chapter("poison", "A poisoned reward", join(parts)))
    title = f"Methods at equal KL: {data.objective}, {procedure_words(data.procedure)}"
    return document(title, Html(""), chapters)


def _poison_said(poison: Row) -> str:
    worth = "; ".join(
        f"it is worth {decimal(poison[f'phrase_worth_{word}'])} standard deviations of the "
        f"reward to the {word} reward model"
        for word in ("poisoned", "clean")
    )
    return (
        f"{POISON_TEXT} The phrase is “{poison['phrase']}”; the reference says it in "
        f"{percent(poison['reference_phrase_share'])} % of its responses; {worth}."
    )
