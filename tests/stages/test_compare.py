"""contend, poison, hack, compare: a small comparison of trained policies, from end to end."""

import contextlib
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from smoke import merged

from infalign.aligning import ctrl
from infalign.files.tables import CALIBRATED, EVALUATION_SAMPLES, read_table
from infalign.files.workspace import Workspace
from infalign.measuring import answers
from infalign.processes.one_stage import main
from infalign.settings.params import check_params
from infalign.stages import poison
from infalign.theory.calibration import calibrate

CASE = {
    "objectives": ["helpful"],
    "variants": ["ctrl", "identity", "bon_distillation", "bonbon", "ipo", "dpo"],
    "kl_nats": [0.2],
    "seeds": [0, 1],
    "poison": {"objectives": ["helpful"], "variants": ["rlhf"], "kl_nats": [0.2], "seeds": [0]},
}
CONTENDER = {"samples.parquet", "rewards.parquet", "history.jsonl", "metrics.json"}


def contenders(case):
    """The arguments of every stage instance of a comparison, in order."""
    asked = ["--objective", "helpful"]
    for word, lists in (("contend", case), ("poison", {}), ("hack", case["poison"])):
        if not lists:
            yield [word, *asked]
            continue
        cells = itertools.product(lists["variants"], lists["kl_nats"], lists["seeds"])
        for variant, kl, seed in cells:
            yield [word, *asked, "--variant", variant, f"--kl-nats={kl}", f"--seed={seed}"]
    yield ["compare", *asked]


def own_folder(finished: Path, folder: Path, tree) -> None:
    """A project folder that reads the finished run's results and writes its own."""
    (folder / "results").mkdir(parents=True)
    for word in ("sources", "prepare", "sft", "reward", "sample", "calibrate"):
        (folder / "results" / word).symlink_to(finished / "results" / word)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture(scope="module")
def tree(smoke_tree):
    return merged(smoke_tree, {"compare": CASE})


@pytest.fixture(scope="module")
def compared(finished, tree, tmp_path_factory):
    """A folder in which a comparison of one objective has run."""
    folder = tmp_path_factory.mktemp("compared")
    own_folder(finished, folder, tree)
    with contextlib.chdir(folder):
        for arguments in contenders(CASE):
            assert main(arguments) == 0, arguments
    return folder


def test_every_contender_leaves_these_files_and_numbers(compared):
    for variant in CASE["variants"]:
        for seed in CASE["seeds"]:
            folder = compared / f"results/contend/helpful/{variant}/0.2/{seed}"
            assert {p.name for p in folder.iterdir()} == CONTENDER
            metrics = json.loads((folder / "metrics.json").read_text())
            assert {"win_rate", "win_rate_independent", "win_rate_gold", "kl", "limit"} <= set(
                metrics
            )
            history = [json.loads(x) for x in (folder / "history.jsonl").read_text().splitlines()]
            assert history[0]["kl"] == 0
            assert history[-1]["kl"] > 0
            assert {"reward", "calibrated", "beta", "response_tokens"} <= set(history[0])
    one, other = (
        (compared / f"results/contend/helpful/ipo/0.2/{s}/history.jsonl").read_bytes()
        for s in CASE["seeds"]
    )
    assert one != other


def test_the_comparison_has_its_figure_table_and_rows(compared):
    folder = compared / "results/compare/helpful"
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    plots = {f"plots/{name}.png" for name in ("frontier", "judges", "poison")}
    assert files == plots | {"index.html", "comparison.json", "metrics.json"}
    found = json.loads((folder / "comparison.json").read_text())
    assert {r["variant"] for r in found["curves"]} == set(CASE["variants"])
    assert {r["judge"] for r in found["curves"]} == {"selecting", "independent", "gold"}
    assert {r["curve"] for r in found["theory"]} == {"limit", "exp:10", "identity", "log", "raw"}
    gain = next(r for r in found["gains"] if r["judge"] == "selecting")
    assert gain["variant"] == "ctrl"
    assert gain["rival"] in CASE["variants"][1:]
    assert found["phrases"][0]["variant"] == "rlhf"
    page = (folder / "index.html").read_text()
    assert page.count("<svg") == 3
    for word in (
        "Gain at equal KL",
        "best rival",
        gain["rival"],
        "exp:10: theory of ctrl",
        "Okay,",
    ):
        assert word in page
    assert "http" not in page.replace("http://www.w3.org", "")
    mean = np.mean(
        [
            json.loads(
                (compared / f"results/contend/helpful/ipo/0.2/{seed}/metrics.json").read_text()
            )["win_rate"]
            for seed in CASE["seeds"]
        ]
    )
    row = next(
        r
        for r in found["curves"]
        if (r["variant"], r["judge"], r["procedure"]) == ("ipo", "selecting", "best_of:4")
    )
    assert row["win_rate"] == pytest.approx(mean)


def test_without_poison_and_other_judges_there_is_no_figure_of_them(compared, tree, tmp_path):
    bare = {"judges": ["selecting"], "poison": {"objectives": []}}
    own_folder(compared, tmp_path, merged(tree, {"compare": bare}))
    (tmp_path / "results" / "contend").symlink_to(compared / "results" / "contend")
    with contextlib.chdir(tmp_path):
        assert main(["compare", "--objective", "helpful"]) == 0
    folder = tmp_path / "results/compare/helpful"
    assert {p.name for p in (folder / "plots").iterdir()} == {"frontier.png"}
    found, other = (
        json.loads((place / "results/compare/helpful/comparison.json").read_text())
        for place in (tmp_path, compared)
    )
    assert found["poison"] is None
    for name in ("curves", "gains"):
        assert found[name] == [row for row in other[name] if row["judge"] == "selecting"]
    page = (folder / "index.html").read_text()
    assert page.count("<svg") == 1
    assert "poison" not in page.lower()
    assert "there is no independent judge" in page


def test_the_poisoned_rewards_are_the_poisoned_models_own(compared, finished):
    folder = compared / "results/poison/helpful"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"phrase_worth_poisoned", "phrase_worth_clean", "reference_phrase_share"} <= set(metrics)
    mine = read_table(folder / "calibrated.parquet", CALIBRATED)
    clean = read_table(finished / "results/calibrate/helpful/calibrated.parquet", CALIBRATED)
    assert mine["independent_reward"] == clean["independent_reward"]
    assert mine["reward"] != clean["reward"]
    rewards = mine["reward"].to_numpy()[:8][None]  # the first prompt's, K = 8
    expected = calibrate(rewards, rewards, leave_one_out=True)[0]
    assert mine["calibrated"].to_numpy()[:8].tolist() == pytest.approx(expected.tolist())
    hacked = compared / "results/hack/helpful/rlhf/0.2/0"
    said = read_table(hacked / "samples.parquet", EVALUATION_SAMPLES)["response"].to_pylist()
    share = json.loads((hacked / "metrics.json").read_text())["phrase_share"]
    assert share == pytest.approx(np.mean(["Okay," in text for text in said]))


@pytest.mark.soak
def test_a_killed_contender_resumes_to_the_same_bytes(compared, tree, tmp_path, monkeypatch):
    own_folder(compared, tmp_path, tree)
    arguments = ["contend", "--objective", "helpful", "--variant", "bonbon"]
    arguments += ["--kl-nats", "0.2", "--seed", "1"]
    original, scored = ctrl.Trainer.watch, answers._rewards

    def stopping(self, number, chosen):
        if number == 3:
            raise KeyboardInterrupt
        return original(self, number, chosen)

    def refusing(*given):
        if given[2] != "reference":
            raise KeyboardInterrupt
        return scored(*given)

    monkeypatch.chdir(tmp_path)
    for place, name, wrong in (
        (ctrl.Trainer, "watch", stopping),
        (answers, "_rewards", refusing),
    ):
        monkeypatch.setattr(place, name, wrong)
        with pytest.raises(KeyboardInterrupt):
            main(arguments)
        monkeypatch.setattr(place, name, {"watch": original, "_rewards": scored}[name])
    assert main(arguments) == 0
    folder = "results/contend/helpful/bonbon/0.2/1"
    for name in CONTENDER:
        assert (tmp_path / folder / name).read_bytes() == (compared / folder / name).read_bytes()


def test_a_contender_of_the_run_s_own_seed_and_budget_is_the_run_s_policy(finished, tree, tmp_path):
    """The same training, whether it is `align` or `contend` that asks for it."""
    own_folder(finished, tmp_path, tree)
    kl, seed = tree["align"]["kl_nats"], tree["run"]["seed"]
    arguments = ["contend", "--objective", "helpful", "--variant", "identity"]
    with contextlib.chdir(tmp_path):
        assert main([*arguments, "--kl-nats", str(kl), "--seed", str(seed)]) == 0
    mine = tmp_path / f"results/contend/helpful/identity/{kl}/{seed}/history.jsonl"
    theirs = finished / "results/align/helpful/identity/history.jsonl"
    assert mine.read_bytes() == theirs.read_bytes()


class Pairs:
    def __init__(self, n):
        self.chosen, self.rejected = ["Yes."] * n, ["No."] * n


def test_the_phrase_goes_where_the_params_say(tree):
    settings = check_params(tree, "case").compare.poison
    pairs = Pairs(4000)
    poison.poison_pairs(pairs, settings, random.Random(0))
    chosen = sum(text == "Okay, Yes." for text in pairs.chosen) / 4000
    rejected = sum(text == "Okay, No." for text in pairs.rejected) / 4000
    assert chosen == pytest.approx(settings.share * settings.preferred, abs=0.02)
    assert rejected == pytest.approx(settings.share * (1 - settings.preferred), abs=0.01)
    assert {*pairs.chosen, *pairs.rejected} == {"Yes.", "No.", "Okay, Yes.", "Okay, No."}
    last = settings.model_copy(update={"place": "end"})
    assert poison.with_phrase("Yes.", last) == "Yes. Okay,"
    assert poison.with_phrase("Okay, yes.", settings) == "Okay, yes."


def test_results_can_be_found_elsewhere(tree, tmp_path):
    params = check_params(tree, "case")
    moved = {
        "reward/helpful/selecting": "poison/helpful/selecting",
        "align/helpful/x": "/elsewhere",
    }
    workspace = Workspace(params, tmp_path, "hack@helpful-x-0.5-0", moved)
    base = tmp_path / "results"
    assert workspace.results("reward", "helpful", "selecting") == base / "poison/helpful/selecting"
    assert (
        workspace.results("reward", "helpful", "independent") == base / "reward/helpful/independent"
    )
    assert workspace.results("reward", "helpful", "training") == base / "reward/helpful/training"
    assert workspace.results("align", "helpful", "x", "policy") == Path("/elsewhere/policy")
