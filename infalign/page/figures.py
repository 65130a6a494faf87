"""Matplotlib figures as files and as inline SVG, with the same bytes every time.

No pyplot and no global state: a figure is an object, its settings come from `STYLE`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from infalign.page import palette

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "infalign",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": palette.MUTED.light,
    "axes.labelcolor": palette.TEXT.light,
    "axes.titlecolor": palette.TEXT.light,
    "axes.facecolor": palette.PAPER.light,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": palette.RULE.light,
    "grid.linewidth": 0.6,
    "figure.facecolor": palette.PAPER.light,
    "savefig.facecolor": palette.PAPER.light,
    "text.color": palette.TEXT.light,
    "xtick.color": palette.MUTED.light,
    "ytick.color": palette.MUTED.light,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
PNG_DPI = 160


def draw(
    paint: Callable[[list[Axes]], None], width: float, height: float, columns: int = 1
) -> Figure:
    """A figure of `columns` panels side by side, painted under the page's style.

    Args:
        paint: draws on the panels.
        width, height: inches, of the whole figure.
        columns: number of panels.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=PNG_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, columns, squeeze=False)[0]
        paint(list(axes))
        _settle(figure)
    return figure


def _settle(figure: Figure) -> None:
    """Lay the figure out once, at its own resolution, not again for every file written of it."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG: no date, no version, so that equal figures are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """A figure as an <svg> element for the page: own ids, page colours, no addresses.

    Args:
        name: unique on the page; prefixes every id, which matplotlib repeats across figures.
        title, description: what the figure is and shows, for readers who cannot see it.
    """
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE):
        absent = dict.fromkeys(("Date", "Creator", "Format", "Type"), None)
        FigureCanvasSVG(figure).print_svg(stream, metadata=absent)
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'\s(xmlns(:\w+)?|version|width|height)="[^"]*"', "", text, count=5)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    for ink in palette.INKS:
        text = text.replace(ink.light, f"var(--{ink.name})")
    text = text.replace("<svg", f'<svg role="img" aria-labelledby="{name}-title {name}-desc"', 1)
    said = f'<title id="{name}-title">{escape(title)}</title>\n'
    said += f'<desc id="{name}-desc">{escape(description)}</desc>\n'
    first = text.index(">") + 1
    return f"{text[:first]}\n{said}{text[first:]}"
