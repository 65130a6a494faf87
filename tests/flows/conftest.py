"""A toy project with real git, DVC, Prefect and MLflow, whose stages take a moment each.

One Prefect server serves all tests of all workers. Every child refuses connections to other
machines and writes down each attempt.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from filelock import FileLock

from flows.children.processes import end_leftovers
from infalign.files.weights import NONE
from tests.conftest import MakeOnce

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "flows"]
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
SERVER = """
import fcntl, os, sys, time
from pathlib import Path
from flows.services.prefect_server import prefect_server
root = Path(sys.argv[1])
with prefect_server(root) as server, open(root / "users") as users:
    server.wait()
    (root / "new").write_text(server.url)
    os.replace(root / "new", root / "url")
    while True:  # until nobody holds it any more, however they ended
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.5)
    (root / "url").unlink()
"""
VARIANTS = ["ctrl", "rlhf"]
OBJECTIVES = ["helpful", "harmless"]
REAL_INSTANCES = 5 + 2 + 2 + 2 * len(VARIANTS) + 2 + 1
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

    def inside(self, *arguments: str, **extra: str) -> tuple[int, str]:
        """Run `infalign …` in this process, where a process is not what is tested."""
        from flows import cli

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = [signal.getsignal(number) for number in numbers]
        status, said = 0, io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(self.root):
            for name in os.environ.keys() - self.environment.keys() - extra.keys():
                patch.delenv(name)
            for name, value in (self.environment | extra).items():
                patch.setenv(name, value)
            refresh_prefect()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    cli.main(list(arguments))
            except SystemExit as end:
                status = int(end.code or 0)
            finally:
                for number, handler in zip(numbers, handlers, strict=True):
                    signal.signal(number, handler)
        return status, said.getvalue()

    def tracking(self) -> Any:
        """A client of the project's MLflow."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=f"sqlite:///{self.root / 'mlflow.db'}")

    def runs(self, of: str = "") -> dict[str, list[Any]]:
        """MLflow's runs by what they are of, `pipeline` or an instance, the newest first."""
        client = self.tracking()
        experiment = client.get_experiment_by_name(f"infalign{of}")
        runs: dict[str, list[Any]] = {}
        if experiment is None:
            return runs
        for run in client.search_runs([experiment.experiment_id], order_by=["start_time DESC"]):
            kind = run.data.tags.get("infalign.instance", run.info.run_name)
            runs.setdefault(kind, []).append(run)
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


def git(root: Path, *words: str) -> str:
    """Run git, as somebody where it commits: what it says."""
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def refresh_prefect() -> None:
    """Have Prefect read the environment, which it does when it is first imported alone."""
    if "prefect.context" in sys.modules:
        sys.modules["prefect.context"].refresh_global_settings_context()


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


def started(root: Path, environment: Mapping[str, str]) -> str:
    """The address of the Prefect server in a folder, started by the first to ask."""
    from flows.services.prefect_app import key_path

    with FileLock(root / "lock"):
        if not (root / "url").exists():
            key_path(root).parent.mkdir(exist_ok=True)
            key_path(root).touch(0o600)
            key_path(root).write_text(PREFECT_KEY)
            own = {
                "PREFECT_HOME": str(root / "home"),
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            }
            kept = {k: v for k, v in environment.items() if not k.startswith("PREFECT_")}
            with open(root / "log", "ab") as log:
                child = subprocess.Popen(
                    [sys.executable, "-c", SERVER, str(root)],
                    env=kept | own,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            while not (root / "url").exists():
                assert child.poll() is None, (root / "log").read_text()
                time.sleep(0.1)
            child.returncode = 0  # it ends by itself, after all workers
        return (root / "url").read_text()


@pytest.fixture(scope="session")
def prefect_api(
    tmp_path_factory: pytest.TempPathFactory, quiet: Mapping[str, str]
) -> Iterator[str]:
    """The address of one Prefect server for all tests of all workers."""
    from flows.services.prefect_app import client_environment

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prefect"
    root.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, open(root / "users", "a") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        url = started(root, quiet)
        for name in [n for n in os.environ if n.startswith("PREFECT_")]:
            patch.delenv(name)
        patch.setenv("PREFECT_HOME", str(root / "home"))
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        port = int(url.rpartition(":")[2].partition("/")[0])
        for name, value in client_environment(root, port).items():
            patch.setenv(name, value)
        yield url


def client_of(project: Project) -> Any:
    """A client of the Prefect server that a project reports to."""
    from prefect.client.orchestration import PrefectClient

    return PrefectClient(project.environment["PREFECT_API_URL"], auth_string=PREFECT_KEY)


async def newest_run(client: Any, project: Project) -> Any:
    """The newest flow run of a project."""
    from prefect.client.schemas.sorting import FlowRunSort

    found = await client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=200)
    return next(run for run in found if run.parameters.get("root") == str(project.root))


async def artifacts(project: Project) -> dict[str, Any]:
    """The artifacts of a project's newest flow run, by key."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    async with client_of(project) as client:
        of_it = ArtifactFilterFlowRunId(any_=[(await newest_run(client, project)).id])
        found = await client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=of_it))
    return {artifact.key: artifact.data for artifact in found}


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
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "toy")


@pytest.fixture(scope="session")
def finished(make_once: MakeOnce, quiet: dict[str, str], prefect_api: str) -> tuple[Project, str]:
    """A toy project that has been run once, and what the command said: only to read."""
    environment = quiet | {"PREFECT_API_URL": prefect_api}

    def make(folder: Path) -> None:
        project = Project(folder / "project", environment)
        write_toy(project.root)
        status, output = project.run("run", PLANTED_TOKEN=PLANTED)
        assert status == 0, output
        (folder / "said").write_text(output)

    folder = make_once("finished", make)
    return Project(folder / "project", environment), (folder / "said").read_text()


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
