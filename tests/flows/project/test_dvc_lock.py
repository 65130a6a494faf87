"""dvc.lock that was cut short: known from a whole one, and mended from the last."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.children.processes import Finished
from flows.project.dvc_lock import is_whole, keep, mend
from flows.project.versions import StageKilled, failure

WHOLE = """\
schema: '2.0'
stages:
  corpus:
    cmd: python -m infalign corpus
    deps:
    - path: infalign/errors.py
      md5: 0123456789abcdef0123456789abcdef
      size: 10
    outs:
    - path: results/corpus
      md5: 0123456789abcdef0123456789abcdef.dir
"""


def test_whatever_is_cut_short_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    keep(tmp_path)  # before the first run there is none
    assert not mend(tmp_path)
    path.write_text("")
    assert not mend(tmp_path)  # nor anything to mend it with
    path.write_text(WHOLE)
    keep(tmp_path)
    assert not mend(tmp_path)
    mended = 0
    for length in range(len(WHOLE)):
        path.write_text(WHOLE[:length])
        if not is_whole(WHOLE[:length]):
            keep(tmp_path)  # which takes no half
            assert mend(tmp_path)
            assert path.read_text() == WHOLE
            mended += 1
    assert mended > 240


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\n", f"{WHOLE}=======\n<<<<<<< x\n"])
def test_a_merge_is_left_to_its_owner(tmp_path: Path, text: str) -> None:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text(WHOLE)
    keep(tmp_path)
    (tmp_path / "dvc.lock").write_text(text)
    assert not mend(tmp_path)
    assert (tmp_path / "dvc.lock").read_text() == text


def test_a_stage_that_meets_half_of_it_is_tried_again() -> None:
    said = ("ERROR: './dvc.lock' validation failed.", "", "required key not provided, in schema")
    assert isinstance(failure("report", Finished(255, said)), StageKilled)
