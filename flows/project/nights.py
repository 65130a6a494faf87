"""Nights in git: one commit each, on a branch of its own that no working tree is on.

A night's commit holds what ran: every file that git tracks as it was then, `dvc.lock`,
`params.yaml` and the pointers to the data. It goes behind the night before, so that the branch is a
line, and index, working tree and branches of the user's stay as they are. Versions that came of a
night are tags on it.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flows.project.git import git
from infalign.errors import InputError

MARK = "Night of "  # how the subject of a night's commit begins
TAG = "infalign-{objective}/{version}"
_TAG = re.compile(r"refs/tags/infalign-[^/]+/\d+")  # the same, as a whole reference
# What a run writes and git may not track yet.
_OWN = ("dvc.lock", "dvc.yaml", "params.yaml")
_POINTERS = ("data/raw/*.dvc", "data/raw/.gitignore", "champion/*.dvc", "champion/.gitignore")
_DAY = re.compile(r"^\d{4}-\d{2}-\d{2}$")


class Night(NamedTuple):
    """One night's commit."""

    commit: str
    when: str  # UTC, as git has it
    subject: str


def commit(
    root: Path, branch: str, words: str, body: Sequence[str], made: Mapping[str, str]
) -> str:
    """Commit the night: the commit.

    Args:
        branch: made where it is missing.
        words: of the subject, behind the date.
        body: lines.
        made: objective to the version that came of the night.

    Raises:
        InputError: where git cannot, or someone else moved the branch meanwhile.
    """
    ref = f"refs/heads/{branch}"
    check_branch(root, branch)
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        head = git(root, "rev-parse", "--verify", "--quiet", "HEAD", fails=True)
        git(root, "read-tree", head or "--empty", environment=index)
        git(root, "add", "--update", "--", ".", environment=index)
        own = [name for name in _OWN if (root / name).is_file()]
        own += [str(path.relative_to(root)) for glob in _POINTERS for path in root.glob(glob)]
        git(root, "add", "--force", "--", *own, environment=index)
        tree = git(root, "write-tree", environment=index)
    before = git(root, "rev-parse", "--verify", "--quiet", ref, fails=True)
    parent = before or head
    who = _identity(root)
    day = git(root, "var", "GIT_COMMITTER_IDENT", environment=who).rsplit(">", 1)[1].split()[0]
    text = "\n".join([f"{MARK}{_date(int(day))}: {words}", "", *body, f"Code: {head or 'none'}"])
    command = ["commit-tree", tree, *(["-p", parent] if parent else []), "-m", text]
    made_commit = git(root, *command, environment=who)
    git(root, "update-ref", "-m", "a night", ref, made_commit, before or "0" * len(made_commit))
    for objective, version in made.items():
        tag = TAG.format(objective=objective, version=version)
        if not git(root, "tag", "--list", tag):
            git(root, "tag", "--", tag, made_commit)
    return made_commit


def check_branch(root: Path, branch: str) -> None:
    """Raise for a branch that a working tree is on: it would lag behind its own branch."""
    for line in git(root, "worktree", "list", "--porcelain").splitlines():
        if line == f"branch refs/heads/{branch}":
            raise InputError(
                f"schedule.branch = {branch!r} is checked out: nights are committed to a branch of "
                "their own, so check out another one, or name another one there."
            )


def nights(root: Path, branch: str) -> list[Night]:
    """The nights of a branch, the newest first; none where there is no such branch."""
    told = git(
        root,
        "log",
        "--first-parent",
        f"--grep=^{MARK}",
        "--date=format-local:%Y-%m-%d %H:%M",
        "--format=%H%x09%cd%x09%s",
        f"refs/heads/{branch}",
        "--",
        fails=True,
        environment={"TZ": "UTC"},
    )
    return [Night(*line.split("\t", 2)) for line in told.splitlines()]


def of_date(root: Path, branch: str | None, date: str) -> str:
    """The commit of the last night up to the end of a day, UTC."""
    if not _DAY.match(date):
        raise InputError(f"--date {date!r} is no day: write it as 2026-11-28.")
    if branch is None:
        raise InputError("schedule.branch is null, so that nights are in no branch: use --commit.")
    found = nights(root, branch)
    for night in found:
        if night.when[:10] <= date:
            return night.commit
    known = f"the first one is of {found[-1].when[:10]}" if found else "there is none yet"
    raise InputError(f"no night of branch {branch!r} was on {date} or before: {known}.")


def push(root: Path, branch: str) -> None:
    """Push the branch and its versions' tags to the user's git remote.

    Raises:
        InputError: where there is none, or it refuses.
    """
    remotes = git(root, "remote").split()
    if not remotes:
        raise InputError("schedule.push needs a git remote: add one with `git remote add`.")
    remote = "origin" if "origin" in remotes else remotes[0]
    tags = git(root, "tag", "--list", "infalign-*/*", "--merged", f"refs/heads/{branch}").split()
    wanted = [f"refs/heads/{branch}", *(f"refs/tags/{tag}" for tag in tags)]
    git(root, "push", "--quiet", remote, *wanted, environment={"GIT_TERMINAL_PROMPT": "0"})


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def is_version_tag(reference: str) -> bool:
    """Whether a reference is the tag that a night gave to the version which came of it."""
    return _TAG.fullmatch(reference) is not None


def _identity(root: Path) -> dict[str, str]:
    """Who commits, where git does not know."""
    found = {}
    for role in ("AUTHOR", "COMMITTER"):
        for what, default in (("NAME", "infalign"), ("EMAIL", "infalign@localhost")):
            name = f"GIT_{role}_{what}"
            known = os.environ.get(name) or git(root, "config", f"user.{what.lower()}", fails=True)
            found[name] = known or default
    return found
