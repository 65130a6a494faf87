"""Five nights on real Prefect, DVC and MLflow: promotions exactly where they should be, no force.

The stages copy made-up results, a night's own; systems are real: tiny policies that say a letter
more or less often, a reward that counts it, packaged, fetched, drawn and compared as ever. Data
grows every night, one night the procedure changes from Best-of-4 to Best-of-8, one candidate is
truly worse, one truly better, and on the last night nothing changes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from promotion_case import WORDS, write_made

from flows.children.processes import end_leftovers
from infalign.data.dialogue import Dialogue
from infalign.data.framing import asked
from infalign.files.tables import EVALUATION_REWARDS, PROMPTS, read_table, write_table
from infalign.files.workspace import write_json
from infalign.rewards.description import described
from infalign.settings.params import check_params
from tests.flows.conftest import Project, write_toy
from tests.flows.runs.test_pipeline import wait_for

pytestmark = pytest.mark.timeout(900)
LETTER = "o"
SCORES = f'''"""The letter is what counts, for the reward and, a little otherwise, for the judge."""


def score(dialogues, responses):
    return [text.count("{LETTER}") + 0.001 * len(text) for text in responses]


def judge(dialogues, responses):
    return [text.count("{LETTER}") - 0.01 * len(text) for text in responses]
'''
COPY = '''"""Copies a night's made-up results."""
import shutil
import sys
from pathlib import Path

import yaml

night = yaml.safe_load(Path("params.yaml").read_text())["align"]["steps"]
for name in sys.argv[1:]:
    shutil.rmtree(Path("results", name), ignore_errors=True)
    shutil.copytree(Path("nights", str(night), name), Path("results", name))
'''
# How much more often the letter is said, prompts of the evaluation, and whether it is promoted.
NIGHTS = {
    1: (0.0, 60, "promoted"),
    2: (2.0, 70, "promoted"),
    3: (1.0, 80, "refused"),
    4: (2.0, 90, "promoted"),  # by Best-of-8
    5: (2.0, 90, "champion"),  # nothing changes
}


def leaning(folder: Path, push: float) -> None:
    """A policy whose logit of the letter is higher, by `push` on average."""
    import torch

    from infalign.lm.models import load_format, load_policy, save_model

    model, form = load_policy(folder, torch.device("cpu"), "float32"), load_format(folder)
    token = form.tokenizer.convert_tokens_to_ids(LETTER)
    tokens = torch.randint(
        model.config.vocab_size, (16, 16), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        mean = model.model(tokens).last_hidden_state.mean((0, 1))
        head = model.lm_head.weight
        model.lm_head.weight = torch.nn.Parameter(head.clone())  # its input stays as it was
        model.config.tie_word_embeddings = False
        model.lm_head.weight[token] += push * mean / (mean @ mean)
    shutil.rmtree(folder)
    save_model(model, form.tokenizer, folder)


def write_night(root: Path, night: int, push: float, more: Sequence[tuple[str, Dialogue]]) -> Path:
    """The results of one night: more prompts, another policy, another evaluation; the folder.

    Args:
        push: of the policy, as `leaning` takes it.
        more: splits and prompts beyond those that were made.
    """
    results = root / "nights" / str(night)
    shutil.copytree(root / "made", results)
    leaning(results / "align" / "helpful" / "ctrl" / "policy", push)
    path = results / "prepare" / "prompts.parquet"
    table = read_table(path, PROMPTS)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for split, dialogue in more:
        row = {"prompt_id": dialogue.id, "objective": "helpful", "split": split}
        row |= {"source": "made", "dialogue": dialogue.text, "columns": "{}"}
        for name, value in row.items():
            columns[name].append(value)
    write_table(path, columns, PROMPTS)
    path = results / "evaluate" / "helpful" / "rewards.parquet"
    rewards = read_table(path, EVALUATION_REWARDS).to_pydict()
    rewards["reward"] = [value + 1e-9 * night for value in rewards["reward"]]
    write_table(path, rewards, EVALUATION_REWARDS)
    return results


def more(root: Path, night: int, prompts: int) -> list[tuple[str, Dialogue]]:
    """What makes it so many prompts of the evaluation; and some train."""
    made = [asked(f"{a} {b} {c}") for c in ("cat", "dog") for a in WORDS for b in WORDS]
    known = read_table(root / "made" / "prepare" / "prompts.parquet", PROMPTS).num_rows
    held_out = [("test", one) for one in made[: prompts - known]]
    return held_out + [("train", one) for one in made[100 : 100 + 20 * night]]


@pytest.fixture
def project(tmp_path: Path, tokenizer: Any, quiet: dict[str, str], prefect_api: str) -> Any:
    root = tmp_path / "nights"
    write_toy(root)
    (root / "toy_stage.py").unlink()
    write_made(root, tokenizer)
    (root / "scores.py").write_text(SCORES)
    (root / "copy_made.py").write_text(COPY)
    tree = yaml.safe_load((root / "params.yaml").read_text())
    tree["objectives"] = {"helpful": tree["objectives"]["helpful"]}
    for field, name in (("reward", "score"), ("judge", "judge")):
        tree["objectives"]["helpful"][field] = {"kind": "function", "path": f"scores.py:{name}"}
    tree["promotion"] |= {"looks": 365, "looks_level": 0.05}
    pinned = "".join(json.dumps({"prompt": f"pinned {word}"}) + "\n" for word in WORDS)
    (root / "pinned.jsonl").write_text(pinned)
    tree["data"]["suites"] = {"pinned": "pinned.jsonl"}
    score = {"kind": "function", "path": "scores.py:score"}
    suite = {"rule": "mean", "reward": score, "at_least": 0.0, "margin": 0.5}
    tree["promotion"]["suites"] = {"pinned": suite}
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    about = check_params(tree, "params.yaml").objectives["helpful"]
    write_json(root / "made" / "sources" / "helpful.json", described(about, root))
    for night, (push, prompts, _) in NIGHTS.items():
        if night < 5:
            write_night(root, night, push, more(root, night, prompts))
    dvc = (root / "dvc.yaml").read_text()
    dvc = dvc.replace("prepare sft", "prepare sources sft")
    dvc = dvc.replace("[results/prepare, ", "[results/prepare, results/sources, ", 1)
    (root / "dvc.yaml").write_text(dvc)
    made = Project(root, quiet | {"PREFECT_API_URL": prefect_api, "HF_HUB_OFFLINE": "1"})
    yield made
    made.end()


def night(project: Project, number: int, *settings: str) -> tuple[dict[str, Any], str]:
    """One night's run: the decision, and what the command said."""
    words = [f"align.steps={number}", *settings]
    given = [word for setting in words for word in ("--set", setting)]
    status, output = project.inside("run", "--promote", *given)
    assert status == 0, output
    path = project.root / ".infalign" / "promotion" / "helpful.json"
    return json.loads(path.read_text()), output


def test_five_nights(project: Project) -> None:
    best_of_8 = "objectives.helpful.procedure=best_of:8"
    for number, (_, prompts, outcome) in NIGHTS.items():
        last = number == 5
        settings = [best_of_8] if number >= 4 else []
        decision, output = night(project, 4 if last else number, *settings)
        assert decision["outcome"] == outcome, f"night {number}: {output}"
        if last:
            assert "unchanged" in output
            assert "meets the champion" not in output
            break
        rules = {rule["name"]: rule for rule in decision["verdict"]["rules"]}
        failed = [name for name, rule in rules.items() if not rule["passed"]]
        worse = ["champion", "suite_pinned_champion"]
        assert failed == ([] if outcome == "promoted" else worse)
        assert rules["suite_pinned"]["number"] > 0
        if number > 1:
            assert f"of {prompts} prompts" in rules["champion"]["words"]
            assert "data" in rules["comparable"]["words"]
    assert "procedure (best_of:4, now best_of:8)" in rules["comparable"]["words"]
    moves = json.loads(project.inside("history", "--json")[1])["helpful"]
    assert [(move["to"], move["forced"]) for move in moves] == [
        ("1", False),
        ("2", False),
        ("4", False),
    ]
    status, output = project.inside("versions")
    assert status == 0
    shown = " ".join(output.split())
    assert "Last refused: infalign-helpful version 3, 20" in shown
    assert "UTC, against version 2; failed: champion (0." in shown
    assert ", suite_pinned_champion (-" in shown
    assert "on average would have passed, it was 0." in shown


@pytest.mark.soak
def test_a_night_that_is_killed_in_the_arena_goes_on_and_another_judge_has_a_word(
    project: Project,
) -> None:
    night(project, 1)
    parts = project.root / ".infalign" / "arena" / "parts"
    known = set(parts.iterdir())  # of the suite
    child = project.start("run", "--promote", "--set", "align.steps=2")
    wait_for(lambda: bool(set(parts.iterdir()) - known) or child.poll() is not None, 400)
    child.kill()
    child.wait()
    end_leftovers(project.root)
    before = {path: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert before.keys() - known
    decision, output = night(project, 2)
    assert decision["outcome"] == "promoted", output
    assert before.items() <= {path: path.stat().st_mtime_ns for path in parts.iterdir()}.items()
    # Another judge, and a candidate that only the former one likes less.
    tree = yaml.safe_load((project.root / "params.yaml").read_text())
    tree["objectives"]["helpful"]["judge"]["path"] = "scores.py:score"
    about = check_params(tree, "params.yaml").objectives["helpful"]
    made = project.root / "nights" / "3" / "sources" / "helpful.json"
    write_json(made, described(about, project.root))
    decision, _ = night(project, 3, "objectives.helpful.judge.path=scores.py:score")
    assert decision["outcome"] == "refused"
    worse = ["champion", "champion_judge", "suite_pinned_champion"]
    assert decision["verdict"]["failed"] == worse
