"""The built-in corpus: its form, its labels, and the shape of its utilities."""

import math
import random

import numpy as np
import pytest

from infalign.data.builtin import (
    SUBSETS,
    draw_response,
    gold_utilities,
    gold_utility,
    make_corpus,
    prompts_of,
)
from infalign.data.dialogue import ASSISTANT, HUMAN, read_marked
from infalign.data.lexicon import GRAMMARS
from infalign.errors import InputError
from infalign.theory.limits import raw_limit

pytestmark = pytest.mark.parametrize("subset", SUBSETS)


def test_prompts_are_distinct_dialogues_of_one_and_more_turns(subset: str) -> None:
    prompts = prompts_of(subset, 0, 1450)
    assert len(set(prompts)) == 1450
    dialogues = [read_marked(prompt) for prompt in prompts]
    assert [dialogue.marked for dialogue in dialogues] == prompts
    lengths = [len(dialogue.exchanges()) for dialogue in dialogues]
    assert set(lengths) == {1, 2}
    assert lengths.count(1) / 1450 == pytest.approx(0.7, abs=0.01)
    tasks = {topic.task for topic in GRAMMARS[subset].topics}
    assert all(any(task in prompt for task in tasks) for prompt in prompts)


def test_more_prompts_than_there_are_is_an_error(subset: str) -> None:
    with pytest.raises(InputError, match=r"lower corpus\.train_prompts"):
        prompts_of(subset, 0, 100_000)


def test_the_seed_fixes_everything(subset: str) -> None:
    first, again, other = (make_corpus(subset, seed, 20, 5, 3) for seed in (1, 1, 2))
    assert first == again
    assert first.train != other.train
    assert len(first.train) == 60
    assert len(first.test) == 15
    assert not {p.prompt for p in first.train} & {p.prompt for p in first.test}
    assert all(p.source == f"{subset}/train" for p in first.train)
    assert all(p.chosen != p.rejected for p in first.train)


def test_labels_follow_bradley_terry_and_the_ceiling_is_the_truth(subset: str) -> None:
    corpus = make_corpus(subset, 3, 300, 2, 4)
    objective = GRAMMARS[subset].objective
    margins = np.array(
        [
            gold_utility(objective, p.prompt.marked, p.chosen)
            - gold_utility(objective, p.prompt.marked, p.rejected)
            for p in corpus.train
        ]
    )
    best = 1 / (1 + np.exp(-np.abs(margins)))
    error = 4 * math.sqrt(0.25 / len(margins))
    assert corpus.ceiling["train"] == pytest.approx(best.mean(), rel=1e-9)
    assert (margins > 0).mean() == pytest.approx(corpus.ceiling["train"], abs=error)
    for low, high in ((0.5, 0.65), (0.65, 0.85), (0.85, 1.0)):
        chosen = (best >= low) & (best < high)
        assert (margins[chosen] > 0).mean() == pytest.approx(best[chosen].mean(), abs=0.1)
    assert 0.75 <= corpus.ceiling["train"] <= 0.88


def test_responses_are_short_varied_and_no_longer_where_better(subset: str) -> None:
    correlations = []
    for prompt in prompts_of(subset, 0, 20):
        texts = [draw_response(subset, prompt, random.Random(i)) for i in range(64)]
        assert len(set(texts[:32])) >= 31
        lengths = np.array([len(text.split()) for text in texts])
        assert lengths.max() <= 20
        assert lengths.std() > 0.5
        gold = gold_utilities(GRAMMARS[subset].objective, [prompt] * 64, texts)
        correlations.append(np.corrcoef(gold, lengths)[0, 1])
        assert all(HUMAN not in text and ASSISTANT not in text for text in texts)
        assert all(text[0].isupper() and text[-1] in ".!" for text in texts)
    assert abs(np.mean(correlations)) < 0.3


def test_raw_rewards_are_a_poor_guide_for_the_procedure(subset: str) -> None:
    """The point of the corpus: calibration alone already beats raw utilities at the same KL."""
    prompts = prompts_of(subset, 0, 60)
    texts = [
        [draw_response(subset, p, random.Random(f"{p}{i}")) for i in range(64)] for p in prompts
    ]
    gold = [
        gold_utilities(GRAMMARS[subset].objective, [p] * 64, t)
        for p, t in zip(prompts, texts, strict=True)
    ]
    procedure, highest = {
        "helpful-base": ("best_of:4", 0.80),
        "harmless-base": ("worst_of:4", 0.87),
    }[subset]
    assert raw_limit(procedure, np.array(gold), 0.5).win_rate < highest
