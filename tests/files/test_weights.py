"""What a model's name stands for; the hub's cache is one that a download would have left."""

from __future__ import annotations

import copy
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from infalign.errors import InputError
from infalign.files.weights import NONE, check_kind, check_source, folders, kind_of, pinned
from infalign.files.workspace import fingerprint
from infalign.lm.models import save_model
from infalign.settings.params import Params, check_params

OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"
NAME = "somebody/a-model"
LOADED = """
import sys, torch
from infalign.lm.models import build_reward_model, load_policy, load_tokenizer
for revision in sys.argv[2:4]:
    cpu = torch.device("cpu")
    policy = load_policy(sys.argv[1], cpu, revision=revision)
    tokenizer = load_tokenizer(sys.argv[1], revision)
    reward = build_reward_model(sys.argv[1], tokenizer, cpu, seed=0, revision=revision)
    size = len(tokenizer)
    weight = lambda model: float(model.model.norm.weight.detach().sum())
    print(weight(policy), weight(reward), size)
from infalign.processes.one_stage import main
print("exit", main(["corpus", "--params", "old.yaml"]))
for name in sys.argv[4:]:
    print("exit", main(["prepare", "--params", f"{name}.yaml"]))
"""


def params(tree: dict[str, Any], **sections: dict[str, Any]) -> Params:
    tree = copy.deepcopy(tree)
    for section, values in sections.items():
        tree[section] |= values
    return check_params(tree, "test")


def test_a_folder_is_an_input_under_its_own_key(smoke_tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for section, built in (("model", "tiny"), ("reward", "sft")):
        (tmp_path / built).mkdir()  # a folder of that name is not what the name means
        assert pinned(section, built, None, tmp_path) == {"folder": NONE, "revision": None}
        for name in ("mine", "./mine/", str(tmp_path / "mine")):
            assert pinned(section, name, None, tmp_path) == {"folder": name, "revision": None}
        kept = pinned(section, NAME, OLD, tmp_path)
        assert kept == {"folder": NONE, "revision": OLD}
        for values, words in (
            ({"name_or_path": "mine"}, f"{section}.folder = 'models/none' does not fit"),
            ({"folder": "mine"}, f"{section}.folder = 'mine' does not fit"),
            ({"revision": OLD}, f"{section}.revision = '{OLD}' does not fit .* set it to null"),
        ):
            source = getattr(params(smoke_tree, **{section: values}), section)
            with pytest.raises(InputError, match=words):
                check_source(section, source, tmp_path)
        good = params(smoke_tree, **{section: {"name_or_path": "mine", "folder": "mine"}})
        check_source(section, getattr(good, section), tmp_path)
        assert folders(getattr(good, section)) == ("mine",)
    assert folders(params(smoke_tree).model) == ()
    with pytest.raises(InputError, match=r"model\.revision = 'main': give a commit, 40"):
        params(smoke_tree, model={"revision": "main"})


@pytest.mark.parametrize(
    ("word", "section"), [("prepare", "model"), ("sft", "model"), ("reward", "reward")]
)
def test_unfinished_work_is_of_the_weights_it_began_with(
    smoke_tree: dict[str, Any], tmp_path: Path, word: str, section: str
) -> None:
    for name in ("results/corpus", "results/prepare", "results/sft", "mine"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "results" / "sources" / "trained").mkdir(parents=True)
    (tmp_path / "results" / "sources" / "trained" / "helpful.json").write_text("[]")
    local = params(smoke_tree, **{section: {"name_or_path": "mine", "folder": "mine"}})
    names = ("helpful",) if word == "reward" else ()
    needs = importlib.import_module(f"infalign.stages.{word}").needs(local, *names)
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"old")
    before = fingerprint(word, needs, local, tmp_path)
    assert fingerprint(word, needs, local, tmp_path) == before
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"new")
    assert fingerprint(word, needs, local, tmp_path) != before
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(InputError, match="mine does not exist: bring the model back"):
        fingerprint(word, needs, local, tmp_path)


@pytest.fixture
def hub(tmp_path: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A home of the hub's library with two commits of a model, the newer one on main."""
    repository = tmp_path / "home" / "hub" / f"models--{NAME.replace('/', '--')}"
    for revision, value in ((OLD, 1.0), (NEW, 3.0)):
        with torch.no_grad():
            policy.model.norm.weight.fill_(value)
        save_model(policy, tokenizer, repository / "snapshots" / revision)
        for file in sorted((repository / "snapshots" / revision).iterdir()):
            blob = repository / "blobs" / f"{revision}-{file.name}"
            blob.parent.mkdir(exist_ok=True)
            shutil.move(file, blob)
            file.symlink_to(f"../../blobs/{blob.name}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    return tmp_path / "home"


def python(home: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with another home of the hub's library, which is read once a process."""
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={k: v for k, v in environment.items() if k != "HF_HUB_CACHE"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_hub_name_is_loaded_at_its_commit_and_without_one_is_a_sentence_that_gives_it(
    hub: Path, smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    """Wherever main is; in one process, which reads the home of the hub's library once."""
    revisions = {"none": None, "lost": "a" * 40, "old": OLD}
    for name, revision in revisions.items():
        tree = copy.deepcopy(smoke_tree)
        tree["model"] |= {"name_or_path": NAME, "revision": revision}
        tree["model"] |= {"prompt_tokens": 54, "response_tokens": 9}  # of 64 positions
        tree["model"]["kind"] = "base"
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    done = python(hub, tmp_path, "-c", LOADED, NAME, OLD, NEW, *revisions)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["16.0 16.0 294", "48.0 48.0 294"]
    assert re.findall(r"^exit (.*)", done.stdout, re.MULTILINE) == ["0", "2", "2", "0"], done.stderr
    unfit, lost = done.stderr.strip().splitlines()
    assert f"fit model.name_or_path = '{NAME}': set it to '{NEW}'" in unfit
    assert f"model '{NAME}' cannot be loaded" in lost


@pytest.mark.parametrize(
    ("file", "content", "kind"),
    [
        ("tokenizer_config.json", "{}", "base"),
        ("tokenizer_config.json", "{", "base"),
        ("config.json", "{}", "base"),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', "instruct"),
        ("chat_template.jinja", "{{ messages }}", "instruct"),
    ],
)
def test_a_chat_template_makes_the_kind(
    smoke_tree: dict[str, Any], tmp_path: Path, file: str, content: str, kind: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / file).write_text(content)
    assert kind_of("mine", None, tmp_path) == kind
    assert kind_of("tiny", None, tmp_path) == "scratch"
    assert kind_of("a b", None, tmp_path) is None
    tree = params(smoke_tree, model={"name_or_path": "mine", "folder": "mine"})
    for told in ("scratch", "base", "instruct"):
        if told == kind or (told, kind) == ("base", "instruct"):
            check_kind(tree.model, told, tmp_path)
            continue
        with pytest.raises(InputError) as caught:
            check_kind(tree.model, told, tmp_path)
        assert f"model.kind = '{told}'" in str(caught.value)
        assert f"'mine', which is '{kind}'" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_kind_of_a_hub_name_is_that_of_its_commit(hub: Path, tmp_path: Path) -> None:
    asked = "\n".join(
        [
            "import sys",
            "from pathlib import Path",
            "from infalign.files.weights import kind_of",
            "for name in sys.argv[2:]: print(kind_of(sys.argv[1], name, Path.cwd()))",
        ]
    )
    done = python(hub, tmp_path, "-c", asked, NAME, OLD, "f" * 40)
    assert done.stdout.split() == ["base", "None"], done.stderr


@pytest.mark.parametrize("name", ["./not-there", "somebody/who-has-none", "../../etc", "a b"])
def test_a_name_that_is_nothing_is_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"model '{name}' cannot be loaded: it is no local folder"):
        pinned("reward", name, None, tmp_path)
