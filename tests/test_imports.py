"""Who may import whom: the rooms in their order, no circle, and what each room keeps out."""

from __future__ import annotations

from pathlib import Path

import pytest
from smoke import ROOT

from infalign.files.code import import_lines

# From the ground up: a room imports rooms that stand before it, itself, and libraries.
LIBRARY = [
    "errors",
    "theory",
    "settings",
    "files",
    "processes",
    "data",
    "lm",
    "engines",
    "rewards",
    "aligning",
    "measuring",
    "deployment",
    "planning",
    "page",
    "instrument",
    "stages",
    "__main__",
]
FLOWS = [
    "children",
    "project",
    "services",
    "tracking",
    "registry",
    "serving",
    "runs",
    "commands",
    "cli",
    "__main__",
]
ORDER = [f"infalign.{room}" for room in LIBRARY] + [f"flows.{room}" for room in FLOWS]
KEPT_OUT = {  # of a whole tree: what it is there to do without
    "infalign": {"prefect", "mlflow", "dvc"},
    "infalign.instrument": {"torch", "pandas", "transformers", "pydantic", "yaml", "matplotlib"},
    "infalign.theory": {"torch", "pandas", "pyarrow", "transformers", "pydantic", "yaml"},
    "flows": {"torch", "transformers", "accelerate", "dvc"},
}
FILES = sorted(p for top in ("infalign", "flows") for p in (ROOT / top).rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def ours(path: Path) -> list[tuple[str, int]]:
    """What a file imports of the project, and the lines that do."""
    tops = ("infalign", "flows")
    return [(name, line) for name, line in import_lines(path) if name.split(".")[0] in tops]


def faults(path: Path) -> list[str]:
    """What a file imports and may not, one sentence each with its line."""
    here, found = room_of(module_of(path)), []
    place = path.relative_to(ROOT).as_posix()
    for name, line in import_lines(path):
        for tree, kept_out in KEPT_OUT.items():
            within = f"{module_of(path)}.".startswith(f"{tree}.")
            if within and name.split(".")[0] in kept_out:
                found.append(f"{place}:{line}: {tree} does without {name}")
    if here not in ORDER:
        return found
    for name, line in ours(path):
        there = room_of(name)
        if there in ("infalign", "flows") or there == here != "infalign.stages":
            continue
        if there == here or ORDER.index(there) > ORDER.index(here):
            found.append(f"{place}:{line}: {here} may not import {name}")
        if here.startswith("flows.") and there == "infalign.lm":
            found.append(f"{place}:{line}: flows hold no tensors, {name} does")
    return found


def test_every_room_is_in_the_order() -> None:
    rooms = {room_of(module_of(path)) for path in FILES} - {"infalign", "flows"}
    assert rooms == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    assert not faults(path), "\n".join(faults(path))


def test_no_file_imports_itself_in_a_circle() -> None:
    graph = {module_of(path): {name for name, _ in ours(path)} for path in FILES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for name in sorted(graph.get(module, set()) - {module}):
                visit(name, (*way, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_a_wrong_import_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_imports.ROOT", tmp_path)
    for place, text, words in (
        (
            "infalign/lm/wrong.py",
            "import os\n\nfrom infalign.stages import align\n",
            ":3: infalign.lm",
        ),
        ("infalign/stages/wrong.py", "from infalign.stages import align\n", ":1: infalign.stages"),
        ("infalign/data/wrong.py", "def late():\n    import mlflow\n", ":2: infalign does without"),
        ("flows/runs/wrong.py", "import infalign.lm.models\n", ":1: flows hold no tensors"),
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        assert any(words in fault for fault in faults(path)), faults(path)
