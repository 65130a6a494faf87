#!/usr/bin/env python3
"""Slurm's commands on one machine, for tests: a job is a process group, every node is here.

By the name that it is called by: sbatch, squeue, scancel, scontrol (show hostnames, requeue), srun.
Jobs are folders below SLURM_STANDIN.
"""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun")


def install(folder: Path) -> dict[str, str]:
    """Put the commands into a folder; the environment in which they are found."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in COMMANDS:
        (programs / name).write_text(
            f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n'
        )
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SLURM_STANDIN": str(folder / "jobs")}


def sbatch(options: list[str]) -> int:
    script = Path(options[-1])
    jobs = Path(os.environ["SLURM_STANDIN"])
    jobs.mkdir(exist_ok=True)
    number = 1 + max((int(job.name) for job in jobs.iterdir()), default=0)
    folder = jobs / str(number)
    folder.mkdir()
    (folder / "script").write_text(script.read_text())
    named = [option for option in options if option.startswith("--job-name=")]
    (folder / "name").write_text(named[-1].partition("=")[2])
    (folder / "alive").touch()
    command = [sys.executable, __file__, "slurmd", str(folder)]
    subprocess.Popen(command, start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
    print(f"{number};here")
    return 0


def slurmd(options: list[str]) -> int:
    """A job's life, from its first start to its last."""
    folder = Path(options[0])
    text = (folder / "script").read_text()
    given = dict(re.findall(r'^#SBATCH --([\w-]+)="?([^"\n]+)', text, re.M))
    environment = {
        **os.environ,
        "SLURM_JOB_ID": folder.name,
        "SLURM_JOB_NUM_NODES": given["nodes"],
        "SLURM_JOB_NODELIST": "here",
    }
    with open(given["output"], "a") as log:
        for start in range(10):
            if start:
                environment["SLURM_RESTART_COUNT"] = str(start)
            (folder / "again").unlink(missing_ok=True)
            script = ["bash", str(folder / "script")]
            job = subprocess.Popen(
                script, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            (folder / "group").write_text(str(job.pid))
            job.wait()
            if not (folder / "again").exists():
                break
    (folder / "alive").unlink()
    return 0


def _living(options: list[str]) -> list[Path]:
    """The jobs of a name that have not ended."""
    name = next(option for option in options if option.startswith("--name=")).partition("=")[2]
    jobs = Path(os.environ["SLURM_STANDIN"]).glob("*/name")
    return [j.parent for j in jobs if j.read_text() == name and (j.parent / "alive").exists()]


def squeue(options: list[str]) -> int:
    if (Path(os.environ["SLURM_STANDIN"]) / "busy").exists():
        print("slurm_load_jobs error: Socket timed out on send/recv operation", file=sys.stderr)
        return 1
    for _ in _living(options):
        print("RUNNING")
    return 0


def scancel(options: list[str]) -> int:
    for folder in _living(options):
        while (folder / "alive").exists():
            with contextlib.suppress(OSError, ValueError):
                os.killpg(int((folder / "group").read_text()), signal.SIGKILL)
            time.sleep(0.05)
    return 0


def scontrol(options: list[str]) -> int:
    if options[:2] == ["show", "hostnames"]:
        print("localhost")
        return 0
    folder = Path(os.environ["SLURM_STANDIN"]) / options[-1]
    (folder / "again").touch()
    os.killpg(int((folder / "group").read_text()), signal.SIGKILL)
    return 0


def srun(options: list[str]) -> int:
    command = list(itertools.dropwhile(lambda option: option.startswith("--"), options))
    nodes = [
        subprocess.Popen(command, env={**os.environ, "SLURM_NODEID": str(number)})
        for number in range(int(os.environ["SLURM_JOB_NUM_NODES"]))
    ]
    return max(node.wait() for node in nodes)


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
