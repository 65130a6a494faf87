"""Nights in git: what a commit holds, what it leaves alone, the way back by date."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.project import nights
from infalign.errors import InputError
from tests.flows.conftest import git


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one commit; nobody has told git who commits."""
    place = tmp_path / "project"
    (place / "data" / "raw").mkdir(parents=True)
    git(tmp_path, "init", "--quiet", "-b", "main", str(place))
    for name in ("params.yaml", "code.py", "own.txt"):
        (place / name).write_text(f"{name}\n")
    git(place, "add", ".")
    git(place, "commit", "--quiet", "-m", "first")
    return place


def at(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    """It is noon."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_DATE", f"{day}T12:00:00Z")


def test_a_night_holds_what_ran_and_touches_nothing_of_the_users(root: Path) -> None:
    (root / "code.py").write_text("changed\n")
    (root / "dvc.lock").write_text("schema: '2.0'\n")
    (root / "data" / "raw" / "mine.dvc").write_text("outs: []\n")
    (root / "notes.txt").write_text("nobody asked for this\n")
    (root / "own.txt").write_text("staged\n")
    git(root, "add", "own.txt")
    before = git(root, "status", "--short"), git(root, "diff", "--cached")
    made = nights.commit(root, "nights", "completed, 5 made", ["helpful."], {"helpful": "3"})
    assert (git(root, "status", "--short"), git(root, "diff", "--cached")) == before
    assert git(root, "rev-parse", "--abbrev-ref", "HEAD") == "main"
    held = git(root, "ls-tree", "-r", "--name-only", made).split()
    assert held == ["code.py", "data/raw/mine.dvc", "dvc.lock", "own.txt", "params.yaml"]
    assert git(root, "show", f"{made}:code.py") == "changed"
    assert git(root, "rev-parse", "infalign-helpful/3") == made
    message = git(root, "log", "-1", "--format=%B", made)
    assert message.startswith("Night of 20")
    assert f"Code: {git(root, 'rev-parse', 'main')}" in message
    again = nights.commit(root, "nights", "completed, 5 unchanged", [], {"helpful": "3"})
    assert git(root, "rev-parse", f"{again}^") == made
    assert git(root, "rev-parse", "infalign-helpful/3") == made  # where it came of


def test_history_is_a_line_and_every_night_is_found_by_its_date(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for day in ("2026-11-03", "2026-11-04", "2026-11-09"):
        at(monkeypatch, day)
        (root / "params.yaml").write_text(f"day: {day}\n")
        found[day] = nights.commit(root, "nights", "completed", [], {})
        (root / "code.py").write_text(f"{day}\n")  # the user goes on, on main
        git(root, "commit", "-qam", f"after {day}")
    shown = nights.nights(root, "nights")
    assert [night.when[:10] for night in shown] == ["2026-11-09", "2026-11-04", "2026-11-03"]
    assert "merge" not in git(root, "log", "--merges", "--format=%s", "nights")
    for day in found:
        assert git(root, "show", f"{found[day]}:params.yaml") == f"day: {day}"
        assert nights.of_date(root, "nights", day) == found[day]
    assert nights.of_date(root, "nights", "2026-11-08") == found["2026-11-04"]
    assert nights.of_date(root, "nights", "2027-01-01") == found["2026-11-09"]
    with pytest.raises(InputError, match="the first one is of 2026-11-03"):
        nights.of_date(root, "nights", "2026-11-02")
    with pytest.raises(InputError, match="is no day"):
        nights.of_date(root, "nights", "yesterday")
    with pytest.raises(InputError, match="there is none yet"):
        nights.of_date(root, "other", "2026-11-09")
    with pytest.raises(InputError, match="branch is null"):
        nights.of_date(root, None, "2026-11-09")


def test_the_branch_must_be_nobodys(root: Path, tmp_path: Path) -> None:
    nights.commit(root, "nights", "completed", [], {})
    git(root, "worktree", "add", "--quiet", str(tmp_path / "other"), "nights")
    with pytest.raises(InputError, match="'nights' is checked out"):
        nights.commit(root, "nights", "completed", [], {})
    assert len(nights.nights(root, "nights")) == 1


def test_nights_are_pushed_with_their_versions(root: Path, tmp_path: Path) -> None:
    made = nights.commit(root, "nights", "completed", [], {"helpful": "1"})
    with pytest.raises(InputError, match="needs a git remote"):
        nights.push(root, "nights")
    git(tmp_path, "init", "--quiet", "--bare", "store.git")
    git(root, "remote", "add", "origin", str(tmp_path / "store.git"))
    nights.push(root, "nights")
    there = git(root, "ls-remote", "origin").split()
    assert there == [made, "refs/heads/nights", made, "refs/tags/infalign-helpful/1"]
    git(root, "remote", "set-url", "origin", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="git push: "):
        nights.push(root, "nights")


def test_a_repository_without_a_commit_has_nights_all_the_same(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "-b", "main")
    (tmp_path / "params.yaml").write_text("a: 1\n")
    made = nights.commit(tmp_path, "nights", "completed", [], {})
    assert git(tmp_path, "show", f"{made}:params.yaml") == "a: 1"
    assert git(tmp_path, "rev-list", "--count", "nights") == "1"
