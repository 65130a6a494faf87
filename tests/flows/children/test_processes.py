"""Children: their lines, their end, and what a killed run leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from flows.children.locks import gpus_held, run_lock, visible_gpus
from flows.children.processes import (
    born,
    child_environment,
    end_leftovers,
    is_same,
    redact,
    run_child,
)
from flows.services.services import Note
from infalign.errors import InputError

NEST = "import subprocess, sys, time; print('up', flush=True); " + (
    "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
)


def test_lines_and_progress(tmp_path: Path) -> None:
    code = r"print('a'); print('1\r2\r3\r', end=''); print('b\r'); print('no end', end='')"
    told: list[str] = []
    command = [sys.executable, "-c", code]
    done = asyncio.run(run_child(command, tmp_path, child_environment(), told.append))
    assert done.returncode == 0
    assert told == ["a", "1", "b", "no end"]
    assert not list((tmp_path / ".infalign" / "run").iterdir())


def test_a_cancelled_child_takes_its_children_along(tmp_path: Path) -> None:
    async def cancelled() -> int:
        up = asyncio.Event()
        command = [sys.executable, "-c", NEST]
        job = asyncio.create_task(
            run_child(command, tmp_path, child_environment(), lambda _line: up.set())
        )
        await up.wait()
        group = int(next((tmp_path / ".infalign" / "run").iterdir()).stem)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        return group

    group = asyncio.run(cancelled())
    assert _group(group) == []


def _group(group: int) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


@pytest.mark.parametrize("how", [born, lambda pid: psutil.Process(pid).create_time()])
def test_leftovers_are_ended_and_others_are_not(
    tmp_path: Path, how: Callable[[int], str | float]
) -> None:
    folder = tmp_path / ".infalign" / "run"
    folder.mkdir(parents=True)
    with (
        subprocess.Popen([sys.executable, "-c", NEST], start_new_session=True) as left,
        subprocess.Popen([sys.executable, "-c", NEST], start_new_session=True) as other,
    ):
        time.sleep(0.3)
        another = how(os.getpid())
        for child, started in ((left, how(left.pid)), (other, another)):
            told = {"pid": child.pid, "started": started, "group": True, "owner": 1}
            (folder / f"{child.pid}.json").write_text(json.dumps(told))
        (folder / "9.json").write_text("{")
        assert end_leftovers(tmp_path) == 1
        assert _group(left.pid) == []
        assert other.poll() is None
        os.killpg(other.pid, signal.SIGKILL)
    assert list(folder.iterdir()) == []


def test_a_process_is_known_again_when_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of the epoch are the kernel's time since boot and the clock's of the boot."""
    own, before = os.getpid(), psutil.Process.create_time
    started = born(own)
    note = Note("mlflow", own, started, 1, "SQLite")
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: before(self) - 86400)
    assert born(own) == started
    assert note.alive
    assert not is_same(os.getppid(), started)
    assert not Note("mlflow", os.getppid(), started, 1, "SQLite").alive


def test_secrets_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "abcdef-123")
    assert redact("x abcdef-123 y") == "x *** y"
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "user:abcdef")
    assert redact("Authorization: Basic dXNlcjphYmNkZWY=, user:abcdef") == (
        "Authorization: Basic ***, ***"
    )
    assert redact("postgresql://me:pass@host/db") == "postgresql://me:***@host/db"
    assert redact("http://host:5000/a@b") == "http://host:5000/a@b"


def test_one_run_a_workspace(tmp_path: Path) -> None:
    hold = (
        "import sys; from pathlib import Path; from flows.children.locks import run_lock\n"
        "with run_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(InputError, match="another run is at work"), run_lock(tmp_path):
            pass
        holder.kill()
    with run_lock(tmp_path), run_lock(tmp_path):  # freed by the kernel; the same process twice
        pass


FIRST, SECOND = "GPU-11111111-2222-3333", "GPU-22222222-3333-4444"


def machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *cards: str, slices: Sequence[str] = ()
) -> None:
    """Have `nvidia-smi -L` list these cards, and slices of the last; nothing else chooses any."""
    lines = [f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: {card})" for n, card in enumerate(cards)]
    lines += [f"  MIG 1g.10gb     Device  {n}: (UUID: {name})" for n, name in enumerate(slices)]
    program = folder / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\n[ "$1" = -L ] || exit 2\n' + f"cat <<'E'\n{chr(10).join(lines)}\nE\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_one_stage_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, FIRST, SECOND)
    assert visible_gpus() == [FIRST, SECOND]
    running: list[str] = []
    most = 0

    async def job() -> None:
        nonlocal most
        async with gpus_held(visible_gpus(), 1, tmp_path) as gpu:
            assert gpu.visible not in running
            running.append(gpu.visible)
            most = max(most, len(running))
            await asyncio.sleep(0.05)
            running.remove(gpu.visible)

    async def jobs() -> None:
        await asyncio.gather(*(job() for _ in range(5)))

    asyncio.run(jobs())
    assert most == 2
    (tmp_path / "infalign-gpu-7.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="cannot be opened"):
        asyncio.run(_hold("7", tmp_path))


async def _hold(device: str, folder: Path) -> None:
    async with gpus_held([device], 1, folder):
        pass


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, [FIRST, SECOND]),
        ("", []),
        ("1", [SECOND]),
        ("1, 0", [SECOND, FIRST]),
        ("0,7,1", [FIRST]),  # as CUDA reads it: up to what is not there
        ("-1", []),
        ("GPU-22", [SECOND]),
        ("GPU-", []),  # neither the one nor the other
        (SECOND, [SECOND]),
    ],
)
def test_gpus_are_those_that_cuda_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, found: list[str]
) -> None:
    machine(tmp_path, monkeypatch, FIRST, SECOND)
    if asked is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    assert visible_gpus() == found


def test_one_gpu_has_one_lock_whatever_number_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, monkeypatch, FIRST, SECOND)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    outside = visible_gpus()
    machine(tmp_path, monkeypatch, SECOND)  # a container that was given this one: its number 0
    inside = visible_gpus()

    async def both() -> None:
        async with gpus_held(outside, 1, tmp_path):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_hold(*inside, tmp_path), 0.2)

    asyncio.run(both())


def test_slices_of_a_gpu_stand_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, monkeypatch, FIRST, SECOND, slices=["MIG-a", "MIG-b"])
    assert visible_gpus() == [FIRST, "MIG-a", "MIG-b"]


def test_without_nvidia_smi_gpus_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    files = [tmp_path / "nvidia3", tmp_path / "nvidia5"]
    monkeypatch.setattr(Path, "glob", lambda *_: files)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"1,{SECOND}")
    assert visible_gpus() == ["1", SECOND]


def test_a_stage_holds_a_gpu_for_each_of_its_processes(tmp_path: Path) -> None:
    running: list[set[str]] = []

    async def job(many: int) -> None:
        async with gpus_held(["0", "1", "2"], many, tmp_path) as gpus:
            mine = set(gpus.visible.split(","))
            assert len(mine) == len(gpus.descriptors) == many
            assert not any(mine & other for other in running)
            running.append(mine)
            await asyncio.sleep(0.05)
            running.remove(mine)

    async def jobs() -> None:
        await asyncio.gather(*(job(many) for many in (2, 2, 1, 3)))

    asyncio.run(jobs())
    with pytest.raises(InputError, match=r"run\.processes = 4, but this machine has 3 GPUs"):
        asyncio.run(job(4))
