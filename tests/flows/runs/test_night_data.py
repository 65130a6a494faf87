"""What a night finds in a folder is added, judged, and taken back where it is refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.project import nights
from flows.registry.promotion import Decision
from flows.runs import night_data, nightly
from infalign.errors import InputError
from infalign.settings.params import Params, load_params
from tests.flows.conftest import Project, git, write_toy
from tests.flows.project.test_data_growth import rows


@pytest.fixture
def fresh(tmp_path: Path, quiet: dict[str, str]) -> Project:
    """A toy project that has never been run, and needs no server."""
    write_toy(tmp_path / "fresh")
    return Project(tmp_path / "fresh", dict(quiet))


def nightly_source(project: Project, source: str) -> Params:
    """The params of a project that looks for new data in a folder."""
    path = project.root / "params.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["schedule"] |= {"source": source, "into": "mine"}
    path.write_text(yaml.safe_dump(tree))
    return load_params(path)


def test_a_night_adds_what_is_new_and_a_refusal_takes_it_back(fresh: Project) -> None:
    root, told = fresh.root, list[str]()
    first = rows(root.parent / "first.jsonl", *(f"question {n}" for n in range(9)))
    assert fresh.inside("data", "add", str(first), "--name", "mine")[0] == 0
    pointer, folder = root / "data" / "raw" / "mine.dvc", root / "data" / "raw" / "mine"
    before, files = pointer.read_text(), {path.name for path in folder.iterdir()}
    params = nightly_source(fresh, "../incoming")
    (root.parent / "incoming").mkdir()
    asyncio.run(night_data.bring(root, params, told.append))
    assert told == ["../incoming is empty: no data is added."]
    rows(root.parent / "incoming" / "tuesday.jsonl", *(f"new {n}" for n in range(4)))
    asyncio.run(night_data.bring(root, params, told.append))
    assert any(line.startswith("4 rows read, 4 added to data/raw/mine") for line in told)
    added = pointer.read_text()
    assert added != before
    # Killed here, the next night finds nothing new, and still knows what was judged last.
    asyncio.run(night_data.bring(root, params, told.append))
    assert pointer.read_text() == added
    asyncio.run(night_data.take_back(root, params, told.append))
    assert (pointer.read_text(), {path.name for path in folder.iterdir()}) == (before, files)
    told.clear()
    asyncio.run(night_data.take_back(root, params, told.append))  # once is enough
    assert told == []
    asyncio.run(night_data.bring(root, params, told.append))
    night_data.taken(root, params)
    asyncio.run(night_data.take_back(root, params, told.append))
    assert pointer.read_text() == added  # what was taken stays


def test_without_a_source_nothing_happens_and_a_lost_one_is_one_sentence(
    fresh: Project,
) -> None:
    asyncio.run(night_data.bring(fresh.root, load_params(fresh.root / "params.yaml"), print))
    assert not (fresh.root / "data").exists()
    first = rows(fresh.root.parent / "first.jsonl", "question")
    assert fresh.inside("data", "add", str(first), "--name", "mine")[0] == 0
    params = nightly_source(fresh, "../gone")
    with pytest.raises(InputError, match=r"^\.\./gone is not a folder or a file"):
        asyncio.run(night_data.bring(fresh.root, params, print))


def test_a_night_is_pushed_or_says_that_it_is_not(
    fresh: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(nightly, "_tell", told.append)
    root, path = fresh.root, fresh.root / "params.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["schedule"]["push"] = True
    path.write_text(yaml.safe_dump(tree))
    decision = Decision("helpful", "3", "2", None, "refused")
    done: dict[str, Any] = {"outcomes": {"report": "made"}, "decisions": [decision]}
    state = asyncio.run(nightly._kept(root, load_params(path), done))
    assert (state.name, state.is_failed()) == ("NotPushed", True)
    assert str(state.message).startswith(
        "The night is complete, but it is not pushed: --push needs a default DVC remote"
    )
    assert "infalign-helpful version 3 is not promoted" in str(state.message)
    git(root, "init", "--quiet", "--bare", str(root.parent / "store.git"))
    git(root, "remote", "add", "origin", str(root.parent / "store.git"))
    dvc = [sys.executable, "-m", "dvc", "remote", "add", "-d", "storage", "../store"]
    subprocess.run(dvc, cwd=root, env=fresh.environment, check=True, capture_output=True)
    state = asyncio.run(nightly._kept(root, load_params(path), done))
    assert (state.name, state.is_completed()) == ("Refused", True)
    there = git(root, "ls-remote", "origin").split()
    assert there[1::2] == ["refs/heads/nights", "refs/tags/infalign-helpful/3"]
    assert there[0] == nights.nights(root, "nights")[0].commit
    assert told[-1].startswith("DVC ")
