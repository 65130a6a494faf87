"""A weighted sum: its value by hand, its scales, and what each part adds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.files.squares import Array
from infalign.rewards.total import Part, Scale, Sum, contributions, measured_scale


class Known:
    """A source whose rewards are given."""

    def __init__(self, values: Sequence[float]) -> None:
        self._values = np.array(values, dtype=float)

    def rewards(self, dialogues: Sequence[Dialogue], responses: Sequence[str]) -> Array:
        return self._values[: len(responses)]


def test_the_sum_by_hand() -> None:
    total = Sum(
        [
            Part("0", Known([1, 2, 3]), 0.5, Scale(2.0, 4.0)),
            Part("1", Known([10, 0, -10]), -0.1),
        ]
    )
    asked = [Dialogue.of([("user", "Hi?")])] * 3
    expected = [0.5 * (x - 2) / 4 - 0.1 * y for x, y in zip([1, 2, 3], [10, 0, -10], strict=True)]
    assert total.rewards(asked, ["a", "b", "c"]).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "weight", "words"),
    [
        ([1e308, 1.0, 1.0], 100.0, "a sum of rewards gave inf for response 0, 'a'"),
        ([1.0], 1.0, "part '0' of a sum gave 1 rewards for 3 responses"),
        ([1.0, float("nan"), 1.0], 1.0, "part '0' of a sum gave nan for response 1, 'b'"),
    ],
)
def test_a_sum_is_finite_and_has_one_number_a_response(
    values: list[float], weight: float, words: str
) -> None:
    total = Sum([Part("0", Known(values), weight), Part("1", Known([1, 2, 3]), 1.0)])
    with pytest.raises(InputError, match=words):
        total.rewards([Dialogue.of([("user", "Hi?")])] * 3, ["a", "b", "c"])


def test_the_scale_is_what_differs_within_a_prompt() -> None:
    rng = np.random.default_rng(0)
    within = 3.0 * rng.normal(size=(400, 16))
    found = measured_scale(within + 1000.0 * rng.normal(size=(400, 1)), "part 0")
    assert found.std == pytest.approx(3.0 * np.sqrt(15 / 16), rel=0.05)
    assert measured_scale(within + 5.0, "part 0").mean == pytest.approx(5.0, abs=0.1)


def test_what_does_not_differ_within_a_prompt_has_no_scale() -> None:
    with pytest.raises(InputError, match=r"part 0 gives all responses .* standardise to false"):
        measured_scale(np.array([[0.1, 0.1], [7.0, 7.0]]), "part 0")


def test_contributions_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, 50, 8))
    assert contributions([one, 0.0 * other]) == pytest.approx([1.0, 0.0])
    shares = contributions([one, 2.0 * other + 5.0])
    assert sum(shares) == pytest.approx(1.0)
    assert shares[1] == pytest.approx(0.8, abs=0.05)
