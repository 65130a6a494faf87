"""Real servers of vLLM: a whole run, kills, wrong servers, and a served classifier.

They run from `.venv-engine`, which `make soak` makes; a server is up after half a minute where the
machine is free.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
import yaml
from smoke import ROOT, merged

from infalign.data.dialogue import Dialogue, read_prompts
from infalign.engines.samplers import Served
from infalign.engines.starting import (
    Start,
    end,
    free_port,
    log_path,
    spawn,
    started,
    wait_until_up,
)
from infalign.engines.vllm import Engine
from infalign.errors import CheckFailed
from infalign.files.squares import Square
from infalign.files.tables import EVALUATION, SAMPLES, read_table
from infalign.lm.models import load_format, load_policy
from infalign.rewards.server import Server
from infalign.settings.rewards import ServerReward
from infalign.settings.servers import Generation
from tests.conftest import MakeOnce

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
PYTHON = ROOT / ".venv-engine" / "bin" / "python"
SIZES = {  # vLLM's attention on a CPU begins at a head size of 32
    "model": {"tiny": {"hidden_size": 64, "heads": 2, "intermediate_size": 96, "layers": 2}},
    "run": {"objectives": ["helpful"], "variants": ["ctrl"]},
    "sample": {"train_samples": 16, "test_prompts": 16, "test_samples": 16},
    "align": {"lora_rank": 4, "learning_rate": 5.0e-3},
}
MODEL, POLICY = "sft", "align/helpful/ctrl"
BEFORE = (("corpus",), ("sources",), ("prepare",), ("sft",), ("reward",))
BEHIND = (
    ("sample",),
    ("calibrate", "--objective", "helpful"),
    ("align", "--objective", "helpful", "--variant", "ctrl"),
    ("evaluate", "--objective", "helpful"),
    ("report",),
)


def stage(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A stage in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "infalign", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder: Path, *words: str) -> str:
    """Run a stage to its end; what it said."""
    child = stage(folder, *words)
    said, _ = child.communicate()
    assert child.returncode == 0, said
    return said


def configure(folder: Path, tree: dict[str, Any], **generation: Any) -> None:
    if generation:
        generation |= {"engine": "vllm", "python": str(PYTHON)}
    own = merged(merged(tree, SIZES), {"generation": generation})
    (folder / "params.yaml").write_text(yaml.safe_dump(own))


@pytest.fixture(scope="module")
def trained(smoke_tree: dict[str, Any], make_once: MakeOnce) -> Path:
    """A project up to its reward models."""
    assert PYTHON.exists(), "run `make engine` first"

    def make(folder: Path) -> None:
        configure(folder, smoke_tree)
        for words in BEFORE:
            finish(folder, *words)

    return make_once("engine-trained", make)


@pytest.fixture(scope="module")
def builtin(trained: Path, make_once: MakeOnce) -> Path:
    """The same, finished by the built-in sampler."""

    def make(folder: Path) -> None:
        shutil.copytree(trained, folder, dirs_exist_ok=True)
        for words in BEHIND:
            finish(folder, *words)

    return make_once("engine-builtin", make)


def test_the_whole_run_by_vllm_is_within_the_builtin_run_s_intervals(
    trained: Path, builtin: Path, smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    """sample, align with an adapter and evaluate, each with a server that it starts and ends."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    configure(tmp_path, smoke_tree, start=True)
    for words in BEHIND:
        said = finish(tmp_path, *words)
        assert ("starting vLLM" in said) == (words[0] in ("sample", "align", "evaluate")), said
    for column in ("logp", "n_tokens"):
        ours, theirs = (sampled(folder, column) for folder in (tmp_path, builtin))
        apart = (ours - theirs).mean(1)
        assert abs(apart.mean()) < 4.5 * apart.std(ddof=1) / len(apart) ** 0.5, column
        assert not np.array_equal(ours, theirs)
    ours = rows_of(tmp_path)
    configure(tmp_path, smoke_tree)  # the same policy, whose few steps are another run's
    finish(tmp_path, "evaluate", "--objective", "helpful")
    theirs = rows_of(tmp_path)
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        other = theirs[key]
        widths = [r["high"] - r["low"] for r in (row, other)]  # 3.9 standard errors
        assert abs(row["win_rate"] - other["win_rate"]) < math.hypot(*widths), key
        assert abs(row["kl"] - other["kl"]) < 4 * math.hypot(row["kl_se"], other["kl_se"]), key
        assert row["kl"] != other["kl"]
    assert (tmp_path / "results/report/index.html").exists()


def sampled(folder: Path, column: str) -> np.ndarray:
    """A column of the stored samples [prompts, samples], of the split `test`."""
    path = folder / "results/sample/samples.parquet"
    table = read_table(path, SAMPLES)
    return Square(table.filter(pc.field("split") == "test"), path)[column].astype(float)


def rows_of(folder: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """The win rates of a run by policy, judge and procedure."""
    rows = read_table(folder / "results/evaluate/helpful/evaluation.parquet", EVALUATION)
    return {(r["policy"], r["judge"], r["procedure"]): r for r in rows.to_pylist()}


class Killable:
    """A server at one port that can be killed outright and started again."""

    def __init__(self, folder: Path, policy: Path, *options: str) -> None:
        names = ["--served-model-name", MODEL, POLICY]
        settings = Generation(python=str(PYTHON), options=[*names, *options])
        self.start = Start(settings, policy, MODEL, True, "cpu", port=free_port())
        self.url, self._folder = f"http://127.0.0.1:{self.start.port}", folder
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self, *, waits: bool) -> None:
        with contextlib.chdir(self._folder):
            self.process = spawn(self.start, self.start.port, detached=False)
            if waits:
                wait_until_up(self.process, self.url, log_path(MODEL))

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def answered(self) -> int:
        """Requests for completions in its log."""
        text = (self._folder / log_path(MODEL)).read_text(errors="replace")
        return text.count("POST /v1/completions")


@pytest.fixture
def project(builtin: Path, smoke_tree: dict[str, Any], tmp_path: Path) -> Path:
    """A finished project in which the reference and the policy are the same model."""
    shutil.copytree(builtin, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results/sft/policy")
    shutil.copytree(tmp_path / "results" / POLICY / "policy", tmp_path / "results/sft/policy")
    return tmp_path


def test_a_server_that_is_killed_and_started_again_loses_nothing(
    project: Path, smoke_tree: dict[str, Any]
) -> None:
    server = Killable(project, project / "results/sft/policy")
    configure(project, smoke_tree, urls=[server.url], concurrency=1)
    server.begin(waits=True)
    try:
        child = stage(project, "sample")
        assert child.stdout is not None
        said = []
        for line in child.stdout:
            said.append(line)
            if "shard 3/" in line:
                server.kill()
                server.begin(waits=False)
        assert child.wait() == 0, said
        shards = [line.split()[3] for line in said if " shard " in line]
        assert len(shards) == len(set(shards)) > 3
        table = read_table(project / "results/sample/samples.parquet", SAMPLES)
        assert table.num_rows == 12 * 16 + 16 * 16
        before = server.answered()
        child = stage(project, "evaluate", "--objective", "helpful")
        while child.poll() is None and server.answered() < before + 3:
            time.sleep(0.01)
        assert child.poll() is None, child.communicate()[0]
        server.kill()
        server.begin(waits=False)
        text, _ = child.communicate()
        assert child.returncode == 0, text
        assert server.answered() - before < 2 * 16, "those of before the kill are not asked again"
        assert {key[0] for key in rows_of(project)} == {"ctrl"}
    finally:
        assert server.process is not None
        end(server.process)


def test_a_server_of_another_model_or_distribution_is_one_sentence(
    builtin: Path, smoke_tree: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(builtin, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "truncating"
    shutil.copytree(tmp_path / "results/sft/policy", folder)
    told = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(told | {"top_p": 0.7}))
    server = Killable(tmp_path, folder, "--generation-config", str(folder))
    configure(tmp_path, smoke_tree, urls=[server.url])
    server.begin(waits=True)
    try:
        finish(tmp_path, "sample")  # what is sent goes before what the server would do
        child = stage(tmp_path, "evaluate", "--objective", "helpful")
        said, _ = child.communicate()
        assert child.returncode == 1
        told = [line for line in said.splitlines() if not line.startswith("evaluate@")]  # progress
        assert len(told) == 1
        assert f"the server of '{POLICY}' gives its responses log-probabilities that differ" in said
        with pytest.raises(CheckFailed, match="truncated or reshaped distribution"):
            draw_without_top_p(tmp_path, server.url)
    finally:
        assert server.process is not None
        end(server.process)


class Silent(Engine):
    """A client that leaves top_p to the server."""

    def _body(self, *given: Any) -> dict[str, Any]:
        body = super()._body(*given)
        del body["top_p"]
        return body


def draw_without_top_p(root: Path, url: str) -> None:
    settings = Generation(engine="vllm", urls=[url])
    folder = root / "results/sft/policy"
    known = read_prompts(root / "results/prepare/prompts.parquet", "helpful")
    ids = list(known)[:16]
    served = Served(
        Silent(settings, [url], MODEL),
        load_policy(folder, torch.device("cpu")),
        load_format(folder),
    )
    indices = np.tile(np.arange(4), (len(ids), 1))
    served.draw([known[i] for i in ids], ids, indices, seed=1, longest=20)


def test_a_served_classifier_gives_the_rewards_of_transformers(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(trained / "results/sft/policy")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    dialogues = [
        Dialogue.of([("user", f"How do I open the {thing}?")])
        for thing in ("door", "jar", "letter", "bank account", "lid")
    ]
    responses = ["Turn it.", "Pull, then push.", "", "Ask them about it.", "No idea!"]
    monkeypatch.chdir(tmp_path)
    start = Start(Generation(python=str(PYTHON)), Path("judge"), "judge", True, "cpu")
    with started(start) as url:
        settings = ServerReward(kind="http", url=f"{url}/classify", form="classify", model="judge")
        found = Server(settings, "objectives.helpful.reward").rewards(dialogues, responses)
    wanted = []
    for dialogue, response in zip(dialogues, responses, strict=True):
        turns = [*dialogue.messages, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            wanted.append(float(model(input_ids=torch.tensor([ids])).logits[0, 0]))
    assert np.ptp(wanted) > 0.01
    assert found == pytest.approx(wanted, abs=1e-4)
