"""The page's chapters: figures of one objective, with their captions and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infalign.files.names import INDEPENDENT, REFERENCE, SELECTING
from infalign.page import plots
from infalign.page.data import ObjectiveData
from infalign.page.markup import Chapter, Html, join, measured, table, tag
from infalign.page.plates import Plate, shown
from infalign.page.results import policy_key
from infalign.page.words import (
    JUDGES,
    decimal,
    percent,
    percent_range,
    points,
    procedure_words,
)
from infalign.theory.calibration import calibrate_below

TEXTS = {
    "frontier": (
        "Win rate against KL",
        "The line is the limit: no policy lies in the shaded area but by chance. Each dashed curve "
        "is what a method would reach if its own reward were maximised exactly; each mark is the "
        "policy that was trained, with 95 % intervals in both directions.",
    ),
    "families": (
        "More responses drawn",
        "The same policies when the procedure draws N responses, aligned for one N only. The "
        "selecting reward selects and judges.",
    ),
    "judges": (
        "Who judges",
        "The selecting reward chooses, and whoever judges compares what was kept. What it sees and "
        "other judges do not is reward hacking.",
    ),
    "training": (
        "Training",
        "Measured on the training prompts at every step, before the step is taken. The dashed line "
        "is the KL budget.",
    ),
    "calibration": (
        "Calibration",
        "How far a calibrated reward estimated from K reference samples is from the truth, and the "
        "rewards themselves: the calibrated reward of fresh reference samples must be uniform, the "
        "dashed line, whatever the raw rewards look like, as long as few of them tie.",
    ),
    "lengths": (
        "Length and KL",
        "Longer responses with a higher reward but no better judgement elsewhere are a common form "
        "of reward hacking. Cut responses never ended by themselves. The two estimates of one KL "
        "must agree within their errors.",
    ),
}


def plates(data: ObjectiveData, budget: float | None) -> dict[str, list[Plate]]:
    """Every figure of an objective, by chapter."""
    found = {
        "frontier": [_frontier(data, budget)],
        "families": _families(data),
        "judges": [_judges(data)],
        "training": [_training(data, budget)],
        "calibration": [_calibration(data), _histograms(data)],
        "lengths": [],
    }
    return {
        chapter: [plate._replace(name=f"{data.name}_{plate.name}") for plate in drawn]
        for chapter, drawn in found.items()
    }


def sections(
    objectives: Sequence[ObjectiveData], drawn: Mapping[str, Mapping[str, Sequence[Plate]]]
) -> list[Chapter]:
    """The chapters, each with every objective.

    Args:
        drawn: objective to `plates`.
    """
    return [
        Chapter(
            chapter,
            title,
            join([tag("p", text), *(_exhibit(data, drawn, chapter) for data in objectives)]),
        )
        for chapter, (title, text) in TEXTS.items()
    ]


def _exhibit(
    data: ObjectiveData, drawn: Mapping[str, Mapping[str, Sequence[Plate]]], chapter: str
) -> Html:
    """One objective's figures and table in a chapter."""
    tables = {"families": _by_procedure, "judges": _by_judge, "lengths": _lengths}
    title = f"{data.name}, {procedure_words(data.procedure)}"
    figures = [shown(plate) for plate in drawn[data.name][chapter]]
    sheet = tables[chapter](data) if chapter in tables else Html("")
    return join([tag("h3", title), *figures, sheet])


def _point(row: Mapping[str, Any]) -> plots.Point:
    names = ("policy", "win_rate", "low", "high", "kl", "kl_se")
    return plots.Point(*(row[name] for name in names))


def _frontier(data: ObjectiveData, budget: float | None) -> Plate:
    panels = []
    for procedure in dict.fromkeys(row["procedure"] for row in data.curves):
        curves: dict[str, dict[float, float]] = {}
        for row in data.curves:
            if row["procedure"] == procedure:
                curves.setdefault(row["curve"], {})[row["kl"]] = row["win_rate"]
        limit = curves.pop("limit")
        methods = {
            name.removeprefix("method "): (list(curve), list(curve.values()))
            for name, curve in curves.items()
        }
        trained = [_point(data.row(name, SELECTING, procedure)) for name in data.variants]
        panels.append(
            plots.Frontier(
                procedure_words(procedure), list(limit), list(limit.values()), methods, trained
            )
        )
    caption = (
        f"Win rate of each {data.name} policy over the reference against its KL: under the "
        f"objective’s procedure ({procedure_words(data.procedure)}) and under standard sampling."
    )
    title = f"{data.name}: win rate against KL"
    return Plate("frontier", plots.frontier(panels, budget, data.variants), title, caption)


def _families(data: ObjectiveData) -> list[Plate]:
    panels = []
    for kind, title in (("best_of", "Best-of-N"), ("worst_of", "Worst-of-N")):
        sizes = sorted(
            int(name.split(":")[1]) for name in data.procedures if name.startswith(f"{kind}:")
        )
        rates = {
            name: [_point(data.row(name, SELECTING, f"{kind}:{n}")) for n in sizes]
            for name in data.variants
        }
        if sizes:
            panels.append(plots.Family(title, sizes, rates))
    if not panels:
        return []
    caption = f"Win rate of each {data.name} policy against the number of responses drawn."
    title = f"{data.name}: win rate against N"
    return [Plate("families", plots.families(panels, data.variants), title, caption)]


def _judges(data: ObjectiveData) -> Plate:
    rates = {
        JUDGES[judge]: [_point(data.row(name, judge, data.procedure)) for name in data.variants]
        for judge in data.judges
    }
    own = procedure_words(data.procedure)
    title = f"{data.name}: win rates by every judge"
    caption = f"The same kept {data.name} responses, compared by every judge."
    if INDEPENDENT not in data.judges:
        caption += " There is no independent judge: what is gained may be reward hacking."
    return Plate("judges", plots.judges(rates, data.variants, own), title, caption, "two-thirds")


def _training(data: ObjectiveData, budget: float | None) -> Plate:
    wanted = (
        ("KL from the reference", "nats a response", "kl", budget),
        ("Calibrated reward", "C", "calibrated", None),
        ("Selecting reward", "as scored", "reward", None),
        ("Response length", "tokens", "response_tokens", None),
    )
    panels = [
        plots.Curve(
            title,
            unit,
            {
                name: ([row["step"] for row in history], [row[key] for row in history])
                for name, history in data.histories.items()
            },
            target,
        )
        for title, unit, key, target in wanted
    ]
    caption = (
        f"What the training of each {data.name} policy did: thin lines are single steps, thick "
        f"ones running means of {plots.RUNNING} steps."
    )
    title = f"{data.name}: training curves"
    return Plate("training", plots.training(panels, data.variants), title, caption)


def _calibration(data: ObjectiveData) -> Plate:
    columns = [
        [row[key] for row in data.calibration_errors]
        for key in ("references", "measured", "expected")
    ]
    drawn = plots.calibration_error([int(k) for k in columns[0]], columns[1], columns[2])
    caption = (
        "Mean absolute error of the calibrated reward of held-out samples. The closed form is "
        "against the true value; the measurement is against an estimate from many samples, whose "
        "own error it contains."
    )
    title = f"{data.name}: calibration error"
    return Plate("calibration", drawn, title, caption, "half")


def _histograms(data: ObjectiveData) -> Plate:
    half = data.rewards[REFERENCE].shape[1] // 2
    references = data.rewards[REFERENCE][:, half : 2 * half]
    fresh = {**data.rewards, REFERENCE: data.rewards[REFERENCE][:, :half]}
    drawn = plots.histograms(
        {name: values.ravel() for name, values in data.rewards.items()},
        {name: calibrate_below(values, references).ravel() for name, values in fresh.items()},
        half,
        data.variants,
    )
    caption = (
        "Densities over the responses to the evaluation prompts, before any selection. Raw "
        "rewards mix prompts of different difficulty; calibrated ones compare within a prompt. "
        "Half of the reference’s samples calibrate, the other half and the policies are shown."
    )
    return Plate("rewards", drawn, f"{data.name}: rewards", caption)


def _win_rate(row: Mapping[str, Any]) -> Html:
    return measured(percent(row["win_rate"]), percent_range(row["low"], row["high"]))


def _by_procedure(data: ObjectiveData) -> Html:
    procedures = [name for name in data.procedures if name not in ("best_of:1", "worst_of:1")]
    names = [procedure_words(name).replace("Standard sampling", "standard") for name in procedures]
    rows = [
        [
            policy_key(data, name),
            *(percent(data.row(name, SELECTING, kind)["win_rate"]) for kind in procedures),
        ]
        for name in data.variants
    ]
    return table(["policy", *names], rows, f"{data.name}: win rates, %, under every procedure")


def _by_judge(data: ObjectiveData) -> Html:
    rows = []
    for name in data.variants:
        found = [data.row(name, judge, data.procedure) for judge in data.judges]
        gaps = [points(row["win_rate"] - found[0]["win_rate"]) for row in found[1:]]
        rows.append([policy_key(data, name), *(_win_rate(row) for row in found), *gaps])
    columns = [JUDGES[judge] for judge in data.judges]
    columns += [f"{JUDGES[judge]} − {columns[0]}, points" for judge in data.judges[1:]]
    own = procedure_words(data.procedure)
    return table(["policy", *columns], rows, f"{data.name}: win rates, %, by judge, under {own}")


def _lengths(data: ObjectiveData) -> Html:
    rows = []
    for name in (REFERENCE, *data.variants):
        tokens, finished = data.n_tokens[name], data.finished[name]
        cells: list[str] = [
            decimal(float(tokens.mean()), 1),
            decimal(float(tokens.std()), 1),
            percent(float(1 - finished.mean())),
        ]
        if name == REFERENCE:
            cells += ["0", "0"]
        else:
            row = data.row(name, SELECTING, data.procedure)
            cells += [
                measured(decimal(row[kind], 3), f"± {decimal(row[f'{kind}_se'], 3)}")
                for kind in ("kl", "log_ratio")
            ]
        rows.append([policy_key(data, name), *cells])
    columns = ["policy", "mean length, tokens", "standard deviation", "cut, %"]
    columns += ["KL, exact per token, nats", "KL, log-ratio, nats"]
    return table(columns, rows, f"{data.name}: lengths, and two estimates of the KL")
