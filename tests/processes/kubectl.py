#!/usr/bin/env python3
"""kubectl for tests: apply, get and delete of a job, whose pods are processes of this machine.

What there is of a job is in a folder of its name below KUBECTL_STANDIN.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml


def install(folder: Path) -> dict[str, str]:
    """Put the command into a folder; the environment in which it is found."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    program = programs / "kubectl"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n')
    program.chmod(0o755)
    python = Path(sys.executable).parent
    path = os.pathsep.join(map(str, (programs, python, os.environ["PATH"])))
    return {**os.environ, "PATH": path, "KUBECTL_STANDIN": str(folder / "jobs")}


def _job(path: str) -> tuple[dict, Path]:
    job = next(tree for tree in yaml.safe_load_all(Path(path).read_text()) if tree["kind"] == "Job")
    return job, Path(os.environ["KUBECTL_STANDIN"]) / job["metadata"]["name"]


def apply(path: str) -> int:
    _, folder = _job(path)
    folder.mkdir(parents=True)
    command = [sys.executable, __file__, "kubelet", path]
    with open(folder / "log", "w") as log:
        node = subprocess.Popen(command, start_new_session=True, stdin=-3, stdout=log, stderr=log)
    (folder / "group").write_text(str(node.pid))
    return 0


def kubelet(path: str) -> int:
    """The pods, to their end; one that is killed comes again, as backoffLimit says."""
    job, folder = _job(path)
    spec = job["spec"]["template"]["spec"]
    container = spec["containers"][0]
    pods = {}
    for number in range(job["spec"]["completions"]):
        environment = dict(os.environ)
        for entry in container["env"]:
            value = entry.get("value")  # the only field that a pod of ours asks for
            value = str(number) if value is None else value
            environment[entry["name"]] = value.replace(
                f"{folder.name}-0.{folder.name}", "127.0.0.1"
            )
        pods[number] = environment
    code = 0
    for _ in range(job["spec"]["backoffLimit"] + 1):
        running = {
            number: subprocess.Popen(
                [*container["command"], *container["args"]],
                cwd=container["workingDir"],
                env=environment,
            )
            for number, environment in pods.items()
        }
        codes = {number: pod.wait() for number, pod in running.items()}
        pods = {number: pods[number] for number, ended in codes.items() if ended}
        code = max(codes.values())
        if not pods or code in (1, 2):
            break
    state = {"type": "Failed" if code else "Complete", "status": "True"}
    (folder / "ended").write_text(json.dumps([state]))
    return 0


def get(path: str) -> int:
    job, folder = _job(path)
    if folder.exists():
        ended = folder / "ended"
        job["status"] = {"conditions": json.loads(ended.read_text()) if ended.exists() else None}
        print(json.dumps({"kind": "List", "items": [{"kind": "Service"}, job]}))
    return 0


def delete(path: str) -> int:
    _, folder = _job(path)
    if folder.exists():
        while not (folder / "group").exists():
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int((folder / "group").read_text()), signal.SIGKILL)
        folder.rename(folder.with_name(f"{folder.name}.deleted"))
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    file = words[words.index("--filename") + 1] if "--filename" in words else words[1]
    sys.exit(globals()[words[0]](file))
