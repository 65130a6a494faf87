"""A stage as a job of a cluster: `run.launcher` is `slurm` or `kubernetes`.

`python -m infalign STAGE` then submits itself from a template, passes on the job's lines and ends
with its exit code; interrupted, it cancels the job. Within the job, which INFALIGN_JOB tells, it is
the stage (`job`). The two share a file system: each attempt has a folder of its own below
`.infalign/jobs/INSTANCE/`, with the job's script, its log, and the exit code of each node as the
node's own word. A job that is gone without that word was killed, and the submitter ends as if
killed: run again, the stage goes on from its last checkpoint. So does a job that the cluster itself
queues again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TextIO

from filelock import FileLock
from jinja2 import Environment, StrictUndefined, TemplateError, TemplateSyntaxError

from infalign.errors import CheckFailed, InputError
from infalign.files.workspace import write_text
from infalign.settings.params import Params

KILLED = 137  # the exit code of what was killed, which is tried again
NOTE = "job.json"  # of the job that may be at work
POLL_SECONDS = 2.0  # between looks at the log and the exit code
ASK_SECONDS = 15.0  # between questions to the cluster
COMMAND_SECONDS = 120.0  # that a command of the cluster may take
END_SECONDS = 60.0  # that a job may take to end
LATE_SECONDS = 90.0  # that a file may take to be seen here: NFS looks again after 60


@dataclass(frozen=True)
class Job:
    """One attempt of a stage, to be submitted.

    Attributes:
        root: the project's folder, at the same path in every node.
        instance: `align@helpful-ctrl`.
        folder: of this attempt.
        arguments: behind `python -m infalign`.
        nodes: machines that it takes.
        processes: of each node.
        threads: of each process.
        gpus: of each node; 0: it needs none.
    """

    root: Path
    instance: str
    folder: Path
    arguments: tuple[str, ...]
    nodes: int
    processes: int
    threads: int
    gpus: int

    @property
    def name(self) -> str:
        """A label of DNS, different for every attempt: Kubernetes takes nothing else."""
        word = re.sub(r"[^a-z0-9]+", "-", self.instance.lower()).strip("-")
        return f"infalign-{word[:40].strip('-')}-{self.folder.name}"

    @property
    def fields(self) -> dict[str, str | int]:
        """What a template may name."""
        arguments = ["-m", "infalign", *self.arguments]
        return {
            "name": self.name,
            "root": str(self.root),
            "folder": str(self.folder),
            "command": shlex.join([sys.executable, *arguments]),
            "arguments": json.dumps(arguments),
            "nodes": self.nodes,
            "processes": self.processes,
            "cpus": self.processes * self.threads,
            "gpus": self.gpus,
            "user": os.getuid(),
            "group": os.getgid(),
        }


def render(path: Path, fields: Mapping[str, str | int]) -> str:
    """A template of Jinja2 with a job's fields; `quoted` makes one a word of a shell.

    Raises:
        InputError: where it is none, or names a field that a job does not have.
    """
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["quoted"] = shlex.quote
    try:
        return environment.from_string(path.read_text(encoding="utf-8")).render(fields)
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise InputError(
            f"run.job_template: {path}{line}: {error}: a job has {', '.join(fields)}."
        ) from None


class Cluster(ABC):
    """Who runs jobs, by its commands. A job is known by its name, before it is submitted."""

    template: ClassVar[str]  # below the project's folder
    script: ClassVar[str]  # the rendered template's name
    program: ClassVar[str]  # must be on PATH

    def __init__(self, name: str, script: Path) -> None:
        self.name, self.path = name, script

    @abstractmethod
    def submit(self) -> str:
        """Submit the rendered template; what the cluster calls the job.

        Raises:
            CheckFailed: where the cluster does not take it.
        """

    @abstractmethod
    def is_alive(self) -> bool:
        """Whether the job waits or runs, or will run again.

        Raises:
            CheckFailed: where the cluster does not answer.
        """

    @abstractmethod
    def cancel(self) -> None:
        """End the job, if it has not ended, and whatever stands for it."""

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of the cluster's commands.

        Raises:
            CheckFailed: where it is not there or does not come back.
        """
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CheckFailed(f"{command[0]} does not answer ({type(error).__name__}).") from None


class Slurm(Cluster):
    """Slurm, by sbatch, squeue and scancel."""

    template, script, program = "deploy/slurm.sh", "job.sh", "sbatch"

    def submit(self) -> str:
        """sbatch says `ID`, or `ID;CLUSTER`."""
        said = self.ask("sbatch", "--parsable", f"--job-name={self.name}", str(self.path))
        if said.returncode or not said.stdout.strip():
            raise CheckFailed(f"sbatch did not take {self.path}: {_last(said)}")
        return said.stdout.split()[-1].partition(";")[0]

    def is_alive(self) -> bool:
        """In the queue; one that is preempted and queued again is, too."""
        said = self.ask("squeue", "--noheader", "--format=%T", f"--name={self.name}")
        if said.returncode:
            raise CheckFailed(f"squeue does not answer: {_last(said)}")
        return bool(said.stdout.split())

    def cancel(self) -> None:
        """One that has ended is no error."""
        self.ask("scancel", "--quiet", f"--name={self.name}")


class Kubernetes(Cluster):
    """Kubernetes, by kubectl."""

    template, script, program = "deploy/kubernetes-job.yaml", "job.yaml", "kubectl"

    def submit(self) -> str:
        """Create what the manifest names."""
        said = self.ask("kubectl", "apply", "--filename", str(self.path))
        if said.returncode:
            raise CheckFailed(f"kubectl did not take {self.path}: {_last(said)}")
        return self.name

    def is_alive(self) -> bool:
        """There, and neither complete nor failed."""
        said = self.ask(
            "kubectl",
            "get",
            "--filename",
            str(self.path),
            "--ignore-not-found",
            "--output",
            "json",
        )
        if said.returncode:
            raise CheckFailed(f"kubectl does not answer: {_last(said)}")
        told: dict[str, Any] = json.loads(said.stdout or "{}")
        jobs = [item for item in told.get("items", [told]) if item.get("kind") == "Job"]
        return any(not _has_ended(item) for item in jobs)

    def cancel(self) -> None:
        """Delete the job, which stays until its pods are gone, and its service."""
        self.ask(
            "kubectl",
            "delete",
            "--filename",
            str(self.path),
            "--ignore-not-found",
            "--wait=false",
            "--cascade=foreground",
        )


def _has_ended(job: Mapping[str, Any]) -> bool:
    states = job.get("status", {}).get("conditions") or []
    return any(s["type"] in ("Complete", "Failed") and s["status"] == "True" for s in states)


def _last(said: subprocess.CompletedProcess[str]) -> str:
    """What a command said last."""
    lines = (said.stderr.strip() or said.stdout.strip()).splitlines()
    return lines[-1] if lines else f"it says nothing (status {said.returncode})."


CLUSTERS: dict[str, type[Cluster]] = {"slurm": Slurm, "kubernetes": Kubernetes}


def launch(
    params: Params, root: Path, instance: str, arguments: Sequence[str], models: bool
) -> int:
    """Run a stage as a job to its end; its exit code, or that of what was killed.

    Args:
        params: `run` says where and how large; one process and node where the stage takes no more.
        root: the project's folder.
        instance: `align@helpful-ctrl`.
        arguments: behind `python -m infalign`.
        models: whether it runs models: on GPUs, where run.device is not cpu.

    Raises:
        InputError: where the cluster's commands or the template are missing, or the template wrong.
        CheckFailed: where the cluster does not take the job.
    """
    run = params.run
    kind = CLUSTERS[run.launcher]
    if shutil.which(kind.program) is None:
        raise InputError(
            f"run.launcher: {run.launcher} needs `{kind.program}` on PATH: run where jobs are "
            "submitted, or set it to local."
        )
    template = root / (run.job_template or kind.template)
    if not template.is_file():
        raise InputError(f"run.job_template: there is no {template}: name the template of a job.")
    place = root / ".infalign" / "jobs" / instance
    folder = place / os.urandom(3).hex()
    here = run.processes // run.nodes
    gpus = here if models and run.device != "cpu" else 0
    job = Job(root, instance, folder, tuple(arguments), run.nodes, here, run.threads, gpus)
    text = render(template, job.fields)
    folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, _stop)
    with FileLock(place / "lock"):  # beside another submitter of the same: wait
        _end_former(place)
        (folder / kind.script).write_text(text, encoding="utf-8")
        (folder / "log").touch()
        cluster = kind(job.name, folder / kind.script)
        told = {"launcher": run.launcher, "name": job.name, "script": str(cluster.path)}
        write_text(place / NOTE, json.dumps(told))
        try:
            known_as = cluster.submit()
            where = folder / "log"
            print(f"{instance} is job {known_as} of {run.launcher}, its log {where}", flush=True)
            code = _follow(cluster, job)
        finally:
            if _end(cluster):
                (place / NOTE).unlink()
        if not code:
            for path in place.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
    return code


def _stop(number: int, _frame: Any) -> NoReturn:
    """End as a stage that is asked to end, the job with it."""
    raise SystemExit(128 + number)


def _end_former(place: Path) -> None:
    """End the job of an attempt whose submitter was killed: it would write the same files.

    Raises:
        CheckFailed: where it does not end.
    """
    try:
        told = json.loads((place / NOTE).read_text(encoding="utf-8"))
        former = CLUSTERS[told["launcher"]](told["name"], Path(told["script"]))
    except (FileNotFoundError, ValueError, KeyError):
        return
    if not _end(former):
        raise CheckFailed(
            f"job {former.name}, which an earlier run submitted, does not end: cancel it, then "
            f"remove {place / NOTE}."
        )


def _end(cluster: Cluster) -> bool:
    """Cancel a job; whether it is known to be gone."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        with contextlib.suppress(CheckFailed):
            cluster.cancel()
            if not cluster.is_alive():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)


def _follow(cluster: Cluster, job: Job) -> int:
    """Pass on the job's lines until it is gone; its exit code."""
    asked = gone = time.monotonic()
    alive, told = True, False
    with open(job.folder / "log", encoding="utf-8", errors="replace") as log:
        while True:
            os.listdir(job.folder)  # a shared file system looks again
            codes = [_code(job.folder, node) for node in range(job.nodes)]
            said = [code for code in codes if code is not None]
            done = len(said) == job.nodes or 2 in said
            _pass_on(log)
            if not alive and (done or time.monotonic() - gone > LATE_SECONDS):
                break
            if alive and (done or time.monotonic() - asked > ASK_SECONDS):
                asked = gone = time.monotonic()
                try:
                    alive = cluster.is_alive()
                except CheckFailed as error:
                    if not told:
                        print(f"{job.instance}: {error} It is asked again.", flush=True)
                    told = True
            time.sleep(POLL_SECONDS)
    if done:
        return 2 if 2 in said else max(said)
    print(
        f"{job.instance}: job {cluster.name} is gone and has not said how it ended: {job.folder} "
        "has its script and log.",
        file=sys.stderr,
        flush=True,
    )
    return KILLED


def _code(folder: Path, node: int) -> int | None:
    try:
        return int((folder / f"code.{node}").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _pass_on(log: TextIO) -> None:
    if text := log.read():
        sys.stdout.write(text)
        sys.stdout.flush()
