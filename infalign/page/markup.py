"""HTML from Python: elements whose texts are escaped, tables, and the frame of every page.

Nothing but the standard library, so that `import infalign` can show tables in a notebook.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from infalign.page.script import SCRIPT
from infalign.page.style import STYLE

VOID = frozenset({"br", "meta"})
SWATCH = "display: inline-block; width: 0.72em; height: 0.72em; border-radius: 2px"


class Html(str):
    """Text that is HTML already; every other text is escaped where it enters an element."""

    __slots__ = ()


class Chapter(NamedTuple):
    """A part of a page: its address, its title, and what it holds."""

    anchor: str
    title: str
    body: Html


def html(part: str) -> Html:
    """A text as HTML: escaped, unless it is HTML already."""
    return part if isinstance(part, Html) else Html(escape(part))


def join(parts: Iterable[str], between: str = "") -> Html:
    """Parts one after the other."""
    return Html(between.join(html(part) for part in parts))


def tag(name: str, /, *parts: str, **attributes: object) -> Html:
    """An element; `class_` is class, `aria_label` aria-label, None leaves an attribute out."""
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{named}>")
    return Html(f"<{name}{named}>{join(parts)}</{name}>")


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, words: Sequence[int] = ()
) -> Html:
    """A table with scoped headers, in a box of its own that scrolls and takes the keyboard.

    Args:
        head: the columns' names.
        rows: cells; the first of each row is the row's name.
        caption: what the table shows; names the box, so that it differs from the page's others.
        words: columns of texts, which are set flush left; the first one always is.
    """
    left = {0, *words}

    def cell(name: str, column: int, part: str, **scope: str) -> Html:
        if column not in left:
            return tag(name, part, **scope)
        kind = "text" if column else None
        return tag(name, part, **scope, class_=kind, style="text-align: left")

    top = (cell("th", i, name, scope="col") for i, name in enumerate(head))
    body = (
        tag(
            "tr",
            cell("th", 0, row[0], scope="row"),
            *(cell("td", i, part) for i, part in enumerate(row[1:], 1)),
        )
        for row in rows
    )
    inside = (tag("caption", caption), tag("thead", tag("tr", *top)), tag("tbody", *body))
    return _scroll(tag("table", *inside), caption)


def _scroll(inside: Html, label: str) -> Html:
    """A box that scrolls by itself, with the keyboard too; its label is no other box's."""
    return tag("div", inside, class_="scroll", tabindex="0", role="region", aria_label=label)


def key(name: str, ink: str) -> Html:
    """A policy's name behind its colour, a CSS value."""
    return join([tag("span", style=f"{SWATCH}; margin-right: 0.5em; background: {ink}"), name])


def measured(text: str, spread: str = "") -> Html:
    """A number and its interval or error."""
    if not spread:
        return tag("b", text)
    return join([tag("b", text), tag("span", spread, class_="range")], " ")


def figure(
    title: str, svg: Html, probe: dict[str, Any] | None, caption: str = "", kind: str = ""
) -> Html:
    """A drawing in a box that scrolls; `probe` has the values behind it, for the page's script."""
    data = Html("")
    if probe is not None:
        text = json.dumps(probe, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        data = tag("script", Html(text), type="application/json")
    said = tag("figcaption", caption) if caption else Html("")
    return tag("figure", _scroll(svg, title), data, said, class_=kind or None)


def facts(listed: Iterable[tuple[str, str | Html]]) -> Html:
    """Names and values in a row."""
    items = (tag("li", f"{name} ", tag("b", value)) for name, value in listed)
    return tag("ul", *items, class_="facts")


def document(title: str, header: Html, chapters: Sequence[Chapter]) -> str:
    """A page: one file that opens from disk and loads nothing."""
    links = (tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title, _ in chapters)
    body = join(
        (
            tag("section", tag("h2", title), "\n", body, "\n", id=anchor)
            for anchor, title, body in chapters
        ),
        "\n",
    )
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", title),
            tag("style", Html(f"\n{STYLE}\n")),
        ],
        "\n",
    )
    page = tag(
        "div",
        tag("header", tag("h1", title), header),
        "\n",
        tag("nav", tag("ol", *links), aria_label="Contents"),
        "\n",
        tag("main", "\n", body, "\n"),
        class_="page",
    )
    script = tag("script", Html(f"\n{SCRIPT}\n"))
    whole = tag("html", tag("head", head), "\n", tag("body", page, "\n", script), lang="en")
    text = f"<!doctype html>\n{whole}\n"
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
