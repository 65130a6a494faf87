"""sample and evaluate by servers: the bytes of the built-in sampler, nothing asked for twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infalign.errors import InputError
from infalign.files.workspace import Workspace
from infalign.measuring import answers
from infalign.settings.params import check_params
from infalign.stages import sample
from tests.engines.own_server import OwnServer, serving
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
