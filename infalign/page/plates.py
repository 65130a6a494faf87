"""A drawn figure with its words, and how a page shows it."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure

from infalign.page.figures import inline_svg
from infalign.page.markup import Html, figure
from infalign.page.probe import probe


class Plate(NamedTuple):
    """A drawn figure: its file's name, its title, what it shows, its share of the page's width."""

    name: str
    figure: Figure
    title: str
    caption: str
    width: str = ""


def shown(plate: Plate) -> Html:
    """A plate with its drawing inlined, and the values behind it."""
    svg = inline_svg(plate.figure, plate.name, plate.title, plate.caption)
    return figure(plate.title, Html(svg), probe(plate.figure), plate.caption, plate.width)
