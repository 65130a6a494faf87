"""A params.yaml that lacks keys: each is put in its place, with its default and what it means.

What the file has stays as it is, to the byte: lines are put between those that are there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from infalign.errors import InputError
from infalign.settings.methods import Section
from infalign.settings.params import check_params
from infalign.settings.reading import read_tree


def completed(text: str, source: str) -> tuple[str, list[str]]:
    """The text with all that it lacks, and the dotted keys; what is not sound stays as it is.

    Args:
        source: the file's name.

    Raises:
        InputError: where a key has no place: what two sections share by an anchor, say, would be
            written into both.
    """
    try:
        tree = read_tree(text, source)
        params = check_params(tree, source)
    except InputError:
        return text, []
    gaps = _Gaps(text)
    gaps.look(params, tree, yaml.compose(text, yaml.SafeLoader), "")
    whole = gaps.filled()
    try:
        fits = check_params(read_tree(whole, source), source) == params
    except InputError:
        fits = False
    if not fits:
        raise InputError(
            f"{source} lacks {', '.join(gaps.keys)}, and has no line where they could be put, "
            "because sections share their text (&, *, <<): write them, or those sections, out."
        )
    return whole, gaps.keys


class _Gaps:
    """Where which text is missing."""

    def __init__(self, text: str) -> None:
        self.keys: list[str] = []
        self._text = text
        self._pieces: dict[tuple[int, str], str] = {}  # by place and key: an anchor's comes twice

    def filled(self) -> str:
        """The text with every piece in its place."""
        whole = self._text
        places = sorted({place for place, _ in self._pieces}, reverse=True)
        for place in places:
            pieces = "".join(text for (at, _), text in self._pieces.items() if at == place)
            whole = whole[:place] + pieces + whole[place:]
        return whole

    def look(self, value: Any, tree: Any, node: Any, prefix: str) -> None:
        """Find what the text of a checked value lacks, and of all in it, deepest first."""
        if isinstance(value, Section):
            self._section(value, tree, node, prefix)
        elif isinstance(value, dict):
            nodes = _nodes(node)
            for name in value:
                if name in nodes:
                    self.look(value[name], tree[name], nodes[name][1], f"{prefix}{name}.")
        elif isinstance(value, list):
            for number, (item, part) in enumerate(zip(value, node.value, strict=True)):
                self.look(item, tree[number], part, f"{prefix}{number}.")

    def _section(self, section: Section, tree: Any, node: Any, prefix: str) -> None:
        nodes, before, absent = _nodes(node), None, []
        for name, field, value in _fields(section):
            if name in nodes:
                self.look(value, tree[name], nodes[name][1], f"{prefix}{name}.")
                before = nodes[name]
            elif name not in tree:  # nor merged into it from elsewhere
                self.keys.append(f"{prefix}{name}")
                absent.append(f"{name}: {_flow(value)}")
                if not node.flow_style:
                    lines = list(_block(name, value, field, node.value[0][0].start_mark.column))
                    self._put(f"{prefix}{name}", lines, before, node)
        if absent and node.flow_style:
            place = _end(*node.value[-1]) if node.value else node.start_mark.index + 1
            self._pieces[place, prefix] = ", " * bool(node.value) + ", ".join(absent)

    def _put(self, key: str, lines: list[str], before: Any, node: Any) -> None:
        """Lines below the key that comes before in the section; without one above all others."""
        apart = [""] if "." not in key else []  # between sections
        if before is None:
            first = node.value[0][0].start_mark
            self._pieces[first.index - first.column, key] = "".join(
                f"{line}\n" for line in [*lines, *apart]
            )
            return
        end = len(self._text[: _end(*before)].rstrip())
        place = self._text.find("\n", end)
        self._pieces[len(self._text) if place < 0 else place, key] = "".join(
            f"\n{line}" for line in [*apart, *lines]
        )


def _fields(section: Section) -> Iterator[tuple[str, FieldInfo, Any]]:
    """A section's fields and values, but the trainer's own method, which need not be named."""
    for name, field in type(section).model_fields.items():
        if name != "method" or field.is_required():
            yield name, field, getattr(section, name)


def _nodes(node: Any) -> dict[str, tuple[Any, Any]]:
    """The keys and values of a mapping's text."""
    return {key.value: (key, value) for key, value in node.value}


def _end(key: Any, value: Any) -> int:
    """Where the text of a key's value ends; an alias has none but the anchor's, further up."""
    end = value.end_mark.index
    if isinstance(value, yaml.CollectionNode) and not value.flow_style and value.value:
        last = value.value[-1]
        end = _end(*last) if isinstance(last, tuple) else _end(last, last)
    return int(max(key.end_mark.index, end))


def _block(name: str, value: Any, field: FieldInfo | None, indent: int) -> Iterator[str]:
    """The lines of a key, with what it means behind it."""
    head = f"{' ' * indent}{name}:"
    if isinstance(value, Section):
        said = f"  # {str(type(value).__doc__).splitlines()[0].rstrip('.')}" if field else ""
        yield head + said
        for inner, its_field, its_value in _fields(value):
            yield from _block(inner, its_value, its_field, indent + 2)
    elif isinstance(value, dict) and value:
        yield head
        for inner, its_value in value.items():
            yield from _block(inner, its_value, None, indent + 2)
    else:
        said = f"  # {field.description}" if field and field.description else ""
        yield f"{head} {_flow(value)}{said}"


def _flow(value: Any) -> str:
    """A value on one line, as it may stand in braces."""
    dumped = yaml.safe_dump(
        [_plain(value)],
        default_flow_style=True,
        width=math.inf,
        allow_unicode=True,
        sort_keys=False,
    )
    return dumped.strip()[1:-1]


def _plain(value: Any) -> Any:
    """A value of mappings, lists and scalars."""
    if isinstance(value, Section):
        return {name: _plain(inner) for name, _, inner in _fields(value)}
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
