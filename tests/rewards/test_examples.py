"""The rewards under examples/ are what their words say."""

from examples.rewards import plain


def test_plain_words_are_short_ones():
    assert plain.score([[]] * 3, ["I am at it, 42 of us.", "Notwithstanding", "..."]) == [
        -(1 + 2 + 2 + 2 + 2 + 2) / 6,
        -15.0,
        plain.NOTHING,
    ]
