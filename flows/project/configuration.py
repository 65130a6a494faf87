"""`--set KEY=VALUE`, recipes and what a file lacks, into params.yaml.

Checked before a byte is written, comments kept.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from yaml import YAMLError as YAMLFault
from yaml import safe_load

from flows.project.recipes import Setting
from infalign.errors import InputError
from infalign.files.sources import data_paths, own_files, suite_paths
from infalign.files.weights import BUILT, check_source, kind_of, pinned
from infalign.files.workspace import write_text
from infalign.settings.completion import completed
from infalign.settings.kinds import DEFAULTS, adapted, defaults, fits
from infalign.settings.params import Params, check_params
from infalign.settings.reading import meant, quoted, read_text, read_tree, shown


def set_params(
    path: Path,
    assignments: Sequence[str],
    tell: Callable[[str], None] = lambda _: None,
    recipe: Sequence[Setting] = (),
) -> Params:
    """Write the assignments into the file and return all of it, or change nothing and raise.

    What the file lacks is written as well. Beside a model's name stands what it means today, a
    folder or a commit of the hub, and its kind, with which some defaults change: where that is
    missing or of another name, it is written too. All of that is told.

    Args:
        recipe: settings that come before the assignments.
    """
    yaml = _yaml()
    text = read_text(path)
    whole, lacking = completed(text, str(path))
    tree = read_tree(whole, str(path), yaml.load, YAMLError)
    _spell_floats(yaml)
    before, nature = _names(tree), _nature(tree)
    given = _apply(tree, assignments, recipe)
    _leave_judges(tree, lacking, given)
    changed = _pin(tree, before, given, path.parent)
    changed += _suit(tree, before, nature, given, path.parent)
    written = whole
    if assignments or recipe or changed:
        written = read_tree(whole, str(path), lambda _: _dumped(yaml, tree), YAMLError)
        written, more = completed(written, str(path))
        lacking += more
    written = quoted(written)
    # Checked as it will be read: by PyYAML, from the text.
    checked = check_params(read_tree(written, str(path)), str(path))
    for section in BUILT:
        check_source(section, getattr(checked, section), path.parent)
    if written != text:
        _write(path, written)
    if lacking:
        tell(_lacked(lacking))
    for line in changed:
        tell(f"params.yaml: {line}")
    return checked


def planned(path: Path, assignments: Sequence[str], recipe: Sequence[Setting] = ()) -> Params:
    """The settings that `set_params` would write, without opening a model and without writing."""
    whole, lacking = completed(read_text(path), str(path))
    tree = read_tree(whole, str(path))
    given = _apply(tree, assignments, recipe)
    _leave_judges(tree, lacking, given)
    if "model.kind" in given:
        for key, value in defaults(tree["model"]["kind"], adapted(tree)).items():
            if key not in given:
                _put(tree, key, value)
    return check_params(tree, str(path))


def _apply(tree: Any, assignments: Sequence[str], recipe: Sequence[Setting]) -> set[str]:
    """Put a recipe's settings and then the assignments into the tree; their keys."""
    for key, value in recipe:
        _put(tree, key, value, makes=True)
    for assignment in assignments:
        assign(tree, assignment)
    given = {assignment.partition("=")[0].strip() for assignment in assignments}
    return given | {key for key, _ in recipe}


def _leave_judges(tree: Any, lacking: Sequence[str], given: set[str]) -> None:
    """Take out judges that nobody named: whether there is one depends on the reward now given."""
    for key in lacking:
        section, _, last = key.rpartition(".")
        if last == "judge" and key not in given and f"{section}.reward" in given:
            del tree["objectives"][section.removeprefix("objectives.")]["judge"]


def _yaml() -> YAML:
    """A reader and writer that keeps comments, quotes and line ends."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    yaml.representer.add_representer(str, _text)
    return yaml


def _text(dumper: Any, text: str) -> Any:
    """A text as PyYAML reads one too, to which `yes` is a truth value."""
    try:
        plain = isinstance(safe_load(text), str)
    except YAMLFault:
        plain = True  # quoted by ruamel itself
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


def _spell_floats(yaml: YAML) -> None:
    """From now on write 1.0e-05, which PyYAML reads as a number; 1e-05 it reads as text."""
    yaml.representer.add_representer(
        float,
        lambda dumper, number: dumper.represent_scalar("tag:yaml.org,2002:float", _short(number)),
    )


def complete_params(path: Path, tell: Callable[[str], None]) -> Params:
    """Write what the file lacks into it, for DVC to see, tell it, and return all of it."""
    text = read_text(path)
    whole, lacking = completed(text, str(path))
    whole = quoted(whole)
    checked = check_params(read_tree(whole, str(path)), str(path))
    if text != whole:
        _write(path, whole)
    if lacking:
        tell(_lacked(lacking))
    return checked


def _write(path: Path, text: str) -> None:
    """Write the file again, with the line ends and the byte-order mark that it has."""
    there = path.read_bytes()
    if there.count(b"\r\n") == there.count(b"\n"):
        text = text.replace("\n", "\r\n")
    mark = "\ufeff" if there.startswith(codecs.BOM_UTF8) else ""
    write_text(path, mark + text)


def _lacked(keys: Sequence[str]) -> str:
    return f"params.yaml: lacked {', '.join(keys)}: written, with the default."


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


def _nature(tree: Any) -> tuple[str, frozenset[str]] | None:
    """The kind of model that the file speaks of, and what trains an adapter; None: unsound.

    These two decide about defaults.
    """
    try:
        kind, adapters = tree["model"]["kind"], adapted(tree)
    except (KeyError, TypeError, IndexError, AttributeError):
        return None
    return (kind, adapters) if isinstance(kind, str) and kind in DEFAULTS else None


def _suit(
    tree: Any,
    before: dict[str, str],
    nature: tuple[str, frozenset[str]] | None,
    given: set[str],
    root: Path,
) -> list[str]:
    """Write the model's kind, and put the defaults of what it is in the place of what it was.

    What is given stays, and what is not the default of what it was. Returns what was changed.
    """
    now, name = _nature(tree), _names(tree).get("model")
    if nature is None or now is None or name is None:
        return []
    written = []
    kind, adapters = now
    found = kind_of(name, tree["model"].get("revision"), root)
    other = before.get("model") != name and kind != found
    if found and "model.kind" not in given and (other or not fits(kind, found)):
        kind = tree["model"]["kind"] = found
        written.append(f"model.kind = {found}")
    old, new = defaults(*nature), defaults(kind, adapters)
    for key, value in new.items():
        section, last = key.split(".")
        place = tree.get(section)
        if key in given or value == old[key] or not isinstance(place, dict):
            continue
        if place.get(last) == old[key]:
            place[last] = value
            written.append(f"{key} = {'null' if value is None else _short(value)}")
    adapter = " with an adapter" if adapters else ""
    return [f"{', '.join(written)}: what suits a model of kind {kind}{adapter}"] if written else []


def _short(number: float) -> str:
    """A number as PyYAML reads it."""
    return re.sub(r"^(-?\d+)e", r"\1.0e", repr(number))


def check_data(params: Params, root: Path) -> None:
    """Raise one sentence where data is neither there nor made by a stage."""
    settings = {params.data.path: "data.path"} | own_files("prepare", params)
    for path in (*data_paths(params), *suite_paths(params)):
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
    read = read_tree(value, f"{given}: the value", _value, YAMLError)
    _put(tree, key.strip(), read, given)


def _put(tree: Any, key: str, value: Any, given: str = "the recipe", makes: bool = False) -> None:
    """Put a value under a dotted key.

    Args:
        given: how messages name what is being done.
        makes: sections that are not there are made.
    """
    *parents, last = key.split(".")
    place = tree
    for part in parents:
        if makes and isinstance(place, dict):
            place.setdefault(part, CommentedMap())
        if not isinstance(place, dict) or part not in place:
            near = meant(part, place) if isinstance(place, dict) else ""
            raise InputError(f"{given}: params.yaml has no section {shown(part)}{near}.")
        place = place[part]
    if not isinstance(place, dict):
        raise InputError(f"{given}: {'.'.join(parents)!r} is not a section.")
    if isinstance(value, list | dict):
        value = CommentedSeq(value) if isinstance(value, list) else CommentedMap(value)
        value.fa.set_flow_style()
        # Also all that stands before the next key.
        behind = place.ca.items.get(last) if isinstance(place, CommentedMap) else None
        value.ca.comment = [behind[2], None] if behind else None
    place[last] = value


def _value(text: str) -> Any:
    """A YAML value; `1e-5` is the number it looks like."""
    value = YAML().load(text)
    return float(value) if isinstance(value, float) and "." not in text else value
