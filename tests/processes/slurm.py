#!/usr/bin/env python3
"""Slurm's commands on one machine, for tests: a job is a process group, every node is here.

By the name that it is called by: sbatch, squeue, scancel, scontrol (show hostnames, requeue), srun.
Jobs are folders below SLURM_STANDIN.
"""

import contextlib
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
    (folder / "alive").touch()
    command = [sys.executable, __file__, "slurmd", str(folder)]
    subprocess.Popen(command, start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
    print(f"{number};here")
    return 0


def slurmd(options: list[str]) -> int:
    """A job's life, from its first start to its last."""
    folder = Path(options[0])
    given = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", (folder / "script").read_text(), re.M))
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


def squeue(options: list[str]) -> int:
    number = next(option for option in options if option.startswith("--jobs=")).split("=")[1]
    if (Path(os.environ["SLURM_STANDIN"]) / number / "alive").exists():
        print("RUNNING")
        return 0
    print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
    return 1


def scancel(options: list[str]) -> int:
    folder = Path(os.environ["SLURM_STANDIN"]) / options[-1]
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
    command = [option for option in options if not option.startswith("--kill")]
    nodes = [
        subprocess.Popen(command, env={**os.environ, "SLURM_NODEID": str(number)})
        for number in range(int(os.environ["SLURM_JOB_NUM_NODES"]))
    ]
    return max(node.wait() for node in nodes)


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
