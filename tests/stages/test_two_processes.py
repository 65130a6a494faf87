"""Stages in two processes give what they give in one: bytes of samples, histories within 1e-4."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from smoke import ROOT, merged
from transformers import AutoModelForCausalLM

from infalign.files.history import read_history
from infalign.files.tables import CALIBRATED, read_table
from infalign.files.workspace import Workspace, write_json
from infalign.rewards.description import described
from infalign.settings.params import load_params
from infalign.stages import align
from tests.rewards.servers import lengths, serving

INSTANCES = (
    "sft",
    "reward",
    "sample",
    "calibrate@helpful",
    "align@helpful-ctrl",
    "evaluate@helpful",
)
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": str(torch.get_num_threads()),  # as this process: threads change rounding
    "TOKENIZERS_PARALLELISM": "false",
}


def project(finished: Path, folder: Path, tree: dict[str, Any], **run: Any) -> Path:
    """A folder with the finished results and other settings of `run`."""
    folder.mkdir(exist_ok=True)
    (folder / "results").symlink_to(finished / "results")
    (folder / "params.yaml").write_text(yaml.safe_dump(merged(tree, {"run": run})))
    return folder


Ended = subprocess.CompletedProcess[str]
SCRIPT = str(Path(__file__).with_name("two_processes.py"))
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2")


def in_one(folder: Path, *instances: str, how: Sequence[str] = (), **more: str) -> Ended:
    """Run instances in this Python, with more in their environment."""
    command = [sys.executable, *how, SCRIPT, str(folder), *instances]
    environment = ENVIRONMENT | more
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


in_two = partial(in_one, how=TORCHRUN)


@pytest.fixture(scope="module")
def two(finished: Path, smoke_tree: dict[str, Any], tmp_path_factory: Any) -> Path:
    """The work folders of the stages after each ran in two processes on the finished inputs."""
    folder = project(finished, tmp_path_factory.mktemp("two"), smoke_tree, processes=2)
    done = in_two(folder, *INSTANCES)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / ".infalign" / "work"


def close(path: Path, **wider: float) -> list[Any]:
    """A history's steps to compare with: within 1e-4 of each value, or what is given for it."""
    history = read_history(path)
    assert history
    return [
        {name: pytest.approx(v, rel=1e-4, abs=wider.get(name, 1e-4)) for name, v in step.items()}
        for step in history
    ]


RLOO = {"loss": 2e-3}  # the difference of terms a thousand times as large


@pytest.mark.soak
@pytest.mark.parametrize("name", ["samples.parquet", "large.parquet", "metrics.json"])
def test_sampling_gives_the_same_bytes(two, finished, name):
    mine, other = (p / "sample" / name for p in (two / "sample/out", finished / "results"))
    assert mine.read_bytes() == other.read_bytes()


@pytest.mark.soak
@pytest.mark.parametrize("name", ["calibrated.parquet", "calibration.parquet", "errors.json"])
def test_scoring_gives_the_same_bytes(two, finished, name):
    mine = two / "calibrate@helpful/out/calibrate/helpful" / name
    assert mine.read_bytes() == (finished / "results/calibrate/helpful" / name).read_bytes()


@pytest.mark.soak
@pytest.mark.parametrize("name", ["samples.parquet", "rewards.parquet", "evaluation.parquet"])
def test_evaluation_gives_the_same_bytes(two, finished, name):
    mine = two / "evaluate@helpful/out/evaluate/helpful" / name
    assert mine.read_bytes() == (finished / "results/evaluate/helpful" / name).read_bytes()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("instance", "path", "wider"),
    [
        ("sft", "sft/history.jsonl", {}),
        ("reward", "reward/harmless/selecting.jsonl", {}),
        ("align@helpful-ctrl", "align/helpful/ctrl/history.jsonl", RLOO),
    ],
)
def test_training_gives_the_same_history(two, finished, instance, path, wider):
    mine = read_history(two / instance / "out" / path)
    assert mine == close(finished / "results" / path, **wider)


@pytest.mark.soak
def test_the_policies_are_as_alike(two, finished):
    folders = (two / "sft/out/sft/policy", finished / "results/sft/policy")
    mine, other = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in folders)
    assert max(float((mine[n] - other[n]).abs().max()) for n in other) < 1e-3


@pytest.mark.soak
def test_baselines_give_the_same_history(finished, smoke_tree, tmp_path):
    methods = ("offline", "bon_distillation", "bonbon", "ipo", "dpo")
    instances = [f"align@helpful-{method}" for method in methods]
    for number, run in ((1, in_one), (2, in_two)):
        folder = project(finished, tmp_path / str(number), smoke_tree, processes=number)
        done = run(folder, *instances)
        assert done.returncode == 0, done.stderr[-3000:]
    for instance, method in zip(instances, methods, strict=True):
        one, two = (
            tmp_path / n / f".infalign/work/{instance}/out/align/helpful/{method}/history.jsonl"
            for n in "12"
        )
        assert read_history(two) == close(one), method


ALIGN = "align@helpful-ctrl"
POLICY = f".infalign/work/{ALIGN}/out/align/helpful/ctrl"


@pytest.mark.soak
def test_shares_of_the_model_give_the_same_history(finished, smoke_tree, tmp_path):
    folder = project(finished, tmp_path / "fsdp2", smoke_tree, processes=2, sharding="fsdp2")
    done = in_two(folder, ALIGN)
    assert done.returncode == 0, done.stderr[-3000:]
    other = finished / "results/align/helpful/ctrl"
    mine = read_history(folder / POLICY / "history.jsonl")
    assert mine == close(other / "history.jsonl", **RLOO)
    assert {p.name for p in (folder / POLICY / "policy").iterdir()} == {
        p.name for p in (other / "policy").iterdir()
    }


@pytest.mark.soak
def test_sft_and_reward_in_shares_give_the_same_history(finished, smoke_tree, tmp_path):
    folder = project(finished, tmp_path / "fsdp2", smoke_tree, processes=2, sharding="fsdp2")
    done = in_two(folder, "sft", "reward")
    assert done.returncode == 0, done.stderr[-3000:]
    for stage, path in (("sft", "history.jsonl"), ("reward", "helpful/selecting.jsonl")):
        mine = read_history(folder / f".infalign/work/{stage}/out/{stage}" / path)
        assert mine == close(finished / f"results/{stage}" / path)
    for name in ("config.json", "generation_config.json"):
        mine, other = (
            place / "sft/policy" / name
            for place in (folder / ".infalign/work/sft/out", finished / "results")
        )
        assert mine.read_bytes() == other.read_bytes()


@pytest.mark.soak
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_both_resume_exactly(two, finished, smoke_tree, tmp_path, sharding):
    run = {"processes": 2, "sharding": sharding}
    broken = project(finished, tmp_path / "broken", smoke_tree, **run)
    assert in_two(broken, ALIGN, STOP_AT="3").returncode != 0
    kept = read_history(broken / f".infalign/work/{ALIGN}/history.jsonl")
    assert [row["step"] for row in kept] == [0, 1, 2]  # the checkpoint is of step 2
    done = in_two(broken, ALIGN)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = two.parents[1]
    if sharding != "ddp":
        whole = project(finished, tmp_path / "whole", smoke_tree, **run)
        assert in_two(whole, ALIGN).returncode == 0
    for name in ("history.jsonl", "metrics.json", "policy/model.safetensors"):
        assert (broken / POLICY / name).read_bytes() == (whole / POLICY / name).read_bytes()


BRIEF = {"align": {"steps": 3, "kl_prompts": 8, "kl_samples": 2}}
BRIEF_RUNS = {  # sharding: what trains, and with which adapter
    "ddp": (ALIGN, None),
    "fsdp2": ("align@helpful-dpo", 4),  # fresh responses are measured with a copy of the shares
}


@pytest.fixture(scope="module")
def brief(finished: Path, smoke_tree: dict[str, Any], tmp_path_factory: Any) -> Path:
    """Three steps of each, first in one process, then in two: a folder for each."""
    base, arguments = tmp_path_factory.mktemp("brief"), []
    for sharding, (instance, rank) in BRIEF_RUNS.items():
        tree = merged(merged(smoke_tree, BRIEF), {"align": {"lora_rank": rank}})
        folder = project(finished, base / f"{sharding}-1", tree)
        workspace = Workspace(load_params(folder / "params.yaml"), folder, instance)
        workspace.open_work("test")
        align.run(workspace, *instance.partition("@")[2].split("-"))
        wide = project(finished, base / sharding, tree, processes=2, sharding=sharding)
        arguments += [str(wide), instance]
    done = in_two(Path(arguments[0]), *arguments[1:])
    assert done.returncode == 0, done.stderr[-3000:]
    return base


@pytest.mark.parametrize("sharding", BRIEF_RUNS)
def test_a_few_steps_give_the_same_history(brief: Path, sharding: str) -> None:
    work = Path(f".infalign/work/{BRIEF_RUNS[sharding][0]}/history.jsonl")
    mine = read_history(brief / sharding / work)
    assert len(mine) == BRIEF["align"]["steps"]
    assert mine == close(brief / f"{sharding}-1" / work, **RLOO)
    assert mine[0]["kl"] == 0 < mine[-1]["kl"]


LENGTH = "def score(dialogues, responses):\n    return [float(len(text)) for text in responses]\n"
OWN = "calibrate@helpful"


def test_a_function_and_a_server_are_asked_once_for_all_processes(
    finished: Path, smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    """The same bytes as in one process, and the same number of questions."""
    told: list[list[int]] = []
    for number, run in ((1, in_one), (2, in_two)):
        with serving(lengths) as asked:
            reward = {"kind": "function", "path": "length.py:score"}
            judge = {"kind": "http", "url": asked.url, "batch": 8, "concurrency": 1}
            changes = {"objectives": {"helpful": {"reward": reward, "judge": judge}}}
            tree, place = merged(smoke_tree, changes), tmp_path / str(number)
            folder = project(finished, place, tree, processes=number)
            (folder / "results").unlink()
            (folder / "results").mkdir()
            for name in ("prepare", "sample", "reward"):
                (folder / "results" / name).symlink_to(finished / "results" / name)
            (folder / "length.py").write_text(LENGTH)
            params = load_params(folder / "params.yaml")
            about = described(params.objectives["helpful"], folder)
            write_json(folder / "results/sources/helpful.json", about)
            done = run(folder, OWN)
            assert done.returncode == 0, done.stderr[-3000:]
            told.append([len(body["responses"]) for body in asked.bodies])
    made = [tmp_path / n / f".infalign/work/{OWN}/out/calibrate/helpful" for n in "12"]
    for name in ("calibrated.parquet", "calibration.parquet", "errors.json", "rewards.json"):
        one, two = (folder / name for folder in made)
        assert one.read_bytes() == two.read_bytes(), name
    assert told[0] == told[1]
    rows = read_table(made[0] / "calibrated.parquet", CALIBRATED).num_rows
    assert sum(told[0]) >= rows


def test_the_command_starts_them_and_says_what_is_wrong(finished, smoke_tree, tmp_path):
    folder = project(finished, tmp_path / "command", smoke_tree, processes=2)
    (folder / "results").unlink()
    command = [sys.executable, "-m", "infalign", "sample"]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "run the stage that writes it" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_wrong_number_of_processes_is_refused(finished, smoke_tree, tmp_path, monkeypatch):
    from infalign.errors import InputError
    from infalign.processes.ranks import join
    from infalign.settings.params import check_params

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    run = check_params(merged(smoke_tree, {"run": {"processes": 2, "seed": 7}}), "smoke").run
    with pytest.raises(InputError, match=r"run\.processes = 2, but 3 were started"):
        join(run)


def agents(folder: Path, places: Sequence[Path], stage: str, *names: str) -> list[Ended]:
    """One torchrun a node, two processes each, meeting on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "infalign", stage, *names]
    begun = []
    for number, place in enumerate(places):
        more = {
            "PET_RDZV_BACKEND": "c10d",
            "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}",
            "PET_RDZV_ID": folder.name,
            "PET_NODE_RANK": str(number),
        }
        begun.append(
            subprocess.Popen(
                command,
                cwd=place,
                env=ENVIRONMENT | more,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = [(child.communicate(timeout=500), child) for child in begun]
    return [subprocess.CompletedProcess(command, child.returncode, *said) for said, child in ended]


CTRL = ("align", "--objective", "helpful", "--variant", "ctrl")


@pytest.mark.soak
def test_two_nodes_of_two_processes_give_the_history_of_four(finished, smoke_tree, tmp_path):
    tree = merged(smoke_tree, BRIEF)
    four = project(finished, tmp_path / "four", tree, processes=4)
    nodes = project(finished, tmp_path / "nodes", tree, processes=4, nodes=2)
    for folder in (four, nodes):  # results are published there
        (folder / "results").unlink()
        shutil.copytree(finished / "results", folder / "results")
    done = subprocess.run(
        [sys.executable, "-m", "infalign", *CTRL], cwd=four, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0
    for ended in agents(nodes, [nodes, nodes], *CTRL):
        assert ended.returncode == 0, ended.stderr[-3000:]
    other = four / "results/align/helpful/ctrl/history.jsonl"
    assert read_history(nodes / "results/align/helpful/ctrl/history.jsonl") == close(other, **RLOO)


@pytest.mark.soak
def test_nodes_that_do_not_share_their_files_are_told_so(finished, smoke_tree, tmp_path):
    places = [project(finished, tmp_path / name, smoke_tree, processes=4, nodes=2) for name in "ab"]
    ended = agents(tmp_path, places, "sample")
    assert all(one.returncode for one in ended)
    said = "".join(one.stderr for one in ended)
    assert "is not the same folder in every node" in said


def test_nodes_that_do_not_know_where_to_meet(finished, smoke_tree, tmp_path):
    folder = project(finished, tmp_path / "lost", smoke_tree, processes=2, nodes=2)
    command = [sys.executable, "-m", "infalign", "sample"]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "run.nodes = 2, and nothing says where they meet" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_processes_are_dealt_out_to_nodes_evenly(smoke_tree):
    from infalign.errors import InputError
    from infalign.settings.params import check_params

    with pytest.raises(InputError, match=r"run\.processes = 3 are all nodes' together"):
        check_params(merged(smoke_tree, {"run": {"processes": 3, "nodes": 2}}), "smoke")
