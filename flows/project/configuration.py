"""`--set KEY=VALUE` into params.yaml: checked before a byte is written, comments kept."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from infalign.errors import InputError
from infalign.files.sources import data_paths, own_files
from infalign.files.weights import BUILT, check_source, pinned
from infalign.files.workspace import write_text
from infalign.settings.params import Params, check_params
from infalign.settings.reading import read_text, read_tree, shown


def set_params(
    path: Path, assignments: Sequence[str], tell: Callable[[str], None] = lambda _: None
) -> Params:
    """Write the assignments into the file and return all of it, or change nothing and raise.

    Beside a model's name stands what it means today, a folder or a commit of the hub: where that is
    missing or of another name, it is written too, and told.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    text = read_text(path)
    tree = read_tree(text, str(path), yaml.load, YAMLError)
    # PyYAML reads 1e-05 as text, 1.0e-05 as the number.
    yaml.representer.add_representer(
        float,
        lambda dumper, number: dumper.represent_scalar(
            "tag:yaml.org,2002:float", re.sub(r"^(-?\d+)e", r"\1.0e", repr(number))
        ),
    )
    before = _names(tree)
    for assignment in assignments:
        assign(tree, assignment)
    given = {assignment.partition("=")[0].strip() for assignment in assignments}
    pinned_too = _pin(tree, before, given, path.parent)
    written = read_tree(text, str(path), lambda _: _dumped(yaml, tree), YAMLError)
    # Checked as it will be read: by PyYAML, from the text.
    checked = check_params(read_tree(written, str(path)), str(path))
    for section in BUILT:
        check_source(section, getattr(checked, section), path.parent)
    if (assignments or pinned_too) and written != text:
        write_text(path, written)
    for line in pinned_too:
        tell(f"params.yaml: {line}")
    return checked


def _dumped(yaml: YAML, tree: Any) -> str:
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue()


def _names(tree: Any) -> dict[str, str]:
    """The models that the file names, by section; a section that is not sound has none."""
    sections = {name: tree.get(name) for name in BUILT} if isinstance(tree, dict) else {}
    found = {n: s.get("name_or_path") for n, s in sections.items() if isinstance(s, dict)}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _pin(tree: Any, before: dict[str, str], given: set[str], root: Path) -> list[str]:
    """Put what the models' names mean into the tree, but what is assigned; what was changed."""
    written = []
    for section, name in _names(tree).items():
        place = tree[section]
        same = before.get(section) == name or f"{section}.revision" in given
        kept = place.get("revision") if same else None
        for key, value in pinned(section, name, kept, root).items():
            missing = key not in place or place[key] != value
            if missing and f"{section}.{key}" not in given:
                place[key] = value
                written.append(f"{section}.{key} = {'null' if value is None else value}")
    return written


def check_data(params: Params, root: Path) -> None:
    """Raise one sentence where data is neither there nor made by a stage."""
    settings = {params.data.path: "data.path"} | own_files("prepare", params)
    for path in data_paths(params):
        if Path(path).parts[:1] != ("results",) and not (root / path).exists():
            raise InputError(
                f"params.yaml: {settings[path]} = {path!r} is not a folder or a file: give one "
                "with preference data or prompts, bring it with `infalign data add SOURCE`, or "
                "fetch a versioned one with `dvc pull`."
            )


def assign(tree: Any, assignment: str) -> None:
    """Put one KEY=VALUE (a dotted key, a YAML value) into the tree."""
    key, sign, value = assignment.partition("=")
    given = f"--set {shown(assignment)}"
    if not sign or not key.strip():
        raise InputError(f"{given}: write KEY=VALUE, as in --set align.steps=50.")
    *parents, last = key.strip().split(".")
    place = tree
    for part in parents:
        if not isinstance(place, dict) or part not in place:
            raise InputError(f"{given}: params.yaml has no section {shown(part)}.")
        place = place[part]
    if not isinstance(place, dict):
        raise InputError(f"{given}: {'.'.join(parents)!r} is not a section.")
    place[last] = read_tree(value, f"{given}: the value", _value, YAMLError)


def _value(text: str) -> Any:
    """A YAML value; `1e-5` is the number it looks like."""
    value = YAML().load(text)
    return float(value) if isinstance(value, float) and "." not in text else value
