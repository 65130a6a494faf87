"""`infalign run`: bad input ends at once with one sentence and 2; the table at the end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from flows.commands.tables import win_rate_table
from tests.flows.conftest import Project, write_toy


@pytest.fixture
def bare(tmp_path: Path, quiet: dict[str, str]) -> Project:
    """A toy project without any server."""
    root = tmp_path / "project"
    write_toy(root)
    return Project(root, dict(quiet))


def _unknown_key(project: Project) -> None:
    file = project.root / "params.yaml"
    file.write_text(file.read_text().replace("kl_nats:", "kl_nat:"))


def _no_git(project: Project) -> None:
    shutil.rmtree(project.root / ".git")


def _no_params(project: Project) -> None:
    (project.root / "params.yaml").unlink()


def _nothing(project: Project) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (_unknown_key, [], "unknown key 'align.kl_nat'"),
        (_no_git, [], "is not in a git repository"),
        (_no_params, [], "does not exist: run from the project's root"),
        (_nothing, ["--set", "data.path=/nowhere"], "data.path = '/nowhere' is not a folder"),
        (_nothing, ["--set", "align.kl_nats=-1"], "align.kl_nats = -1"),
        (_nothing, ["--dry-run", "--set", "align.steps=1"], "leave out --set"),
        (_nothing, ["--dry-run", "--recipe", "hh"], "leave out --recipe"),
        (_nothing, ["--recipe", "hh"], "--recipe 'hh' is no recipe: give one of those in recipes/"),
    ],
)
def test_bad_input_is_one_sentence(
    bare: Project, spoil: object, arguments: list[str], words: str
) -> None:
    assert callable(spoil)
    spoil(bare)
    status, output = bare.inside("run", *arguments)
    assert status == 2, output
    assert words in output
    assert len(output.strip().splitlines()) == 1


def test_a_prefect_that_is_not_there_is_one_sentence(bare: Project) -> None:
    status, output = bare.inside("run", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert status == 2, output
    assert "PREFECT_API_URL = http://127.0.0.1:9/api is not answered by a Prefect" in output
    assert len(output.strip().splitlines()) == 1


def test_a_dry_run_says_what_is_stale_and_why(bare: Project) -> None:
    status, output = bare.inside("run", "--dry-run")
    assert status == 0, output
    assert output.splitlines()[0].startswith("corpus: ")
    assert not (bare.root / "results").exists()


def test_the_table_shows_what_is_undefined_as_a_dash() -> None:
    row = {"objective": "o", "policy": "p", "procedure": "best_of:4", "win_rate": 0.71234}
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(win_rate_table([{**row, "low": None, "efficiency": None}]))
    assert console.file.close() is None
    text = console.export_text()
    assert "0.712" in text
    assert "– to –" in text
