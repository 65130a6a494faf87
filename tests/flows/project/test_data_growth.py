"""`infalign data add --into`, `data log`, `data back`: data that grows, and the way back."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from flows.project import data_growth, data_versions
from infalign.errors import InputError
from tests.flows.conftest import Project, git, write_toy


def rows(path: Path, *prompts: str, swapped: bool = False) -> Path:
    """Pairs of some prompts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = ("no", "yes") if swapped else ("yes", "no")
    lines = [{"prompt": p, "chosen": sides[0], "rejected": sides[1]} for p in prompts]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def held(root: Path) -> dict[str, bytes]:
    """Everything below data/, the pointers included."""
    folder = root / "data"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def commit(root: Path, words: str) -> str:
    """Commit the pointers."""
    git(root, "add", "data")
    git(root, "commit", "--quiet", "--message", words)
    return git(root, "rev-parse", "--short", "HEAD")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, quiet: dict[str, str]) -> Project:
    """A project whose data `mine` has been added to once: two commits."""
    root = tmp_path_factory.mktemp("growth") / "project"
    write_toy(root)
    project = Project(root, dict(quiet))
    first = rows(root.parent / "first.jsonl", *(f"old {n}" for n in range(20)))
    status, output = project.inside("data", "add", str(first), "--name", "mine")
    assert status == 0, output
    commit(root, "First data")
    more = rows(root.parent / "more.jsonl", "old 1", "new 1", "new 2")
    status, output = project.inside("data", "add", str(more), "--into", "mine")
    assert status == 0, output
    assert "3 rows read, 2 added to data/raw/mine: 1 are there already" in output
    assert "pairs: 20 before, 22 now" in output
    assert "characters a response: 2 before, 2 of the new" in output
    assert output.endswith("commit data/raw/mine.dvc with git.\n")
    commit(root, "More data")
    return project


def test_again_changes_nothing_and_a_contradiction_is_kept_or_dropped(grown: Project) -> None:
    root, before = grown.root, held(grown.root)
    assert set(before) == {
        "raw/.gitignore",
        "raw/mine.dvc",
        "raw/mine/first.jsonl",
        "raw/mine/first_0002.jsonl",
    }
    again = ("data", "add", str(root.parent / "more.jsonl"), "--into", "mine")
    status, output = grown.inside(*again)
    assert status == 0, output
    assert output.endswith("Nothing is new: nothing was changed.\n")
    contrary = rows(root.parent / "contrary.jsonl", "old 2", swapped=True)
    params = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(params.replace("contrary: keep", "contrary: drop"))
    status, output = grown.inside("data", "add", str(contrary), "--into", "mine")
    (root / "params.yaml").write_text(params)
    assert status == 0, output
    assert "1 rows read, 0 added to data/raw/mine: 0 are there already, 1 contradict" in output
    assert held(root) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "{broken}", "--into", "mine"], "broken.jsonl line 1 is not JSON"),
        (["add", "{more}", "--into", "nobody"], "data/raw/nobody is not there: bring it with"),
        (["add", "{more}", "--into", "mine", "--name", "x"], "--name and --into: give one"),
        (["add", "{more}", "--subset", "x"], "--subset goes with --into"),
        (["add", "{more}", "--into", "mine", "--subset", "x"], "mine has no subset 'x', nor any"),
        (["log", "nobody"], "data/raw/nobody has no version yet"),
        (["back", "nowhere", "mine"], "'nowhere' has no data/raw/mine.dvc"),
        (["back", "--all", "mine"], "No such option"),
    ],
)
def test_bad_input_changes_nothing(grown: Project, arguments: list[str], words: str) -> None:
    (grown.root.parent / "broken.jsonl").write_text("hello\n")
    before = held(grown.root)
    places = {name: str(grown.root.parent / f"{name}.jsonl") for name in ("broken", "more")}
    status, output = grown.inside("data", *(a.format(**places) for a in arguments))
    assert status == 2, output
    assert words in output
    assert held(grown.root) == before


def test_versions_are_listed_and_gone_back_to(grown: Project) -> None:
    root = grown.root
    newest = held(root)
    status, output = grown.inside("data", "log")
    assert status == 0, output
    lines = output.splitlines()
    assert [line.split("  ")[-1] for line in lines] == ["More data", "First data"]
    assert "1 files" in lines[1]
    commits = [line.split("  ")[1] for line in lines]
    status, output = grown.inside("data", "back", commits[1])
    assert status == 0, output
    assert {p.name for p in (root / "data" / "raw" / "mine").iterdir()} == {"first.jsonl"}
    assert "not committed" in grown.inside("data", "log", "mine")[1].splitlines()[0]
    # What DVC does not have is not thrown away.
    (root / "data" / "raw" / "mine" / "first.jsonl").write_text("by hand\n")
    status, output = grown.inside("data", "back", commits[0])
    assert status == 2
    assert "has changes that DVC does not have" in output
    assert (root / "data" / "raw" / "mine" / "first.jsonl").read_text() == "by hand\n"
    (root / "data" / "raw" / "mine" / "first.jsonl").write_bytes(newest["raw/mine/first.jsonl"])
    assert grown.inside("data", "back", "HEAD", "mine")[0] == 0
    assert held(root) == newest


def test_a_version_that_nobody_has_leaves_all_as_it_was(grown: Project, tmp_path: Path) -> None:
    copy = Project(tmp_path / "copy", dict(grown.environment))
    shutil.copytree(grown.root, copy.root, symlinks=True)
    before = held(copy.root)
    old = data_versions.log(copy.root, "mine")[1].md5
    (copy.root / ".dvc" / "cache" / "files" / "md5" / old[:2] / old[2:]).unlink()
    status, output = copy.inside("data", "back", "HEAD~1")
    assert status == 2
    assert "the data is neither in DVC's cache nor in a remote" in output
    assert "DVC says: nothing" not in output
    assert held(copy.root) == before


def test_a_failure_of_dvc_leaves_all_as_it_was(
    grown: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = held(grown.root)

    async def fails(root: Path, path: str) -> None:
        raise InputError("no space left")

    monkeypatch.setattr(data_growth.versions, "add_folder", fails)
    more = rows(grown.root.parent / "evenmore.jsonl", "newer")
    status, output = grown.inside("data", "add", str(more), "--into", "mine")
    assert status == 2
    assert "no space left" in output
    assert held(grown.root) == before


def test_what_a_kill_left_under_another_name_comes_back(grown: Project) -> None:
    raw, before = grown.root / "data" / "raw", held(grown.root)
    (raw / "mine").rename(raw / ".mine.old")
    shutil.copytree(raw / ".mine.old", raw / ".mine.new")
    again = ("data", "add", str(grown.root.parent / "more.jsonl"), "--into", "mine")
    status, output = grown.inside(*again)
    assert status == 0, output
    assert output.endswith("Nothing is new: nothing was changed.\n")
    assert held(grown.root) == before


def test_the_last_version_is_read_from_the_cache(grown: Project, tmp_path: Path) -> None:
    version = data_versions.log(grown.root, "mine")[0]
    unpacked = data_versions.unpacked(grown.root, version.md5, "mine", tmp_path / "there")
    folder = asyncio.run(unpacked)
    assert folder is not None
    found = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert found == {p.name: p.read_bytes() for p in (grown.root / "data/raw/mine").iterdir()}
    lost = data_versions.unpacked(grown.root, "0" * 32 + ".dir", "mine", tmp_path / "lost")
    assert asyncio.run(lost) is None
    assert not (tmp_path / "lost").exists()
