"""What params.yaml may say of rewards: kinds, defaults, and a sentence for everything else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from infalign.errors import InputError
from infalign.files.sources import data_paths, own_files
from infalign.settings.params import check_params
from infalign.settings.rewards import ModelReward, own_paths

SERVER = {"kind": "http", "url": "http://127.0.0.1:1/"}


def objective(tree: dict[str, Any], reward: Any, judge: Any = None) -> Any:
    """The first objective with a reward and a judge."""
    tree = copy.deepcopy(tree)
    tree["objectives"]["helpful"] |= {"reward": reward, "judge": judge}
    return check_params(tree, "params.yaml").objectives["helpful"]


def test_kinds(params_tree: dict[str, Any]) -> None:
    assert objective(params_tree, {"kind": "train"}).judge is None
    total = {"kind": "sum", "parts": [SERVER | {"weight": 0.5}, {"kind": "train"}]}
    parts = objective(params_tree, total).reward.parts
    assert [(part.kind, part.weight) for part in parts] == [("http", 0.5), ("train", 1.0)]


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ({"path": "x"}, "helpful.reward = {'path': 'x'}: kind must be train, model, function"),
        ({"kind": "modle"}, "kind must be train, model, function, http or sum"),
        ({"kind": "model"}, "'objectives.helpful.reward.path' is missing: add it"),
        ({"kind": "train", "pth": 1}, "unknown key 'objectives.helpful.reward.pth'"),
        ({"kind": "function", "path": "x.py"}, "reward.path = 'x.py': name a file and a function"),
        ({"kind": "sum", "parts": []}, "objectives.helpful.reward.parts = []"),
        ({"kind": "sum", "parts": [{"kind": "sum"}]}, "reward.parts.0 = {'kind': 'sum'}: kind"),
        ({"kind": "sum", "parts": [SERVER | {"weight": 0}]}, "reward.parts.0.weight = 0"),
        (None, "objectives.helpful.reward = None"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    params_tree: dict[str, Any], reward: Any, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        objective(params_tree, reward)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "given", [{"url": "http://me:secret-1@127.0.0.1/"}, {"api_key_variable": "sk-secret-1"}]
)
def test_a_secret_is_refused_and_not_shown(params_tree: dict[str, Any], given: Any) -> None:
    with pytest.raises(InputError) as caught:
        objective(params_tree, SERVER | given)
    assert "secret-1" not in str(caught.value)


def test_a_comparison_poisons_trained_rewards_only(params_tree: dict[str, Any]) -> None:
    tree = copy.deepcopy(params_tree)
    tree["objectives"]["helpful"]["reward"] = SERVER
    tree["compare"]["objectives"] = ["helpful"]
    check_params(tree, "params.yaml")
    tree["compare"]["poison"]["objectives"] = ["helpful"]
    with pytest.raises(InputError, match="'helpful', whose reward is not trained here"):
        check_params(tree, "params.yaml")


def test_own_files(
    params_tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    one = {"kind": "function", "path": "rewards/a.py:f"}
    parts = [one, {"kind": "model", "path": "models/mine"}, {"kind": "model", "path": "hub/name"}]
    found = objective(params_tree, one, {"kind": "sum", "parts": parts})
    assert own_paths({"helpful": found}) == {
        "rewards/a.py": "objectives.helpful.reward.path",
        "models/mine": "objectives.helpful.judge.parts.1.path",
    }


def test_two_spellings_of_a_place_are_one(params_tree: dict[str, Any]) -> None:
    tree = copy.deepcopy(params_tree)
    tree["objectives"]["helpful"] |= {
        "data": "./data//own/",
        "reward": {"kind": "function", "path": "./rewards/../rewards/mine.py:score"},
        "judge": {"kind": "model", "path": "models/ready/"},
    }
    tree["objectives"]["harmless"]["data"] = "data/own"
    params = check_params(tree, "test")
    assert data_paths(params) == ("data/own",)
    assert list(own_files("prepare", params)) == ["data/own"]
    assert list(own_files("sources", params)) == ["rewards/mine.py"]
    helpful = params.objectives["helpful"]
    assert isinstance(helpful.judge, ModelReward)
    assert helpful.judge.path == "models/ready"
