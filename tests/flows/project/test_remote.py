"""The DVC remote: a folder, and S3 on loopback; secrets that stay where they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.tracking.tracker import PARENT, Tracker
from tests.flows.conftest import Project, git
from tests.flows.project.test_restoring import committed
from tests.flows.runs.test_pipeline import files, wait_for

Copy = Callable[[], Project]
SECRET = "planted/Secret+of40characters0000000000"
PASSWORD = "planted-passw0rd"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAPLANTED", "AWS_SECRET_ACCESS_KEY": SECRET}


def dvc(project: Project, *arguments: str) -> None:
    """Run DVC in a project."""
    command = [sys.executable, "-m", "dvc", *arguments]
    subprocess.run(command, cwd=project.root, env=project.environment, check=True)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, str]]]:
    """An S3 bucket on loopback: its address, and the environment that opens it."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
        client.create_bucket(Bucket="infalign")
        client.close()
        environment = KEYS | {"AWS_ENDPOINT_URL_S3": address, "AWS_DEFAULT_REGION": "us-east-1"}
        yield "s3://infalign/store", environment
    finally:
        server.stop()


@pytest.mark.soak
def test_a_fresh_clone_pulls_from_s3_and_skips_every_stage(
    project: Copy, tmp_path: Path, bucket: tuple[str, dict[str, str]]
) -> None:
    copy = project()
    copy.environment |= bucket[1]
    dvc(copy, "remote", "add", "--quiet", "-d", "storage", bucket[0])
    change = ["--set", "report.examples=3"]
    status, said = copy.run("run", "--push", *change, PLANTED_TOKEN=SECRET)
    assert status == 0, said
    assert "report the token is ***" in said
    assert "files pushed" in said.splitlines()[-1]
    committed(copy)
    git(tmp_path, "clone", "--quiet", str(copy.root), "clone")
    clone = Project(tmp_path / "clone", copy.environment)
    dvc(clone, "pull", "--quiet")
    assert files(clone.root) == files(copy.root)
    status, output = clone.run("run")
    assert status == 0, output
    assert "0 made, 0 restored from cache, 5 unchanged" in output
    assert SECRET not in said + output
    for root in (copy.root, clone.root):
        assert not leaked(root, SECRET)


def leaked(root: Path, secret: str) -> list[Path]:
    """The files below a folder that hold a secret."""
    found = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return [path for path in found if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.soak
def test_a_failing_push_is_one_sentence_and_keeps_the_results(project: Copy) -> None:
    copy = project()
    url = f"http://user:{PASSWORD}@127.0.0.1:9/store"
    dvc(copy, "remote", "add", "--quiet", "--local", "-d", "storage", url)
    before = files(copy.root)
    status, output = copy.run("run", "--push", "--set", "report.examples=3")
    assert status == 1, output
    assert "1 made" in output
    last = output.splitlines()[-1]
    assert last.startswith("infalign: the results are complete, but `dvc push` failed: ")
    assert last.endswith("Mend the remote (`dvc remote list`), then `dvc push`.")
    assert "Traceback" not in output
    assert files(copy.root) == before
    assert PASSWORD not in output
    assert leaked(copy.root, PASSWORD) == [copy.root / ".dvc" / "config.local"]


def test_a_database_password_reaches_neither_words_nor_files(tmp_path: Path) -> None:
    said: list[str] = []
    uri = f"postgresql://user:{PASSWORD}@127.0.0.1:9/mlflow"
    tracker = Tracker(tmp_path, "run", said.append, uri)
    tracker.begin(PARENT, "pipeline", {})
    tracker.end(PARENT, "FINISHED")
    wait_for(lambda: said)
    tracker.close(seconds=1)
    assert len(said) == 2, said
    assert "postgresql://user:***@127.0.0.1:9/mlflow does not answer" in said[0]
    assert PASSWORD not in "".join(said) + tracker.page()
    assert leaked(tmp_path, PASSWORD) == []
