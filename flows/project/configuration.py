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


def set_params(path: Path, assignments: Sequence[str]) -> Params:
    """Write the assignments into the file and return all of it, or change nothing and raise."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.load(text)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run from the project's root.") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    # PyYAML reads 1e-05 as text, 1.0e-05 as the number.
    yaml.representer.add_representer(
        float,
        lambda dumper, number: dumper.represent_scalar(
            "tag:yaml.org,2002:float", re.sub(r"^(-?\d+)e", r"\1.0e", repr(number))
        ),
    )
    for assignment in assignments:
        assign(tree, assignment)
    stream = io.StringIO()
    yaml.dump(tree, stream)
    # Checked as it will be read: by PyYAML, from the text.
    checked = _check(stream.getvalue(), str(path))
    if assignments and stream.getvalue() != text:
        write_text(path, stream.getvalue())
    return checked


def _check(text: str, source: str) -> Params:
    import yaml

    return check_params(yaml.safe_load(text), source)


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
    if not sign or not key.strip():
        raise InputError(f"--set {assignment!r}: write KEY=VALUE, as in --set align.steps=50.")
    *parents, last = key.strip().split(".")
    place = tree
    for part in parents:
        if not isinstance(place, dict) or part not in place:
            raise InputError(f"--set {assignment!r}: params.yaml has no section {part!r}.")
        place = place[part]
    if not isinstance(place, dict):
        raise InputError(f"--set {assignment!r}: {'.'.join(parents)!r} is not a section.")
    try:
        place[last] = _value(value)
    except YAMLError as error:
        words = " ".join(str(error).split())
        raise InputError(f"--set {assignment!r}: the value is not YAML: {words}.") from None


def _value(text: str) -> Any:
    """A YAML value; `1e-5` is the number it looks like."""
    value = YAML().load(text)
    return float(value) if isinstance(value, float) and "." not in text else value
