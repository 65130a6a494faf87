"""How far a run is: what durations of earlier runs say of the time that is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.runs.progress import Progress, expected, progress_of, read_durations, watching
from infalign.files.workspace import write_json

UPSTREAM = {"sft": (), "align@o-a": ("sft",), "align@o-b": ("sft",), "report": ("align@o-a",)}


def planned(root: Path, durations: dict[str, float], slots: int = 2) -> Progress:
    write_json(root / ".infalign" / "durations.json", durations)
    progress = Progress(root)
    progress.plan(UPSTREAM, dict.fromkeys(UPSTREAM, "changed"), slots)
    return progress


def test_the_time_left_is_that_of_the_slots_side_by_side(tmp_path: Path) -> None:
    known = {"sft": 10.0, "align@o-a": 20.0, "align@o-b": 35.0, "report": 5.0}
    assert planned(tmp_path, known).left() == 45.0  # sft, then b beside a and report
    assert planned(tmp_path, known, slots=1).left() == 70.0


def test_what_nobody_has_run_has_no_time_until_its_like_has_been_made(tmp_path: Path) -> None:
    progress = planned(tmp_path, {"sft": 10.0, "report": 5.0})
    assert progress.left() is None
    progress.begins("align@o-a")
    progress.ends("align@o-a", "made")
    progress.instances["align@o-b"].expected = 30.0
    progress.ends("sft", "unchanged")
    assert progress.left() == 30.0


def test_what_is_at_work_counts_from_its_begin_and_never_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("flows.runs.progress.time.monotonic", lambda: now[0])
    progress = planned(tmp_path, {"sft": 10.0, "align@o-a": 20.0, "report": 5.0})
    progress.begins("sft")
    now[0] += 4
    assert progress.left() == 6 + 20 + 5
    now[0] += 90
    assert progress.left() == 1 + 20 + 5


def test_what_waits_for_a_failure_is_not_counted(tmp_path: Path) -> None:
    progress = planned(tmp_path, {"sft": 10.0, "align@o-a": 20.0, "report": 5.0})
    progress.ends("sft", "failed")
    progress.ends("align@o-a", "failed")
    assert progress.left() == 20.0  # align@o-b


def test_durations_are_kept_of_what_was_made_and_help_its_like(tmp_path: Path) -> None:
    progress = planned(tmp_path, {})
    for name, end in (("sft", "made"), ("align@o-a", "restored")):
        progress.begins(name)
        progress.ends(name, end)
    assert set(read_durations(tmp_path)) == {"sft"}
    known = {"align@o-a": 20.0, "align@o-b": 40.0, "reward": 3.0}
    assert expected(known, "align@p-a") == 30.0
    assert expected(known, "evaluate@o") is None
    (tmp_path / ".infalign" / "durations.json").write_text("[1, ")
    assert read_durations(tmp_path) == {}


def test_a_run_writes_where_somebody_watches(tmp_path: Path) -> None:
    with watching(tmp_path) as progress:
        assert progress_of(tmp_path) is progress
    assert progress_of(tmp_path) is not progress
