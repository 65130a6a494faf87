"""What the shell completes: settings, objectives, variants, recipes, deployments, spellings.

Reads params.yaml as it stands, unchecked: a file that is wrong, or none, completes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROCEDURES = ("standard", "best_of:", "worst_of:", "rank:")
TRANSFORMS = ("identity", "log", "exp:", "optimal", "auto")
_NAMES = {  # settings whose values are names of others
    "run.objectives": "objectives",
    "compare.objectives": "objectives",
    "compare.poison.objectives": "compare.objectives",
    "run.variants": "align.variants",
    "compare.variants": "align.variants",
    "promotion.variant": "align.variants",
}


def settings(incomplete: str) -> list[str]:
    """Dotted keys of params.yaml with their `=`; behind it, names where a setting takes names."""
    tree = _tree("params.yaml")
    key, sign, value = incomplete.partition("=")
    if not sign:
        return [f"{name}=" for name in _keys(tree, "") if name.startswith(incomplete)]
    before, comma, last = value.rpartition(",")
    names = _beginning(_at(tree, _NAMES.get(key, "")), last.lstrip("["))
    opening = "[" if value.startswith("[") and not comma else ""
    return [f"{key}={before}{comma}{opening}{name}" for name in names]


def objectives(incomplete: str) -> list[str]:
    """The objectives that run."""
    return _beginning(_at(_tree("params.yaml"), "run.objectives"), incomplete)


def recipes(incomplete: str) -> list[str]:
    """The files of recipes/."""
    return _beginning(sorted(path.stem for path in Path("recipes").glob("*.yaml")), incomplete)


def deployments(incomplete: str) -> list[str]:
    """The deployments of prefect.yaml that have a schedule."""
    found = _at(_tree("prefect.yaml"), "deployments")
    named = [one for one in found if isinstance(one, dict) and one.get("schedules")]
    return _beginning([str(one.get("name")) for one in named], incomplete)


def procedures(incomplete: str) -> list[str]:
    """How procedures are spelled."""
    return _beginning(PROCEDURES, incomplete)


def transforms(incomplete: str) -> list[str]:
    """How transformations are spelled."""
    return _beginning(TRANSFORMS, incomplete)


def _beginning(names: Any, incomplete: str) -> list[str]:
    return [str(name) for name in names if str(name).startswith(incomplete)]


def _tree(name: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _at(tree: Any, dotted: str) -> Any:
    """What stands at a dotted key: a list or a mapping; nothing where there is neither."""
    for part in dotted.split("."):
        tree = tree.get(part, {}) if isinstance(tree, dict) else {}
    return tree if isinstance(tree, dict | list) else []


def _keys(tree: Any, prefix: str) -> Iterator[str]:
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict) and value:
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
