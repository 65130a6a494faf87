"""File locks, which the kernel releases when their holder dies: one run a workspace, one stage a
GPU. Prefect's own concurrency slots outlive a killed run, so they are not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from infalign.errors import InputError


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
    """Graphics processors that are held: their numbers, as CUDA_VISIBLE_DEVICES spells them, and
    the descriptors of their locks."""

    numbers: str
    descriptors: tuple[int, ...]


def gpu_numbers() -> list[str]:
    """The GPUs this process may use."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    devices = Path("/dev").glob("nvidia[0-9]*")
    return sorted(path.name.removeprefix("nvidia") for path in devices)


@contextlib.asynccontextmanager
async def gpus_held(
    numbers: list[str], many: int = 1, folder: Path | None = None
) -> AsyncIterator[Gpus]:
    """Hold the first `many` GPUs that are free, of all users of this machine, all of them or none.

    A child that inherits the descriptors keeps the locks until it ends, even if this process dies.
    """
    if len(numbers) < many:
        raise InputError(
            f"params.yaml: run.processes = {many}, but this machine has {len(numbers)} GPUs: lower "
            "it, or set run.device to cpu."
        )
    folder = folder or Path(tempfile.gettempdir())
    paths = {n: folder / f"infalign-gpu-{n.replace('/', '_')}.lock" for n in numbers}
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
    for number, descriptor in opened.items():
        if len(held) == many:
            break
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held[number] = descriptor
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
