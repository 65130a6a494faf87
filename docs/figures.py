"""The figures of docs/theory.md, each computed when it is drawn: `python docs/figures.py`.

Reads nothing; writes docs/figures/*.png, the same bytes every time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from flows.commands.frontier_plot import draw, save
from flows.commands.frontier_question import SHOWN, FinishedRun, Question
from infalign.theory import (
    calibrate,
    calibration_error,
    expected_calibration_error,
    frontier_point,
    parse_procedure,
    parse_transform,
    win_rate_with_references,
)
from infalign.theory.quadrature import grid
from infalign.theory.transforms import density_at

FOLDER = Path(__file__).parent / "figures"


def calibration() -> Figure:
    """Rewards of three prompts on scales of their own, before and after calibration."""
    rng = np.random.default_rng(0)
    shape = (2, 4000)  # reference samples, and the responses that are calibrated
    drawn = [rng.normal(-2, 0.4, shape), rng.gumbel(1, 1, shape), rng.gamma(2, 1.5, shape)]
    reference, rewards = np.stack(drawn, axis=1)
    calibrated = calibrate(rewards, reference)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (raw, uniform) in enumerate(zip(rewards, calibrated, strict=True)):
        style = {"histtype": "step", "density": True, "color": f"C{index}", "lw": 1.6}
        left.hist(raw, np.linspace(-4, 10, 90), label=f"prompt {index + 1}", **style)
        right.hist(uniform, np.linspace(0, 1, 21), **style)
    left.set(title="reward: a scale for every prompt", xlabel="reward r", ylabel="density")
    right.set(title="calibrated: uniform for all", xlabel="calibrated reward C", ylim=(0, 1.6))
    left.legend()
    return figure


def procedures() -> Figure:
    """What a procedure does to the CDF, and which density it asks of the policy."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    u = np.linspace(0, 1, 401)
    nodes = grid()
    for index, name in enumerate(("standard", "best_of:4", "worst_of:4")):
        procedure = parse_procedure(name)
        left.plot(u, procedure.cdf(u), color=f"C{index}", label=name)
        best = density_at(parse_transform("optimal", procedure, 0.5), nodes, 0.5)
        right.plot(nodes.u.ravel(), best.density.ravel(), color=f"C{index}", label=name)
    right.axhline(1, color="0.6", lw=1, label="reference")
    left.set(title="G: CDF of the response kept", xlabel="CDF of one draw", ylabel="G")
    right.set(
        title="best policy at 0.5 nats",
        xlabel="calibrated reward u",
        ylabel="density f",
        ylim=(0, 7),
    )
    left.legend()
    right.legend()
    return figure


def frontier() -> Figure:
    """Win rate against KL, and the optimal transformation, for best-of-4 and worst-of-4."""
    names = ("best_of:4", "worst_of:4")
    question = Question(names, (0.5, 1.0), dict.fromkeys(names, SHOWN))
    return draw(question, FinishedRun())


def references() -> Figure:
    """What few reference samples cost: calibration error, and win rate of best-of-4."""
    counts = np.array([2, 4, 8, 16, 32, 64, 128, 256])
    rng = np.random.default_rng(0)
    truth = rng.random((2000, 1))
    measured = [calibration_error(calibrate(truth, rng.random((2000, k))), truth) for k in counts]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog(counts, [expected_calibration_error(int(k)) for k in counts], label="closed form")
    left.loglog(counts, measured, "o", label="2,000 simulated responses")
    left.set(title="calibration error", ylabel="mean |Ĉ − C|")
    errors = [0.02, 0.05, 0.1, 0.2]
    left.set_yticks(errors, [f"{error:g}" for error in errors])
    left.minorticks_off()
    for estimate, memorises, label in (
        ("least_biased", False, "generalises across prompts, unbiased"),
        ("plug_in", False, "generalises across prompts, Φ(Ĉ)"),
        ("plug_in", True, "memorises prompts, Φ(Ĉ)"),
    ):
        reached = [
            win_rate_with_references(
                "best_of:4",
                "exp:10",
                0.5,
                int(k),
                estimate=estimate,
                memorises=memorises,
                prompts=1000,
            )
            for k in counts
        ]
        right.semilogx(counts, reached, "o-", label=label)
    exact = frontier_point("best_of:4", "exp:10", 0.5).win_rate
    right.axhline(exact, color="black", lw=1, label="true C")
    right.set(title="best_of:4 with exp:10 at 0.5 nats", ylabel="win rate")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("reference samples K")
        axes.legend()
    return figure


def main() -> None:
    """Draw every figure."""
    for figure in (calibration, procedures, frontier, references):
        path = FOLDER / f"{figure.__name__}.png"
        save(figure(), path)
        print(path)


if __name__ == "__main__":
    main()
