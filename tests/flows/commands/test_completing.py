"""What the shell completes, asked as the shell asks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.commands import completing
from tests.flows.conftest import ROOT


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("kind", "incomplete", "some"),
    [
        ("settings", "align.kl_n", ["align.kl_nats="]),
        ("settings", "run.variants=[ctrl,rl", ["run.variants=[ctrl,rlhf"]),
        (
            "settings",
            "run.objectives=[h",
            [f"run.objectives=[{o}" for o in ("helpful", "harmless")],
        ),
        ("settings", "promotion.variant=ct", ["promotion.variant=ctrl"]),
        ("settings", "align.kl_nats=", []),
        ("objectives", "he", ["helpful"]),
        ("recipes", "qwen2.5-0.5b-in", ["qwen2.5-0.5b-instruct"]),
        ("deployments", "n", ["nightly"]),
        ("deployments", "back", []),
        ("procedures", "w", ["worst_of:"]),
        ("transforms", "id", ["identity"]),
    ],
)
def test_names_are_completed(kind: str, incomplete: str, some: list[str]) -> None:
    assert getattr(completing, kind)(incomplete) == some


def test_every_setting_can_be_completed() -> None:
    keys = completing.settings("")
    assert {"run.seed=", "objectives.helpful.procedure=", "data.columns="} <= set(keys)


def test_where_there_is_nothing_to_read_nothing_is_completed(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        assert completing.settings("run") == completing.objectives("") == []
        Path("params.yaml").write_text("run: [1, {")
        Path("prefect.yaml").write_text("deployments: 3")
        assert completing.objectives("") == completing.deployments("") == []


def test_the_shell_is_answered() -> None:
    words = "infalign schedule --on n"
    asked = {"_INFALIGN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"}
    code = (
        "import sys; from flows.cli import app; sys.argv[0] = 'infalign'; app(prog_name='infalign')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["nightly"]
