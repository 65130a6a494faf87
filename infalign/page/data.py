"""What the page shows of one objective, read from results and not yet worded or drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infalign.deployment.gate import Verdict
from infalign.files.squares import Array


@dataclass(frozen=True)
class ObjectiveData:
    """Everything measured for one objective.

    Attributes:
        name, procedure: the objective and the spelling of its own procedure.
        methods: variant to what it maximised (`raw` or a transformation), in the order of params.
        rows, differences, curves: of the evaluation.
        prompts: the evaluation prompts' texts, in the order of their ids.
        responses, finished, n_tokens: policy to [prompts, samples].
        rewards, calibrated: policy to [prompts, samples], by the selecting reward model; the
            reference's own are calibrated leave-one-out.
        histories: variant to the lines of its training.
        calibration_errors: rows of references, measured, expected.
        metrics: stage word (`calibrate`, `evaluate`) to its metrics; `rewards` is what calibrate
            says of the sources of rewards.
        gate: variant to what the gate's rules say of it, as far as results answer them.
        not_asked: the gate's other rules, and what they ask.
        candidate: the variant that is registered and promoted; None where it was not run.
        sources: judge to what it is, in words, where any of them is not trained from the pairs.
    """

    name: str
    procedure: str
    methods: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    differences: Sequence[Mapping[str, Any]]
    curves: Sequence[Mapping[str, Any]]
    prompts: Sequence[str]
    responses: Mapping[str, NDArray[np.object_]]
    finished: Mapping[str, NDArray[np.bool_]]
    n_tokens: Mapping[str, Array]
    rewards: Mapping[str, Array]
    calibrated: Mapping[str, Array]
    histories: Mapping[str, Sequence[Mapping[str, Any]]]
    calibration_errors: Sequence[Mapping[str, float]]
    metrics: Mapping[str, Mapping[str, Any]]
    gate: Mapping[str, Verdict]
    not_asked: Mapping[str, str]
    candidate: str | None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def variants(self) -> list[str]:
        """Names of the aligned policies, which fixes their colours."""
        return list(self.methods)

    @property
    def judges(self) -> list[str]:
        """Who judged, the selecting reward model first."""
        return list(dict.fromkeys(row["judge"] for row in self.rows))

    @property
    def procedures(self) -> list[str]:
        """Every procedure that was evaluated."""
        return list(dict.fromkeys(row["procedure"] for row in self.rows))

    @property
    def leader(self) -> str:
        """The policy that the page is about: the candidate, or else the first one of params."""
        return self.candidate or self.variants[0]

    def gap(self, first: str, second: str, judge: str, procedure: str) -> tuple[float, ...]:
        """The paired difference of two policies' win rates: mean, low, high."""
        for row in self.differences:
            if (row["judge"], row["procedure"]) == (judge, procedure):
                found = (row["difference"], row["low"], row["high"])
                if (row["first"], row["second"]) == (first, second):
                    return found
                if (row["first"], row["second"]) == (second, first):
                    return -found[0], -found[2], -found[1]
        raise KeyError((first, second, judge, procedure))

    def row(self, policy: str, judge: str, procedure: str) -> Mapping[str, Any]:
        """The one row of the evaluation with this key."""
        return next(
            row
            for row in self.rows
            if (row["policy"], row["judge"], row["procedure"]) == (policy, judge, procedure)
        )
