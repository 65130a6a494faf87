"""The source files that a module of this package imports: what a stage's results depend on.

Reads source text and runs nothing. DVC's dependencies (`make dvc`) and the fingerprint of
unfinished work both come from here, so that they never disagree.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the package
ENTRY = "infalign.__main__"  # what every stage runs through


def stage_files(word: str) -> list[str]:
    """The files behind `python -m infalign WORD`, relative to the package's parent, sorted."""
    return sorted(imported_files(f"infalign.stages.{word}") | imported_files(ENTRY))


@cache
def imported_files(module: str) -> frozenset[str]:
    """The files of the package that a module needs, itself included, found transitively.

    Imports inside functions count; empty files and the docstrings of packages do not.
    """
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        path = module_file(waiting.pop())
        if path is not None and path not in found:
            found.add(path)
            waiting += [name for name in imported_modules(path) if name.startswith("infalign.")]
    return frozenset(path.relative_to(ROOT).as_posix() for path in found if path.stat().st_size)


@cache
def imported_modules(path: Path) -> frozenset[str]:
    """Every module that a file imports, at its top or inside a function."""
    return frozenset(name for name, _ in import_lines(path))


@cache
def import_lines(path: Path) -> tuple[tuple[str, int], ...]:
    """Every module that a file imports, and the line that does."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(name.name, node.lineno) for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{name.name}" for name in node.names]
            modules = [name for name in names if module_file(name) is not None]
            found += [(name, node.lineno) for name in modules]
            if len(modules) < len(names):
                found.append((node.module, node.lineno))
    return tuple(found)


@cache
def module_file(module: str) -> Path | None:
    """The source file of one of the project's modules; None for a library's."""
    path = ROOT / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None
