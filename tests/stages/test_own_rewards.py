"""Objectives with rewards of one's own, through every stage: a ready model, a function, a sum."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infalign.data.dialogue import Dialogue, read_prompts
from infalign.deployment.deployed import Request, load_deployed
from infalign.deployment.evidence import read_evidence
from infalign.deployment.gate import judge_candidate
from infalign.deployment.package import package
from infalign.errors import InputError
from infalign.files.tables import SELECTING
from infalign.files.workspace import Workspace
from infalign.lm.models import load_format
from infalign.processes.one_stage import main
from infalign.rewards.classifier import Passes
from infalign.rewards.opening import columns_of, open_source
from infalign.rewards.packaged import open_packaged
from infalign.rewards.pairs import held_out_pairs
from infalign.settings.params import check_params, load_params
from infalign.theory.frontier import limit
from tests.conftest import MakeOnce
from tests.stages.conftest import instances

TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
EVEN = """
def score(dialogues, responses, **columns):
    assert all(dialogue[-1]["role"] == "user" for dialogue in dialogues)
    wanted = columns.get("parity", [0] * len(responses))
    return [float(len(text) % 2 == parity) for text, parity in zip(responses, wanted)]
"""
LENGTH = "def score(dialogues, responses):\n    return [0.01 * len(text) for text in responses]\n"


def own_tree(smoke_tree: dict[str, Any]) -> dict[str, Any]:
    """Three objectives: a ready classifier, a rule on prompts alone without a judge, a sum."""
    tree = copy.deepcopy(smoke_tree)
    ready = {"kind": "model", "path": "models/ready"}
    length = {"kind": "function", "path": "rewards/length.py:score"}
    base = {"procedure": "best_of:2", "transform": "auto", "gold": None}
    tree["objectives"] = {
        "helpful": base | {"subset": "helpful-base", "reward": ready, "judge": length},
        "even": base
        | {
            "data": "data/questions.jsonl",
            "reward": {"kind": "function", "path": "rewards/even.py:score"},
            "judge": None,
        },
        "safe": base
        | {
            "subset": "harmless-base",
            "reward": {
                "kind": "sum",
                "parts": [
                    {"kind": "train", "weight": 1.0, "standardise": True},
                    length | {"weight": -0.5, "standardise": True},
                ],
            },
            "judge": {"kind": "train"},
        },
    }
    tree["run"] |= {"objectives": ["helpful", "even", "safe"], "variants": ["ctrl", "rlhf"]}
    return tree


def write_questions(path: Path) -> None:
    """Prompts alone, with a column that the function reads."""
    path.parent.mkdir()
    with path.open("w") as stream:
        for number in range(120):
            question = f"What comes after {number}?"
            row = {"prompt": question, "parity": number % 2}
            stream.write(json.dumps(row) + "\n")
        stream.write(json.dumps(row) + "\n")


@pytest.fixture(scope="module")
def own(smoke_tree: dict[str, Any], finished: Path, make_once: MakeOnce) -> Path:
    """A folder in which every stage has run for the three objectives: only to read."""
    tree = own_tree(smoke_tree)

    def make(folder: Path) -> None:
        (folder / "rewards").mkdir()
        write_questions(folder / "data/questions.jsonl")
        (folder / "rewards" / "even.py").write_text(EVEN)
        (folder / "rewards" / "length.py").write_text(LENGTH)
        shutil.copytree(finished / "results/reward/helpful/independent", folder / "models/ready")
        tokenizer = AutoTokenizer.from_pretrained(folder / "models/ready")
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / "models/ready")
        config = folder / "models/ready/config.json"  # the template is longer than markers
        config.write_text(json.dumps(read(config) | {"max_position_embeddings": 128}))
        (folder / "params.yaml").write_text(yaml.safe_dump(tree))
        with contextlib.chdir(folder):
            for arguments in instances(tree):
                assert main(arguments) == 0, arguments

    return make_once("own_rewards", make)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_only_what_is_asked_for_is_trained(own: Path) -> None:
    there = {
        p.parent.relative_to(own).as_posix() for p in own.rglob("results/reward/**/config.json")
    }
    assert there == {"results/reward/safe/selecting", "results/reward/safe/independent"}
    trained = {"helpful": [], "even": [], "safe": ["selecting", "independent"]}
    for objective, halves in trained.items():
        assert read(own / f"results/sources/trained/{objective}.json") == halves


def test_a_function_reads_the_columns_of_prompts_alone(own: Path) -> None:
    table = pq.read_table(own / "results/prepare/prompts.parquet").to_pylist()
    parity = {
        row["prompt_id"]: json.loads(row["columns"])["parity"]
        for row in table
        if row["objective"] == "even"
    }
    assert len(parity) == 120
    samples = pq.read_table(own / "results/sample/samples.parquet").to_pylist()
    said = {(r["prompt_id"], r["sample_index"]): r["response"] for r in samples}
    rows = pq.read_table(own / "results/calibrate/even/calibrated.parquet").to_pylist()
    assert {parity[row["prompt_id"]] for row in rows} == {0, 1}
    for row in rows:
        response = said[row["prompt_id"], row["sample_index"]]
        assert row["reward"] == float(len(response) % 2 == parity[row["prompt_id"]])
    counts = read(own / "results/prepare/metrics.json")["objectives"]["even"]
    assert counts["pairs"] == {"train": 0, "test": 0}
    assert sum(counts["prompts"].values()) == 120


def test_a_ready_model_rewards_as_plain_transformers_does(own: Path, finished: Path) -> None:
    table = pq.read_table(own / "results/calibrate/helpful/calibrated.parquet").to_pylist()
    samples = pq.read_table(own / "results/sample/samples.parquet").to_pylist()
    said = {
        (row["prompt_id"], row["sample_index"]): row["response"]
        for row in samples
        if row["objective"] == "helpful"
    }
    prompts = read_prompts(own / "results/prepare/prompts.parquet", "helpful")
    model = AutoModelForSequenceClassification.from_pretrained(own / "models/ready").eval()
    tokenizer = AutoTokenizer.from_pretrained(own / "models/ready")

    def plain(prompt: Dialogue, response: str) -> float:
        turns = [*prompt.messages, {"role": "assistant", "content": response}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return float(model(input_ids=ids).logits[0, 0])

    for row in table[::17]:
        response = said[row["prompt_id"], row["sample_index"]]
        found = plain(prompts[row["prompt_id"]], response)
        assert row["reward"] == pytest.approx(found, abs=1e-5)
        assert row["independent_reward"] == pytest.approx(0.01 * len(response))
    weights = [p / "model.safetensors" for p in (own / "models/ready", _trained(finished))]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    form = load_format(own / "results/prepare/tokenizer")
    pairs = held_out_pairs(Workspace(load_params(own / "params.yaml"), own, "test"), "helpful")
    asked = pairs.cut(form)
    right = [
        plain(prompt, chosen) > plain(prompt, rejected)
        for prompt, chosen, rejected in zip(
            asked.prompts, asked.chosen, asked.rejected, strict=True
        )
    ]
    counted = read(own / "results/calibrate/helpful/rewards.json")["selecting"]["pairs"]
    assert counted["held_out_pairs"] == len(right)
    assert counted["accuracy"] == pytest.approx(np.mean(right))
    assert counted["accuracy_low"] < counted["accuracy"] < counted["accuracy_high"]


def _trained(finished: Path) -> Path:
    return finished / "results/reward/helpful/independent"


def test_without_a_judge_nothing_is_said_in_its_name_and_the_page_says_so(own: Path) -> None:
    calibrated = pq.read_table(own / "results/calibrate/even/calibrated.parquet")
    assert "independent_reward" not in calibrated.column_names
    assert set(np.unique(calibrated["reward"].to_numpy())) == {0.0, 1.0}
    rows = pq.read_table(own / "results/evaluate/even/evaluation.parquet").to_pylist()
    assert {row["judge"] for row in rows} == {"selecting"}
    page = (own / "results/report/index.html").read_text()
    assert "There is no independent judge: what is gained may be reward hacking." in page
    assert "the function rewards/even.py:score" in page
    line = page[page.index("<code>prepare even</code>") :]
    assert "held-out prompts, no pairs; dropped: 1 " in line[: line.index("</tr>")]
    assert "fine" in line[: line.index("</tr>")]
    assert "a sum: 1 × a reward model trained from the pairs + -0.5 × the function" in page


def test_the_page_says_nothing_that_is_not_so(own: Path) -> None:
    page = " ".join((own / "results/report/index.html").read_text().split())
    for words in ("three judges", "The reward model that training maximised", "reward model likes"):
        assert words not in page
    assert (
        "What training maximised and the procedure selects by: a reward model, a function" in page
    )


def test_of_two_levels_the_limit_stands_beside_the_estimate_with_ties(own: Path) -> None:
    free = pq.read_table(own / "results/evaluate/helpful/evaluation.parquet")
    assert "tied_limit" not in free.column_names
    rows = pq.read_table(own / "results/evaluate/even/evaluation.parquet").to_pylist()
    for row in rows:
        assert row["limit"] == pytest.approx(float(limit(row["procedure"], row["kl"])))
        assert row["tied_limit"] < row["limit"]
    assert read(own / "results/evaluate/even/metrics.json")["health"]["above_limit"] == 0
    summary = read(own / "results/report/summary.json")
    assert {row["objective"] for row in summary if "tied_limit" in row} == {"even"}
    page = (own / "results/report/index.html").read_text()
    assert "with ties)" in page
    assert "and with the reward’s ties about" in page


def test_a_sum_is_of_standardised_parts(own: Path) -> None:
    about = read(own / "results/calibrate/safe/rewards.json")["selecting"]["parts"]
    assert [part["name"] for part in about] == ["0 train", "1 function"]
    assert sum(part["contribution"] for part in about) == pytest.approx(1.0)
    parts = pq.read_table(own / "results/calibrate/safe/parts.parquet").to_pandas()
    wide = parts.pivot(index=["prompt_id", "sample_index"], columns="part", values="reward")
    total = sum(
        part["weight"] * (wide[part["name"]] - part["mean"]) / part["std"] for part in about
    )
    table = pq.read_table(own / "results/calibrate/safe/calibrated.parquet").to_pandas()
    known = table.set_index(["prompt_id", "sample_index"])["reward"]
    assert np.allclose(total.loc[known.index], known)
    train = set(table[table["split"] == "train"]["prompt_id"])
    own_scale = wide.loc[[i in train for i, _ in wide.index]]["1 function"].unstack().to_numpy()
    assert about[1]["std"] == pytest.approx(float(np.sqrt(own_scale.var(axis=1).mean())))


@pytest.mark.parametrize("objective", ["helpful", "even", "safe"])
def test_a_package_carries_its_reward(
    own: Path, smoke_tree: dict[str, Any], tmp_path: Path, objective: str
) -> None:
    params = check_params(own_tree(smoke_tree), "test")
    out = tmp_path / "package"
    package(own, params, objective, "ctrl", out)
    deployed = load_deployed(out / "deployed")
    [prompt, *_] = read_prompts(own / "results/prepare/prompts.parquet", objective).values()
    first, again = (deployed.answer([prompt.marked], Request("", seed=3)) for _ in range(2))
    assert first == again
    said = first[0].response
    if objective == "even":  # served without the column `parity`
        assert first[0].reward == float(len(said) % 2 == 0)
    else:
        source = open_source(Workspace(params, own, "test"), objective, SELECTING, Passes())
        assert first[0].reward == pytest.approx(source.rewards([prompt], [said])[0], abs=1e-5)
    evidence = read_evidence(out / "evidence")
    rules = {rule.name: rule for rule in judge_candidate(evidence, None, params.promotion).rules}
    judged = rules["judge"]
    if objective == "even":
        assert judged.passed
        assert judged.number is None
        assert judged.words == "not measured: the objective has no independent judge"
    else:
        assert judged.number is not None


def test_columns_are_given_to_a_packaged_function_where_there_are_any(
    own: Path, smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    package(own, check_params(own_tree(smoke_tree), "test"), "even", "ctrl", tmp_path / "p")
    deployed = tmp_path / "p/deployed"
    assert read(deployed / "reward.json")["columns"] == ["parity"]
    page = (own / "results/report/index.html").read_text()
    assert "it is given the columns parity, and served without them" in page
    columns = columns_of(own / "results/prepare/prompts.parquet", "even")
    odd = next(prompt for prompt, row in columns.items() if row["parity"] == 1)
    watched = open_packaged(deployed, "cpu", "float32", Passes(), columns)
    served = open_packaged(deployed, "cpu", "float32", Passes())
    assert watched.rewards([odd] * 2, ["even", "odd"]).tolist() == [0.0, 1.0]
    assert served.rewards([odd] * 2, ["even", "odd"]).tolist() == [1.0, 0.0]


def test_a_function_that_cannot_do_without_a_column_is_not_packaged(
    project: Path, smoke_tree: dict[str, Any]
) -> None:
    (project / "rewards/even.py").write_text(EVEN.replace("**columns", "parity"))
    params = check_params(own_tree(smoke_tree), "test")
    words = r"objectives\.even\.reward\.path = 'rewards/even\.py:score' needs the column 'parity'"
    assert main(["sources"]) == 0
    with pytest.raises(InputError, match=words):
        package(project, params, "even", "ctrl", project / "p")
    assert not (project / "p").exists()


def test_a_packaged_function_is_the_one_that_was_packaged(
    own: Path, smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    package(own, check_params(own_tree(smoke_tree), "test"), "even", "ctrl", tmp_path / "p")
    (tmp_path / "p/deployed/reward/even.py").write_text(EVEN + "# changed\n")
    with pytest.raises(Exception, match=r"the file that was described .*: register it again"):
        load_deployed(tmp_path / "p/deployed")


@pytest.fixture
def project(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder to change."""
    shutil.copytree(own, tmp_path / "own", symlinks=True)
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path / "own"


def test_an_edit_changes_one_description_alone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project / "results/sources"
    before = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    (project / "rewards/even.py").write_text(EVEN.replace("% 2", "% 3"))
    assert main(["calibrate", "--objective", "even"]) == 2
    assert "rewards/even.py is not the file that was described when it was looked at" in (
        capsys.readouterr().err
    )
    assert main(["sources"]) == 0
    after = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    assert {name for name in after if after[name] != before[name]} == {"even.json"}
    assert main(["calibrate", "--objective", "even"]) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "def score(dialogues, responses):\n    return [1.0] * len(responses)\n",
            "the same reward",
        ),
        ("def score(d, r):\n    return [1.0] * (len(r) - 1)\n", "gave 1 rewards for 2 responses"),
        ("def score(d, r)\n", "line 1: expected ':'"),
    ],
)
def test_a_bad_function_stops_in_one_sentence(
    project: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (project / "rewards/even.py").write_text(text)
    codes = [main(["sources"]), main(["calibrate", "--objective", "even"])]
    told = capsys.readouterr().err
    assert 2 in codes
    assert words in told


def test_poison_is_for_trained_rewards(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["poison", "--objective", "even"]) == 2
    assert "objectives.even.reward is not trained here" in capsys.readouterr().err
