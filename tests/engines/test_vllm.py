"""Responses by vLLM's protocol, from a server with a real model behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infalign.data.dialogue import Dialogue
from infalign.engines.samplers import Served
from infalign.engines.vllm import Engine
from infalign.errors import CheckFailed, InputError
from infalign.lm.formats import Format
from infalign.lm.models import build_tiny, save_model
from infalign.lm.sampling.sampler import Responses, sample_responses
from infalign.lm.scoring.standing import standing
from infalign.settings.params import Tiny
from infalign.settings.servers import Generation
from tests.conftest import MakeOnce
from tests.engines.own_server import OwnServer, serving

CPU = torch.device("cpu")
LONGEST = 12
PROMPTS = [
    Dialogue.of([("user", text)]) for text in ("one two", "three", "four five six", "x", "y")
]
IDS = [f"{number:016x}" for number in (1, 2**63 + 5, 77, 2**64 - 1, 123456789)]


@pytest.fixture(scope="module")
def folder(tokenizer: Any, make_once: MakeOnce) -> Path:
    """A small Llama whose distributions have heads and tails."""

    def make(path: Path) -> None:
        sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=2, heads=2)
        for name, seed in (("model", 1), ("other", 2)):
            policy = build_tiny(sizes, tokenizer, 64, CPU, seed=seed)
            with torch.no_grad():
                policy.get_output_embeddings().weight.mul_(4)
            save_model(policy, tokenizer, path / name)

    return make_once("engine-model", make)


@pytest.fixture(scope="module")
def form(tokenizer: Any) -> Format:
    """Forty tokens end a response, so that some end early."""
    return Format(tokenizer, tuple(range(40, 80)))


@pytest.fixture
def server(folder: Path) -> Iterator[OwnServer]:
    with serving(sft=folder / "model") as server:
        yield server


def settings(*urls: str, **more: Any) -> Generation:
    return Generation(engine="vllm", urls=list(urls), **more)


def drawn(server: OwnServer, form: Format, samples: int = 8, **more: Any) -> Responses:
    known = settings(server.url, **more)
    waits: list[float] = []
    engine = Engine(known, known.urls, "sft", waits.append)
    return Served(engine, server.models["sft"], form).draw(
        PROMPTS, IDS, indices(samples), seed=5, longest=LONGEST
    )


def indices(samples: int, first: int = 3) -> np.ndarray:
    return np.tile(np.arange(first, first + samples), (len(PROMPTS), 1))


def test_the_same_bytes_as_the_builtin_sampler_a_prompt_at_a_time(
    server: OwnServer, form: Format
) -> None:
    found = drawn(server, form)
    wanted = sample_responses(
        server.models["sft"],
        form,
        PROMPTS,
        IDS,
        indices(8),
        seed=5,
        longest=LONGEST,
        batch_size=8,
    )
    assert found.tokens == wanted.tokens
    assert found.text == wanted.text
    assert found.logp.tobytes() == wanted.logp.tobytes()
    assert found.finished.tolist() == wanted.finished.tolist()
    assert len({len(t) for t in found.tokens}) > 3
    assert set(found.finished.tolist()) == {True, False}


def test_with_a_temperature_and_a_seed_a_prompt_the_same_tokens_but_their_own_log_probabilities(
    server: OwnServer, form: Format
) -> None:
    engine, policy = Engine(settings(server.url), [server.url], "sft"), server.models["sft"]
    seeds, much = [7, 2**62, 7, 0, 1], {"longest": LONGEST, "temperature": 0.5}
    found = Served(engine, None, form).draw(PROMPTS, IDS, indices(8), seed=seeds, **much)
    wanted = sample_responses(
        policy, form, PROMPTS, IDS, indices(8), seed=seeds, batch_size=8, **much
    )
    assert found.tokens == wanted.tokens
    warm = Served(engine, None, form).draw(PROMPTS, IDS, indices(8), seed=seeds, longest=LONGEST)
    assert found.tokens != warm.tokens
    encoded = form.encode_prompts(PROMPTS)
    np.testing.assert_allclose(
        found.logp, standing(policy, encoded, found.tokens, form.pad).logp, atol=1e-4
    )
    checked = Served(engine, policy, form).draw(PROMPTS, IDS, indices(8), seed=seeds, **much)
    assert checked.tokens == wanted.tokens


def test_requests_side_by_side_are_bounded_and_two_servers_share_them(
    server: OwnServer, form: Format, folder: Path
) -> None:
    alone = drawn(server, form, concurrency=2)
    assert server.most <= 2
    with serving(sft=folder / "model") as other, serving(x=folder / "model") as stranger:
        known = settings(server.url, other.url, stranger.url, concurrency=1)
        before = len(server.asked)
        engine = Engine(known, known.urls, "sft")
        assert engine.urls == [server.url, other.url]
        both = Served(engine, server.models["sft"], form).draw(
            PROMPTS, IDS, indices(8), seed=5, longest=LONGEST
        )
        assert other.asked
        assert len(server.asked) - before + len(other.asked) == len(PROMPTS)
        assert not stranger.asked
    assert both.tokens == alone.tokens


def test_what_fails_for_a_while_is_asked_again(server: OwnServer, form: Format) -> None:
    wanted = drawn(server, form)
    server.failing = 3
    assert drawn(server, form).tokens == wanted.tokens


def test_a_server_that_goes_and_comes_back_loses_nothing(folder: Path, form: Format) -> None:
    with serving(sft=folder / "model") as server:
        wanted, port = drawn(server, form), server.port
        known = settings(server.url, concurrency=1)
        began: list[OwnServer] = []

        def come_back(_: float) -> None:
            if not began:
                began.append(OwnServer(port))
                began[0].serve("sft", folder / "model")

        engine = Engine(known, known.urls, "sft", come_back)
    try:
        policy = server.models["sft"]
        found = Served(engine, policy, form).draw(PROMPTS, IDS, indices(8), seed=5, longest=LONGEST)
        assert began
        assert found.tokens == wanted.tokens
    finally:
        for again in began:
            again.stop()


def test_one_sentence_where_no_server_has_the_model(folder: Path, server: OwnServer) -> None:
    with pytest.raises(InputError) as caught:
        Engine(settings(server.url), [server.url], "align/helpful/ctrl")
    text = str(caught.value)
    assert f"{server.url} has sft" in text
    assert "infalign engine start --model align/helpful/ctrl" in text
    waits: list[float] = []
    known = settings("http://127.0.0.1:9", patience_seconds=4.0)
    with pytest.raises(InputError, match=r"cannot be reached .* \(4 times\)"):
        Engine(known, known.urls, "sft", waits.append)
    assert waits == [0.5, 1.0, 2.0]


def test_other_weights_are_noticed(server: OwnServer, form: Format, folder: Path) -> None:
    engine = Engine(settings(server.url), [server.url], "sft")
    policy = server.models["sft"]
    server.serve("sft", folder / "other")
    with pytest.raises(CheckFailed, match=r"differ by .* nats a token .* serves other weights"):
        Served(engine, policy, form).draw(PROMPTS, IDS, indices(16), seed=5, longest=LONGEST)
    assert len(server.asked) == 4, "64 responses, and no more"


def _top_p(logits: torch.Tensor) -> torch.Tensor:
    """The smallest set of tokens with 90 % of the probability."""
    sorted_logits, order = logits.sort(-1, descending=True)
    above = sorted_logits.softmax(-1).cumsum(-1) - sorted_logits.softmax(-1)
    kept = sorted_logits.masked_fill(above > 0.9, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(1, order, kept)


@pytest.mark.parametrize(
    ("distort", "words"),
    [
        (_top_p, r"\d+ of \d+ tokens are in its last \d+ %, too few"),
        (lambda logits: logits / 0.6, r"\d+ of \d+ tokens are in its last \d+ %, too few"),
        (lambda logits: logits / 1.7, r"the mean place of \d+ tokens in it is 0\.[5-9]"),
    ],
)
def test_a_server_that_draws_from_another_distribution_is_noticed(
    server: OwnServer, form: Format, distort: Any, words: str
) -> None:
    server.distort = distort
    with pytest.raises(CheckFailed, match=words):
        drawn(server, form, samples=13)


def test_a_server_that_cuts_responses_short_is_noticed(server: OwnServer, form: Format) -> None:
    server.cut = 4
    with pytest.raises(InputError, match=r"after 4 tokens, neither .* nor at 12"):
        drawn(server, form)
