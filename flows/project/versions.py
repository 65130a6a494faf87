"""DVC and git, through their command lines: what is stale, how to remake it, what it is made of.

Nothing here imports DVC. A stage instance (`align@helpful-ctrl`) is a stage of dvc.yaml.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.children.processes import Finished, Tell, child_environment, redact, run_child
from flows.project.git import git
from infalign.errors import InputError

DVC = (sys.executable, "-m", "dvc")
RUN, COMPARISON = "report", "compare"  # the last stages of `infalign run` and `infalign compare`
LOCK_WAIT_SECONDS = 600.0
_EDGE = re.compile(r'^"([^"]+)"(?: -> "([^"]+)")?;$')
_EXIT = re.compile(r"exited with (-?\d+)")
_BUSY = re.compile(r"[Uu]nable to acquire lock|it is being blocked by|is busy")
_HALF = re.compile(r"dvc\.lock' (validation failed|is invalid)|unable to read: '.*dvc\.lock'")
_ADVICE = re.compile(r"^(Is your cache up to date\?|<https://error\.dvc\.org/.*>)$")
_BLOCKER = re.compile(r"\(PID (\d+)\): (.*)")
_HINT = re.compile(
    r"^(> |Running stage |Updating lock file|Generating lock file|To track the|To enable auto"
    r"|\tgit add|\tdvc config|Use `dvc push`|Data and pipelines are up"
    r"|Stage '.*' (is cached|didn't change))"
)


class Busy(RuntimeError):
    """Another DVC command holds the repository, or files of a stage."""


class StageFailed(RuntimeError):
    """A stage ended with an error of its own; running it again would not help."""

    def __init__(self, message: str, user_error: bool) -> None:
        super().__init__(message)
        self.user_error = user_error


class StageKilled(RuntimeError):
    """A stage was ended from outside (out of memory, kill -9): it can resume."""


class PushFailed(RuntimeError):
    """The DVC remote does not take the results."""


@dataclass(frozen=True)
class Plan:
    """The stage instances in an order that respects their edges, and which are not up to date."""

    upstream: dict[str, tuple[str, ...]]
    stale: dict[str, str]  # instance to reason, descendants of stale ones included

    @property
    def instances(self) -> list[str]:
        """Every instance, dependencies first."""
        return list(self.upstream)


def check_project(root: Path) -> None:
    """Raise one sentence for a folder in which DVC and git cannot work."""
    if not (root / "dvc.yaml").is_file():
        raise InputError(
            f"{root} has no dvc.yaml: run from the project's root, or make one: `infalign init`."
        )
    if not git(root, "rev-parse", "--show-toplevel", fails=True):
        raise InputError(
            f"{root} is not in a git repository, where the versions of its files are kept: "
            "run `git init` there, or clone the project."
        )
    if not (root / ".dvc").is_dir():
        raise InputError(f"{root} has no .dvc folder: run `dvc init` there.")


def git_state(root: Path) -> dict[str, str]:
    """The commit (`none` before the first) and whether the working tree differs from it."""
    commit = git(root, "rev-parse", "--verify", "--quiet", "HEAD", fails=True) or "none"
    dirty = bool(git(root, "status", "--porcelain", fails=True))
    return {"commit": commit, "dirty": str(dirty).lower()}


async def dvc(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a short DVC command to its end."""
    child = await asyncio.create_subprocess_exec(
        *DVC,
        *arguments,
        cwd=root,
        env=child_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await child.communicate()
    except BaseException:
        if child.returncode is None:
            child.kill()
        with contextlib.suppress(TimeoutError):  # reap it, and close the pipes
            await asyncio.wait_for(child.communicate(), 5)
        raise
    assert child.returncode is not None
    return subprocess.CompletedProcess(arguments, child.returncode, out.decode(), err.decode())


async def read_plan(
    root: Path,
    tell: Tell,
    wait_seconds: float = LOCK_WAIT_SECONDS,
    target: str | None = None,
) -> Plan:
    """Ask DVC once for the graph and for what is stale; wait while someone else holds its lock.

    Args:
        target: the stage that is wanted, with all it depends on; None: every stage of dvc.yaml.
    """
    only = () if target is None else (target,)
    graph, status = await asyncio.gather(
        dvc(root, "dag", "--dot", *only),
        _status(root, tell, wait_seconds, target),
        return_exceptions=True,  # both have ended when either is an error
    )
    if isinstance(status, BaseException):
        raise status
    if isinstance(graph, BaseException):
        raise graph
    if graph.returncode:
        raise InputError(sentence("dvc.yaml", graph.stderr))
    upstream = _sorted(parse_graph(graph.stdout))
    return Plan(upstream, spread(upstream, {k: reason(v) for k, v in status.items()}))


async def _status(
    root: Path, tell: Tell, wait_seconds: float, target: str | None
) -> dict[str, Any]:
    only = () if target is None else ("--with-deps", target)
    deadline, told = time.monotonic() + wait_seconds, False
    while True:
        answer = await dvc(root, "status", "--json", *only)
        if not answer.returncode:
            return dict(json.loads(answer.stdout or "{}"))
        if not _BUSY.search(answer.stderr):
            raise InputError(sentence("dvc.yaml", answer.stderr))
        if time.monotonic() > deadline:
            raise Busy(f"{_holder(answer.stderr)} still holds DVC's lock: end it, then run again.")
        if not told:
            tell(f"Waiting for {_holder(answer.stderr)}, which holds DVC's lock.")
            told = True
        await asyncio.sleep(1)


def _holder(text: str) -> str:
    match = _BLOCKER.search(text)
    return f"`{match[2]}` (PID {match[1]})" if match else "another DVC command"


def sentence(where: str, stderr: str) -> str:
    """What DVC says of its failure, redacted, without its advice."""
    lines = [line for line in stderr.splitlines() if line.strip() and not _ADVICE.match(line)]
    errors = [number for number, line in enumerate(lines) if line.startswith("ERROR: ")]
    lines = lines[errors[0] :] if errors else lines
    words = " ".join(line.removeprefix("ERROR: ") for line in lines[:6])
    return redact(f"{where}: DVC says: {words or 'nothing'}")


def parse_graph(dot: str) -> dict[str, set[str]]:
    """Instances and what each depends on, from `dvc dag --dot`; .dvc files are not instances."""
    upstream: dict[str, set[str]] = {}
    for line in dot.splitlines():
        match = _EDGE.match(line.strip())
        if not match:
            continue
        first, second = match.groups()
        for name in (first, second):
            if name and not name.endswith(".dvc"):
                upstream.setdefault(name, set())
        if second and first in upstream:
            upstream[second].add(first)
    return upstream


def _sorted(upstream: Mapping[str, set[str]]) -> dict[str, tuple[str, ...]]:
    """Dependencies first, otherwise in the order of dvc.yaml."""
    ordered: dict[str, tuple[str, ...]] = {}
    while len(ordered) < len(upstream):
        ready = [n for n in upstream if n not in ordered and upstream[n] <= ordered.keys()]
        ordered.update({name: tuple(sorted(upstream[name])) for name in ready})
    return ordered


def spread(upstream: Mapping[str, tuple[str, ...]], first: Mapping[str, str]) -> dict[str, str]:
    """The stale instances with all that depends on them, each with the reason."""
    stale: dict[str, str] = {}
    for name, needs in upstream.items():
        cause = next((need for need in needs if need in stale), None)
        if name in first:
            stale[name] = first[name]
        elif cause is not None:
            stale[name] = f"after {cause}"
    return stale


def reason(entries: list[Any]) -> str:
    """What DVC says changed, in a few words."""
    words: list[str] = []
    for entry in entries:
        if isinstance(entry, str):
            words.append(entry)
            continue
        for kind, changes in entry.items():
            for path, change in changes.items():
                if isinstance(change, dict):  # params: {key: modified}
                    words += [f"{key} {what}" for key, what in change.items()]
                elif path != "params.yaml":
                    suffix = " (output)" if kind == "changed outs" else ""
                    words.append(f"{path} {change}{suffix}")
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


async def reproduce(
    root: Path,
    instance: str,
    tell: Tell,
    environment: Mapping[str, str],
    keep_open: tuple[int, ...] = (),
) -> str:
    """Bring one instance up to date; `made`, `restored` (from DVC's cache) or `unchanged`."""
    command = [*DVC, "--wait-for-lock", "repro", "--single-item", instance]

    def tell_own(line: str) -> None:
        if not _HINT.match(line):
            tell(line)

    done = await run_child(command, root, environment, tell_own, keep_open)
    if done.returncode == 0:
        return outcome(instance, done.lines)
    raise failure(instance, done)


def outcome(instance: str, lines: tuple[str, ...]) -> str:
    """What a successful `dvc repro` did, from its words."""
    text = "\n".join(lines)
    if f"Stage '{instance}' didn't change" in text:
        return "unchanged"
    return "restored" if f"Stage '{instance}' is cached" in text else "made"


def failure(instance: str, done: Finished) -> Exception:
    """The error that a failed `dvc repro` stands for."""
    text = "\n".join(done.lines)
    own = [x for x in done.lines if not _HINT.match(x) and not x.startswith(("ERROR:", "WARNING:"))]
    last = own[-1].removeprefix(f"{instance.split('@')[0]}: ") if own else ""
    if _BUSY.search(text):
        return Busy(f"{instance}: {_holder(text)} holds DVC's lock on its files.")
    if _HALF.search(text):
        return StageKilled(f"{instance}: a DVC that was killed left half of dvc.lock.")
    found = _EXIT.search(text)
    code = int(found[1]) if found else done.returncode
    if done.returncode < 0 or code < 0 or code in (137, 143):
        return StageKilled(f"{instance} was killed from outside (status {code}).")
    if not found:
        errors = [line.removeprefix("ERROR: ") for line in done.lines if line.startswith("ERROR")]
        return StageFailed(f"{instance}: {' '.join(errors) or last or 'dvc repro failed'}", True)
    return StageFailed(f"{instance}: {last or f'exited with {code}'}", code == 2)


def lock_entries(root: Path) -> dict[str, Any]:
    """What dvc.lock says of every instance: command, dependencies, params, outputs."""
    try:
        tree = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return {}
    except yaml.YAMLError:
        raise InputError(
            f"{root / 'dvc.lock'} is not YAML: restore it with `git checkout dvc.lock`, "
            "or remove it: DVC's run cache remakes it."
        ) from None
    return dict(tree.get("stages") or {})


def entry_digest(entry: Any) -> str:
    """One name for an instance made from exactly these inputs with exactly these outputs."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True, default=str).encode()).hexdigest()[:32]


async def add_folder(root: Path, path: str) -> None:
    """Put a folder under DVC's control."""
    answer = await dvc(root, "--wait-for-lock", "add", path)
    if answer.returncode:
        raise InputError(sentence(path, answer.stderr))


async def remote_settings(root: Path) -> dict[str, str]:
    """DVC's settings of remotes, with paths made absolute: `remote.storage.url`, `core.remote`."""
    answer = await dvc(root, "config", "--list")
    if answer.returncode:
        raise InputError(sentence(".dvc/config", answer.stderr))
    pairs = (line.partition("=") for line in answer.stdout.splitlines())
    return {k: v for k, _, v in pairs if k.startswith("remote.") or k == "core.remote"}


async def check_remote(root: Path) -> None:
    """Raise one sentence where there is nothing to push to."""
    if "core.remote" not in await remote_settings(root):
        raise InputError(
            "--push needs a default DVC remote, and .dvc/config names none: add one with "
            "`dvc remote add -d storage /path/or/s3://bucket`."
        )


async def push(root: Path, tell: Tell) -> None:
    """Push what the workspace holds, and the run cache, to the default remote."""
    command = [*DVC, "--wait-for-lock", "push", "--run-cache"]
    done = await run_child(command, root, child_environment(), lambda _: None)
    if done.returncode:
        errors = [x.removeprefix("ERROR: ") for x in done.lines if x.startswith("ERROR")]
        raise PushFailed(_one_line(errors or list(done.lines)[-1:]))
    tell(f"DVC      {done.lines[-1] if done.lines else 'pushed'}")


def _one_line(lines: list[str]) -> str:
    """The lines as one sentence, redacted."""
    return redact(" ".join(lines).strip().rstrip(".") or "it says nothing") + "."
