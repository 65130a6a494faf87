"""MLflow's database: made whole by whoever comes first; what is wrong with an old one is said."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.registry.registry import open_registry
from flows.services.mlflow_store import Unusable, check, file_of, make
from flows.tracking.tracker import PARENT, Tracker, connect
from tests.flows.runs.test_pipeline import wait_for

CONNECT = """
import sys
from pathlib import Path
from flows.tracking.tracker import connect
print(connect(Path(sys.argv[1]), sys.argv[2])[1])
"""


def connecting(clone: Path, uri: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Another process of a clone that opens a database."""
    command = [sys.executable, "-c", CONNECT, str(clone), uri]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_kill_leaves_nothing_behind_and_two_clones_make_one_database(
    tmp_path: Path, quiet: dict[str, str]
) -> None:
    uri = f"sqlite:///{tmp_path}/shared/mlflow.db"
    path = file_of(uri)
    assert path is not None
    with connecting(tmp_path / "a", uri, quiet) as first:
        half = wait_for(lambda: [p for p in path.parent.glob("*.new") if p.stat().st_size > 50000])
        first.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert half[0].exists()
    clones = [connecting(tmp_path / name, uri, quiet) for name in "ab"]
    said = [clone.communicate(timeout=240)[0].strip() for clone in clones]
    assert [clone.returncode for clone in clones] == [0, 0]
    assert said[0] == said[1]
    assert said[0].isdigit()
    assert sorted(p.name for p in path.parent.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


@pytest.fixture
def half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first tables, and one that a killed migration left."""
    from mlflow.store.db.utils import create_sqlalchemy_engine
    from mlflow.store.tracking.dbmodels.initial_models import Base

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "mlflow.db"
    engine = create_sqlalchemy_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    engine.dispose()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("create table _alembic_tmp_metrics (x)")
        database.execute("create table _alembic_tmp_runs (x)")
        database.commit()
    return path


def test_an_old_half_made_one_is_named_with_its_remedy(half_made: Path) -> None:
    root, told = half_made.parent, list[str]()
    tracker = Tracker(root, "run", told.append)
    tracker.begin(PARENT, "pipeline", {})
    tracker.close(seconds=0.5)
    with pytest.raises(
        Unusable, match=rf"is half made.* holds no run: remove it \(`rm {half_made}`"
    ):
        open_registry(root)
    assert "is half made" in told[0]
    assert told[0].endswith("The run goes on; what it has to log is kept until then.")
    assert [p.name for p in (root / ".infalign" / "tracking").iterdir()] == ["run.jsonl"]


def _with_a_run(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("insert into runs (run_uuid, experiment_id) values (1, 0)")
        database.commit()


def _with_text(path: Path) -> None:
    path.write_text("no database " * 100)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_with_a_run, "half migrated, with 1 runs"), (_with_text, "no SQLite database")],
)
def test_what_may_hold_something_is_not_to_be_removed(
    half_made: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(half_made)
    with pytest.raises(Unusable, match=words) as found:
        connect(half_made.parent, f"sqlite:///{half_made}")
    assert "remove" not in str(found.value)
    make(f"sqlite:///{half_made}")  # it is there: nothing to make
    assert half_made.exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("Detected out-of-date database schema (found version 1)", "of an older MLflow: copy it"),
        ("Can't locate revision identified by 'f00'", "of a newer MLflow"),
    ],
)
def test_databases_of_other_versions(half_made: Path, error: str, words: str) -> None:
    uri = f"sqlite:///{half_made}"
    with pytest.raises(Unusable, match=words):
        check(uri, RuntimeError(error))
    check(uri, TimeoutError("nothing is known of it"))
    check("http://127.0.0.1:1", RuntimeError(error))
    check(f"{uri}.not-there", RuntimeError(error))
