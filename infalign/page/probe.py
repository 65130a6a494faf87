"""The values of a matplotlib figure, as the page's script shows them: `script.py` says the form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch

from infalign.page import palette

POINTS = 72.0  # an inch in the units of matplotlib's SVG
FEW = 12  # places at which an axis stops


def probe(figure: Figure) -> dict[str, Any] | None:
    """The panels of a figure with their lines; None where there is nothing to ask."""
    panels = [panel for axis in figure.axes if (panel := _panel(figure, axis))["lines"]]
    return {"panels": panels} if panels else None


def _panel(figure: Figure, axis: Axes) -> dict[str, Any]:
    width, height = (POINTS * inches for inches in figure.get_size_inches())
    box = axis.get_position()
    low, high = (_along(axis, value) for value in axis.get_xlim())
    found: dict[str, Any] = {
        "title": axis.get_title(loc="left") or axis.get_title(),
        "axis": axis.get_xlabel(),
        "left": round(width * box.x0, 1),
        "right": round(width * box.x1, 1),
        "top": round(height * (1 - box.y1), 1),
        "bottom": round(height * (1 - box.y0), 1),
        "from": _short(low),
        "to": _short(high),
        "digits": 1 if np.ptp(axis.get_ylim()) > 10 else 3,
        "lines": list(_lines(axis)),
    }
    if _is_categorical(axis):
        found |= {"points": True, "digits": 1 if high - low > 10 else 3}
        for line in found["lines"]:
            line |= _places(axis, height, line)
    elif snap := _snap(axis):
        found["snap"] = snap
    return found


def _is_categorical(axis: Axes) -> bool:
    """Whether the values lie along the horizontal axis, and names along the other one."""
    return axis.yaxis_inverted()


def _snap(axis: Axes) -> list[list[Any]]:
    """The few places of a logarithmic axis, with their words."""
    if axis.get_xscale() != "log":
        return []
    words = [label.get_text() for label in axis.get_xticklabels()]
    places = axis.get_xticks()
    found = [[_short(_along(axis, x)), word] for x, word in zip(places, words, strict=True)]
    return found if len(found) <= FEW else []


def _lines(axis: Axes) -> Iterator[dict[str, Any]]:
    """Every line, mark and outline that has a name."""
    inside = set()
    for container in axis.containers:
        if isinstance(container, ErrorbarContainer):
            marks, _, bars = container.lines
            inside.add(marks)
            name = str(container.get_label())
            if marks is not None and name and not name.startswith("_"):
                yield _line(axis, marks, name) | _interval(axis, bars)
    for line in axis.lines:
        name = str(line.get_label())
        if line not in inside and name and not name.startswith("_"):
            yield _line(axis, line, name)
    for patch in axis.patches:
        name = str(patch.get_label())
        if isinstance(patch, StepPatch) and not name.startswith("_"):
            values, edges, _ = patch.get_data()
            ink = palette.variable(to_hex(patch.get_edgecolor()))
            heights = [_short(v) for v in (*values, values[-1])]
            xs = [_short(x) for x in edges]
            yield {"name": name, "ink": ink, "x": xs, "y": heights, "steps": True}


def _line(axis: Axes, line: Line2D, name: str) -> dict[str, Any]:
    x, y = (np.atleast_1d(np.asarray(part, dtype=float)) for part in line.get_data())
    found: dict[str, Any] = {
        "name": name,
        "ink": palette.variable(to_hex(line.get_color())),
        "x": [_short(_along(axis, value)) for value in x],
        "y": [_short(value) for value in y],
    }
    if len(x) == 1:
        found["single"] = True
    elif axis.get_xscale() == "log":  # marks that stand beside each other are at the same place
        places = np.array([_along(axis, value) for value in axis.get_xticks()])
        near = [places[np.abs(places - value).argmin()] for value in found["x"]]
        found["x"] = [_short(value) for value in near]
    return found


def _interval(axis: Axes, bars: Any) -> dict[str, Any]:
    """Low and high of the error bars along the axis of the values."""
    along = 0 if _is_categorical(axis) else 1
    for collection in bars:
        ends = np.array(collection.get_segments())  # [points, two ends, x and y]
        if len(ends) and np.allclose(ends[:, 0, 1 - along], ends[:, 1, 1 - along]):
            low, high = ends[:, :, along].min(1), ends[:, :, along].max(1)
            return {"low": [_short(v) for v in low], "high": [_short(v) for v in high]}
    return {}


def _places(axis: Axes, height: float, line: dict[str, Any]) -> dict[str, Any]:
    """Where a line's points are drawn."""
    scale = POINTS / axis.get_figure(root=True).dpi  # type: ignore[union-attr]
    spots = axis.transData.transform(np.column_stack([line["x"], line["y"]])) * scale
    return {
        "px": [round(float(x), 1) for x, _ in spots],
        "py": [round(height - float(y), 1) for _, y in spots],
    }


def _along(axis: Axes, value: float) -> float:
    """A value as a place along the horizontal axis, where equal steps are equally long."""
    return math.log2(value) if axis.get_xscale() == "log" else float(value)


def _short(value: float) -> float:
    """Three figures are read; of four, the third would be rounded twice, away from the table's."""
    return float(f"{value:.7g}")
