"""The rewards under examples/ are what their words say."""

from examples.rewards import direct


def test_direct_answers_have_a_short_first_sentence():
    said = {
        "Yes. It is, and has been for years": -3.0,
        "  No!\nNever.": -2.0,
        "It costs 4.20 at most: see below": -21.0,
        "One that is cut in the mid": -26.0,
        "...": direct.NOTHING,
        "": direct.NOTHING,
        "42. Then words.": direct.NOTHING,
    }
    assert direct.score([[]] * len(said), list(said)) == list(said.values())
