"""Budgets of tokens, and what happens when memory runs out."""

import contextlib

import numpy as np
import pytest
import torch

from infalign.data.framing import asked
from infalign.errors import InputError
from infalign.files.history import read_history
from infalign.lm.memory import Block, Budget, autocast, in_pieces, ran_out
from infalign.lm.models import build_tiny, passes_in
from infalign.lm.sampling.sampler import sample_responses
from infalign.lm.scoring.scorer import divergence, score_responses, token_log_probs
from infalign.lm.text import make_batch
from infalign.lm.training.loop import Schedule, Step, optimise
from infalign.lm.training.losses import likelihood_loss
from infalign.lm.training.parallel import Trainable, microbatched
from infalign.settings.params import Tiny

PROMPTS = [asked("one"), asked("two three nine")]
IDS = ["00000000000000aa", "ffffffffffffff01"]


@pytest.fixture
def fresh(tokenizer):
    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=1, heads=2)
    return lambda: build_tiny(sizes, tokenizer, 64, torch.device("cpu"), seed=1)


@contextlib.contextmanager
def little_memory(model, rows):
    """A device on which no more than so many sequences fit."""
    seen = []

    def check(module, args, kwargs):
        count = len(kwargs["input_ids"])
        if count > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        seen.append(count)

    handle = model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def test_what_says_that_memory_ran_out():
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory."))
    assert ran_out(RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 3 bytes"))
    assert ran_out(MemoryError())
    assert not ran_out(RuntimeError("shapes do not match"))
    assert not ran_out(ValueError("out of memory."))


@pytest.mark.parametrize("tokens", [None, 40, 10, 1])
def test_pieces_are_the_whole_in_blocks_that_fit(tokens):
    block = Block(np.arange(5), np.arange(3))
    found = in_pieces(block, lambda b: b.sequences, lambda b: 4, Budget(tokens))
    rows = np.concatenate([piece.rows(3) for piece, _ in found])
    assert sorted(rows.tolist()) == list(range(15))
    assert all(tokens is None or n == 1 or 4 * n <= tokens for _, n in found)
    assert (len(found) == 1) == (tokens is None)


def test_a_single_sequence_that_does_not_fit_is_one_sentence():
    def work(block):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(InputError, match=r"a single sequence of 7 tokens: lower model\.prompt"):
        in_pieces(Block(np.arange(4), np.arange(2)), work, lambda b: 7, Budget())


def drawn(policy, form, **more):
    indices = np.tile(np.arange(6), (2, 1))
    return sample_responses(
        policy, form, PROMPTS, IDS, indices, seed=5, longest=8, batch_size=64, **more
    )


@pytest.mark.parametrize("how", ["budget", "memory"])
def test_sampling_and_scoring_in_pieces_change_nothing(policy, form, how, capsys):
    whole = drawn(policy, form)
    budget = Budget(60) if how == "budget" else Budget()
    limit = little_memory(policy, 3 if how == "memory" else 99)
    with limit as seen:
        cut = drawn(policy, form, budget=budget)
        each = [prompt for prompt in PROMPTS for _ in range(6)]
        apart = divergence(policy, policy, form, each, cut.tokens, batch_size=64, budget=budget)
    assert max(seen) <= 3
    assert cut.tokens == whole.tokens
    assert np.allclose(cut.logp, whole.logp, atol=1e-4)
    assert np.abs(apart.kl).max() < 1e-6
    told = "memory ran out at" in capsys.readouterr().err
    assert told == (how == "memory")
    assert budget.tokens is not None


def test_rewards_in_pieces_are_the_same(policy, form, tmp_path):
    from infalign.lm.models import build_reward_model, save_model

    save_model(policy, form.tokenizer, tmp_path)
    judge = build_reward_model(tmp_path, form.tokenizer, torch.device("cpu"), seed=2)
    prompts, replies = PROMPTS * 3, ["four", "five six", "seven", "", "eight nine ten", "six"]
    whole = score_responses(judge, form, prompts, replies, batch_size=6)
    cut = score_responses(judge, form, prompts, replies, batch_size=6, budget=Budget(25))
    assert np.allclose(cut, whole, atol=1e-6)


ROWS = np.random.default_rng(0).integers(10, 290, (8, 6)).tolist()


def taker(trainable):
    """Steps on four rows each, in as many parts as the budget asks for."""

    def loss(part):
        rows = [ROWS[i] for i in part.rows]
        batch = make_batch([r[:2] for r in rows], [r[2:] for r in rows], 0, torch.device("cpu"))
        return likelihood_loss(trainable(token_log_probs, batch))

    def take(number):
        rows = np.arange(8)[number % 2 :: 2]
        parts = trainable.parts(rows, np.full(4, 6))
        whole, more = microbatched(parts, loss)
        return Step(whole, {"parts": float(len(parts))}, 16, more)

    return take


def trained(model, folder, tokens=None):
    trainable = Trainable(model)
    trainable.budget.tokens = tokens
    optimise(trainable, Schedule(6, 1e-2, 0.2), taker(trainable), folder, name="toy")
    return model, read_history(folder / "history.jsonl")


def test_a_step_in_parts_is_the_same_step(fresh, tmp_path):
    (whole, first), (cut, second) = (
        trained(fresh(), tmp_path / str(tokens), tokens) for tokens in (None, 12)
    )
    assert {row["parts"] for row in second} == {2.0}
    for mine, other in zip(first, second, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, cut.state_dict()[name], atol=1e-4, rtol=1e-3)


def test_training_backs_off_when_memory_runs_out(fresh, tmp_path, capsys):
    _, expected = trained(fresh(), tmp_path / "whole")
    model = fresh()
    with little_memory(model, 2):
        _, history = trained(model, tmp_path / "little")
    assert {row["parts"] for row in history} == {2.0}
    assert history[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-4)
    assert "set run.batch_tokens to 12" in capsys.readouterr().err


def test_training_that_fits_in_no_way_stops_with_a_remedy(fresh, tmp_path):
    model = fresh()
    with little_memory(model, 0), pytest.raises(InputError, match=r"set run\.recompute to true"):
        trained(model, tmp_path)


def test_bfloat16_is_for_cuda_unless_asked_for():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert passes_in("auto", cpu) is None
    assert passes_in("auto", cuda) == passes_in("bfloat16", cpu) == torch.bfloat16
    assert passes_in("float32", cuda) is None


def test_passes_in_bfloat16_keep_float32_weights_and_learn(fresh, form, tmp_path):
    sizes = Tiny(vocab_size=300, hidden_size=16, intermediate_size=24, layers=1, heads=2)
    model = build_tiny(sizes, form.tokenizer, 64, torch.device("cpu"), 1, "bfloat16")
    with autocast(model):
        types = []
        projection = model.model.layers[0].mlp.down_proj
        with projection.register_forward_hook(lambda *call: types.append(call[2].dtype)):
            logits = model(input_ids=torch.arange(5, 9)[None]).logits
        assert (types, logits.dtype) == ([torch.bfloat16], torch.float32)
    _, history = trained(model, tmp_path / "bfloat16")
    _, exact = trained(fresh(), tmp_path / "float32")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert history[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0.02)
    assert history[-1]["loss"] != exact[-1]["loss"]
    assert np.allclose(drawn(model, form).logp, drawn(model, form).logp)
