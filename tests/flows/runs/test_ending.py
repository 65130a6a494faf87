"""A run's last state: a refusal has its own name, and says rule, number and bound."""

from __future__ import annotations

import pytest
from promotion_case import bounds, evidence, met

from flows.registry.promotion import Decision
from flows.runs.ending import ending
from infalign.deployment.gate import judge_candidate

CHAMPION = evidence(1.0)
WORSE, BETTER = (
    judge_candidate(case, CHAMPION, bounds(), met(case, CHAMPION))
    for case in (evidence(0.4, seed=3), evidence(1.6, seed=4))
)
REFUSED = Decision("helpful", "2", "1", WORSE, "refused")
PROMOTED = Decision("harmless", "3", "1", BETTER, "promoted")
OUTCOMES = {"corpus": "made", "prepare": "unchanged", "sft": "unchanged"}


@pytest.mark.parametrize(
    ("decisions", "name", "begins", "also"),
    [
        ([], "Completed", "1 made, 2 unchanged.", ()),
        ([PROMOTED], "Completed", "infalign-harmless version 3 is the champion now", ()),
        (
            [PROMOTED, REFUSED],
            "Refused",
            "infalign-helpful version 2 is not promoted; failed: champion (0.",
            (
                "must be >= 0.49, short by 0.",
                "on average would have passed",
                "infalign-harmless version 3 is the champion now",
                "2 unchanged.",
            ),
        ),
        ([REFUSED, REFUSED], "Refused", "infalign-helpful version 2 is not promoted", ()),
    ],
)
def test_the_state_says_what_became_of_each_candidate(decisions, name, begins, also):
    state = ending({"outcomes": OUTCOMES, "decisions": decisions})
    assert state.is_completed()
    assert state.name == name
    assert state.message.startswith(begins)
    for words in also:
        assert words in state.message
    assert state.message.endswith("1 made, 2 unchanged.")
