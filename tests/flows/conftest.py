"""A toy project with real git, DVC, Prefect and MLflow, whose stages take a moment each.

One Prefect server serves all tests. Every child refuses connections to other machines and writes
down each attempt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.children.processes import end_leftovers
from infalign.files.weights import NONE
from tests.conftest import MakeOnce

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "flows.cli"]
TOY_STAGE = (Path(__file__).parent / "toy_stage.py").read_text(encoding="utf-8")
GUARD = """
import os, socket

_connect, _connect_ex = socket.socket.connect, socket.socket.connect_ex

def _check(sock, address):
    host = address[0] if isinstance(address, tuple) else "local"
    if sock.family in (socket.AF_INET, socket.AF_INET6) and not (
        host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")
    ):
        with open(os.environ["TEST_CALLS"], "a") as stream:
            stream.write(f"{address}\\n")
        raise ConnectionRefusedError(f"test: {address}")

def connect(self, address):
    _check(self, address)
    return _connect(self, address)

def connect_ex(self, address):
    _check(self, address)
    return _connect_ex(self, address)

socket.socket.connect, socket.socket.connect_ex = connect, connect_ex
"""
TOY_DVC = """\
stages:
  corpus:
    cmd: python toy_stage.py corpus
    params: [corpus]
    deps: [toy_stage.py]
    outs: [results/corpus]
  prepare:
    cmd: python toy_stage.py prepare
    deps: ["${data.path}"]
    outs: [results/prepare]
  align:
    matrix:
      objective: ${run.objectives}
      variant: ${run.variants}
    cmd: python toy_stage.py align ${item.objective} ${item.variant}
    deps: [results/prepare]
    params:
      - align.steps
      - align.variants.${item.variant}
    outs: ["results/align/${item.objective}/${item.variant}"]
  report:
    cmd: python toy_stage.py report
    params: [report]
    deps: [results/align]
    outs: [results/report]
"""
PLANTED = "planted-s3cret"
PREFECT_KEY = "the-key-of-the-one-prefect-server-of-all-tests"
VARIANTS = ["ctrl", "rlhf"]
OBJECTIVES = ["helpful", "harmless"]
REAL_INSTANCES = 6 + 2 + 2 * len(VARIANTS) + 2 + 1
INSTANCES = ["corpus", "prepare", "align@helpful-ctrl", "align@harmless-ctrl", "report"]


@dataclass
class Project:
    """A project folder and the environment in which its commands run."""

    root: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        """Start `infalign …`."""
        child = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.root,
            env=self.environment | extra,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(child)
        return child

    def end(self) -> None:
        """End what a failed test left at work."""
        for child in self.started:
            if child.poll() is None:
                child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        end_leftovers(self.root)

    def run(self, *arguments: str, timeout: float = 240, **extra: str) -> tuple[int, str]:
        """Run `infalign …` to its end: exit status and output."""
        with self.start(*arguments, **extra) as child:
            try:
                output = child.communicate(timeout=timeout)[0]
            except BaseException:
                child.kill()
                raise
        return child.returncode, output

    def tracking(self) -> Any:
        """A client of the project's MLflow."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=f"sqlite:///{self.root / 'mlflow.db'}")

    def runs(self) -> dict[str, list[Any]]:
        """MLflow's runs by name, the newest first."""
        client = self.tracking()
        experiment = client.get_experiment_by_name("infalign")
        runs: dict[str, list[Any]] = {}
        for run in client.search_runs([experiment.experiment_id], order_by=["start_time DESC"]):
            runs.setdefault(run.info.run_name, []).append(run)
        return runs

    def survivors(self) -> list[str]:
        """Living processes that belong to the project, by their working folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.root):
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found


def base_environment(calls: Path, guard: Path, cache: Path) -> dict[str, str]:
    """The environment of every child: this Python first, no network, caches of its own."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_", "DVC_"))
    }
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{guard}{os.pathsep}{ROOT}",
        "TEST_CALLS": str(calls),
        "HF_HOME": str(cache),
        "PREFECT_API_AUTH_STRING": PREFECT_KEY,
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment in which every call to another machine is refused, and fails the tests."""
    folder = tmp_path_factory.mktemp("quiet")
    guard = folder / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    calls = folder / "calls"
    yield base_environment(calls, guard, folder / "hf")
    assert not calls.exists(), f"something called home: {calls.read_text()}"


@pytest.fixture(scope="session")
def prefect_api(
    tmp_path_factory: pytest.TempPathFactory, quiet: Mapping[str, str]
) -> Iterator[str]:
    """The address of one Prefect server for all tests."""
    from flows.services.prefect_app import key_path
    from flows.services.prefect_server import prefect_server

    root = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("PREFECT_")]:
            patch.delenv(name)
        for name in ("PYTHONPATH", "TEST_CALLS"):
            patch.setenv(name, quiet[name])
        patch.setenv("PREFECT_HOME", str(root / "home"))
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        key_path(root).parent.mkdir()
        key_path(root).write_text(PREFECT_KEY)
        key_path(root).chmod(0o600)
        with prefect_server(root) as server:
            server.wait()
            yield server.url


def client_of(project: Project) -> Any:
    """A client of the Prefect server that a project reports to."""
    from prefect.client.orchestration import PrefectClient

    return PrefectClient(project.environment["PREFECT_API_URL"], auth_string=PREFECT_KEY)


def write_toy(root: Path) -> None:
    """A git repository with DVC, real params and toy stages."""
    root.mkdir(exist_ok=True)
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    for name in (".dvcignore", ".gitignore", "params.yaml"):
        shutil.copyfile(ROOT / name, root / name)
    text = (root / "params.yaml").read_text()
    variants = yaml.safe_load(text)["run"]["variants"]
    (root / "params.yaml").write_text(text.replace(f"[{', '.join(variants)}]", "[ctrl]"))
    (root / "dvc.yaml").write_text(TOY_DVC)
    (root / "toy_stage.py").write_text(TOY_STAGE)
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "toy"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, quiet: dict[str, str], prefect_api: str
) -> tuple[Project, str]:
    """A toy project that has been run once, and what the command said: only to read."""
    root = tmp_path_factory.mktemp("finished") / "project"
    write_toy(root)
    project = Project(root, quiet | {"PREFECT_API_URL": prefect_api})
    status, output = project.run("run", PLANTED_TOKEN=PLANTED)
    assert status == 0, output
    return project, output


@pytest.fixture
def project(tmp_path: Path, finished: tuple[Project, str]) -> Iterator[Callable[[], Project]]:
    """Makes copies of the finished project, its own to change."""
    made: list[Project] = []

    def copy() -> Project:
        root = tmp_path / f"project{len(made)}"
        shutil.copytree(finished[0].root, root, symlinks=True)
        made.append(Project(root, dict(finished[0].environment)))
        return made[-1]

    yield copy
    for one in made:
        one.end()


@pytest.fixture
def fresh(tmp_path: Path, quiet: dict[str, str], prefect_api: str) -> Iterator[Project]:
    """A toy project that has never been run."""
    root = tmp_path / "fresh"
    write_toy(root)
    made = Project(root, quiet | {"PREFECT_API_URL": prefect_api})
    yield made
    made.end()


def write_real(root: Path, tree: dict[str, Any]) -> None:
    """The project itself, with other params."""
    write_toy(root)
    (root / "toy_stage.py").unlink()
    shutil.copyfile(ROOT / "dvc.yaml", root / "dvc.yaml")
    shutil.copytree(ROOT / NONE, root / NONE)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "infalign", root / "infalign", ignore=ignored)
    run = tree["run"] | {"variants": VARIANTS}
    (root / "params.yaml").write_text(yaml.safe_dump(tree | {"run": run}, sort_keys=False))


def contents(root: Path) -> dict[str, bytes]:
    """Every file of results, by its path."""
    folder = root / "results"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def real(
    make_once: MakeOnce, smoke_tree: dict[str, Any], quiet: dict[str, str], prefect_api: str
) -> tuple[Project, str, dict[str, bytes]]:
    """The project after one full pass, what it said, and what it wrote: only to read."""
    environment = quiet | {"PREFECT_API_URL": prefect_api, "HF_HUB_OFFLINE": "1"}

    def make(folder: Path) -> None:
        project = Project(folder / "project", environment)
        write_real(project.root, smoke_tree)
        status, output = project.run("run", timeout=500)
        project.end()
        assert status == 0, output
        (folder / "said").write_text(output)

    folder = make_once("real", make)
    project = Project(folder / "project", environment)
    return project, (folder / "said").read_text(), contents(project.root)


@pytest.fixture
def own(real: tuple[Project, str, dict[str, bytes]], tmp_path: Path) -> Iterator[Project]:
    """A copy of the real project, a test's own to change."""
    shutil.copytree(real[0].root, tmp_path / "project", symlinks=True)
    project = Project(tmp_path / "project", dict(real[0].environment))
    yield project
    project.end()
