"""A stage as a job of a cluster: `run.launcher` is `slurm` or `kubernetes`.

`python -m infalign STAGE` then submits itself from a template, passes on the job's lines and ends
with its exit code; interrupted, it cancels the job. Within the job, which INFALIGN_JOB tells, it is
the stage. The two share a file system: each attempt has a folder of its own below
`.infalign/jobs/INSTANCE/`, with the job's script, its log, and the exit code of each node as the
node's own word. A job that leaves the queue without that word was killed: submitted again, the
stage goes on from its last checkpoint. So does one that the cluster itself queues again.
"""

from __future__ import annotations

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

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError

from infalign.errors import CheckFailed, InputError
from infalign.files.workspace import write_text
from infalign.settings.params import Params

KILLED = 137  # the exit code of what was killed, which is tried again
POLL_SECONDS = 2.0  # between looks at the log and the exit code
ASK_SECONDS = 15.0  # between questions to the cluster
COMMAND_SECONDS = 120.0  # that a command of the cluster may take


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
        }


def render(path: Path, fields: Mapping[str, str | int]) -> str:
    """A template of Jinja2 with a job's fields.

    Raises:
        InputError: where it is none, or names a field that a job does not have.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return Template(text, undefined=StrictUndefined, keep_trailing_newline=True).render(fields)
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise InputError(
            f"run.job_template: {path}{line}: {error}: a job has {', '.join(fields)}."
        ) from None


class Cluster(ABC):
    """Who runs jobs, by its commands."""

    template: ClassVar[str]  # below the project's folder
    script: ClassVar[str]  # the rendered template's name
    program: ClassVar[str]  # must be on PATH

    @abstractmethod
    def submit(self, script: Path) -> str:
        """Submit a rendered template; the job's id."""

    @abstractmethod
    def is_alive(self, job: str) -> bool:
        """Whether the job waits or runs, or will run again."""

    @abstractmethod
    def cancel(self, job: str) -> None:
        """End the job, if it has not ended, and whatever stands for it."""

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of the cluster's commands.

        Raises:
            CheckFailed: where it does not answer.
        """
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise CheckFailed(
                f"{command[0]} has not answered for {COMMAND_SECONDS:.0f} s."
            ) from None


class Slurm(Cluster):
    """Slurm, by sbatch, squeue and scancel."""

    template, script, program = "deploy/slurm.sh", "job.sh", "sbatch"

    def submit(self, script: Path) -> str:
        """Submit it; sbatch says `ID` or `ID;CLUSTER`."""
        said = self.ask("sbatch", "--parsable", str(script))
        if said.returncode or not said.stdout.strip():
            raise CheckFailed(f"sbatch did not take {script}: {_last(said)}")
        return said.stdout.split()[-1].partition(";")[0]

    def is_alive(self, job: str) -> bool:
        """In the queue; one that is preempted and queued again is, too."""
        said = self.ask("squeue", "--noheader", "--format=%T", f"--jobs={job}")
        if said.returncode and "nvalid job id" not in said.stderr:
            raise CheckFailed(f"squeue does not answer: {_last(said)}")
        return bool(said.stdout.split())

    def cancel(self, job: str) -> None:
        """Cancel it; scancel takes one that has ended."""
        self.ask("scancel", "--quiet", job)


class Kubernetes(Cluster):
    """Kubernetes, by kubectl; a job's id is the file that it was made from."""

    template, script, program = "deploy/kubernetes-job.yaml", "job.yaml", "kubectl"

    def submit(self, script: Path) -> str:
        """Create what the manifest names."""
        said = self.ask("kubectl", "apply", "--filename", str(script))
        if said.returncode:
            raise CheckFailed(f"kubectl did not take {script}: {_last(said)}")
        return str(script)

    def is_alive(self, job: str) -> bool:
        """There, and neither complete nor failed."""
        said = self.ask(
            "kubectl", "get", "--filename", job, "--ignore-not-found", "--output", "json"
        )
        if said.returncode:
            raise CheckFailed(f"kubectl does not answer: {_last(said)}")
        told: dict[str, Any] = json.loads(said.stdout or "{}")
        jobs = [item for item in told.get("items", [told]) if item.get("kind") == "Job"]
        return any(not _has_ended(item) for item in jobs)

    def cancel(self, job: str) -> None:
        """Delete the job with its pods, and its service."""
        self.ask("kubectl", "delete", "--filename", job, "--ignore-not-found", "--wait=false")


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
        CheckFailed: where the cluster does not take the job, or does not answer.
    """
    run = params.run
    cluster = CLUSTERS[run.launcher]()
    if shutil.which(cluster.program) is None:
        raise InputError(
            f"run.launcher: {run.launcher} needs `{cluster.program}` on PATH: run where jobs are "
            "submitted, or set it to local."
        )
    template = root / (run.job_template or cluster.template)
    if not template.is_file():
        raise InputError(f"run.job_template: there is no {template}: name the template of a job.")
    place = root / ".infalign" / "jobs" / instance
    _end_former(cluster, place)
    folder = place / os.urandom(3).hex()
    here = run.processes // run.nodes
    gpus = here if models and run.device != "cpu" else 0
    job = Job(root, instance, folder, tuple(arguments), run.nodes, here, run.threads, gpus)
    text = render(template, job.fields)
    folder.mkdir(parents=True)
    script = folder / cluster.script
    script.write_text(text, encoding="utf-8")
    (folder / "log").touch()
    signal.signal(signal.SIGTERM, _stop)
    name = cluster.submit(script)
    write_text(place / "job.json", json.dumps({"launcher": run.launcher, "job": name}))
    try:
        print(f"{instance} is job {name} of {run.launcher}, its log {folder / 'log'}", flush=True)
        code = _follow(cluster, name, job)
    finally:
        cluster.cancel(name)
        (place / "job.json").unlink()
    if code < 128:
        shutil.rmtree(place)
    return code


def _stop(number: int, _frame: Any) -> NoReturn:
    """End as a stage that is asked to end, the job with it."""
    raise SystemExit(128 + number)


def _end_former(cluster: Cluster, place: Path) -> None:
    """End the job of an attempt whose submitter was killed: it would write the same files."""
    try:
        told = json.loads((place / "job.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return
    former = CLUSTERS[told["launcher"]]()
    former.cancel(told["job"])
    while former.is_alive(told["job"]):
        time.sleep(POLL_SECONDS)


def _follow(cluster: Cluster, name: str, job: Job) -> int:
    """Pass on the job's lines until every node has said how it ended, or the job is gone."""
    asked, alive = time.monotonic(), True
    with open(job.folder / "log", encoding="utf-8", errors="replace") as log:
        while True:
            codes = [_code(job.folder, node) for node in range(job.nodes)]
            said = [code for code in codes if code is not None]
            _pass_on(log)
            if len(said) == job.nodes or 2 in said:
                return 2 if 2 in said else max(said)
            if not alive:  # a shared file system may show a file late: one more look was taken
                return max(said, default=0) or _killed(name, job)
            if time.monotonic() - asked > ASK_SECONDS:
                asked, alive = time.monotonic(), cluster.is_alive(name)
            time.sleep(POLL_SECONDS)


def _killed(name: str, job: Job) -> int:
    print(
        f"{job.instance}: job {name} is gone and has not said how it ended: {job.folder} has its "
        "script and log.",
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
