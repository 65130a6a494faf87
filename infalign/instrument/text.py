"""A measurement as text: the answer first, one number under the other."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from infalign.files.names import SELECTING
from infalign.instrument.numbers import Numbers

DASH, WIDTH = "-", 100


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return DASH if value is None else f"{value:.{digits}f}"


def interval(row: Mapping[str, Any], scale: float = 1.0, digits: int = 3) -> str:
    """A row's interval: low to high."""
    return f"{number(scale * row['low'], digits)} to {number(scale * row['high'], digits)}"


def points(value: float) -> str:
    """A share as percentage points, with its sign."""
    text = f"{100 * value:+.1f}"
    return text if float(text) else "0.0"


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of columns, the first `left` of them flush left, the others right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def wrapped(line: str) -> str:
    """A sentence in lines of the terminal's width; a table's line as it is."""
    return line if line.startswith("  ") else textwrap.fill(line, WIDTH)


def range_of(fewest: int, median: int, most: int) -> str:
    """Samples a prompt: one number, or the range with its median."""
    return str(most) if fewest == most else f"{fewest} to {most} (median {median})"


def as_text(found: Numbers) -> str:
    """Everything in a terminal's width."""
    blocks = [
        _heading(found),
        *(_win_rates(found, procedure) for procedure in found.procedures),
        _differences(found),
        *(_sizes(found, judge) for judge in found.judges),
        _peaks(found),
        _quality(found),
        _needed(found),
        [f"Note: {note}" for note in found.notes],
    ]
    return "\n\n".join("\n".join(wrapped(line) for line in block) for block in blocks if block)


def _heading(found: Numbers) -> list[str]:
    sides = {name: range_of(*spread) for name, spread in found.samples.items()}
    if len(set(sides.values())) == 1:
        many = next(iter(sides.values()))
        words = f"{many} {'sample' if many == '1' else 'samples'} each"
    else:
        words = "samples: " + ", ".join(f"{name} {many}" for name, many in sides.items())
    return [f"{found.prompts} prompts, {words}; win rates over the reference"]


def _win_rates(found: Numbers, procedure: str) -> list[str]:
    several = len(found.judges) > 1
    method = any(row["method_limit"] is not None for row in found.rows)
    head = ["policy", *(["judge"] if several else []), "win rate", "95 % interval", "limit"]
    tied = any(row["tied_limit"] is not None for row in found.rows)
    head += [*(["with ties"] if tied else []), *(["method's limit"] if method else [])]
    head += ["efficiency", "KL (nats)"]
    rows = [head]
    for row in found.of(found.rows, procedure=procedure):
        kl = number(row["kl"])
        cells = [row["policy"], *([row["judge"]] if several else []), number(row["win_rate"])]
        cells += [interval(row), number(row["limit"])]
        cells += [number(row["tied_limit"])] if tied else []
        cells += [number(row["method_limit"])] if method else []
        error = "" if row["kl"] is None else f" ± {row['kl_se']:.3f}"
        rows.append([*cells, number(row["efficiency"], 2), kl + error])
    return [procedure, *aligned(rows, 1 + several)]


def _differences(found: Numbers) -> list[str]:
    several = len(found.judges) > 1
    rows = [
        [
            f"{row['first']} - {row['second']}",
            *([row["judge"]] if several else []),
            points(row["difference"]),
            f"{points(row['low'])} to {points(row['high'])}",
        ]
        for row in found.of(found.differences, procedure=found.procedure)
    ]
    title = f"Differences under {found.procedure}, points, paired on the prompts"
    return [title, *aligned(rows, 1 + several)] if rows else []


def _sizes(found: Numbers, judge: str) -> list[str]:
    rows = found.of(found.by_n, judge=judge)
    sizes = sorted({row["n"] for row in rows})
    kind = rows[0]["procedure"].partition(":")[0]
    lines = [["N", *map(str, sizes)]]
    for policy in found.policies:
        of_it = {row["n"]: row for row in rows if row["policy"] == policy}
        lines.append([policy, *(number(of_it[n]["win_rate"]) for n in sizes)])
        widths = ((of_it[n]["high"] - of_it[n]["low"]) / 2 for n in sizes)
        lines.append(["", *(f"± {width:.3f}" for width in widths)])
    by = "" if judge == SELECTING else f", judged by {judge}"
    return [f"Win rate under {kind}:N{by}", *aligned(lines)]


def _peaks(found: Numbers) -> list[str]:
    lines = []
    for row in found.peaks:
        if row["judge"] == SELECTING:
            continue
        where = f"  {row['judge']} of {row['policy']}: highest at N = {row['n']}"
        where += f" ({row['win_rate']:.3f})"
        if row["n"] != row["largest_n"]:
            sure = "" if row["low"] > 0 else ", which may be chance"
            where += (
                f", {points(-row['fall'])} points from there to N = {row['largest_n']}"
                f" ({points(-row['high'])} to {points(-row['low'])}){sure}"
            )
        lines.append(where)
    return ["Where the judges' win rates peak", *lines] if lines else []


def _quality(found: Numbers) -> list[str]:
    said = found.calibration
    text = (
        f"Calibrated rewards of K = {said['references']} references a prompt are off by "
        f"{said['expected_error']:.3f} on average"
    )
    if said["groups_of"]:
        text += (
            f"; two groups of {said['groups_of']} disagree by {said['disagreement']:.3f}, "
            f"{said['expected_disagreement']:.3f} expected"
        )
    ties = ", ".join(f"{name} {100 * share:.1f} %" for name, share in found.ties.items())
    return [f"{text}.", f"Samples that tie with another of their prompt: {ties}."]


def needed_words(row: Mapping[str, Any]) -> str:
    """What the wanted width takes, in words."""
    if row["now"] <= row["width"]:
        return f"its interval is {row['now']:.3f} wide, within {row['width']:g}"
    more = row["more_samples"]
    samples = f", or {more} more samples a prompt" if more is not None else f" ({row['why']})"
    return (
        f"its interval is {row['now']:.3f} wide; {row['width']:g} takes {row['more_prompts']} more "
        f"prompts{samples}"
    )


def _needed(found: Numbers) -> list[str]:
    return [f"{row['policy']}: {needed_words(row)}." for row in found.needed]
