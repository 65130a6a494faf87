"""examples/trl_ctrl.py: TRL's own trainer on the calibrated reward, measured at the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from smoke import ROOT

import infalign


@pytest.fixture(scope="module")
def trained(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the example ran on a finished run, and what it printed."""
    place = tmp_path_factory.mktemp("trl")
    shutil.copy(finished / "params.yaml", place)
    (place / "results").symlink_to(finished / "results")
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "trl_ctrl.py", "--steps", "2", "--prompts", "2"],
        cwd=place,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return place, done.stdout


def test_it_trains_and_ends_with_a_measurement(trained: tuple[Path, str]) -> None:
    place, said = trained
    assert "CalibratedReward(exp:10, kl_nats=0.5, beta=0.3184, 20 prompts of results/" in said
    assert "rewards/calibrated_reward/mean" in said
    rows = said.partition("best_of:4")[2]
    for name in ("trl", "ctrl", "identity", "rlhf"):
        for judge in ("selecting", "independent"):
            assert re.search(rf"\n  {name} +{judge} ", rows), said
    rows = [json.loads(line) for line in (place / "trl/samples.jsonl").read_text().splitlines()]
    assert len(rows) == 8 * 8
    assert max(row["kl"] for row in rows) > 0
    assert "<svg" in (place / "trl/index.html").read_text()


def test_what_it_wrote_is_measured_as_any_file(trained: tuple[Path, str]) -> None:
    place, _ = trained
    found = infalign.measure(
        place / "results/evaluate/helpful", {"trl": place / "trl/samples.jsonl"}, "best_of:2"
    )
    rows = [json.loads(line) for line in (place / "trl/samples.jsonl").read_text().splitlines()]
    assert found.policies[-1] == "trl"
    assert found.row("trl")["kl"] == pytest.approx(np.mean([row["kl"] for row in rows]))
