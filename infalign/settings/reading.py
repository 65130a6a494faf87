"""From the text of a settings file to a tree, and from what is wrong with either to a sentence."""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from infalign.errors import InputError

# What YAML's readers raise beside their own errors, by what they met: a date with a 13th month, …
_FAULTS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError)
_BEGINS = (yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken)
_ENDS = (yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
_MANY_DIGITS = re.compile(r"\d{4300,}")  # what Python refuses to read, or to write, as a number
_NUMBER = re.compile(r"^[+-]?\d+(\.\d*)?[eE][+-]?\d+$")
_SECRET = (["api_key_variable"], ["url"])  # where somebody may have written one by mistake
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlevel = 3


def read_text(path: Path) -> str:
    """The text of a settings file, or one sentence."""
    try:
        return path.read_text(encoding="utf-8-sig")  # without a byte-order mark
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run from the project's root.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not YAML: {error}.") from None


def read_tree(
    text: str,
    source: str,
    load: Callable[[str], Any] = yaml.safe_load,
    faults: type[Exception] = yaml.YAMLError,
) -> Any:
    """The tree of a YAML text, or one sentence.

    Args:
        source: the name used in messages.
        load: the reader; `faults` is its own kind of error.
    """
    try:
        return load(text)
    except RecursionError:
        raise InputError(
            f"{source} is nested too deeply: nothing in it has so many levels."
        ) from None
    except (faults, *_FAULTS) as error:
        if digits := _MANY_DIGITS.search(text):
            line = text.count("\n", 0, digits.start()) + 1
            raise InputError(
                f"{source}: line {line} has a number of {len(digits.group())} digits: shorten it."
            ) from None
        raise InputError(f"{source} is not YAML: {' '.join(str(error).split())}.") from None


def quoted(text: str) -> str:
    """The YAML text with quotes around values that not every reader takes without.

    In `{path: rewards/own.py:score}` libyaml, by which DVC reads, stumbles over the second colon.
    """
    depth, places = 0, []
    try:
        for token in yaml.scan(text):
            depth += isinstance(token, _BEGINS) - isinstance(token, _ENDS)
            if depth and isinstance(token, yaml.ScalarToken) and _stumbles(token):
                places.append((token.start_mark.index, token.end_mark.index, token.value))
    except (yaml.YAMLError, *_FAULTS):  # whoever reads it says what is wrong
        return text
    for start, end, value in reversed(places):
        text = text[:start] + json.dumps(value, ensure_ascii=False) + text[end:]
    return text


def _stumbles(scalar: yaml.ScalarToken) -> bool:
    """Whether a scalar is a bare text with a colon, and no time of day."""
    bare = scalar.plain and ":" in scalar.value
    return bare and isinstance(yaml.safe_load(scalar.value), str)


def shown(value: Any) -> str:
    """A value as messages show it: as Python writes it, short."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _spelled(places: list[Any]) -> list[Any]:
    """Where a value stands in the file: without the kinds of variants and of rewards."""
    if places[:2] == ["align", "variants"]:
        del places[3:4]
    if places[:1] == ["objectives"] and places[2:3] in (["reward"], ["judge"]):
        del places[3:4]
        if places[3:4] == ["parts"]:
            del places[5:6]
    return places


def dotted(tree: Any, above: str = "") -> Iterator[str]:
    """Every key of a tree with the sections above it."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield f"{above}{key}"
        yield from dotted(value, f"{above}{key}.")


def meant(name: str, known: Iterable[str]) -> str:
    """A question to put behind a name that is not known, where a known one is near to it."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f" (did you mean {near[0]}?)" if near else ""


def sentence(source: str, error: Any, known: Iterable[str] = ()) -> str:
    """One of pydantic's errors as words: file, field, value, remedy.

    Args:
        known: the keys that there are, dotted.
    """
    places = _spelled(list(error["loc"]))
    field = ".".join(str(part) for part in places)
    value = "(not shown)" if places[-1:] in _SECRET else error["input"]
    if error["type"] == "extra_forbidden":
        near = meant(field, known)
        return f"{source}: unknown key {shown(field)}{near}: remove it or correct its spelling"
    if error["type"] == "missing":
        return f"{source}: {field!r} is missing: add it"
    if error["type"] == "value_error" and not field:
        return f"{source}: {error['ctx']['error']}"
    hint = ""
    if isinstance(value, str) and _NUMBER.match(value):
        hint = " (YAML reads 1e-5 as text: write 1.0e-5)"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{source}: {field} = {shown(value)}: {message[:1].lower()}{message[1:]}{hint}"
