"""A deployed policy: the same seed gives the same bytes, bounds are kept, references count."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from promotion_case import PROMPT, tiny_models, write_settings

from infalign.data.framing import asked
from infalign.deployment import together
from infalign.deployment.deployed import (
    Deployed,
    Request,
    chosen_procedure,
    keep,
    load_deployed,
)
from infalign.engines import samplers
from infalign.errors import InputError
from infalign.lm.models import load_policy, load_reward_model
from infalign.lm.sampling.randomness import derive_seed
from infalign.lm.sampling.sampler import sample_responses
from infalign.lm.scoring.scorer import score_responses
from infalign.theory.procedures import parse_procedure


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A packaged policy of tiny models."""
    made = tmp_path_factory.mktemp("deployed")
    tiny_models(made, tokenizer)
    write_settings(made)
    return made


def said(*turns):
    """Messages, as chat templates take them."""
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture(scope="module")
def model(folder) -> Deployed:
    threads = torch.get_num_threads()
    loaded = load_deployed(folder, threads)
    assert torch.get_num_threads() == threads
    return loaded


def test_the_same_seed_gives_the_same_bytes_whatever_else_is_asked(model):
    request = Request("best_of:4", seed=3)
    alone = model.answer([PROMPT], request)
    among = model.answer(["four five", PROMPT, "six seven eight"], request)
    assert json.dumps(asdict(alone[0])) == json.dumps(asdict(among[1]))
    assert model.answer([PROMPT], Request("best_of:4", seed=4)) != alone


def test_the_kept_response_is_the_best_and_its_reward_is_the_reward_models(model):
    best, worst = (
        model.answer([PROMPT], Request(f"{word}:16"))[0] for word in ("best_of", "worst_of")
    )
    assert best.reward > worst.reward
    scores = score_responses(
        model.reward.model,
        model.reward.form,
        [asked(PROMPT)] * 2,
        [best.response, worst.response],
        batch_size=2,
    )
    np.testing.assert_allclose(scores, [best.reward, worst.reward], atol=1e-6)
    # Best of 16 draws what best of 4 draws first: it cannot be worse.
    assert best.reward >= model.answer([PROMPT], Request("best_of:4"))[0].reward


def test_calibrated_is_the_share_of_references_that_are_beaten_or_nothing(model):
    known, unknown = model.answer([PROMPT, "nine ten"], Request(""))
    reward = np.array([-0.05, 0.0, 0.05, 0.1])
    share = (known.reward > reward).mean() + 0.5 * (known.reward == reward).mean()
    assert known.calibrated == share
    assert unknown.calibrated is None


def test_requests_without_a_procedure_take_the_objectives_own(model):
    assert model.answer([PROMPT], Request("")) == model.answer([PROMPT], Request("best_of:4"))
    assert model.answer([PROMPT], Request("", n=9)) == model.answer([PROMPT], Request("best_of:9"))


def test_length_and_temperature_are_obeyed(model, monkeypatch):
    lengths = []
    sample = samplers.sample_responses

    def spy(*arguments, **named):
        drawn = sample(*arguments, **named)
        lengths.append(int(drawn.n_tokens.max()))
        return drawn

    monkeypatch.setattr(samplers, "sample_responses", spy)
    for longest in (1, 5):
        model.answer([PROMPT], Request("best_of:16", max_new_tokens=longest))
    assert lengths == [1, 5]
    cold = [model.answer([PROMPT], Request("standard", temperature=0.01, seed=s)) for s in range(4)]
    assert all(answer == cold[0] for answer in cold)
    warm = [model.answer([PROMPT], Request("standard", seed=s))[0].response for s in range(4)]
    assert len(set(warm)) > 1
    # What a request does not say is as it is deployed.
    deployed = replace(model, temperature=0.01)
    assert [deployed.answer([PROMPT], Request("standard", seed=s)) for s in range(4)] == cold
    drawn = deployed.draw([PROMPT] * 2, [Request(""), Request("", temperature=2.0)])
    assert [one.temperature for one in drawn] == [0.01, 2.0]


def test_eight_threads_give_what_one_gives_byte_for_byte(model, monkeypatch):
    """Log-probabilities included; and no two draw at once."""
    sample, inside, drawn = samplers.sample_responses, [], {}

    def spy(policy, form, prompts, *rest, seed, **named):
        [own] = seed
        inside.append(own)
        found = sample(policy, form, prompts, *rest, seed=seed, **named)
        assert inside == [own]
        inside.remove(own)
        drawn.setdefault((prompts[0], own), set()).add(found.logp.tobytes())
        return found

    def answers(seed):
        request = Request("best_of:8", seed=seed, temperature=1.0 + seed % 2)
        return [asdict(a) for a in model.answer([PROMPT, "four five", "six seven eight"], request)]

    monkeypatch.setattr(samplers, "sample_responses", spy)
    alone = [answers(seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(answers, [*range(16)] * 2))
    assert json.dumps(together) == json.dumps(alone * 2)
    assert len(drawn) == 48
    assert all(len(found) == 1 for found in drawn.values())


def test_those_who_wait_are_drawn_for_side_by_side_and_get_the_same(model, monkeypatch):
    """Tokens follow from counters; sums alone are rounded in another order."""
    sample, sizes = samplers.sample_responses, []

    def spy(policy, form, prompts, *rest, **named):
        sizes.append(len(prompts))
        return sample(policy, form, prompts, *rest, **named)

    def answers(served, seed):
        request = Request("best_of:8", seed=seed, temperature=1.0 + seed % 2)
        prompts = [PROMPT, "four five", "six seven eight"]
        return served.draw(prompts, [request] * 3)

    monkeypatch.setattr(samplers, "sample_responses", spy)
    alone = [answers(model, seed) for seed in range(16)]
    assert set(sizes) == {1}
    sizes.clear()
    served = replace(model, together=256)
    with together._TURN, ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(answers, served, seed) for seed in range(16)]
        while len(served._turns._waiting) < 48:
            time.sleep(0.01)
        together._TURN.release()
        found = [one.result() for one in waiting]
        together._TURN.acquire()
    assert max(sizes) >= 12
    for one, other in zip(alone, found, strict=True):
        for mine, yours in zip(one, other, strict=True):
            assert (mine.responses, mine.kept) == (yours.responses, yours.kept)
            np.testing.assert_allclose(mine.rewards, yours.rewards, atol=1e-5)
            assert mine.answer.response == mine.responses[mine.kept]


def test_one_that_cannot_be_answered_does_not_harm_the_others():
    def work(asks):
        if 0 in asks:
            raise ZeroDivisionError
        return [1 / ask for ask in asks]

    queue = together.Together(work, lambda _: 1, 8)
    with together._TURN, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(queue.ask, asks) for asks in ([1, 2], [0], [4], [5, 0])]
        while len(queue._waiting) < 6:
            time.sleep(0.01)
        together._TURN.release()
        assert [waiting[0].result(), waiting[2].result()] == [[1, 0.5], [0.25]]
        for place in (1, 3):
            with pytest.raises(ZeroDivisionError):
                waiting[place].result()
        together._TURN.acquire()


def test_a_bare_question_is_the_humans_turn():
    assert asked(" one two three ") == asked(PROMPT)


def test_a_prompt_with_references_keeps_its_bytes_however_it_is_sent(model):
    rewards = model.references[asked(PROMPT)]
    noisy = "\n\nHuman: one \n\nAssistant: two \n\nHuman:  three\n\nAssistant:"
    neat = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
    messages = said(("user", "one"), ("assistant", "two"), ("user", "three"))
    both = replace(model, references={**model.references, asked(neat): rewards})
    [known] = both.answer([neat], Request(""))
    assert known.calibrated is not None
    written = asked(messages).text
    for sent in (noisy, noisy.strip(), neat.replace("\n", "\r\n"), messages, written):
        assert both.answer([sent], Request("")) == [known]
    for sent in (PROMPT, PROMPT + " ", PROMPT.strip(), "one two three\n"):
        assert model.answer([sent], Request("")) == model.answer([PROMPT], Request(""))


def test_keep_follows_the_procedure():
    rewards = np.array([3.0, 1.0, 2.0, 1.0])
    assert keep(parse_procedure("best_of:4"), rewards, 0.9, 0.9) == 0
    assert keep(parse_procedure("worst_of:4"), rewards, 0.1, 0.1) == 1  # of equals, the first
    assert keep(parse_procedure("rank:3/4"), rewards, 0.5, 0.5) == 2
    ranks = parse_procedure("ranks:0.25,0,0,0.75")
    kept = [keep(ranks, rewards, 0.5, u) for u in (0.0, 0.2, 0.3, 0.999)]
    assert kept == [1, 1, 0, 0]
    mixture = parse_procedure("mix:standard@0.5+best_of:4@0.5")
    assert [keep(mixture, rewards[::-1], u, 0.5) for u in (0.2, 0.8)] == [0, 3]


def test_n_replaces_the_number_of_draws():
    assert str(chosen_procedure("best_of:4", 0)) == "best_of:4"
    assert str(chosen_procedure("worst_of:4", 8)) == "worst_of:8"
    assert str(chosen_procedure("rank:3/8", 8)) == "rank:3/8"


@pytest.mark.parametrize(
    ("prompts", "request_", "words"),
    [
        ([PROMPT], Request("best"), "'best' cannot be read"),
        ([PROMPT], Request("best_of:4", n=257), "N is 257"),
        ([PROMPT], Request("rank:3/8", n=2), "n is 2, but procedure rank:3/8 draws 8"),
        ([PROMPT], Request("", n=-1), "n is -1"),
        ([PROMPT], Request("", max_new_tokens=13), "max_new_tokens: 13"),
        ([PROMPT], Request("", max_new_tokens=-1), "max_new_tokens: -1"),
        ([PROMPT], Request("", temperature=0.0), "temperature is 0"),
        ([PROMPT], Request("", temperature=float("nan")), "temperature is nan"),
        ([PROMPT], Request("", seed=-1), "seed is -1"),
        ([], Request(""), "prompts: 0"),
        ([PROMPT] * 65, Request("standard"), "prompts: 65"),
        ([PROMPT] * 64, Request("best_of:65"), "prompts times n: 4160"),
        (["  "], Request(""), "prompt 0 is not a text with a question"),
        ([PROMPT, 7], Request(""), "prompt 1 is neither a text nor messages but a number"),
        (["one " * 6000], Request(""), "has 23999 characters"),
        (["one " * 200], Request(""), "the policy was trained for at most 64"),
        (["one\0"], Request(""), "prompt 0 has a NUL character"),
        ([PROMPT, "\ud800"], Request(""), "prompt 1 has half of a surrogate pair"),
        ([PROMPT + " four"], Request(""), "prompt 0 ends with words of the assistant"),
        (["one\n\nHuman: two"], Request(""), "prompt 0 has a line that starts with 'Human:'"),
        ([[]], Request(""), "prompt 0 is neither a text nor messages but an empty list"),
        ([[{"role": "user"}]], Request(""), "prompt 0 has a message that is not {"),
        ([said(("user", "one"), ("assistant", "two"))], Request(""), "0 does not end with a turn"),
        ([said(("robot", "one"))], Request(""), "has a turn of 'robot', which is none of"),
        ([said(("user", "one"), ("system", "two"), ("user", "three"))], Request(""), "system turn"),
        ([said(("user", "one\0"))], Request(""), "prompt 0 has a NUL character"),
        ([said(("system", "\ud800"), ("user", "one"))], Request(""), "half of a surrogate pair"),
        ([said(("user", "one " * 200))], Request(""), "the policy was trained for at most 64"),
        ([said(("system", "x" * 9999), ("user", "y" * 19999))], Request(""), "29998 characters"),
    ],
)
def test_what_is_out_of_bounds_is_one_sentence(model, prompts, request_, words, monkeypatch):
    monkeypatch.setattr(samplers, "sample_responses", None)  # refused before anything is drawn
    with pytest.raises(InputError) as error:
        model.answer(prompts, request_)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_older_package_says_less_of_itself(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "older")
    path = tmp_path / "older" / "settings.json"
    settings = json.loads(path.read_text())
    path.write_text(
        json.dumps({k: v for k, v in settings.items() if k not in ("threads", "device")})
    )
    threads = torch.get_num_threads()
    try:
        assert load_deployed(tmp_path / "older").answer([PROMPT], Request("")) is not None
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    for text, words in (("{}", "does not say objective"), ("[]", "does not say objective")):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            load_deployed(tmp_path / "older")


def test_an_older_packages_references_are_texts_with_markers(folder, model, tmp_path):
    shutil.copytree(folder, tmp_path / "older")
    path = tmp_path / "older" / "references.parquet"
    noisy = PROMPT.replace("three", "three ")
    pq.write_table(pa.table({"prompt": [noisy], "rewards": [[-0.05, 0.0, 0.05, 0.1]]}), path)
    threads = torch.get_num_threads()
    assert load_deployed(tmp_path / "older", threads).references == model.references


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pkl"])
def test_only_safetensors_are_loaded(folder, tmp_path, name, tokenizer):
    tiny_models(tmp_path, tokenizer)
    write_settings(tmp_path)
    (tmp_path / "reward" / name).touch()
    with pytest.raises(InputError, match="may run code when it is read"):
        load_deployed(tmp_path)
    (tmp_path / "reward" / name).unlink()
    (tmp_path / "reward" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="must hold its weights as safetensors"):
        load_deployed(tmp_path)
    with pytest.raises(InputError, match="holds no packaged policy"):
        load_deployed(tmp_path / "nowhere")


def test_what_is_served_has_the_precision_of_the_package(folder, model, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    threads = torch.get_num_threads()
    settings = json.loads((folder / "settings.json").read_text())
    assert "precision" not in settings  # as older packages: float32
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"precision": "bfloat16"}))
    served = load_deployed(tmp_path, threads)
    cpu, prompt = torch.device("cpu"), asked("three four")
    policy = load_policy(folder / "policy", cpu, "bfloat16")
    reward_model = load_reward_model(folder / "reward", cpu, "bfloat16")
    many, found, other = 12, [], []
    for seed in range(many):
        answer = served.answer(["three four"], Request("standard", seed=seed))[0]
        drawn = sample_responses(
            policy,
            served.form,
            [prompt],
            [prompt.id],
            np.zeros((1, 1), dtype=np.int64),
            seed=derive_seed(seed, "deployed"),
            longest=served.response_tokens,
            batch_size=1,
        )
        reward = score_responses(
            reward_model, served.reward.form, [prompt], drawn.text, batch_size=1
        )
        assert (answer.response, answer.reward) == (drawn.text[0], reward[0])
        found.append(answer)
        other.append(model.answer(["three four"], Request("standard", seed=seed))[0])
    assert found != other
