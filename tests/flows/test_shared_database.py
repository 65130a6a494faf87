"""Two clones whose servers keep their tables in one real PostgreSQL, from the first moment on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.conftest import Project, git
from tests.flows.runs.test_pipeline import wait_for
from tests.flows.services.test_services import free_port, url
from tests.flows.test_production import place

__all__ = ["place"]  # the fixture

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("initdb") is None, reason="PostgreSQL's initdb is not here"),
]
PASSWORD = "hidden-word"


@pytest.fixture
def database() -> Iterator[str]:
    """The address of an empty database on loopback."""
    own = os.getuid() != 0
    user = None if own else "postgres"  # PostgreSQL refuses to be run by root
    folder = Path(tempfile.mkdtemp(prefix="infalign-db-"))
    if user:
        shutil.chown(folder, user)
    port = str(free_port())
    (folder / "word").write_text(PASSWORD)
    make = ["initdb", "--pgdata", str(folder / "data"), "--username", "infalign"]
    make += ["--auth", "scram-sha-256", "--pwfile", str(folder / "word"), "--no-sync"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    subprocess.run(make, check=True, user=user, **quiet)
    serve = ["postgres", "-D", str(folder / "data"), "-p", port, "-k", str(folder)]
    with subprocess.Popen(
        [*serve, "-c", "listen_addresses=127.0.0.1"], user=user, **quiet
    ) as server:
        try:
            ready = ["pg_isready", "--host", "127.0.0.1", "--port", port]
            wait_for(lambda: subprocess.run(ready, check=False, **quiet).returncode == 0, 60)
            yield f"postgresql://infalign:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    shutil.rmtree(folder)


def test_two_clones_begin_one_database_and_share_its_registry(
    place: Project, tmp_path: Path, database: str
) -> None:
    shutil.copytree(place.root, tmp_path / "other")
    ports = {"PREFECT_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
    shared = {"MLFLOW_ARTIFACTS_DESTINATION": (tmp_path / "artifacts").as_uri()}
    place.environment |= shared
    other = Project(tmp_path / "other", place.environment | ports)
    both = (place, other)
    try:
        begun = [project.start("up", DB=database) for project in both]
        said = [child.communicate(timeout=300)[0] for child in begun]
        assert [child.returncode for child in begun] == [0, 0], said
        assert not any(PASSWORD in words for words in said)
        for project, told in zip(both, ("is the champion", "is the champion already"), strict=True):
            status, words = project.run("run", "--promote")
            assert status == 0, words
            assert f"infalign-helpful version 1 {told}" in words, "the other clone's is known"
            assert "View run" not in words
            git(project.root, "add", ".")
            git(project.root, "commit", "--quiet", "--allow-empty", "-m", "results")
        versions = [project.run("versions", "--json")[1] for project in both]
        assert versions[0] == versions[1], "one registry"
        logs = [path.read_text() for p in both for path in p.root.rglob("services/*.log")]
        assert not any(PASSWORD in words for words in logs)
        assert url(place, "MLFLOW", "") != url(other, "MLFLOW", "")
    finally:
        for project in both:
            project.run("down")
            project.end()
    assert other.survivors() == place.survivors() == []
