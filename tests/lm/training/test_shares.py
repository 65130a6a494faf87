"""Models in shares: what each process holds, equal steps in any number of processes, resuming."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from infalign.files.history import read_history
from tests.lm.training.shares import built

SCRIPT = Path(__file__).with_name("shares.py")
ROOT = SCRIPT.parents[3]


def train(
    folder: Path, processes: int, lora: int = 0, stop: int = -1, precision: str = "bfloat16"
) -> int:
    """Six steps, or up to one; the exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += [str(SCRIPT), str(folder), "6", str(lora), precision]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STOP_AT": str(stop)}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert stop >= 0 or done.returncode == 0, done.stderr[-3000:]
    return done.returncode


def share(weight, processes: int) -> int:
    """Bytes of the largest share of a weight: rows are dealt out, and none is cut."""
    rows = -(-weight.shape[0] // processes)
    return rows * (weight.numel() // weight.shape[0]) * weight.element_size()


def held(folder: Path) -> list[dict[str, float]]:
    """What each process held."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("held-*.json"))]


def check(folder: Path, processes: int, lora: int = 0) -> None:
    """Every process holds what the formula says."""
    policy, frozen = built(lora or None, "bfloat16"), built(None, "bfloat16", frozen=True)
    trained = [p for p in policy.parameters() if p.requires_grad]
    found = held(folder)
    assert len(found) == processes
    expected = sum(share(p, processes) for p in policy.parameters())
    assert max(one["policy"] for one in found) == expected
    expected = sum(share(p, processes) for p in trained)
    assert max(one["trained"] for one in found) == expected
    assert max(one["gradients"] for one in found) == expected
    whole = freeze_bytes(policy)
    assert {one["whole"] for one in found} == {whole}
    if not lora:
        expected = sum(
            share(p, processes) if ".layers." in name else p.numel() * p.element_size()
            for name, p in frozen.named_parameters()
        )
        assert max(one["reference"] for one in found) == expected
    assert len({one["sum"] for one in found}) == 1


def freeze_bytes(model) -> int:
    """Bytes of a whole copy that only samples: linear weights at 2 bytes."""
    from infalign.lm.freezing import freeze

    return sum(p.numel() * p.element_size() for p in freeze(model).parameters())


def close(folder: Path, other: Path) -> None:
    """Two histories within 1e-4."""
    mine, theirs = (read_history(f / "history.jsonl") for f in (folder, other))
    assert len(mine) == 6
    for one, two in zip(mine, theirs, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-4)


def test_two_processes_hold_their_shares_and_resume_exactly(tmp_path: Path) -> None:
    assert train(tmp_path / "broken", 2, stop=5) != 0
    kept = [path.name for path in (tmp_path / "broken").glob("checkpoint-*")]
    assert "checkpoint-00000004" in kept
    train(tmp_path / "broken", 2)
    train(tmp_path / "whole", 2)
    check(tmp_path / "whole", 2)
    for name in ("history.jsonl", "held-0.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert read_history(tmp_path / "whole/history.jsonl")[0]["kl"] == 0
    assert [p.name for p in (tmp_path / "whole").glob("checkpoint-*")] == ["checkpoint-00000006"]


@pytest.mark.soak
def test_four_processes_give_what_two_give_and_two_go_on_where_four_were_ended(
    tmp_path: Path,
) -> None:
    train(tmp_path / "halved", 4)
    check(tmp_path / "halved", 4)
    exact = partial(train, precision="float32")
    exact(tmp_path / "two", 2)
    exact(tmp_path / "four", 4)
    close(tmp_path / "four", tmp_path / "two")
    assert exact(tmp_path / "broken", 4, stop=5) != 0
    shutil.copytree(tmp_path / "broken", tmp_path / "again")
    exact(tmp_path / "broken", 4)
    left, right = (tmp_path / n / "history.jsonl" for n in ("broken", "four"))
    assert left.read_bytes() == right.read_bytes()
    exact(tmp_path / "again", 2)
    close(tmp_path / "again", tmp_path / "two")


@pytest.mark.soak
def test_an_adapter_in_shares_over_a_frozen_base(tmp_path: Path) -> None:
    train(tmp_path / "two", 2, lora=4)
    check(tmp_path / "two", 2, lora=4)
    assert train(tmp_path / "broken", 2, lora=4, stop=3) != 0
    train(tmp_path / "broken", 2, lora=4)
    left, right = (tmp_path / n / "history.jsonl" for n in ("broken", "two"))
    assert left.read_bytes() == right.read_bytes()
