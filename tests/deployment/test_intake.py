"""New data before it trains: what changed, whether the reward model agrees, and the bounds."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from infalign.data.changes import changes, language_shift, near_duplicates
from infalign.data.dialogue import Dialogue
from infalign.data.pairs import Pair, Prompt, Subset
from infalign.deployment.intake import agreement, examine, judge, main
from infalign.settings.operating import Intake
from infalign.settings.params import check_params
from tests.promotion_case import tiny_models

ENGLISH = "the bread is baked in a hot oven until the crust turns brown and the house smells good"
GERMAN = "das brot wird in einem heissen ofen gebacken bis die kruste braun ist und es gut riecht"


def pair(prompt: str, chosen: str = "yes", rejected: str = "no") -> Pair:
    """A pair of one question."""
    return Pair(Dialogue.of([("user", prompt)]), chosen, rejected, "x")


def said(words: str, seed: int, many: int = 60) -> list[Pair]:
    """Pairs whose responses are words in random order."""
    rng, known = random.Random(seed), words.split()
    texts = [" ".join(rng.choices(known, k=12)) for _ in range(2 * many)]
    return [pair(f"{seed} {n}", *texts[2 * n : 2 * n + 2]) for n in range(many)]


def version(train: list[Pair], test: list[Pair] | None = None, lines: int = 0) -> Subset:
    """Some data as it was read."""
    held = test or []
    return Subset("x", train=train, test=held, lines=lines or len(train) + len(held))


def test_near_duplicates_are_counted_among_new_training_prompts_alone() -> None:
    held_out = [pair("how do I bake a loaf of bread at home")]
    new = ["How do I bake a loaf of bread at home?", "how do I bake a loaf of rye at home", "hello"]
    now = version([pair(text) for text in new], held_out)
    now.prompts["train"].append(Prompt(Dialogue.of([("user", "alone")]), "x", "{}"))
    assert near_duplicates(None, now) == 0.25
    before = version([pair(new[0]), pair("hello")], held_out)
    assert near_duplicates(before, now) == 0.0
    assert near_duplicates(now, now) is None


def test_another_language_is_far_and_more_of_the_same_is_not() -> None:
    old = said(ENGLISH, 0)
    assert language_shift(old, said(ENGLISH, 1)) < 0.02
    assert language_shift(old, said(ENGLISH, 1, many=3)) < 0.2
    assert language_shift(old, said(GERMAN, 1)) > 0.5
    assert language_shift(old, said(GERMAN, 1, many=200)) > 0.5


def test_what_changed() -> None:
    old = said(ENGLISH, 0, many=10)
    found = changes(version(old, lines=12), version([*old[:9], pair("new", "a" * 90, "b")]))
    assert found["rows"] == {"before": 12, "now": 10}
    assert found["pairs"] == found["prompts"] == {"before": 10, "now": 10}
    assert found["kept"] == {"before": 10, "now": 10}
    assert found["new_pairs"] == 1
    assert found["dropped_share"] == 0
    first = changes(None, version(old, lines=20))
    assert first["pairs"] == {"before": None, "now": 10}
    assert first["dropped_share"] == 0.0
    lossy = version(old, lines=20)
    lossy.dropped.update({"tie": 3, "over_limit": 2, "broken_line": 4, "empty_response": 1})
    assert changes(None, lossy)["dropped_share"] == 0.25
    assert first["length_shift"] is None
    assert first["language_shift"] is None


FINE: dict[str, Any] = {
    "kept": {"before": 100, "now": 120},
    "dropped_share": 0.1,
    "new_pairs": 20,
    "agreement": {"held_out": 0.7, "accuracy_high": 0.7},
    "length_shift": {"distance": 0.1, "p_value": 0.0},
    "language_shift": 0.1,
}


@pytest.mark.parametrize(
    ("found", "settings", "failed"),
    [
        ({}, {}, []),
        ({"kept": {"before": None, "now": 1}, "agreement": None, "length_shift": None}, {}, []),
        ({"dropped_share": 0.4}, {}, ["dropped_share = 0.4, but at most 0.3 is allowed"]),
        ({"dropped_share": 0.4}, {"dropped_share": None}, []),
        ({"kept": {"before": 100, "now": 60}}, {}, ["size = 0.6, but 0.8 to 5 times"]),
        ({"kept": {"before": 100, "now": 600}}, {}, ["size = 6, but 0.8 to 5 times"]),
        ({"kept": {"before": 100, "now": 600}}, {"size": None}, []),
        ({"agreement": {"held_out": 0.7, "accuracy_high": 0.5}}, {}, ["agreement_loss = 0.2"]),
        ({"length_shift": {"distance": 0.5, "p_value": 0.001}}, {}, ["length_shift = 0.5"]),
        ({"length_shift": {"distance": 0.5, "p_value": 0.2}}, {}, []),  # chance
        ({"language_shift": 0.6}, {}, ["language_shift = 0.6"]),
        ({"language_shift": 0.6, "new_pairs": 5}, {}, []),  # too few to say
    ],
)
def test_bounds(found: dict[str, Any], settings: dict[str, Any], failed: list[str]) -> None:
    bounds = judge(FINE | found, Intake.model_validate(settings))
    words = [bound.sentence() for bound in bounds if not bound.passed]
    assert len(words) == len(failed)
    assert all(word.startswith(start) for word, start in zip(words, failed, strict=True))


@pytest.fixture(scope="module")
def project(tmp_path_factory, tokenizer, params_tree) -> Path:  # type: ignore[no-untyped-def]
    """Tiny models, and data by the reward model's own labels: `before`, `good`, `poisoned`."""
    from infalign.lm.models import load_format
    from infalign.rewards.classifier import Passes, trained_classifier

    root = tmp_path_factory.mktemp("intake")
    tiny_models(root, tokenizer)
    (root / "results" / "sft").mkdir(parents=True)
    shutil.move(root / "policy", root / "results" / "sft" / "policy")
    folder = root / "results" / "reward" / "helpful" / "selecting"
    folder.parent.mkdir(parents=True)
    shutil.move(root / "reward", folder)
    accuracy = {"selecting": {"accuracy": 0.8}}
    (folder.parent / "metrics.json").write_text(json.dumps(accuracy))
    source = trained_classifier(folder, "cpu", "float32", Passes())
    form = load_format(folder)
    rows = []
    for one in [*said(ENGLISH, 0), *said(ENGLISH, 1)]:
        sides = form.cut_responses([one.chosen, one.rejected], 12)
        rewards = source.rewards([one.prompt] * 2, sides)
        best = int(rewards[1] > rewards[0])
        texts = (one.chosen, one.rejected)
        row = {"prompt": one.prompt.turns[0].content, "chosen": texts[best]}
        rows.append(row | {"rejected": texts[1 - best]})
    flipped = [r | {"chosen": r["rejected"], "rejected": r["chosen"]} for r in rows[60:]]
    for name, listed in (("before", rows[:60]), ("good", rows), ("poisoned", rows[:60] + flipped)):
        lines = "".join(f"{json.dumps(row)}\n" for row in listed)
        (root / f"{name}.jsonl").write_text(lines)
    tree = json.loads(json.dumps(params_tree))
    tree["model"] |= {"prompt_tokens": 64, "response_tokens": 12}
    tree["objectives"] = {"helpful": tree["objectives"]["helpful"] | {"subset": None}}
    tree["run"] |= {"objectives": ["helpful"], "device": "cpu"}
    tree["data"]["path"] = "good.jsonl"
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    return root


def test_the_reward_model_agrees_or_the_data_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    tree = yaml.safe_load((project / "params.yaml").read_text())
    params = check_params(tree, "params.yaml")
    found = examine(project, params, "helpful", project / "before.jsonl")
    assert found["passed"], found["failed"]
    assert found["new_pairs"] == 60
    assert found["agreement"]["accuracy"] > 0.95  # but for ties
    assert found["agreement"]["pairs"] == 60
    tree["data"]["path"] = "poisoned.jsonl"
    (project / "params.yaml").write_text(yaml.safe_dump(tree))
    given = ["--objective", "helpful", "--before", "before.jsonl", "out.json"]
    assert main(given) == 0
    found = json.loads((project / "out.json").read_text())
    assert not found["passed"]
    assert found["agreement"]["accuracy"] < 0.05
    assert [words.split(" = ")[0] for words in found["failed"]] == ["agreement_loss"]
    assert agreement(project, params, "helpful", []) is None
    assert main(["--objective", "helpful", "--before", "nowhere", "out.json"]) == 2
