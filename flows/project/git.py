"""Git, through its command line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from flows.children.processes import redact
from infalign.errors import InputError


def answer(
    root: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run git in a folder to its end, whatever that is."""
    return subprocess.run(
        ["git", "-c", "core.quotepath=off", *arguments],
        cwd=root,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def git(
    root: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    fails: bool = False,
) -> str:
    """What git says; raises one sentence where it fails, or gives nothing where that may be."""
    done = answer(root, *arguments, environment=environment)
    if done.returncode and not fails:
        raise InputError(f"git {arguments[0]}: {words(done)}")
    return "" if done.returncode else os.fsdecode(done.stdout).strip()


def words(done: subprocess.CompletedProcess[bytes]) -> str:
    """What git says of its failure, redacted, on one line."""
    return redact(" ".join(done.stderr.decode(errors="replace").split()) or "nothing")[:300]


def shown(root: Path, commit: str, name: str) -> bytes | None:
    """A file of a commit, by its path in the project; None where it has none."""
    done = answer(root, "show", "--end-of-options", f"{commit}:./{name}")
    return None if done.returncode else done.stdout
