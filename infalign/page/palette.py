"""Colours of the page and its figures, in a light and a dark form.

Figures are drawn in the light colours. Inlined into the page, each of these colours becomes a CSS
variable, so that the same drawing follows the reader's light or dark setting. The series are Okabe
and Ito's colours, which readers with any colour vision tell apart; marker and dash differ too.
"""

from __future__ import annotations

from typing import NamedTuple


class Ink(NamedTuple):
    """One colour of the page: the CSS variable's name, its light and its dark value."""

    name: str
    light: str
    dark: str


class Series(NamedTuple):
    """How one policy is drawn in every figure."""

    color: str
    marker: str
    dash: tuple[float, ...]


TEXT = Ink("text", "#1c2127", "#e6e8eb")
MUTED = Ink("muted", "#5c6570", "#a0a8b3")
RULE = Ink("rule", "#d8dce1", "#3a4048")
PAPER = Ink("paper", "#fefefe", "#16191d")
SHADE = Ink("shade", "#f2f4f6", "#20242a")
LIMIT = Ink("limit", "#2b3138", "#d5d9de")
NEUTRAL = Ink("neutral", "#aab1ba", "#6a727d")
GOOD = Ink("good", "#00694c", "#35cb9e")
BAD = Ink("bad", "#a33f00", "#f5a05f")
BASE = (TEXT, MUTED, RULE, PAPER, SHADE, LIMIT, NEUTRAL, GOOD, BAD)
WORDS = (TEXT, MUTED, GOOD, BAD)  # what may be written with, on PAPER and on SHADE

_SERIES = (
    Ink("series-0", "#0072b2", "#56a9e0"),
    Ink("series-1", "#d55e00", "#f08a3c"),
    Ink("series-2", "#009e73", "#2fc79a"),
    Ink("series-3", "#b8548f", "#e08cc0"),
    Ink("series-4", "#b58900", "#e6bd45"),
    Ink("series-5", "#4b8fb8", "#8fc8ea"),
    Ink("series-6", "#7d6bb0", "#ab9be0"),
    Ink("series-7", "#8a6d5a", "#c3a48f"),
)
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_DASHES: tuple[tuple[float, ...], ...] = ((5, 2), (1, 1.6), (6, 2, 1, 2), (3, 1.5))

INKS = BASE + _SERIES


def series(position: int) -> Series:
    """The drawing style of the policy at a position in run.variants, for any number of them."""
    return Series(
        _SERIES[position % len(_SERIES)].light,
        _MARKERS[position % len(_MARKERS)],
        _DASHES[position % len(_DASHES)],
    )


def series_name(position: int) -> str:
    """The CSS variable of the same policy's colour."""
    return _SERIES[position % len(_SERIES)].name


def variable(color: str) -> str:
    """The CSS variable of a light colour; muted where it is none of the page's."""
    return next((ink.name for ink in INKS if ink.light == color.lower()), MUTED.name)


def css_variables(dark: bool) -> str:
    """The declarations of every colour, one form."""
    return " ".join(f"--{ink.name}: {ink.dark if dark else ink.light};" for ink in INKS)
