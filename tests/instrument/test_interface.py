"""`import infalign`: what it holds, in one place, with numpy and scipy alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import infalign
from infalign.errors import InputError
from infalign.instrument import interface
from infalign.theory.calibration import calibrate
from infalign.theory.winrates import judged_win_rates

NAMES = ["CalibratedReward", "calibrate", "frontier", "measure", "transform", "win_rate"]
NOTEBOOK = """
import infalign
phi = infalign.transform("auto", "best_of:4", 0.5)
allowed = infalign.frontier("best_of:4", 0.5)
found = infalign.measure("reference.jsonl", {"mine": "mine.jsonl"}, "best_of:4")
shown = found._repr_html_()
"""
# Blocks every library but numpy and scipy, wherever it is asked for.
GUARD = """
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        ours = top in {"numpy", "scipy", "infalign"} or top.startswith("_sysconfigdata")
        if not ours and top not in sys.stdlib_module_names:
            raise ImportError(f"{name} is kept out")
sys.meta_path.insert(0, Guard())
before = set(sys.modules)
import infalign
assert not {"numpy", "scipy"} & (set(sys.modules) - before), "import infalign is not light"
"""


def test_the_surface_is_listed_in_one_place() -> None:
    assert infalign.__all__ == NAMES
    assert set(NAMES) <= set(dir(infalign))
    assert set(NAMES) <= set(interface.__all__)
    for name in interface.__all__:
        assert getattr(interface, name).__doc__
    for name in NAMES:
        assert getattr(infalign, name) is getattr(interface, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = infalign.nothing  # type: ignore[attr-defined]


def test_five_notebook_lines_need_numpy_and_scipy_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, shift in (("reference", 0.0), ("mine", 0.6)):
        rows = (
            {"prompt": f"q{p}", "reward": r, "kl": 0.4}
            for p in range(12)
            for r in rng.normal(shift, 1, 8)
        )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    script = GUARD + NOTEBOOK + "assert '<svg' in shown and '<table' in shown\nprint(found)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path[1:]!r}\n{script}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "12 prompts, 8 samples each" in done.stdout


def test_a_win_rate_by_hand() -> None:
    # Policy 3, 1; reference 2, 0: 3 beats both, 1 beats 0 only, so 3 of 4 pairs are won.
    found = infalign.win_rate("standard", [[3, 1], [3, 1]], [[2, 0], [2, 0]])
    assert (found.value, found.low, found.high) == (0.75, 0.75, 0.75)
    assert float(found) == 0.75
    assert str(found) == "0.750 (0.750 to 0.750)"
    assert repr(found) == "WinRate(value=0.75, low=0.75, high=0.75)"
    rng = np.random.default_rng(0)
    a, b, c, d = rng.normal(size=(4, 6, 8))
    judged = infalign.win_rate("best_of:2", a, b, policy_judge=c, reference_judge=d)
    assert judged.prompts == pytest.approx(judged_win_rates("best_of:2", a, b, c, d))
    with pytest.raises(InputError, match="give its rewards of both"):
        infalign.win_rate("best_of:2", a, b, policy_judge=c)
    with pytest.raises(InputError, match="draws 16 responses but only 8"):
        infalign.win_rate("best_of:16", a, b)
    assert infalign.calibrate(a, b) == pytest.approx(calibrate(a, b))


def test_a_transform_is_read_from_words() -> None:
    chosen = infalign.transform("auto", "best_of:4", 0.5)
    assert str(chosen).startswith("exp:")
    assert str(infalign.transform("identity")) == "identity"
    assert len(repr(infalign.transform("optimal", "best_of:4", 0.5))) < 200
    assert infalign.transform("optimal", "worst_of:4", 0.5)(1.0) == pytest.approx(0)
    for spelling, words in (("auto", "give both"), ("exp:x", "write identity, log, exp:T")):
        with pytest.raises(InputError, match=words):
            infalign.transform(spelling)


def test_a_frontier_is_a_table_and_a_figure() -> None:
    found = infalign.frontier("best_of:4", [0.25, 0.5])
    assert found.best(0.25).win_rate < found.best(0.5).win_rate
    assert found.best().transform != "optimal"
    assert [p.transform for p in found.points].count("optimal") == 2
    assert found.points[0].transform == "optimal"
    assert "<svg" in found._repr_html_()
    assert "exp:10" in str(found)
    assert json.loads(json.dumps(found.to_dict()))[0]["kl"] == 0.25
    with pytest.raises(InputError, match="was not asked for 1 nats"):
        found.best(1)
    with pytest.raises(InputError, match="kl_nats is 99"):
        infalign.frontier("best_of:4", 99)
