"""One smoke run of all stages, shared by the stage tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infalign.files.workspace import Workspace
from infalign.processes.one_stage import main
from infalign.settings.params import check_params
from tests.conftest import MakeOnce

STAGES = ("corpus", "sources", "prepare", "sft", "sample")


def instances(tree: dict[str, Any]) -> Iterator[list[str]]:
    """The arguments of `python -m infalign` for a whole pipeline, in order."""
    objectives, variants = tree["run"]["objectives"], tree["run"]["variants"]
    yield from ([stage] for stage in STAGES)
    yield from ([word, "--objective", o] for word in ("reward", "calibrate") for o in objectives)
    yield from (["align", "--objective", o, "--variant", v] for o in objectives for v in variants)
    yield from (["evaluate", "--objective", o] for o in objectives)
    yield ["report"]


@pytest.fixture(scope="session")
def finished(smoke_tree: dict[str, Any], make_once: MakeOnce) -> Path:
    """A folder in which every stage has run with smoke params: only to read."""

    def make(folder: Path) -> None:
        (folder / "params.yaml").write_text(yaml.safe_dump(smoke_tree))
        with contextlib.chdir(folder):
            for arguments in instances(smoke_tree):
                assert main(arguments) == 0, arguments

    return make_once("stages", make)


@pytest.fixture
def workspace(finished: Path, smoke_tree: dict[str, Any], tmp_path: Path):  # type: ignore[no-untyped-def]
    """A function that gives a workspace for an instance, with its own unfinished work."""
    (tmp_path / "results").symlink_to(finished / "results")
    params = check_params(smoke_tree, "smoke")

    def make(instance: str) -> Workspace:
        made = Workspace(params, tmp_path, instance)
        made.open_work("test")
        return made

    return make
