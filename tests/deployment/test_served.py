"""A packaged policy on servers: the built-in sampler's answers, and no policy in this process."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from promotion_case import PROMPT, tiny_models, write_settings

from infalign.deployment.deployed import Deployed, NotDrawn, Request, load_deployed
from infalign.deployment.served import by_engine
from infalign.errors import CheckFailed, InputError
from infalign.lm.models import build_tiny, save_model
from infalign.settings.operating import Serving
from infalign.settings.params import Tiny
from infalign.settings.servers import Generation
from tests.engines.own_server import OwnServer

NAME = "infalign-helpful/3"
PROMPTS = [PROMPT, "four five", "six seven eight"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A packaged policy of tiny models, and other weights beside it."""
    made = tmp_path_factory.mktemp("served")
    tiny_models(made, tokenizer)
    write_settings(made)
    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
    other = build_tiny(sizes, tokenizer, 96, torch.device("cpu"), seed=9)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(4)
    save_model(other, tokenizer, made / "other")
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[OwnServer]:
    server = OwnServer()
    server.serve(NAME, folder / "policy")
    yield server
    server.stop()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def load(folder: Path) -> Deployed:
    return load_deployed(folder, torch.get_num_threads())


def served(
    folder: Path, url: str, stack: contextlib.ExitStack, generation: Generation | None = None
) -> Deployed:
    serving = Serving(engine="vllm", urls=[url])
    return by_engine(load(folder), NAME, serving, generation or Generation(), stack)


def answers(deployed: Deployed, seed: int) -> str:
    request = Request("best_of:8", seed=seed, temperature=1.0 - 0.4 * (seed % 2))
    return json.dumps([asdict(one) for one in deployed.answer(PROMPTS, request)])


def test_the_same_bytes_as_by_the_builtin_sampler_and_requests_meet_at_the_server(
    folder: Path, server: OwnServer, stack: contextlib.ExitStack
) -> None:
    builtin = load(folder)
    wanted = [answers(builtin, seed) for seed in range(8)]
    ours = served(folder, server.url, stack)
    checked = len(server.asked)
    assert sum(body["n"] for body in server.asked) == 64
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answers, [ours] * 8, range(8))) == wanted
    assert len(server.asked) - checked == 8 * len(PROMPTS)
    assert server.most > len(PROMPTS), "several requests are under way there"
    beside = replace(ours, together=256)
    assert [beside.draw(PROMPTS, [Request("", seed=s)] * 3)[0].responses for s in range(4)] == [
        builtin.draw(PROMPTS, [Request("", seed=s)] * 3)[0].responses for s in range(4)
    ]


def test_the_policy_leaves_this_process(
    folder: Path, server: OwnServer, stack: contextlib.ExitStack
) -> None:
    deployed = load(folder)
    policy = weakref.ref(deployed.sampler.policy)  # type: ignore[attr-defined]
    serving = Serving(engine="vllm", urls=[server.url])
    deployed = by_engine(deployed, NAME, serving, Generation(), stack)
    gc.collect()
    assert policy() is None
    assert deployed.answer([PROMPT], Request(""))


def test_a_server_of_another_policy_or_name_is_one_sentence(
    folder: Path, server: OwnServer, stack: contextlib.ExitStack
) -> None:
    server.serve(NAME, folder / "other")
    with pytest.raises(CheckFailed, match=r"serving\.urls: the server of 'infalign-helpful/3' giv"):
        served(folder, server.url, stack)
    server.models = {"sft": server.models[NAME]}
    with pytest.raises(InputError, match=r"serving\.urls: no server has the model .* has sft"):
        served(folder, server.url, stack)


def test_while_a_server_is_away_nothing_is_answered_and_then_it_is_again(
    folder: Path, server: OwnServer, stack: contextlib.ExitStack
) -> None:
    ours = served(folder, server.url, stack)
    wanted = answers(ours, 1)
    server.stop()
    with pytest.raises(NotDrawn, match=r"serving\.urls: the server .* cannot be reached"):
        answers(ours, 1)
    with pytest.raises(InputError, match="at most 64"):  # what is asked is looked at first
        ours.answer(["one " * 200], Request(""))
    again = OwnServer(server.port)
    try:
        again.serve(NAME, folder / "policy")
        assert answers(ours, 1) == wanted
    finally:
        again.stop()


def test_a_package_without_references_is_checked_by_a_question(
    folder: Path, server: OwnServer, stack: contextlib.ExitStack, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "bare")
    deployed = replace(load(tmp_path / "bare"), references={})
    serving = Serving(engine="vllm", urls=[server.url])
    by_engine(deployed, NAME, serving, Generation(), stack)
    assert [body["n"] for body in server.asked] == [64]
