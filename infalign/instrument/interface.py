"""The names of `import infalign`, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from infalign.errors import InputError
from infalign.instrument.frontier import Frontier, frontier
from infalign.instrument.measurement import Measurement
from infalign.instrument.measuring import measure
from infalign.instrument.rewarding import CalibratedReward
from infalign.theory.calibration import calibrate
from infalign.theory.checks import FloatArray
from infalign.theory.procedures import Procedure
from infalign.theory.transforms import Transform, parse_transform
from infalign.theory.winrates import bootstrap_interval, judged_win_rates, win_rates

__all__ = [
    "CalibratedReward",
    "Frontier",
    "Measurement",
    "WinRate",
    "calibrate",
    "frontier",
    "measure",
    "transform",
    "win_rate",
]


@dataclass(frozen=True, eq=False)
class WinRate:
    """A win rate over the reference under a procedure.

    Attributes:
        value: the mean over prompts.
        low, high: its 95 % interval, from resampling prompts.
        prompts: win rate of every prompt [prompts].
    """

    value: float
    low: float
    high: float
    prompts: FloatArray = field(repr=False)

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def win_rate(
    procedure: str | Procedure,
    policy: ArrayLike,
    reference: ArrayLike,
    *,
    policy_judge: ArrayLike | None = None,
    reference_judge: ArrayLike | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> WinRate:
    """How often the policy's kept response beats the reference's, exact over all subsets.

    Args:
        procedure: what both sides do: `best_of:4`, `worst_of:4`, `standard`, …
        policy: rewards of its responses [prompts, m]; the procedure selects by them.
        reference: rewards of the reference's [prompts, m'].
        policy_judge, reference_judge: another judge's rewards of the same responses, which then
            compares what the procedure kept.
        replicates, seed: of the bootstrap over prompts.

    Raises:
        InputError: for shapes that do not match, NaN, or N above m or m'.
    """
    try:
        if (policy_judge is None) != (reference_judge is None):
            raise InputError("a judge compares both sides: give its rewards of both.")
        if policy_judge is None or reference_judge is None:
            wins = win_rates(procedure, policy, reference)
        else:
            wins = judged_win_rates(procedure, policy, reference, policy_judge, reference_judge)
        wins = np.clip(wins, 0.0, 1.0)
        low, high = bootstrap_interval(wins, replicates=replicates, seed=seed)
    except ValueError as error:
        raise InputError(str(error)) from None
    return WinRate(float(wins.mean()), low, high, wins)


def transform(
    spelling: str | Transform,
    procedure: str | Procedure | None = None,
    kl_nats: float | None = None,
) -> Transform:
    """The transformation Φ of a spelling, a function of calibrated rewards.

    Args:
        spelling: `identity`, `log`, `exp:10`, `table:…`, or `auto` and `optimal`, which depend on
            the procedure and the KL budget.
        procedure, kl_nats: what those two are for.

    Raises:
        InputError: one sentence that shows the grammar.
    """
    try:
        return parse_transform(spelling, procedure, kl_nats)
    except ValueError as error:
        raise InputError(str(error)) from None
