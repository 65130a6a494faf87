"""Unfinished work: whose it is, one writer at a time, and how it becomes a result."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from smoke import ROOT

from infalign.errors import InputError
from infalign.files.workspace import Needs, Workspace, fingerprint, write_json, write_text
from infalign.settings.params import check_params


@pytest.fixture
def made(params_tree, tmp_path):
    return Workspace(check_params(params_tree, "params.yaml"), tmp_path, "toy@a")


NO_CACHE = shutil.ignore_patterns("__pycache__")
NEEDS = Needs(("data",), ("align.steps",), ("results/toy/a",))


def test_work_of_the_same_fingerprint_is_kept(made):
    made.open_work("one")
    (made.work / "half").write_text("x")
    made.open_work("one")
    assert (made.work / "half").exists()
    made.open_work("two")
    assert not (made.work / "half").exists()


def test_half_written_files_of_who_was_killed_are_not_published(made, monkeypatch):
    made.open_work("one")
    path = made.out / "folder" / "table.json"
    path.parent.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # what a kill leaves out
        patch.setattr(os, "replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_text(path, "half")
    assert len(list(path.parent.iterdir())) == 1
    made.open_work("one")
    assert not list(path.parent.iterdir())


def test_fingerprint_follows_params_and_inputs(made, params_tree, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a").write_text("1")
    first = fingerprint("sft", NEEDS, made.params, tmp_path)
    assert fingerprint("sft", NEEDS, made.params, tmp_path) == first
    (tmp_path / "data/a").write_text("2")
    second = fingerprint("sft", NEEDS, made.params, tmp_path)
    params_tree = {**params_tree, "align": {**params_tree["align"], "steps": 7}}
    third = fingerprint("sft", NEEDS, check_params(params_tree, "p"), tmp_path)
    other = {**params_tree, "evaluate": {**params_tree["evaluate"], "bootstrap": 777}}
    fourth = fingerprint("sft", NEEDS, check_params(other, "p"), tmp_path)
    assert len({first, second, third}) == 3
    assert fourth == third


def test_fingerprint_follows_the_code_that_the_stage_imports(made, tmp_path):
    """A copy of the package with a word changed: of what the stage imports, or of a page."""
    shutil.copytree(ROOT / "infalign", tmp_path / "infalign", ignore=NO_CACHE)
    (tmp_path / "data").mkdir()
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    code = (
        "from pathlib import Path\n"
        "from infalign.files.workspace import Needs, fingerprint\n"
        "from infalign.settings.params import load_params\n"
        "params = load_params('params.yaml')\n"
        "for word in ('sft', 'report'):\n"
        "    print(fingerprint(word, Needs(('data',), (), ()), params, Path('.')))\n"
    )

    def taken() -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.split()

    before = taken()
    with open(tmp_path / "infalign" / "page" / "words.py", "a") as stream:
        stream.write("# mended\n")
    page = taken()
    assert page[0] == before[0]
    assert page[1] != before[1]
    with open(tmp_path / "infalign" / "lm" / "training" / "loop.py", "a") as stream:
        stream.write("# mended\n")
    loop = taken()
    assert loop[0] != page[0]
    assert loop[1] == page[1]


def test_missing_input_is_a_clear_error(made, tmp_path):
    with pytest.raises(InputError, match=r"data does not exist: run the stage that writes it"):
        fingerprint("sft", NEEDS, made.params, tmp_path)


def test_publish_replaces_what_was_there(made, tmp_path):
    made.open_work("one")
    write_text(made.out / "toy/a/new.txt", "new")
    write_text(tmp_path / "results/toy/a/old.txt", "old")
    made.publish(NEEDS.outputs)
    assert [p.name for p in (tmp_path / "results/toy/a").iterdir()] == ["new.txt"]
    assert [p.name for p in (tmp_path / "results/toy").iterdir()] == ["a"]
    assert not made.work.exists()


def test_a_published_file_is_no_link_to_work(made, tmp_path):
    made.open_work("one")
    write_text(made.out / "toy/a/new.txt", "new")
    made.publish(NEEDS.outputs)
    assert (tmp_path / "results/toy/a/new.txt").stat().st_nlink == 1


def _hold(workspace, held, release):
    with workspace.locked():
        held.set()
        release.wait(600)


def test_one_writer_at_a_time_and_death_releases(made):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(made, held, release))
    holder.start()
    assert held.wait(60)
    killer = context.Process(target=_kill_later, args=(holder.pid,))
    killer.start()
    with made.locked():
        holder.join(60)
        assert holder.exitcode == -signal.SIGKILL  # not before: it would hold on for longer
    killer.join()


def _kill_later(pid):
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)


def test_json_is_sorted_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()
