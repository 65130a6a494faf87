"""A champion on fresh prompts: tiny models, evidence measured the same way, then spoilt."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from promotion_case import FACTS, tiny_models, write_package

from infalign.data.framing import asked
from infalign.deployment import command, monitor
from infalign.deployment.asked import TooFew, fresh_prompts
from infalign.deployment.evidence import Evidence, Side, write_evidence
from infalign.deployment.package import digest
from infalign.deployment.remeasuring import Remeasuring
from infalign.errors import InputError
from infalign.files.tables import PROMPTS, read_table, write_table
from infalign.settings.params import Params, check_params, load_params
from infalign.settings.servers import Generation

ROOT = Path(__file__).parents[2]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
ASKED = sorted((asked(f"{a} {b}") for a in WORDS for b in WORDS), key=lambda one: one.id)
TRAINED = [asked(f"{b} {a}, {c}") for a in WORDS[:4] for b in WORDS[:4] for c in WORDS[:4]]
USED = 60  # prompts of the version's own evaluation; the others are fresh
SHIFTS = ("prompt_length", "prompt_hidden", "prompt_novel")


def settings(**drift: Any) -> Params:
    """The shipped params with smaller samples."""
    tree = load_params(ROOT / "params.yaml").model_dump(mode="json")
    small = {"prompts": 40, "samples": 4, "win_rate": 0.05, "reward_distance": 0.2, "looks": 10}
    return check_params({**tree, "drift": tree["drift"] | small | drift}, "params.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory, tokenizer) -> Path:  # type: ignore[no-untyped-def]
    """Prompts, a reference, and a champion that is the reference: its win rate is one half."""
    root = tmp_path_factory.mktemp("monitor")
    models = root / "models"
    tiny_models(models, tokenizer)
    shutil.copytree(models / "policy", root / "results" / "sft" / "policy")
    both = ASKED + TRAINED
    rows = {
        "prompt_id": [dialogue.id for dialogue in both],
        "objective": ["helpful"] * len(both),
        "split": ["test"] * len(ASKED) + ["train"] * len(TRAINED),
        "source": ["made"] * len(both),
        "dialogue": [dialogue.text for dialogue in both],
        "columns": ["{}"] * len(both),
    }
    write_table(root / "results" / "prepare" / "prompts.parquet", rows, PROMPTS)
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    write_package(root / "model", models, measured(root, models))
    return root


def measured(root: Path, models: Path) -> Evidence:
    """Evidence of the used prompts, by the monitor's own means with another seed."""
    from promotion_case import write_settings

    write_settings(models)
    used = {dialogue.id: dialogue for dialogue in ASKED[:USED]}
    reference = root / "results" / "sft" / "policy"
    ours, theirs = Remeasuring(settings(), (models, reference), {}).rewards(used, seed=99)
    facts = replace(FACTS, reference=digest(root / "results" / "sft" / "policy"))
    ones = np.ones(USED)
    return Evidence(
        facts,
        tuple(used),
        Side(ours, ours, ones, ones, ones),
        Side(theirs, theirs, ones, ones, ones),
        {},
    )


def spoilt(project: Path, tmp_path: Path, **sides: Any) -> Path:
    """The package with other rewards in its evidence."""
    folder = tmp_path / "model"
    shutil.copytree(project / "model", folder)
    evidence = monitor.read_evidence(folder / "evidence")
    moved = {
        name: replace(getattr(evidence, name), selecting=getattr(evidence, name).selecting + shift)
        for name, shift in sides.items()
    }
    write_evidence(folder / "evidence", replace(evidence, **moved))
    return folder


def test_a_champion_that_has_not_changed_raises_no_alarm(project: Path) -> None:
    found = monitor.check(project, settings(), "helpful", project / "model", seed=1)
    assert found["prompts"] == 40
    won = found["win_rate"]
    assert won["low"] <= 0.5 <= won["high"]
    assert abs(won["now"] - won["before"]) < 0.15
    assert found["reference_reward"]["size"] < 0.3
    assert not any(found[name]["alarm"] for name in SHIFTS)
    assert not found["alarm"]
    again = monitor.check(project, settings(), "helpful", project / "model", seed=1)
    assert again == found
    other = monitor.check(project, settings(prompts=20), "helpful", project / "model", seed=2)
    assert other["win_rate"]["now"] != won["now"]


@pytest.mark.parametrize(
    ("sides", "raised", "quiet"),
    [
        ({"policy": 1.0}, "win_rate", "reference_reward"),  # it won more when it was evaluated
        ({"policy": 1.0, "reference": 1.0}, "reference_reward", "win_rate"),
    ],
)
def test_drift_raises_its_own_alarm(
    project: Path, tmp_path: Path, sides: Any, raised: str, quiet: str
) -> None:
    folder = spoilt(project, tmp_path, **sides)
    found = monitor.check(project, settings(), "helpful", folder, seed=1)
    assert found["alarm"]
    assert found[raised]["alarm"]
    assert not found[quiet]["alarm"]


def test_champion_and_reference_answer_in_the_precision_of_the_package(
    project: Path, tmp_path: Path
) -> None:
    prompts = {dialogue.id: dialogue for dialogue in ASKED[:8]}
    found = {}
    for precision in (None, "float32", "bfloat16"):
        folder = tmp_path / str(precision)
        shutil.copytree(project / "model" / "deployed", folder)
        if precision:
            told = json.loads((folder / "settings.json").read_text())
            (folder / "settings.json").write_text(json.dumps(told | {"precision": precision}))
        folders = (folder, project / "results" / "sft" / "policy")
        found[precision] = Remeasuring(settings(), folders, {}).rewards(prompts, seed=1)
    for old, full, half in zip(*found.values(), strict=True):
        assert (old == full).all()
        assert (half != full).mean() > 0.9
        assert abs(half - full).mean() < 0.1 * full.std()


def test_champion_and_reference_are_drawn_from_by_servers_where_generation_starts_them(
    project: Path,
) -> None:
    generation = Generation(engine="vllm", start=True, python="nowhere/python")
    params = settings().model_copy(update={"generation": generation})
    with pytest.raises(InputError, match=r"'nowhere/python' does not exist: run `make engine`"):
        monitor.check(project, params, "helpful", project / "model", seed=1)


def test_fresh_prompts_are_those_that_the_evaluation_did_not_use(project: Path) -> None:
    evidence = monitor.read_evidence(project / "model" / "evidence")
    fresh = fresh_prompts(project, settings(prompts=10), "helpful", evidence, 1)
    assert len(fresh) == 10
    assert set(fresh.values()) <= set(ASKED[USED:])
    assert fresh != fresh_prompts(project, settings(prompts=10), "helpful", evidence, 2)
    with pytest.raises(InputError, match="0 evaluation prompts of harmless are fresh"):
        fresh_prompts(project, settings(), "harmless", evidence, 1)


def test_another_reference_or_too_few_samples_is_refused(project: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="best_of:4 draws 4 responses"):
        monitor.check(project, settings(samples=3), "helpful", project / "model", seed=1)
    copy = tmp_path / "other"
    shutil.copytree(project, copy)
    (copy / "results" / "sft" / "policy" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="another reference policy"):
        monitor.check(copy, settings(), "helpful", copy / "model", seed=1)


def test_after_a_night_with_new_data_the_champion_has_its_own_reference(
    project: Path, tmp_path: Path
) -> None:
    before = monitor.check(project, settings(), "helpful", project / "model", seed=1)
    copy = tmp_path / "night"
    shutil.copytree(project, copy)
    shutil.move(copy / "results" / "sft", copy / "model" / "reference")  # there is another one now
    assert monitor.check(copy, settings(), "helpful", copy / "model", seed=1) == before


def test_what_the_champion_was_trained_on_is_not_fresh(project: Path) -> None:
    evidence = monitor.read_evidence(project / "model" / "evidence")
    learnt = replace(evidence, trained=frozenset(dialogue.id for dialogue in ASKED[:80]))
    fresh = fresh_prompts(project, settings(prompts=40), "helpful", learnt, 1)
    assert set(fresh.values()) == set(ASKED[80:])


def test_the_command_writes_json(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr(command, "load_params", lambda _path: settings())
    monkeypatch.setattr("infalign.processes.one_stage.apply_threads", lambda _path: None)
    out = tmp_path / "out.json"
    arguments = ["--objective", "helpful", "--seed", "3", str(project / "model"), str(out)]
    assert monitor.main(arguments) == 0
    assert json.loads(out.read_text())["procedure"] == "best_of:4"
    arguments[1] = "harmless"
    assert monitor.main(arguments) == 2
    assert "are fresh, at least 8 are needed" in capsys.readouterr().err


def logged(folder: Path, prompts: list[Any], **ids: str) -> Path:
    """A file of logged prompts, some under the ids of what was asked before it was redacted."""
    rows = [{"prompt_id": ids.get(one.id, one.id), "dialogue": one.text} for one in prompts]
    path = folder / "logged.json"
    path.write_text(json.dumps(rows))
    return path


def users(words: str, many: int) -> list[Any]:
    """Other prompts than those of the evaluation, as long as they, or longer."""
    return [asked(words.format(WORDS[n % 10], WORDS[n // 10])) for n in range(many)]


@pytest.mark.parametrize(
    ("words", "raised"),
    [
        ("{0} and {1} and {0} and {1} and {0} please", {"prompt_length", "prompt_hidden"}),
        ("ZQ{0} XJ{1}!?", {"prompt_hidden", "prompt_novel"}),
    ],
)
def test_longer_prompts_and_prompts_of_another_kind_are_seen(
    project: Path, tmp_path: Path, words: str, raised: set[str]
) -> None:
    path = logged(tmp_path, users(words, 60))
    found = monitor.check(
        project, settings(prompts=60), "helpful", project / "model", 1, "log", path
    )
    assert found["alarm"]
    assert raised <= {name for name in SHIFTS if found[name]["alarm"]}
    assert found["prompt_length"]["now"] > found["prompt_length"]["before"]


def test_logged_prompts_like_those_of_the_evaluation_raise_no_alarm(
    project: Path, tmp_path: Path
) -> None:
    alike = [asked(f"{a} {b}") for a in WORDS for b in WORDS]  # those that are no evaluation's
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    path = copy / "results" / "prepare" / "prompts.parquet"
    table = read_table(path, PROMPTS)
    here = {dialogue.id for dialogue in ASKED[:USED]} | {dialogue.id for dialogue in TRAINED}
    kept = [row for row in table.to_pylist() if row["prompt_id"] in here]
    write_table(path, {name: [row[name] for row in kept] for name in table.column_names}, PROMPTS)
    asked_here = logged(tmp_path, alike)
    found = monitor.check(copy, settings(), "helpful", copy / "model", 1, "log", asked_here)
    assert (found["source"], found["prompts"], found["alarm"]) == ("log", 40, False)
    assert found["left_out"] == {"evaluation": USED}


def test_known_prompts_of_a_log_are_left_out_under_whatever_name(
    project: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    suite = users("a suite's {} {}", 10)
    (copy / "suite.jsonl").write_text(
        "".join(json.dumps({"prompt": one.messages}) + "\n" for one in suite)
    )
    tree = settings().model_dump(mode="json")
    tree["data"]["suites"] = {"pinned": "suite.jsonl"}
    params = check_params(tree, "params.yaml")
    secret = asked("what I asked, without my name")
    own = users("own {} {}", 20)
    prompts = [*own, secret, *suite[:3], *ASKED[:4], *TRAINED[:5]]
    path = logged(tmp_path, prompts, **{secret.id: ASKED[7].id})
    found = monitor.check(copy, params, "helpful", copy / "model", 1, "log", path)
    assert found["prompts"] == 20
    assert found["left_out"] == {"suite": 3, "evaluation": 5, "trained": 5}
    few = logged(tmp_path, prompts[15:])
    with pytest.raises(TooFew, match=r"6 prompts of the last 7 days .* 3 of suite left out"):
        monitor.check(copy, params, "helpful", copy / "model", 1, "log", few)


def test_prompts_that_the_champion_does_not_take_are_left_out(
    project: Path, tmp_path: Path
) -> None:
    long = users("one two three four five six seven eight {0} {1} " * 8, 5)
    path = logged(tmp_path, [*users("own {} {}", 20), *long])
    found = monitor.check(project, settings(), "helpful", project / "model", 1, "log", path)
    assert (found["prompts"], found["left_out"]) == (20, {"too_long": 5})
    only = logged(tmp_path, [*long, *users("one two three " * 30 + "{} {}", 5)])
    with pytest.raises(TooFew, match="have at most the 64 tokens that the champion takes"):
        monitor.check(project, settings(), "helpful", project / "model", 1, "log", only)


def test_suites_are_held_to_their_bounds_with_the_same_draws(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    rows = [json.dumps({"prompt": one.messages}) for one in users("pinned {} {}", 10)]
    (copy / "suite.jsonl").write_text("\n".join(rows) + "\n")
    (copy / "count.py").write_text(
        "def count(dialogues, responses):\n    return [float(len(text)) for text in responses]\n"
    )
    tree = settings().model_dump(mode="json")
    tree["data"]["suites"] = {"pinned": "suite.jsonl"}
    suite = {"rule": "mean", "reward": {"kind": "function", "path": "count.py:count"}}
    tree["promotion"]["suites"] = {"pinned": suite | {"at_most": 1000.0}}

    def checked(seed: int) -> dict[str, Any]:
        params = check_params(tree, "params.yaml")
        return monitor.check(copy, params, "helpful", copy / "model", seed, "suite")

    found = checked(1)
    assert (found["prompts"], found["alarm"]) == (10, False)
    number = found["suites"]["pinned"]["now"]
    assert checked(2) == found  # no chance in it
    tree["promotion"]["suites"]["pinned"]["at_most"] = number / 2
    assert checked(1)["alarm"]
    tree["promotion"]["suites"] = {}
    with pytest.raises(InputError, match="has no suite of helpful"):
        checked(1)
