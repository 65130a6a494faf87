"""Words of DVC and what they are taken for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flows.children.processes import Finished
from flows.project.versions import (
    Busy,
    StageFailed,
    StageKilled,
    check_project,
    entry_digest,
    failure,
    git_state,
    outcome,
    parse_graph,
    read_plan,
    reason,
    spread,
)
from infalign.errors import InputError
from tests.flows.conftest import git

DOT = """strict digraph {
"corpus";
"data/raw/hh.dvc";
"prepare";
"align@helpful-ctrl";
"corpus" -> "prepare";
"data/raw/hh.dvc" -> "prepare";
"prepare" -> "align@helpful-ctrl";
}
"""


def test_the_graph_has_instances_and_no_data_files() -> None:
    graph = parse_graph(DOT)
    assert graph == {
        "corpus": set(),
        "prepare": {"corpus"},
        "align@helpful-ctrl": {"prepare"},
    }


def test_what_depends_on_a_stale_instance_is_stale() -> None:
    upstream = {"corpus": (), "prepare": ("corpus",), "other": (), "report": ("other", "prepare")}
    stale = spread(upstream, {"prepare": "data.path modified"})
    assert stale == {"prepare": "data.path modified", "report": "after prepare"}


def test_reasons_are_short() -> None:
    entries = [
        {"changed deps": {"params.yaml": {"sft.epochs": "modified"}, "results/prepare": "new"}},
        {"changed outs": {"results/sft": "deleted", "b": "deleted"}},
        "changed command",
    ]
    assert reason(entries) == (
        "sft.epochs modified, results/prepare new, results/sft deleted (output) and 2 more"
    )


def test_outcomes() -> None:
    assert outcome("sft", ("Stage 'sft' didn't change, skipping",)) == "unchanged"
    assert outcome("sft", ("Stage 'sft' is cached - skipping run, checking out outputs",)) == (
        "restored"
    )
    assert outcome("sft", ("Running stage 'sft':", "> python")) == "made"


def test_failures_are_told_apart() -> None:
    tail = "ERROR: failed to reproduce 'sft': failed to run: python -m infalign sft, exited with "
    mistake = failure("sft", Finished(255, ("sft: params.yaml is bad: mend it.", tail + "2")))
    assert isinstance(mistake, StageFailed)
    assert mistake.user_error
    assert str(mistake) == "sft: params.yaml is bad: mend it."
    crash = failure("sft", Finished(255, ("Traceback", "ValueError: no", tail + "1")))
    assert isinstance(crash, StageFailed)
    assert not crash.user_error
    assert isinstance(failure("sft", Finished(255, (tail + "-9",))), StageKilled)
    assert isinstance(failure("sft", Finished(-9, ())), StageKilled)
    blocked = "ERROR: 'x' is busy, it is being blocked by:\n  (PID 12): dvc repro"
    busy = failure("sft", Finished(255, tuple(blocked.splitlines())))
    assert isinstance(busy, Busy)
    assert "`dvc repro` (PID 12)" in str(busy)


def test_digests_follow_the_content_not_the_order() -> None:
    assert entry_digest({"a": 1, "b": 2}) == entry_digest({"b": 2, "a": 1})
    assert entry_digest({"a": 1}) != entry_digest({"a": 2})


def test_a_folder_in_which_nothing_can_work_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no dvc\.yaml"):
        check_project(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(InputError, match="not in a git repository"):
        check_project(tmp_path)
    git(tmp_path, "init", "--quiet")
    with pytest.raises(InputError, match=r"no \.dvc folder"):
        check_project(tmp_path)
    assert git_state(tmp_path) == {"commit": "none", "dirty": "true"}


def test_a_broken_dvc_yaml_is_a_sentence(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: x\n    dep: [y]\n")
    with pytest.raises(InputError, match=r"dvc\.yaml: DVC says: "):
        asyncio.run(read_plan(tmp_path, print))
