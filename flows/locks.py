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
class Gpu:
    """A graphics processor that is held: its number and the descriptor of its lock."""

    number: str
    descriptor: int


def gpu_numbers() -> list[str]:
    """The GPUs this process may use."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    devices = Path("/dev").glob("nvidia[0-9]*")
    return sorted(path.name.removeprefix("nvidia") for path in devices)


@contextlib.asynccontextmanager
async def gpu_held(numbers: list[str], folder: Path | None = None) -> AsyncIterator[Gpu]:
    """Hold the first GPU that is free, of all users of this machine.

    A child that inherits the descriptor keeps the lock until it ends, even if this process dies.
    """
    folder = folder or Path(tempfile.gettempdir())
    paths = {n: folder / f"infalign-gpu-{n.replace('/', '_')}.lock" for n in numbers}
    opened = {n: _open(path) for n, path in paths.items()}
    try:
        while True:
            for number, descriptor in opened.items():
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield Gpu(number, descriptor)
                    return
            await asyncio.sleep(0.5)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


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
