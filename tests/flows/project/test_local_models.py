"""Models as dependencies: DVC and `infalign restore` see that a local folder's weights changed."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flows.project.configuration import set_params
from flows.project.restoring import first_difference, restore
from infalign.errors import InputError
from infalign.lm.models import save_model
from infalign.settings.params import load_params
from tests.flows.conftest import git, write_real
from tests.flows.project.test_restoring import no_line


@pytest.fixture
def model(tmp_path: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A local model's folder, outside every project."""
    save_model(policy, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path) -> None:
    """Other weights in the same place."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-40:] = bytes(40)
    file.write_bytes(data)


def dvc(root: Path, environment: dict[str, str], *arguments: str) -> str:
    """Run DVC to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_other_weights_in_place_make_all_stale_that_loads_them(
    tmp_path: Path, smoke_tree: dict[str, Any], quiet: dict[str, str], model: Path
) -> None:
    """`dvc repro` alone, on the project's own dvc.yaml; by name, and relative to the project."""
    root = tmp_path / "project"
    tree = copy.deepcopy(smoke_tree)
    tree["model"] |= {"prompt_tokens": 54, "response_tokens": 9}
    tree["sft"]["epochs"] = 0.1
    write_real(root, tree)
    set_params(root / "params.yaml", ["model.name_or_path=../model"])
    environment = quiet | {"HF_HUB_OFFLINE": "1"}
    dvc(root, environment, "repro", "--quiet", "sft")
    assert dvc(root, environment, "status", "--json", "prepare", "sft").strip() == "{}"
    change(model)
    stale = json.loads(dvc(root, environment, "status", "--json", "prepare", "sft"))
    for word in ("prepare", "sft"):
        assert "model" in json.dumps(stale[word]), stale


TOY = """\
stages:
  report:
    cmd: sha256sum ${model.folder}/model.safetensors ${reward.folder}/model.safetensors > out
    deps: ["${model.folder}", "${reward.folder}"]
    params: [model, reward]
    outs: [out]
"""


def toy(root: Path, environment: dict[str, str], **folders: str) -> str:
    """A committed project whose only stage reads local models; the commit."""
    tree = {
        section: {"name_or_path": folder, "revision": None, "folder": folder}
        for section, folder in folders.items()
    }
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    (root / ".gitignore").write_text("/weights/\n/out\n")
    return committed(root, environment, TOY)


def committed(root: Path, environment: dict[str, str], stages: str) -> str:
    """Run the project's only stage and commit all there is; the commit."""
    git(root, "init", "--quiet")
    dvc(root, environment, "init", "--quiet")
    (root / "dvc.yaml").write_text(stages)
    dvc(root, environment, "repro", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "toy")
    return git(root, "rev-parse", "HEAD")


def test_a_restored_commit_finds_its_models_or_says_that_one_changed(
    tmp_path: Path, quiet: dict[str, str], model: Path
) -> None:
    """One in the project, which git does not have, and one beside it."""
    root = tmp_path / "project"
    shutil.copytree(model, root / "weights" / "mine")
    commit = toy(root, quiet, model="weights/mine", reward="../model")
    folder = asyncio.run(restore(root, commit, tmp_path / "again", no_line))
    assert asyncio.run(first_difference(folder, no_line)) is None
    # A link to the one in the project; what follows is the same wherever a model lies.
    change(model)
    with pytest.raises(InputError, match=r"reward\.folder: the files of .* are no longer those"):
        asyncio.run(restore(root, commit, tmp_path / "changed", no_line))
    shutil.rmtree(model)
    with pytest.raises(InputError, match=r"reward\.folder of this commit .* nothing is there"):
        asyncio.run(restore(root, commit, tmp_path / "gone", no_line))
    assert not {"changed", "gone"} & {path.name.strip(".") for path in tmp_path.iterdir()}


OWN = """\
stages:
  report:
    cmd: cat rewards/own.py models/ready/weights > out
    deps:
      - "models/ready"  # by params.yaml
      - "rewards/own.py"  # by params.yaml
    outs: [out]
"""


def test_what_rewards_are_made_of_is_brought_or_said_to_be_missing(
    tmp_path: Path, quiet: dict[str, str]
) -> None:
    """A function's file and a ready model's folder, which git does not have."""
    root = tmp_path / "project"
    for name in ("rewards/own.py", "models/ready/weights"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(name)
    (root / ".gitignore").write_text("/rewards/\n/models/\n/out\n")
    (root / "params.yaml").write_text("run: {}\n")
    commit = committed(root, quiet, OWN)
    folder = asyncio.run(restore(root, commit, tmp_path / "again", no_line))
    assert (folder / "rewards/own.py").read_text() == "rewards/own.py"
    assert asyncio.run(first_difference(folder, no_line)) is None
    (root / "rewards/own.py").write_text("another")
    words = r"dependency rewards/own\.py: the files of .* are no longer those"
    with pytest.raises(InputError, match=words):
        asyncio.run(restore(root, commit, tmp_path / "changed", no_line))
    (root / "rewards/own.py").unlink()
    with pytest.raises(InputError, match=r"'rewards/own\.py', and nothing is there"):
        asyncio.run(restore(root, commit, tmp_path / "gone", no_line))


def test_what_a_name_means_is_written_beside_it(tmp_path: Path, model: Path) -> None:
    root = Path(__file__).parents[3]
    file = Path(shutil.copyfile(root / "params.yaml", tmp_path / "params.yaml"))
    whole, params, said = file.read_text(), load_params(file), []
    set_params(file, ["model.name_or_path=model", "reward.name_or_path=./model"], said.append)
    assert said[:2] == ["params.yaml: model.folder = model", "params.yaml: reward.folder = ./model"]
    assert said[2].startswith("params.yaml: model.kind = base, ")
    assert load_params(file).reward.folder == "./model"
    set_params(file, ["model.name_or_path=tiny", "reward.name_or_path=sft"])
    assert load_params(file) == params
    # by hand, and in a file from before
    file.write_text(
        "\n".join(
            line.replace("name_or_path: tiny", "name_or_path: model")
            for line in whole.splitlines()
            if "folder: models/none" not in line
        )
    )
    set_params(file, [], said.append)
    assert said[3:5] == [
        "params.yaml: lacked model.folder, reward.folder: written, with the default.",
        "params.yaml: model.folder = model",
    ]
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"model\.folder = 'elsewhere' does not fit"):
        set_params(file, ["model.folder=elsewhere"])
    assert file.read_bytes() == before
    assert model.is_dir()
