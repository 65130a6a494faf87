"""Stages as forks of one process: the same files and words, and the same end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from smoke import ROOT

from infalign.processes import warm
from infalign.processes.one_stage import main

pytestmark = pytest.mark.skipif(not warm.is_possible(), reason="needs Linux without GPUs")
COMMAND = [sys.executable, "-m", "infalign"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def project(tmp_path_factory, smoke_tree):
    """A folder with a corpus."""
    root = tmp_path_factory.mktemp("warm")
    (root / "params.yaml").write_text(yaml.safe_dump(smoke_tree))
    subprocess.run([*COMMAND, "corpus"], cwd=root, env=ENVIRONMENT, check=True)
    return root


@pytest.fixture(scope="module")
def server(project):
    """The process that forks, and the environment of stages that ask it."""
    address = str(project / "warm")
    command = [sys.executable, "-m", "infalign.processes.warm", address]
    process = subprocess.Popen(command, cwd=project, env=ENVIRONMENT, stdin=subprocess.PIPE)
    wait_for(Path(address).exists)
    yield process, ENVIRONMENT | {warm.ADDRESS: address}
    process.communicate(timeout=60)  # the end of its input is its own


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def forks(server):
    return psutil.Process(server[0].pid).children()


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_same_files_and_words_with_little_work_of_its_own(project, server, monkeypatch):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "infalign", "prepare"],
        cwd=project,
        env=server[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "numpy" not in done.stderr
    there = contents(project / "results" / "prepare")
    monkeypatch.chdir(project)
    (project / "results" / "prepare").rename(project / "there")
    assert main(["prepare"]) == 0
    assert contents(project / "results" / "prepare") == there
    done = subprocess.run([*COMMAND, "sft"], cwd=project, env=server[1], capture_output=True)
    assert done.returncode == 0
    assert done.stderr.count(b"loss") > 0


def test_a_mistake_is_the_same_sentence_and_status(project, server):
    command = [*COMMAND, "calibrate", "--objective", "none"]
    there, here = (
        subprocess.run(command, cwd=project, env=environment, capture_output=True)
        for environment in (server[1], ENVIRONMENT)
    )
    assert there.returncode == here.returncode == 2
    assert there.stderr == here.stderr
    assert there.stderr.startswith(b"calibrate: --objective 'none' is not one of")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_is_ended_takes_its_fork_along(project, server, number):
    stage = at_work(project, server)
    stage.send_signal(number)
    assert stage.wait() != 0
    wait_for(lambda: not forks(server))


def test_a_fork_that_is_killed_ends_its_stage_alike(project, server):
    stage = at_work(project, server)
    forks(server)[0].kill()
    assert stage.wait() == -signal.SIGKILL


def at_work(project, server):
    """A stage whose fork has begun."""
    stage = subprocess.Popen(
        [*COMMAND, "reward", "--objective", "helpful"],
        cwd=project,
        env=server[1],
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: [fork for fork in forks(server) if fork.num_threads() > 1])
    return stage


@pytest.mark.parametrize("why", ["no such process", "other threads", "edited code"])
def test_what_cannot_be_had_runs_where_it_was_asked_for(
    server, tmp_path, smoke_tree, why, monkeypatch
):
    run = smoke_tree["run"] | {"threads": 2 if why == "other threads" else 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(smoke_tree | {"run": run}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(warm.ADDRESS, server[1][warm.ADDRESS])
    if why == "no such process":
        monkeypatch.setenv(warm.ADDRESS, str(tmp_path / "nothing"))
    elif why == "edited code":
        code = Path(warm.__file__).parents[1] / "stages" / "sft.py"
        before = code.stat()
        os.utime(code)
    try:
        assert warm.run_there("sft", ["sft"]) is None
    finally:
        if why == "edited code":
            os.utime(code, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_ends_with_its_parent(project, tmp_path):
    parent = (
        "import subprocess, sys; "
        "warm = subprocess.Popen([sys.executable, '-m', 'infalign.processes.warm', "
        f"{str(tmp_path / 'w')!r}], "
        "stdin=subprocess.PIPE); print(warm.pid, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", parent],
        cwd=project,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    server = psutil.Process(int(child.stdout.readline()))
    wait_for((tmp_path / "w").exists)
    assert server.status() != psutil.STATUS_ZOMBIE
    child.kill()
    child.communicate()

    def ended():
        try:
            return server.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_for(ended)
    assert ended()
