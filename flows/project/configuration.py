"""`--set KEY=VALUE` into params.yaml: checked before a byte is written, comments kept."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from infalign.errors import InputError
from infalign.files.workspace import write_text
from infalign.settings.params import Params, check_params
from infalign.settings.reading import read_text, read_tree, shown


def set_params(path: Path, assignments: Sequence[str]) -> Params:
    """Write the assignments into the file and return all of it, or change nothing and raise."""
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
    for assignment in assignments:
        assign(tree, assignment)
    written = read_tree(text, str(path), lambda _: _dumped(yaml, tree), YAMLError)
    # Checked as it will be read: by PyYAML, from the text.
    checked = check_params(read_tree(written, str(path)), str(path))
    if assignments and written != text:
        write_text(path, written)
    return checked


def _dumped(yaml: YAML, tree: Any) -> str:
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue()


def check_data(params: Params, root: Path) -> None:
    """Raise one sentence where the data is neither there nor made by a stage."""
    path = params.data.path
    if Path(path).parts[:1] != ("results",) and not (root / path).is_dir():
        raise InputError(
            f"params.yaml: data.path = {path!r} is not a folder: give one with HH files, bring it "
            "with `infalign data add SOURCE`, or fetch a versioned one with `dvc pull`."
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
