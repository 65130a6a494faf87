"""The first screen: what speaks for a policy and against it, by the evaluation's rows."""

from __future__ import annotations

from typing import Any

import pytest

from infalign.deployment.gate import Rule, Verdict
from infalign.page.data import ObjectiveData
from infalign.page.published import RUN, Fact, Ruling, published
from infalign.page.verdict import answer, card, caveats

RATES = {  # judge, procedure: win rates of a and b
    ("selecting", "best_of:4"): (0.9, 0.8),
    ("selecting", "standard"): (0.7, 0.75),
    ("selecting", "worst_of:4"): (0.45, 0.85),
    ("independent", "best_of:4"): (0.7, 0.7),
}


def data(candidate: str | None = "a", passed: bool = True, **rates: Any) -> ObjectiveData:
    """Two policies, their rates within 0.01 and differences within 0.02."""
    known = RATES | {tuple(key.split("__")): pair for key, pair in rates.items()}
    known = {(judge, p.replace("_of_", "_of:")): pair for (judge, p), pair in known.items()}
    rows, differences = [], []
    for (judge, procedure), pair in known.items():
        at = {"judge": judge, "procedure": procedure}
        for name, rate in zip("ab", pair, strict=True):
            rows.append(
                {**at, "policy": name, "win_rate": rate, "low": rate - 0.01, "high": rate + 0.01}
                | {"limit": 0.95, "efficiency": 0.8, "kl": 0.5, "kl_se": 0.01}
            )
        gap = pair[0] - pair[1]
        differences.append(
            {**at, "first": "a", "second": "b", "difference": gap}
            | {"low": gap - 0.02, "high": gap + 0.02}
        )
    rule = Rule("win_rate", passed, 0.89, ">= 0.5", "words", None if passed else 0.1)
    return ObjectiveData(
        name="o",
        procedure="best_of:4",
        methods={"a": "exp:10", "b": "identity"},
        rows=rows,
        differences=differences,
        curves=[],
        prompts=[],
        responses={},
        finished={},
        n_tokens={},
        rewards={},
        calibrated={},
        histories={},
        calibration_errors=[],
        metrics={},
        gate=dict.fromkeys("ab", Verdict((rule,))),
        not_asked={"champion": "does it beat it"},
        candidate=candidate,
    )


def test_what_speaks_against_a_policy_is_said_with_numbers() -> None:
    said = "\n".join(caveats(data(), "a"))
    assert "a single response wins 70.0 %, against 75.0 % of b. Deploy it behind Best-of-4" in said
    assert "loses to a rival: Worst-of-4 45.0 % against 85.0 % of b" in said
    assert "worse than the reference itself under Worst-of-4" in said
    assert "By the independent judge it is not clearly ahead of b" in said
    assert "it wins 70.0 % by that one, 90.0 % by its own" in said


def test_a_rival_that_is_better_where_it_counts_comes_first() -> None:
    first, *_ = caveats(data(), "b")
    assert first == "Under Best-of-4 itself a is better, by +10.0 points."
    close = data(selecting__best_of_4=(0.81, 0.80))
    assert next(iter(caveats(close, "a"))).startswith(
        "Under Best-of-4 it is not clearly ahead of b"
    )


def test_a_policy_that_loses_nothing_is_not_blamed() -> None:
    better = data(selecting__standard=(0.8, 0.75), selecting__worst_of_4=(0.9, 0.85))
    said = "\n".join(caveats(better, "a"))
    assert "no rival’s clearly more" in said
    assert "worse" not in said
    assert "loses" not in said


def test_a_policy_that_gains_nothing_has_that_against_it() -> None:
    lost = data(selecting__best_of_4=(0.4, 0.8))
    assert next(iter(caveats(lost, "a"))).startswith(
        "Under Best-of-4 it does not clearly beat the reference: it wins 40.0 %"
    )
    shown = card(lost, 0.5)
    assert "sees a gain" not in shown
    assert "% of it)" not in shown


def test_without_an_independent_judge_it_is_said() -> None:
    alone = data()
    rows = [row for row in alone.rows if row["judge"] == "selecting"]
    found = ObjectiveData(**{**vars(alone), "rows": rows})
    assert "There is no independent judge" in "\n".join(caveats(found, "a"))


@pytest.mark.parametrize(
    ("candidate", "passed", "words"),
    [
        ("a", True, "Yes: a may be deployed"),
        ("a", False, "No: a may not replace"),
        (None, True, "No: promotion.variant"),
    ],
)
def test_the_answer_is_the_gate_s(candidate: str | None, passed: bool, words: str) -> None:
    found = data(candidate, passed)
    assert answer(found).startswith(words)
    shown = card(found, 0.5)
    assert f'class="answer {"yes" if words.startswith("Yes") else "no"}"' in shown
    assert ("It fails win_rate (0.890, must be &gt;= 0.5, short by 0.1)" in shown) != passed


def test_a_published_copy_says_the_run_and_the_whole_gate() -> None:
    page = f"<body>{RUN}{card(data(), 0.5)}</body>"
    facts = [Fact("Commit", "abc<", "https://x/?a&b"), Fact("Took", "3 s")]
    copy = published(page, facts, {"o": Ruling(False, "No: <not>.", "It fails.")})
    assert '<b><a href="https://x/?a&amp;b">abc&lt;</a></b>' in copy
    assert '<p class="answer no">No: &lt;not&gt;.</p><p class="note">It fails.</p>' in copy
    assert "Yes: a may be deployed" not in copy
    again = published(copy, [], {"o": Ruling(True, "Yes.", "")})
    assert '<p class="answer yes">Yes.</p>' in again
    assert published(page, [], {"other": Ruling(True, "", "")}).count("Yes: a may") == 1
