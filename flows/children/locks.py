"""File locks, which the kernel releases when their holder dies: one run a workspace, one stage a
GPU. Prefect's own concurrency slots outlive a killed run, so they are not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from infalign.errors import InputError

SMI_SECONDS = 60.0  # that nvidia-smi may take: without its daemon it wakes every card


@contextlib.contextmanager
def run_lock(root: Path) -> Iterator[None]:
    """Hold the workspace; the same process may take it again."""
    folder = root / ".infalign" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "run.lock", thread_local=False, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another run is at work in {root}: wait for it or end it; another set of params at "
            "the same time needs another clone or worktree."
        ) from None
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Gpus:
    """Graphics processors that are held: what CUDA_VISIBLE_DEVICES is for who uses them, and the
    descriptors of their locks."""

    visible: str
    descriptors: tuple[int, ...]


def visible_gpus() -> list[str]:
    """The GPUs that CUDA shows to this process, by UUID: their numbers differ between containers.

    Where nvidia-smi is missing, as CUDA_VISIBLE_DEVICES spells them, or by their place among the
    device files, which is how CUDA counts them.
    """
    cards, asked = _cards(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if asked is None else [part.strip() for part in asked.split(",")]
    if cards is None:
        files = Path("/dev").glob("nvidia[0-9]*")
        every = [str(number) for number, _ in enumerate(files)]
        return every if names is None else [name for name in names if name not in ("", "-1")]
    if names is None:
        return [device for card in cards for device in card]
    found: list[str] = []
    for name in names:
        chosen = _chosen(name, cards)
        if not chosen:  # CUDA shows what stands before a name that it does not know
            break
        found += chosen
    return list(dict.fromkeys(found))


def _chosen(name: str, cards: list[list[str]]) -> list[str]:
    """The devices of one name in CUDA_VISIBLE_DEVICES: a number, or how a UUID begins."""
    if name.isdecimal():
        return cards[int(name)] if int(name) < len(cards) else []
    found = [device for card in cards for device in card if name and device.startswith(name)]
    return found if len(found) == 1 else []


def _cards() -> list[list[str]] | None:
    """The cards of this machine or container, each with its devices: itself, or its MIG slices.

    None where nvidia-smi does not say.
    """
    try:
        command = ["nvidia-smi", "-L"]
        told = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=SMI_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    cards: list[list[str]] = []
    for kind, device in re.findall(r"^\s*(GPU|MIG)\b.*\(UUID: ([^)\s]+)\)", told.stdout, re.M):
        if kind == "GPU":
            cards.append([device])
        elif cards:
            cards[-1] = [d for d in cards[-1] if d.startswith("MIG")] + [device]
    return cards


@contextlib.asynccontextmanager
async def gpus_held(
    devices: list[str], many: int = 1, folder: Path | None = None
) -> AsyncIterator[Gpus]:
    """Hold the first `many` GPUs that are free, of all users of this machine, all of them or none.

    A child that inherits the descriptors keeps the locks until it ends, even if this process dies.
    """
    if len(devices) < many:
        raise InputError(
            f"params.yaml: run.processes = {many}, but this machine has {len(devices)} GPUs: lower "
            "it, or set run.device to cpu."
        )
    folder = folder or Path(tempfile.gettempdir())
    paths = {n: folder / f"infalign-gpu-{n.replace('/', '_')}.lock" for n in devices}
    opened = {n: _open(path) for n, path in paths.items()}
    try:
        while True:
            held = _take(opened, many)
            if len(held) == many:
                yield Gpus(",".join(held), tuple(held.values()))
                return
            for descriptor in held.values():  # another run may lack just these
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            await asyncio.sleep(0.5)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def _take(opened: dict[str, int], many: int) -> dict[str, int]:
    """Lock what is free, `many` at most."""
    held: dict[str, int] = {}
    for device, descriptor in opened.items():
        if len(held) == many:
            break
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held[device] = descriptor
    return held


def _open(path: Path) -> int:
    """Open a lock that every user may take, and never through a link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}): remove it.") from None
    with contextlib.suppress(PermissionError):
        os.fchmod(descriptor, 0o666)
    return descriptor
