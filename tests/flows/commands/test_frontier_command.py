"""`infalign frontier`: the table, the JSON, the pictures, a finished run laid over them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from flows.commands.frontier import frontier
from flows.commands.frontier_plot import draw
from flows.commands.frontier_question import FinishedRun, Question, ask, read_run
from infalign.errors import InputError
from infalign.files.tables import CALIBRATED, read_table, write_table
from infalign.settings.params import load_params
from infalign.theory import frontier_point, raw_limit

PROJECT = Path(__file__).parents[3]
app = typer.Typer()
app.command()(frontier)


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_json_is_an_array_with_every_combination():
    options = ["--procedure", "best_of:4", "--procedure", "worst_of:2", "--kl", "0.5", "--kl", "1"]
    options += ["--transform", "exp:10", "--transform", "optimal"]
    rows = json.loads(_run(*options, "--json"))
    assert [list(row) for row in rows] == [["procedure", "transform", "kl", "win_rate", "beta"]] * 8
    assert {(row["procedure"], row["transform"], row["kl"]) for row in rows} == {
        (p, t, k)
        for p in ("best_of:4", "worst_of:2")
        for t in ("exp:10", "optimal")
        for k in (0.5, 1.0)
    }
    for row in rows:
        point = frontier_point(row["procedure"], row["transform"], row["kl"])
        assert (row["win_rate"], row["beta"]) == (point.win_rate, point.beta)


def test_without_arguments_it_answers_for_the_projects_own_params():
    text = _run("--params", str(PROJECT / "params.yaml"))
    params = load_params(PROJECT / "params.yaml")
    for name in params.run.objectives:
        assert f"{params.objectives[name].procedure} at {params.align.kl_nats:g} nats" in text
        assert params.objectives[name].transform in text
    assert text.count("Train with") == len(params.run.objectives)
    assert text.count(" optimal\n") == len(params.run.objectives)


def test_what_auto_chose_is_named_and_not_repeated():
    options = ["--procedure", "worst_of:4", "--kl", "0.5"]
    rows = json.loads(_run(*options, "--transform", "auto", "--transform", "exp:-10", "--json"))
    assert [row["transform"] for row in rows] == ["exp:-10"]
    assert "Train with exp:-10 and beta 0.01151.\n" in _run(*options, "--transform", "auto") + "\n"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--procedure", "best:4", "--kl", "1"], "write standard, best_of:N"),
        (["--procedure", "best_of:4", "--kl", "0"], "reachable range"),
        (["--procedure", "best_of:4", "--kl", "1", "--transform", "raw"], "write identity, log"),
        (["--procedure", "best_of:4", "--kl", "1", "--plot", "x.gif"], "must end in .png"),
        (["--procedure", "best_of:4", "--kl", "1", "--plot", "/dev/null/x.png"], "cannot be writ"),
        (["--procedure", "best_of:4", "--kl", "1", "--samples", "/nowhere"], "does not exist"),
        (["--procedure", "best_of:4", "--kl", "half"], "'half' is not a number"),
        (
            ["--procedure", "best_of:4", "--kl", "1", "--transform", "table:0,1,1"],
            "to 0.6931 nats of table:0,1,1; choose",
        ),
        (["--params", "/nowhere.yaml"], "no file /nowhere.yaml: give --procedure and --kl"),
        (["--kl", "1", "--params", "/"], "no file /: give"),
    ],
)
def test_bad_options_are_one_sentence(options, why):
    with pytest.raises(InputError, match=why):
        CliRunner().invoke(app, options, catch_exceptions=False)


def _finished_run(folder: Path) -> tuple[Path, np.ndarray]:
    rewards = np.random.default_rng(0).normal(size=(6, 8))
    prompts = [f"{p:016x}" for p in range(7) for _ in range(8)]
    columns = {
        "prompt_id": prompts,
        "sample_index": [*range(8)] * 7,
        "split": ["test"] * 48 + ["train"] * 8,
        "reward": [*rewards.ravel(), *[1e9] * 8],
        "independent_reward": [0.0] * 56,
        "calibrated": [0.5] * 56,
    }
    write_table(folder / "calibrate" / "helpful" / "calibrated.parquet", columns, CALIBRATED)
    row = {
        "objective": "helpful",
        "policy": "ctrl",
        "judge": "selecting",
        "procedure": "best_of:4",
        "win_rate": 0.83,
        "low": 0.81,
        "high": 0.85,
        "limit": 0.88,
        "method_limit": 0.87,
        "efficiency": 0.87,
        "kl": 0.55,
        "kl_se": 0.01,
        "response_tokens": 11.0,
    }
    others = [{"judge": "gold"}, {"procedure": "standard"}, {"policy": "reference"}]
    rows = [row, row | {"policy": "rlhf", "efficiency": None}, *(row | other for other in others)]
    (folder / "report").mkdir()
    (folder / "report" / "summary.json").write_text(json.dumps(rows))
    curves = [
        {"procedure": p, "curve": c, "kl": k, "win_rate": 0.5 + 0.4 * k}
        for p in ("best_of:4", "standard")
        for c in ("limit", "method ctrl")
        for k in (0.0, 0.5, 0.8)
    ]
    (folder / "evaluate" / "helpful").mkdir(parents=True)
    (folder / "evaluate" / "helpful" / "curves.json").write_text(json.dumps(curves))
    return folder, rewards


def test_a_finished_run_adds_its_policies_and_the_limit_of_raw_rewards(tmp_path):
    folder, rewards = _finished_run(tmp_path)
    options = ["--procedure", "best_of:4", "--kl", "0.5", "--samples", str(folder)]
    text = _run(*options)
    assert "raw rewards of helpful (uncertain by" in text
    assert "helpful ctrl  best_of:4    0.550   0.8300    0.8100-0.8500    0.8800  0.870" in text
    assert text.count("helpful ctrl") == 1
    assert "helpful rlhf" in text
    assert "helpful reference" not in text
    raw = json.loads(_run(*options, "--transform", "optimal", "--json"))[-1]
    assert (raw["transform"], raw["objective"]) == ("raw", "helpful")
    assert raw["win_rate"] == raw_limit("best_of:4", rewards, 0.5).win_rate


def test_policies_appear_under_their_own_objectives_procedure_only(tmp_path):
    folder, _ = _finished_run(tmp_path)
    summary, calibrated = folder / "report" / "summary.json", "calibrated.parquet"
    rows = json.loads(summary.read_text())
    rows += [row | {"objective": "harmless"} for row in rows]
    rows += [row | {"procedure": "worst_of:4"} for row in rows]
    rows += [row | {"procedure": "best_of:8"} for row in rows if row["procedure"] == "best_of:4"]
    summary.write_text(json.dumps(rows))
    for stage, name in (("calibrate", calibrated), ("evaluate", "curves.json")):
        (folder / stage / "harmless").mkdir()
        shutil.copyfile(folder / stage / "helpful" / name, folder / stage / "harmless" / name)
    curves = folder / "evaluate" / "harmless" / "curves.json"
    curves.write_text(curves.read_text().replace("best_of:4", "worst_of:4"))
    asked = Question(("best_of:4", "worst_of:4", "best_of:8"), (0.5,), {})
    run = read_run(folder, asked)
    own, nobodys = {("helpful", "best_of:4"), ("harmless", "worst_of:4")}, "best_of:8"
    both = {("helpful", nobodys), ("harmless", nobodys)}
    assert {(row["objective"], row["procedure"]) for row in run.policies} == own | both
    assert {(row["objective"], row["procedure"]) for row in run.raw} == own | both
    assert {(row["objective"], row["procedure"]) for row in run.curves} == own


def test_the_same_transformation_spelled_twice_is_one():
    options = ["--procedure", "best_of:4", "--kl", "0.5", "--kl", "0.50", "--json"]
    for spelling in ("exp:10", "exp:10.0", " exp:10", "table:0.0,1", "table:0,1.0"):
        options += ["--transform", spelling]
    assert [row["transform"] for row in json.loads(_run(*options))] == ["exp:10", "table:0,1"]


def test_a_procedure_that_the_run_did_not_evaluate_is_named(tmp_path):
    folder, _ = _finished_run(tmp_path)
    options = ["--procedure", "rank:2/3", "--kl", "0.5", "--transform", "log", "--samples"]
    result = CliRunner().invoke(app, [*options, str(folder)], catch_exceptions=False)
    assert "holds no policy evaluated under rank:2/3." in result.stderr
    assert "raw rewards of helpful" in result.stdout


@pytest.mark.parametrize("text", ["{", '{"a": 1}', '[{"policy": "ctrl"}]', "[1]"])
@pytest.mark.parametrize("name", ["report/summary.json", "evaluate/helpful/curves.json"])
def test_a_damaged_results_folder_is_one_sentence(tmp_path, name, text):
    folder, _ = _finished_run(tmp_path)
    (folder / name).write_text(text)
    options = ["--procedure", "best_of:4", "--kl", "0.5", "--transform", "log", "--samples"]
    with pytest.raises(InputError, match=f"{name} is not what a finished run leaves there"):
        CliRunner().invoke(app, [*options, str(folder)], catch_exceptions=False)


def test_raw_rewards_that_cannot_answer_are_named(tmp_path):
    folder, _ = _finished_run(tmp_path)
    options = ["--procedure", "best_of:4", "--transform", "log", "--samples", str(folder), "--kl"]
    with pytest.raises(InputError, match=r"Raw rewards of .*calibrated.parquet: kl_nats is 3"):
        CliRunner().invoke(app, [*options, "3"], catch_exceptions=False)
    path = folder / "calibrate" / "helpful" / "calibrated.parquet"
    columns = {
        name: values[:-1] for name, values in read_table(path, CALIBRATED).to_pydict().items()
    }
    write_table(path, columns | {"split": ["test"] * 55}, CALIBRATED)
    with pytest.raises(InputError, match="as many samples for every prompt"):
        CliRunner().invoke(app, [*options, "0.5"], catch_exceptions=False)


@pytest.mark.parametrize("kl", ["1e-7", "0.6", "15"])
def test_pictures_leave_out_what_a_transformation_cannot_reach(tmp_path, kl):
    options = ["--procedure", "best_of:2", "--kl", kl, "--transform", "identity"]
    if kl == "0.6":
        options += ["--transform", "table:0,1,1"]  # log 2 at most
    _run(*options, "--plot", str(tmp_path / "picture.PNG"))
    assert [path.name for path in tmp_path.iterdir()] == ["picture.PNG"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_pictures_have_the_same_bytes_every_time(tmp_path, suffix):
    folder, _ = _finished_run(tmp_path)
    options = ["--procedure", "best_of:4", "--kl", "0.2", "--kl", "0.5", "--samples", str(folder)]
    options += ["--transform", "exp:10", "--transform", "auto", "--plot"]
    written = []
    for name in ("one", "two"):
        path = tmp_path / "plots" / f"{name}{suffix}"
        _run(*options, str(path))
        written.append(path.read_bytes())
    assert len(written[0]) > 5000
    assert written[0] == written[1]


def test_a_picture_shows_what_was_asked_for_and_nothing_else(tmp_path):
    question = ask(["best_of:4"], [0.5], ["exp:10", "identity"], tmp_path / "none")
    left, right = draw(question, FinishedRun()).axes
    for axes in (left, right):
        assert [line.get_label() for line in axes.get_lines()] == ["exp:10", "identity"]
    styles = {(line.get_color(), line.get_linestyle()) for line in left.get_lines()}
    assert len({color for color, _ in styles}) == 2
    question = ask(["best_of:4"], [0.5], ["auto", "optimal"], tmp_path / "none")
    left, right = draw(question, FinishedRun()).axes
    assert [line.get_label() for line in left.get_lines()] == ["optimal", "exp:15"]
    assert [line.get_label() for line in right.get_lines()] == ["optimal at KL 0.5", "exp:15"]
