"""Recipes: settings for a model and a machine, `recipes/NAME.yaml`, in the form of params.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infalign.errors import InputError
from infalign.settings.reading import read_text, read_tree

FOLDER = "recipes"
Setting = tuple[str, Any]  # a dotted key and its value
_CHOICES = {"kind", "method"}  # what stands beside them belongs to them: it is given as a whole
_WHOLE = {"model.template_arguments"}  # whose keys are names of others, with dots maybe


def read_recipe(root: Path, name: str) -> list[Setting]:
    """The settings of a recipe.

    Args:
        name: of a file in the folder of recipes, or a file's path.
    """
    tree = read_tree(read_text(_file(root, name)), f"recipe {name}")
    if not isinstance(tree, dict) or not all(isinstance(part, dict) for part in tree.values()):
        raise InputError(f"recipe {name} must be a mapping of sections, as params.yaml is.")
    return list(_settings(tree, ""))


def _file(root: Path, name: str) -> Path:
    own = root / FOLDER / f"{name}.yaml"
    if own.is_file():
        return own
    if Path(name).suffix in (".yaml", ".yml") and (root / name).is_file():
        return root / name
    there = ", ".join(sorted(path.stem for path in (root / FOLDER).glob("*.yaml"))) or "none"
    raise InputError(
        f"--recipe {name!r} is no recipe: give one of those in {FOLDER}/ ({there}), or a file's "
        "path with its .yaml."
    )


def _settings(tree: dict[Any, Any], prefix: str) -> Iterator[Setting]:
    """The values that a mapping gives, by dotted key."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if "." in str(name):
            raise InputError(
                f"the recipe's key {key!r}: {name!r} has a dot, as no key of params.yaml: nest it."
            )
        chosen = isinstance(value, dict) and "." in key and bool(_CHOICES & value.keys())
        chosen = chosen or key in _WHOLE
        if isinstance(value, dict) and value and not chosen:
            yield from _settings(value, f"{key}.")
        else:
            yield key, value
