"""sample and evaluate by servers: the bytes of the built-in sampler, nothing asked for twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from infalign.errors import InputError
from infalign.files.history import read_history
from infalign.files.workspace import Workspace
from infalign.measuring import answers
from infalign.settings.params import check_params
from infalign.stages import align, sample
from tests.engines.own_server import OwnServer, serving, stand_in
from tests.smoke import merged

ONE_PROMPT = 8  # responses side by side, as many as a prompt has: a request is a batch
Make = Callable[[str], Workspace]


def by(workspace: Workspace, tree: dict[str, Any], url: str | None, **more: Any) -> Workspace:
    """The workspace with responses drawn by a server, or by the built-in sampler."""
    generation = {"urls": [url], "engine": "vllm", **more} if url else {}
    changes = {
        "sample": {"batch_size": ONE_PROMPT},
        "evaluate": {"batch_size": ONE_PROMPT},
        "generation": generation,
    }
    return replace(workspace, params=check_params(merged(tree, changes), "smoke"))


def sampled(workspace: Workspace) -> dict[str, bytes]:
    sample.run(workspace)
    return {path.name: path.read_bytes() for path in (workspace.out / "sample").iterdir()}


def test_samples_have_the_same_bytes_and_a_finished_shard_is_not_asked_for_again(
    workspace: Make, smoke_tree: dict[str, Any], finished: Path
) -> None:
    made = workspace("sample")
    wanted = sampled(by(made, smoke_tree, None))
    made.open_work("again")
    reference = finished / "results/sft/policy"
    with serving(sft=reference) as server:
        served = by(made, smoke_tree, server.url, concurrency=2, patience_seconds=0.1)
        count = iter(range(9))  # requests until it fails
        failing = vars(server)
        answer = server._completions

        def die(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            return answer(body) if next(count, None) is not None else (500, {})

        failing["_completions"] = die
        with pytest.raises(InputError, match="answered 500"):
            sample.run(served)
        shards = {path.name for path in (made.work / "shards").iterdir()}
        assert 0 < len(shards) < 10
        del failing["_completions"]
        before = len(server.asked)
        assert sampled(served) == wanted
        asked = [(tuple(b["prompt"]), b["seed"]) for b in server.asked]
        assert len(set(asked)) < len(asked) <= len(set(asked)) + 4, "but for the shard it died in"
        assert len(server.asked) - before == len(set(asked)) - 4 * len(shards)


def test_evaluate_has_the_same_bytes(
    workspace: Make, smoke_tree: dict[str, Any], finished: Path
) -> None:
    made = workspace("evaluate@helpful")
    paths = answers.answered(by(made, smoke_tree, None), "helpful", "ctrl")
    wanted = [path.read_bytes() for path in paths]
    made.open_work("again")
    server = OwnServer()
    try:
        server.serve("align/helpful/ctrl", finished / "results/align/helpful/ctrl/policy")
        served = by(made, smoke_tree, server.url)
        assert [p.read_bytes() for p in answers.answered(served, "helpful", "ctrl")] == wanted
        with pytest.raises(InputError, match="no server has the model 'align/helpful/rlhf'"):
            answers.answered(served, "helpful", "rlhf")
    finally:
        server.stop()


def aligned(workspace: Workspace) -> list[dict[str, float]]:
    align.run(workspace, "helpful", "ctrl")
    return read_history(workspace.out / "align/helpful/ctrl/history.jsonl")


@pytest.mark.parametrize("sync_every", [1, 4])
def test_align_draws_with_the_adapter_that_it_handed_over(
    workspace: Make, smoke_tree: dict[str, Any], finished: Path, sync_every: int
) -> None:
    """Six steps: the history is the built-in sampler's while adapters are the policy's own."""
    settings = {"lora_rank": 4, "learning_rate": 5e-3, "sync_every": sync_every}
    tree = merged(smoke_tree, {"align": settings})
    made = workspace("align@helpful-ctrl")
    wanted = aligned(by(made, tree, None))
    made.open_work("again")
    with serving(sft=finished / "results/sft/policy") as server:
        found = aligned(by(made, tree, server.url))
        assert [name.rsplit("-", 2)[1] for name in server.adapters] == (
            ["0", "1", "2", "3", "4", "5"] if sync_every == 1 else ["0", "4"]
        )
        assert set(server.models) == {"sft", server.adapters[-1]}, "the others are forgotten"
    assert not (made.work / "adapters").exists()
    same = len(wanted) if sync_every == 1 else 1  # whose policy is the reference
    for before, after in zip(wanted[:same], found[:same], strict=True):
        assert after["kl"] == pytest.approx(before["kl"], rel=1e-3, abs=1e-6)
        assert after["reward"] == pytest.approx(before["reward"], rel=1e-3, abs=1e-6)
    assert found[-1]["kl"] > 0


def test_without_an_adapter_align_asks_no_server(
    workspace: Make, smoke_tree: dict[str, Any], finished: Path
) -> None:
    made = workspace("align@helpful-ctrl")
    nobody = by(made, smoke_tree, "http://127.0.0.1:9", patience_seconds=0.1)
    history = finished / "results/align/helpful/ctrl/history.jsonl"
    assert aligned(nobody)[0]["kl"] == read_history(history)[0]["kl"] == 0


def test_a_stage_starts_one_starts_it_again_and_ends_it(
    workspace: Make,
    smoke_tree: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    made = workspace("sample")
    changes = {
        "sample": {"batch_size": 8, "large_prompts": 1},
        "generation": {"engine": "vllm", "start": True, "python": str(stand_in(tmp_path))},
    }
    served = check_params(merged(smoke_tree, changes), "smoke")
    before = set(psutil.Process().children(recursive=True))
    write, written = sample.write_table, []

    def kill_the_server(path: Path, *rest: Any) -> None:
        write(path, *rest)
        written.append(path)
        if len(written) == 2:
            for process in set(psutil.Process().children(recursive=True)) - before:
                process.kill()

    monkeypatch.setattr(sample, "write_table", kill_the_server)
    sample.run(replace(made, params=served))
    monkeypatch.setattr(sample, "write_table", write)
    assert "it is started again" in capfd.readouterr().out
    found = (made.out / "sample/samples.parquet").read_bytes()
    assert not set(psutil.Process().children(recursive=True)) - before
    made.open_work("again")
    changes["generation"] = {"engine": "builtin"}
    sample.run(replace(made, params=check_params(merged(smoke_tree, changes), "smoke")))
    assert (made.out / "sample/samples.parquet").read_bytes() == found
