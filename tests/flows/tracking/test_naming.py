"""What runs are called, and which numbers become metrics, each under one name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.project.versions import COMPARISON, Plan
from flows.services.mlflow_pages import SHARED, table_page
from flows.tracking.naming import about, curve, evaluated, finals, run_name, what_changed
from flows.tracking.views import ABOUT, METRICS
from infalign.settings.params import Params, check_params, load_params
from tests.flows.conftest import ROOT

PARAMS = load_params(ROOT / "params.yaml")


def changed(**sections: dict[str, Any]) -> Params:
    tree = PARAMS.model_dump(mode="json")
    return check_params({k: v | sections.get(k, {}) for k, v in tree.items()}, "changed")


@pytest.mark.parametrize(
    ("instance", "params", "name"),
    [
        ("align@helpful-ctrl", PARAMS, "helpful-ctrl kl 0.5 seed 0"),
        ("align@helpful-ctrl", changed(align={"beta": 2.0}), "helpful-ctrl beta 2 seed 0"),
        ("align@harmless-rlhf", changed(run={"seed": 3}), "harmless-rlhf kl 0.5 seed 3"),
        ("contend@helpful-ipo-1.0-2", PARAMS, "contend helpful-ipo kl 1.0 seed 2"),
        ("calibrate@helpful", PARAMS, "calibrate helpful"),
        ("sft", PARAMS, "sft"),
    ],
)
def test_a_run_is_named_for_what_it_is(instance: str, params: Params, name: str) -> None:
    assert run_name(instance, params) == name


def test_a_policy_is_compared_by_what_it_was_trained_with() -> None:
    own = {"variant": "rlhf", "objective": "harmless", "kl_nats": "0.5", "seed": "0"}
    own |= {"reward": "raw", "method": "ctrl", "procedure": "worst_of:4"}
    assert about("align@harmless-rlhf", PARAMS) == own
    assert about("contend@harmless-rlhf-1.0-7", PARAMS) == own | {"kl_nats": "1.0", "seed": "7"}
    assert about("evaluate@helpful", PARAMS) == {"objective": "helpful"}


@pytest.mark.parametrize(
    ("stale", "settings", "first", "name"),
    [
        ({}, {"align.steps": "7"}, False, "no change"),
        ({"sft": "x.py new"}, {}, True, "first run"),
        (
            {"sft": "x.py new"},
            {"run.seed": 3, "align.steps": "7"},
            True,
            "run.seed 3, align.steps 7",
        ),
        (
            {"align@o-a": "align.steps modified, infalign/stages/align.py modified"},
            {},
            False,
            "align.steps 200, code",
        ),
        (
            {"prepare": "data/raw/mine modified", "sft": "after prepare"},
            {},
            False,
            "data/raw/mine",
        ),
        ({"align@o-a": "code/align modified", "report": "code/report new"}, {}, False, "code"),
        ({"prepare": "code/mine modified"}, {}, False, "code/mine"),
        ({"report": "results/report deleted (output)"}, {}, False, "results"),
        ({"report": "something else"}, {}, False, "changes"),
    ],
)
def test_a_whole_run_is_named_by_what_changed(
    stale: dict[str, str], settings: dict[str, Any], first: bool, name: str
) -> None:
    plan = Plan({}, stale)
    assert what_changed(plan, PARAMS, settings, first=first) == name
    assert what_changed(plan, PARAMS, settings, COMPARISON, first) == f"compare: {name}"


def test_a_long_list_of_settings_is_cut() -> None:
    settings = {f"section.key{i}": i for i in range(30)}
    name = what_changed(Plan({}, {"sft": "x"}), PARAMS, settings)
    assert len(name) == 100
    assert name.endswith("…")


def test_few_curves_are_shown_and_no_constants() -> None:
    assert curve("kl") == "training/kl"
    assert curve("selecting/loss") == "training/selecting/loss"
    assert [curve(name) for name in ("beta", "gradient_norm", "selecting/log_ratio")] == [None] * 3
    assert finals("prepare", {"lines": 3}) == finals("report", {"a": {"b": 1.0}}) == []


def test_final_numbers_have_one_name() -> None:
    errors = {"calibration_error": {"4": 0.2, "16": 0.1}, "reward_std": 2.0}
    assert finals("calibrate@o", errors) == [
        ("calibration_error", 0.2, 4),
        ("calibration_error", 0.1, 16),
    ]
    reward = {"accuracy_ceiling": 0.9, "selecting": {"accuracy": 0.8, "pairs": 9}}
    assert finals("reward@o", reward) == [("accuracy/selecting", 0.8, 0)]
    numbers = {"win_rate": 0.8, "kl": 0.5, "kl_se": 0.1, "efficiency": None}
    rows = [("win_rate", 0.8, 0), ("kl", 0.5, 0)]
    assert evaluated(numbers) == finals("contend@o-v-0.5-0", numbers) == rows


def test_the_table_of_runs_shows_these_numbers_first() -> None:
    state = json.loads(ABOUT[""][f"mlflow.sharedViewState.{SHARED}"])
    assert state["selectedColumns"][:4] == [f"metrics.`{name}`" for name in METRICS[:4]]
    assert len(ABOUT[""][f"mlflow.sharedViewState.{SHARED}"]) < 5000  # MLflow takes no more
    page = table_page("http://127.0.0.1:5000/", "1")
    assert page.startswith(
        "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    )


def test_the_picture_of_a_version_is_where_the_description_says(tmp_path: Path) -> None:
    from flows.registry.describing import version_words

    plots = tmp_path / "results" / "report" / "plots"
    assert "![" not in version_words(tmp_path, PARAMS, "helpful", "r1")
    plots.mkdir(parents=True)
    (plots / "helpful_frontier.png").touch()
    evaluated_file = tmp_path / "results" / "evaluate" / "helpful" / "metrics.json"
    evaluated_file.parent.mkdir(parents=True)
    numbers = {"win_rate": 0.856, "low": 0.8, "high": 0.9, "kl": 0.5, "limit": 0.9}
    evaluated_file.write_text(json.dumps({"ctrl": numbers | {"efficiency": 0.95}}))
    words = version_words(tmp_path, PARAMS, "helpful", "r1")
    assert "0.856 (0.800 to 0.900) at 0.50 nats; limit 0.900, efficiency 0.95." in words
    assert "(get-artifact?path=plots%2Fhelpful_frontier.png&run_uuid=r1)" in words
