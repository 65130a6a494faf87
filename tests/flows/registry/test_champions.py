"""The history of champions: linear, complete, and followed by the aliases, whoever is killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.registry import champions as module
from flows.registry.champions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    Champions,
    Move,
    Overtaken,
    reigning,
    was_rolled_back,
)
from flows.registry.registry import open_registry
from infalign.errors import InputError

NAME = "infalign-helpful"
SOAK = [pytest.mark.soak, pytest.mark.timeout(3600)]


def opened(root: Path, locks: str = ".infalign/locks") -> Champions:
    """The champions of a project; with other locks, as seen from another machine."""
    registry = open_registry(root)
    return Champions(registry.client, NAME, registry.experiment, root / locks)


def add_versions(champions: Champions, number: int) -> None:
    """Versions without files."""
    champions.ensure()
    for _ in range(number):
        champions.client.create_model_version(NAME, "file:///nowhere")


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose MLflow has five versions: only to copy."""
    root = tmp_path_factory.mktemp("registry") / "project"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        add_versions(opened(root), 5)
    return root


@pytest.fixture
def root(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Path(shutil.copytree(database, tmp_path / "project"))


def state(champions: Champions) -> tuple[str | None, str | None]:
    """Champion and previous champion, as a reader finds them."""
    found = champions.aliases()
    return found.get(CHAMPION), found.get(PREVIOUS)


def test_promotions_and_rollbacks_are_a_stack_with_a_complete_history(root: Path) -> None:
    champions = opened(root)
    assert champions.champion() is None
    assert champions.history() == []
    champions.promote("1", None, "first", {"passed": True})
    assert state(champions) == ("1", None)
    champions.promote("2", "1", "second", {"passed": True})
    champions.promote("3", "2", "third", {"passed": False}, forced=True)
    assert state(champions) == ("3", "2")
    assert champions.rollback("bad answers").to == "2"
    assert state(champions) == ("2", "1")
    assert champions.rollback("worse").to == "1"
    assert state(champions) == ("1", None)
    with pytest.raises(InputError, match="has no earlier champion"):
        champions.rollback("again")
    champions.promote("3", "1", "back", {})
    assert state(champions) == ("3", "1")
    history = champions.history()
    assert [(m.move, m.source, m.to, m.why, m.forced) for m in history] == [
        ("promote", None, "1", "first", False),
        ("promote", "1", "2", "second", False),
        ("promote", "2", "3", "third", True),
        ("rollback", "3", "2", "bad answers", False),
        ("rollback", "2", "1", "worse", False),
        ("promote", "1", "3", "back", False),
    ]
    assert all("@" in m.who and m.when.endswith("+00:00") for m in history)
    assert history[0].gate == {"passed": True}
    assert was_rolled_back(history, "2")
    assert not was_rolled_back(history, "3")  # promoted again since
    assert not was_rolled_back(history, "1")


def test_promoting_the_champion_changes_nothing(root: Path) -> None:
    champions = opened(root)
    champions.promote("1", None, "", {})
    assert champions.promote("1", None, "", {}) is None
    assert len(champions.history()) == 1


def test_a_verdict_against_a_former_champion_moves_nothing(root: Path) -> None:
    champions = opened(root)
    champions.promote("1", None, "", {})
    with pytest.raises(Overtaken):
        champions.promote("2", None, "", {})
    assert state(champions) == ("1", None)
    assert len(champions.history()) == 1


def test_a_place_in_the_history_is_written_once(root: Path) -> None:
    first, second = opened(root), opened(root, "elsewhere")
    move = Move("promote", None, "1", "a@b", "now", "", id="x")
    other = Move("promote", None, "2", "a@b", "now", "", id="y")
    assert first._append(0, move)
    assert not second._append(0, other)
    assert first._append(0, move)  # its own move, when an answer got lost
    assert [m.to for m in second.history()] == ["1"]


def test_who_comes_second_uses_the_first_ones_history(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    champions = opened(root)
    journal = champions._journal()
    with monkeypatch.context() as patch:
        patch.setattr(Champions, "exists", lambda _: False)  # asked before the other made it
        champions.ensure()
    assert champions._journal() == journal
    query = f"tags.`infalign.model` = '{NAME}'"
    found = champions.client.search_runs([champions.experiment], query)
    assert [run.info.run_id for run in found] == [journal]


def test_the_model_and_its_history_are_made_once(root: Path) -> None:
    champions = opened(root)
    journal = champions._journal()
    champions.ensure()
    assert champions._journal() == journal
    foreign = Champions(champions.client, "foreign", champions.experiment, root / "locks")
    champions.client.create_registered_model("foreign")
    with pytest.raises(InputError, match="was not made by infalign"):
        foreign.ensure()


def test_an_interrupted_move_is_completed_by_whoever_comes_next(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    champions = opened(root)
    champions.promote("1", None, "", {})
    champions.promote("2", "1", "", {})
    champions.promote("3", "2", "", {})
    with monkeypatch.context() as patch:
        patch.setattr(Champions, "settle", lambda _: False)  # as if killed before the aliases
        champions.rollback("interrupted")
    assert state(champions) == ("3", "2")
    assert champions.champion() == "2"
    again = champions.rollback("the same, typed again")
    assert (again.to, again.why) == ("2", "interrupted")
    assert state(champions) == ("2", "1")
    assert len(champions.history()) == 4
    with monkeypatch.context() as patch:
        patch.setattr(Champions, "settle", lambda _: False)
        champions.promote("4", "2", "", {})
    assert champions.settle()
    assert state(champions) == ("4", "2")
    assert not champions.settle()


def test_a_challenger_that_is_promoted_is_no_challenger_any_more(root: Path) -> None:
    champions = opened(root)
    champions.challenge("1")
    assert champions.aliases() == {CHALLENGER: "1"}
    champions.promote("1", None, "", {})
    assert champions.aliases() == {CHAMPION: "1"}
    champions.challenge("1")
    assert champions.aliases() == {CHAMPION: "1"}


def test_a_deleted_version_is_one_sentence(root: Path) -> None:
    champions = opened(root)
    champions.promote("1", None, "", {})
    champions.client.delete_model_version(NAME, "2")
    with pytest.raises(InputError, match="version 2 of infalign-helpful should be the champion"):
        champions.promote("2", "1", "", {})
    champions.rollback("it is gone")
    assert state(champions)[0] == "1"


def test_a_deleted_history_is_one_sentence(root: Path) -> None:
    champions = opened(root)
    champions.client.delete_run(champions._journal())
    with pytest.raises(InputError, match="was deleted in MLflow: restore it there"):
        champions.promote("1", None, "", {})
    champions.client.restore_run(champions._journal())
    champions.promote("1", None, "", {})
    assert state(champions) == ("1", None)


def test_secrets_do_not_reach_the_history(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "planted-s3cret")
    champions = opened(root)
    champions.promote("1", None, "with planted-s3cret and http://me:hunter22@host/", {})
    assert champions.history()[0].why == "with *** and http://me:***@host/"
    for path in root.rglob("*"):
        assert not path.is_file() or b"planted-s3cret" not in path.read_bytes()


def test_a_broken_history_is_refused() -> None:
    moves = [Move("promote", None, "1", "", "", ""), Move("promote", "2", "3", "", "", "")]
    with pytest.raises(InputError, match="history of moves is broken"):
        reigning(moves)


# Several at once.


def worker(root: str, locks: str, seed: int, moves: int) -> None:
    """Promote and roll back at random; every move counts, however often it was overtaken."""
    champions = opened(Path(root), locks)
    rng = random.Random(seed)
    made = 0
    while made < moves:
        try:
            if rng.random() < 0.35:
                champions.rollback(f"{seed}/{made}")
            else:
                version = str(rng.randint(1, 5))
                found = champions.champion()
                if champions.promote(version, found, f"{seed}/{made}", {}) is None:
                    continue
        except (Overtaken, InputError) as error:
            if isinstance(error, InputError) and "no earlier champion" not in str(error):
                raise
            continue
        made += 1


def run_at_once(root: Path, moves: int, own_locks: bool) -> list[Any]:
    """Four processes; the aliases as one reader found them all the while."""
    context = multiprocessing.get_context("spawn")
    children = []
    for seed in range(4):
        locks = f"locks{seed}" if own_locks else ".infalign/locks"
        children.append(
            context.Process(target=worker, args=(str(root), locks, seed, moves), daemon=True)
        )
    champions = opened(root)
    champions.promote("1", None, "begin", {})
    reads = []
    try:
        for child in children:
            child.start()
        while any(child.is_alive() for child in children):
            reads.append(champions.aliases())
            time.sleep(0.01)
        assert [child.exitcode for child in children] == [0] * 4
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
            child.join()
    return reads


@pytest.mark.parametrize(
    ("moves", "own_locks"),
    [pytest.param(50, False, marks=SOAK), pytest.param(50, True, marks=SOAK)],
)
def test_moves_by_four_processes_are_a_linear_history(
    root: Path, moves: int, own_locks: bool
) -> None:
    reads = run_at_once(root, moves, own_locks)
    champions = opened(root)
    history = champions.history()
    stack = reigning(history)  # raises where the history is not linear
    assert len(reads) > 5
    for found in reads:
        assert found[CHAMPION] in {"1", "2", "3", "4", "5"}
        assert own_locks or found.get(PREVIOUS) != found[CHAMPION]
    assert not champions.settle()
    assert state(champions)[0] == stack[-1]
    assert state(champions)[1] == (stack[-2] if len(stack) > 1 else None)
    # A rollback that another one's rollback made good is no entry of its own.
    made = [m.why for m in history[1:]]
    assert len(set(made)) == len(made)
    if own_locks:
        assert 2 * moves <= len(made) <= 4 * moves
    else:
        assert sorted(made) == sorted(f"{s}/{m}" for s in range(4) for m in range(moves))


KILLED = """
import sys, time
from pathlib import Path
from tests.flows.registry.test_champions import opened
champions = opened(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    for version in "2345":
        champions.promote(version, champions.champion(), "", {})
    for _ in range(4):
        champions.rollback("")
"""


def move_until_killed(root: Path, seconds: float) -> None:
    """A process that promotes and rolls back, and its `kill -9` so long after its first move."""
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(root)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        assert child.poll() is None, "it ended by itself"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize(
    ("seed", "kills", "longest"), [(0, 1, 0.6), pytest.param(1, 20, 1.5, marks=SOAK)]
)
def test_kills_in_the_midst_of_moves_are_made_good(
    root: Path, seed: int, kills: int, longest: float
) -> None:
    champions, rng = opened(root), random.Random(seed)
    champions.promote("1", None, "begin", {})
    for _ in range(kills):
        move_until_killed(root, rng.uniform(0.0, longest))
        assert state(champions)[0] is not None
        champions.settle()
        stack = reigning(champions.history())
        assert state(champions) == (stack[-1], stack[-2] if len(stack) > 1 else None)


@pytest.mark.parametrize(
    "words",
    [
        "(sqlite3.OperationalError) database is locked",
        "(sqlite3.IntegrityError) UNIQUE constraint failed: registered_model_aliases.alias",
        'duplicate key value violates unique constraint "registered_model_alias_pk"',
        "UPDATE statement on table 'x' expected to update 1 row(s); 0 were matched.",
    ],
)
def test_who_is_in_the_way_is_waited_for(words: str) -> None:
    from mlflow.exceptions import MlflowException

    answers: list[Any] = [MlflowException(words), "done"]

    def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert module.patiently(call) == "done"
    with pytest.raises(MlflowException, match="no"):
        module.patiently(lambda: (_ for _ in ()).throw(MlflowException("no")))
