"""`--set`: comments kept, checked before a byte is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.project.configuration import set_params
from infalign.errors import InputError
from infalign.settings.params import load_params

ROOT = Path(__file__).parents[3]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml"))


def test_nothing_set_changes_no_byte(file: Path) -> None:
    before = file.read_bytes()
    set_params(file, [])
    set_params(file, [f"align.kl_nats={load_params(file).align.kl_nats}"])
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("align.steps=7", "  steps: 7"),
        ("align.learning_rate=1e-5", "  learning_rate: 1.0e-05"),
        ("align.beta=null", "  beta: null  # null: from the budget"),
        ("data.path=../other data", "  path: ../other data"),
        ("run.variants=[ctrl]", "  variants: [ctrl]"),
        ("align.variants.ctrl.reward=exp:5", "    ctrl: {reward: exp:5}"),
    ],
)
def test_a_value_changes_its_own_line(file: Path, assignment: str, line: str) -> None:
    before = file.read_text().splitlines()
    params = set_params(file, [assignment])
    after = file.read_text().splitlines()
    assert params == load_params(file)
    assert len(after) == len(before)
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert all(new.startswith(line) for new in changed)
    assert len(changed) == (0 if assignment.endswith("null") else 1)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["align.stepz=7"], "unknown key 'align.stepz'"),
        (["align.steps=0"], "align.steps = 0"),
        (["align.steps=7", "align.kl_nats=-1"], "align.kl_nats = -1"),
        (["align.steps=many"], "align.steps = 'many'"),
        (["align"], "write KEY=VALUE"),
        (["nothing.here=1"], "no section 'nothing'"),
        (["align.steps.deep=1"], "is not a section"),
        (["align.steps=[1"], "is not YAML"),
        (["align.steps=" + "9" * 4301], "line 1 has a number of 4301 digits"),
        (["align.steps=0x" + "f" * 4301], "align.steps = a number of thousands of digits"),
        (["align.steps=" + "[" * 3000 + "]" * 3000], "is nested too deeply"),
        (["align.steps=" + "[" * 20 + "]" * 20], "align.steps = [[[[...]]]]"),
        (["align.steps=!!timestamp soon"], "is not YAML"),
        (["x" * 9999], "write KEY=VALUE"),
        (["x" * 9999 + ".y=1"], "no section 'xxx"),
        ([".".join("x" * 9999) + "=1"], "no section 'x'"),
    ],
)
def test_a_mistake_is_a_sentence_and_changes_nothing(
    file: Path, assignments: list[str], words: str
) -> None:
    before = file.read_bytes()
    with pytest.raises(InputError, match=r".") as caught:
        set_params(file, assignments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert file.read_bytes() == before
