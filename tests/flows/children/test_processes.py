"""Children: their lines, their end, and what a killed run leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.children.locks import gpu_numbers, gpus_held, run_lock
from flows.children.processes import child_environment, end_leftovers, redact, run_child
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


def test_leftovers_are_ended_and_others_are_not(tmp_path: Path) -> None:
    folder = tmp_path / ".infalign" / "run"
    folder.mkdir(parents=True)
    with (
        subprocess.Popen([sys.executable, "-c", NEST], start_new_session=True) as left,
        subprocess.Popen([sys.executable, "-c", NEST], start_new_session=True) as other,
    ):
        time.sleep(0.3)
        for child, started in ((left, psutil.Process(left.pid).create_time()), (other, 1.0)):
            told = {"pid": child.pid, "started": started, "group": True, "owner": 1}
            (folder / f"{child.pid}.json").write_text(json.dumps(told))
        (folder / "9.json").write_text("{")
        assert end_leftovers(tmp_path) == 1
        assert _group(left.pid) == []
        assert other.poll() is None
        os.killpg(other.pid, signal.SIGKILL)
    assert list(folder.iterdir()) == []


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


def test_one_stage_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert gpu_numbers() == ["0", "1"]
    running: list[str] = []
    most = 0

    async def job() -> None:
        nonlocal most
        async with gpus_held(gpu_numbers(), 1, tmp_path) as gpu:
            assert gpu.numbers not in running
            running.append(gpu.numbers)
            most = max(most, len(running))
            await asyncio.sleep(0.05)
            running.remove(gpu.numbers)

    async def jobs() -> None:
        await asyncio.gather(*(job() for _ in range(5)))

    asyncio.run(jobs())
    assert most == 2
    (tmp_path / "infalign-gpu-7.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="cannot be opened"):
        asyncio.run(_hold("7", tmp_path))


async def _hold(number: str, folder: Path) -> None:
    async with gpus_held([number], 1, folder):
        pass


def test_a_stage_holds_a_gpu_for_each_of_its_processes(tmp_path: Path) -> None:
    running: list[set[str]] = []

    async def job(many: int) -> None:
        async with gpus_held(["0", "1", "2"], many, tmp_path) as gpus:
            mine = set(gpus.numbers.split(","))
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
