"""The calibrated reward as a callable: the pipeline's estimate, in the forms of three trainers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import infalign
from infalign.aligning.goals import calibrated_goal
from infalign.errors import InputError
from infalign.theory.transforms import parse_transform

RNG = np.random.default_rng(0)
REFERENCES = {f"Question {p}?": RNG.normal(p, 1 + p, 24) for p in range(4)}
ROWS = [
    {"prompt_id": f"p{p}", "prompt": text, "reward": float(r)}
    for p, (text, rewards) in enumerate(REFERENCES.items())
    for r in rewards
]


def lengths(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """A reward: how long a response is."""
    return [float(len(text)) for text in completions]


def said(number: float) -> str:
    return "x" * round(number)


@pytest.mark.parametrize("transform", ["exp:10", "exp:-10", "identity", "log", "optimal", "auto"])
def test_it_is_the_pipelines_estimate_on_another_scale(transform: str) -> None:
    procedure = "worst_of:4" if transform == "exp:-10" else "best_of:4"
    made = infalign.CalibratedReward(ROWS, lengths, transform, procedure=procedure, kl_nats=0.5)
    goal = calibrated_goal(parse_transform(transform, procedure, 0.5), 0.5)
    prompts = list(REFERENCES) * 5
    completions = [said(abs(x)) for x in RNG.normal(3, 3, len(prompts))]
    found = np.array(made(prompts=prompts, completions=completions))
    raw = np.array(lengths(prompts, completions)).reshape(5, 4).T
    sorted_references = np.sort(np.array(list(REFERENCES.values())), axis=1)
    wanted = goal.floored(goal(raw, sorted_references), goal.beta).T.reshape(-1)
    slope = made.beta / goal.beta
    assert np.all((found >= 0) & (found <= 1))
    assert found - found.mean() == pytest.approx(slope * (wanted - wanted.mean()), abs=1e-9)


def test_the_weight_belongs_to_the_scale() -> None:
    made = infalign.CalibratedReward(ROWS, lengths, "exp:10", kl_nats=0.5)
    unscaled = infalign.frontier("best_of:4", 0.5, ["exp:10"]).points[0].beta
    assert made.beta == pytest.approx(unscaled / (math.exp(10) - 1))
    assert 0.1 < made.beta < 1
    assert made.shape(np.array([0.0, 1.0])).tolist() == [0.0, 1.0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=8), st.sampled_from(["exp:5", "identity"]))
def test_any_increasing_map_of_the_reward_changes_nothing(many: list[int], transform: str) -> None:
    rows = [{"prompt": "a", "reward": float(r)} for r in (0, 1, 1, 4, 7, 7, 9)]
    mapped = [row | {"reward": math.exp(row["reward"])} for row in rows]
    one = infalign.CalibratedReward(rows, lengths, transform)
    other = infalign.CalibratedReward(
        mapped, lambda completions, **_: [math.exp(len(c)) for c in completions], transform
    )
    prompts, completions = ["a"] * len(many), [said(n) for n in many]
    assert one(prompts, completions) == other(prompts, completions)
    order = np.argsort(many, kind="stable")
    assert np.all(np.diff(np.array(one(prompts, completions))[order]) >= 0)


def test_references_of_unequal_numbers_each_have_their_own() -> None:
    rows = [{"prompt": "a", "reward": 1.0}] * 3 + [{"prompt": "b", "reward": x} for x in (0, 5.0)]
    made = infalign.CalibratedReward(rows, lengths, "identity")
    assert made(["a", "b", "a"], [said(1), said(3), said(2)]) == [0.5, 0.5, 1.0]
    assert len(made.references) == 2


def test_a_prompt_is_found_by_id_text_and_messages() -> None:
    made = infalign.CalibratedReward(ROWS, lengths, "identity")
    (text, rewards) = next(iter(REFERENCES.items()))
    wanted = float(np.mean(rewards < 2))
    assert made([text], ["xx"]) == made(["anything"], ["xx"], prompt_id=["p0"]) == [wanted]
    messages = [{"role": "user", "content": "Hi"}]
    turned = [{"content": "Hi", "role": "user"}]
    chat = infalign.CalibratedReward(
        [{"prompt": messages, "reward": float(r)} for r in (0, 1, 2, 3)], lengths, "identity"
    )
    assert chat([turned], ["xx"]) == [0.625]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        call()
    return str(error.value)


def test_what_cannot_be_rewarded_is_one_sentence(tmp_path: Path) -> None:
    made = infalign.CalibratedReward(ROWS, lengths, "exp:10")
    text = refused(lambda: made(["Unknown?"], ["x"]))
    assert text.startswith("references has no rewards of the prompt 'Unknown?' among its 4: sample")
    for some, words in (([1.0], "1 numbers for 2"), ([1.0, None], "is nan: it must be finite")):
        wrong = infalign.CalibratedReward(ROWS, lambda some=some, **_: some, "exp:10")
        assert words in refused(lambda wrong=wrong: wrong(["Question 0?"] * 2, ["a", "b"]))
    assert "exp:none" in refused(lambda: infalign.CalibratedReward(ROWS, lengths, "exp:none"))
    assert "give both" in refused(lambda: infalign.CalibratedReward(ROWS, lengths, "auto"))
    assert "has no column 'score'" in refused(
        lambda: infalign.CalibratedReward(ROWS, lengths, "exp:10", column="score")
    )


def test_too_few_references_for_a_steep_transformation_are_refused() -> None:
    few = [{"prompt": "a", "reward": float(r)} for r in range(4)]
    text = refused(lambda: infalign.CalibratedReward(few, lengths, "exp:10"))
    assert "with 4 reference samples, too few to tell what exp:10 is worth" in text
    assert "sample at least 7, better 28" in text
    assert infalign.CalibratedReward(few, lengths, "identity")(["a"], ["xxxxx"]) == [1.0]
    infalign.CalibratedReward(few, lengths, "exp:-10")


def test_verl_calls_it_with_a_response_or_a_batch() -> None:
    made = infalign.CalibratedReward(ROWS, lengths, "exp:10")
    infos = [{"prompt": text} for text in REFERENCES]
    alone = [
        made.verl(data_source="any", solution_str="xxx", ground_truth=None, extra_info=info)
        for info in infos
    ]
    batch = made.verl(
        data_sources=["any"] * 4,
        solution_strs=["xxx"] * 4,
        ground_truths=[None] * 4,
        extra_infos=infos,
    )
    assert alone == batch == made(list(REFERENCES), ["xxx"] * 4)
    by_id = made.verl(solution_str="xxx", extra_info={"prompt_id": "p0", "split": "train"})
    assert by_id == alone[0]
    assert "hands no prompt" in refused(lambda: made.verl("any", "xxx", None, {"index": 1}))


def test_openrlhf_calls_it_with_whole_texts() -> None:
    made = infalign.CalibratedReward(ROWS, lengths, "exp:10")
    reward_func = made.openrlhf(np.array, end="</s>")
    prompts = list(REFERENCES)
    queries = [f"<s>{prompt}xxx</s></s>" for prompt in prompts]
    found = reward_func(queries, prompts, [None] * 4)
    assert found["rewards"].tolist() == found["scores"].tolist() == made(prompts, ["xxx"] * 4)
    assert found["extra_logs"].keys() == {"calibrated"}
    assert "does not hold its prompt" in refused(lambda: reward_func(["a"], prompts[:1]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("normalize_advantages", True),
        ("scale_rewards", "group"),
        ("scale_rewards", True),
        ("reward_clip_range", (0.0, 0.5)),
        ("temperature", 0.7),
        ("top_p", 0.9),
        ("top_k", 50),
        ("beta", 0.0),
        ("reward_weights", [2.0]),
        ("sync_ref_model", True),
        ("mask_truncated_completions", True),
        ("generation_kwargs", {"temperature": 2}),
    ],
)
def test_settings_that_distort_are_refused(name: str, value: object) -> None:
    made = infalign.CalibratedReward(ROWS, lengths, "exp:10")
    made.check(SimpleNamespace(beta=made.beta, temperature=1.0, top_k=0, scale_rewards="none"))
    assert refused(lambda: made.check(SimpleNamespace(**{name: value}))).startswith(f"{name} is ")


def test_it_shows_itself() -> None:
    made = infalign.CalibratedReward(ROWS, lengths, "log", kl_nats=0.3)
    assert "log, kl_nats=0.3, beta=" in repr(made)
    assert "<svg" in made._repr_html_()
    assert made.__name__ == "calibrated_reward"
