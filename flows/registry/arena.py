"""Candidate and champion meet: both packages are fetched, and a child process has them answer.

The computing is `infalign.deployment.arena`; nothing here computes. What came of it is kept by
content in `.infalign/arena/`: two that have met on the same prompts do not meet again.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.children.locks import gpus_held, visible_gpus
from flows.children.processes import Tell, child_environment, run_child
from flows.project.versions import StageKilled
from flows.registry.registry import Registry, model_name
from infalign.deployment.bouts import Bouts, bouts_folder, bouts_name, read_bouts
from infalign.deployment.evidence import Evidence, read_evidence
from infalign.deployment.gate import obstacles
from infalign.errors import InputError
from infalign.settings.params import Params

KEPT_DAYS = 14.0  # of answers and arenas


class NotMet(RuntimeError):
    """Candidate and champion have not met in the arena yet."""


@dataclass(frozen=True)
class Entrant:
    """Who meets whom: a registered version, or a package that is not registered."""

    version: str | None
    package: Path | None = None


def recall_bouts(
    root: Path, params: Params, candidate: Evidence, champion: Evidence | None
) -> Bouts | None:
    """What came of the arena of the two; None where there is none to hold.

    Raises:
        NotMet: if it was not held yet.
    """
    folder = _place(root, params, candidate, champion)
    if folder is None:
        return None
    if not (folder / "facts.json").exists():
        raise NotMet(f"the candidate has not met the champion of {candidate.facts.objective}")
    return read_bouts(folder)


def _place(
    root: Path, params: Params, candidate: Evidence, champion: Evidence | None
) -> Path | None:
    """Where the arena of the two is kept; None where there is none to hold."""
    objective = candidate.facts.objective
    meets = champion is not None and not obstacles(candidate, champion)
    if not meets and not params.promotion.suites_of(objective):
        return None
    name = bouts_name(root, params, candidate, champion if meets else None)
    return bouts_folder(root, objective, name)


async def meet(
    registry: Registry, params: Params, objective: str, candidate: Entrant, tell: Tell
) -> bool:
    """Hold the arena of a candidate and the present champion; whether there was one to hold."""
    champion = await asyncio.to_thread(registry.champions(objective).champion)
    if champion is not None and champion == candidate.version:
        return False
    ours = await asyncio.to_thread(_evidence, registry, objective, candidate)
    theirs = None
    if champion is not None:
        theirs = await asyncio.to_thread(_evidence, registry, objective, Entrant(champion))
    out = _place(registry.root, params, ours, theirs)
    if out is None or (out / "facts.json").exists():
        return False
    begun, name = time.monotonic(), candidate.version or "(not registered)"
    comparable = theirs is not None and not obstacles(ours, theirs)
    whom = f"the champion, version {champion}" if comparable else "its suites alone"
    tell(f"{model_name(objective)} version {name} meets {whom}.")
    sides = [candidate]
    if comparable:
        sides.append(Entrant(champion))
    async with contextlib.AsyncExitStack() as held:
        folders = [
            await held.enter_async_context(_fetched(registry, objective, side)) for side in sides
        ]
        await _hold(registry.root, params, objective, [*folders, out], tell)
    tell(f"The arena took {time.monotonic() - begun:.0f} s.")
    _forget(registry.root)
    return True


async def _hold(
    root: Path, params: Params, objective: str, folders: Sequence[Path], tell: Tell
) -> None:
    """The child process, with a GPU of its own where there are any."""
    command = [sys.executable, "-m", "infalign.deployment.arena", "--objective", objective]
    command += [str(folder) for folder in folders]
    gpus = await asyncio.to_thread(visible_gpus) if params.run.device != "cpu" else []
    if gpus:
        async with gpus_held(gpus) as own:
            environment = child_environment({"CUDA_VISIBLE_DEVICES": own.visible})
            done = await run_child(command, root, environment, tell, own.descriptors)
    else:
        done = await run_child(command, root, child_environment(), tell)
    if done.returncode == 2:
        raise InputError((done.lines or ("arena failed",))[-1].removeprefix("arena: "))
    if done.returncode:
        raise StageKilled(f"arena@{objective} ended with {done.returncode}.")


def _evidence(registry: Registry, objective: str, side: Entrant) -> Evidence:
    """What was measured of a side, without its models."""
    if side.version is None:
        assert side.package is not None
        return read_evidence(side.package / "evidence")
    with registry.evidence(registry.version(objective, side.version)) as folder:
        return read_evidence(folder)


@contextlib.asynccontextmanager
async def _fetched(registry: Registry, objective: str, side: Entrant) -> AsyncIterator[Path]:
    """The package of a side, on this machine."""
    if side.version is None:
        assert side.package is not None
        yield side.package
        return
    with tempfile.TemporaryDirectory() as folder:
        yield await asyncio.to_thread(registry.package, objective, side.version, Path(folder))


def _forget(root: Path) -> None:
    """Remove what is old: a champion that stays so long is asked again."""
    oldest = time.time() - KEPT_DAYS * 86400
    for path in (root / ".infalign" / "arena").glob("*/*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
