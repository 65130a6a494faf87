"""A deployed champion and its reference, measured anew, and the tests of what has moved.

One look makes TESTS tests; the chance that any of them is ever alarmed without drift is shared out
to all tests of all looks (`infalign.theory.looks`), however they depend on one another: every look
is compared with the same evaluation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infalign.data.dialogue import Dialogue
from infalign.deployment.asked import FEWEST
from infalign.deployment.drawing import open_packaged_sampler
from infalign.deployment.drift import (
    NEIGHBOURS,
    Drift,
    hidden_drift,
    novel_drift,
    reward_drift,
    win_rate_drift,
)
from infalign.deployment.evidence import Evidence
from infalign.files.squares import Array
from infalign.settings.params import Params
from infalign.theory.looks import look_level
from infalign.theory.winrates import win_rates

if TYPE_CHECKING:
    from infalign.rewards.function import Columns
    from infalign.rewards.source import RewardSource

TESTS = 6  # of one look: win rate, two rewards, three of the prompts
REPLICATES = 3  # permutations for each that a p-value at the level needs
TRAINED = 4 * NEIGHBOURS  # training prompts that say what is usual


def test_level(params: Params) -> float:
    """What one test of one look may spend of the chance of a false alarm."""
    return look_level(params.drift.p_value, params.drift.looks) / TESTS


def permuting(params: Params, seed: int) -> dict[str, Any]:
    """What the tests that permute are told."""
    level = test_level(params)
    return {
        "level": level,
        "replicates": max(1000, math.ceil(REPLICATES / level)),
        "seed": seed,
    }


def compare(
    params: Params, evidence: Evidence, rewards: tuple[Array, Array], seed: int
) -> dict[str, Drift | None]:
    """Champion's and reference's rewards [prompts, samples] against those of the evaluation.

    As many samples a prompt are used on both sides: more would make its prompts less noisy, and
    prompts with and without drift would no longer be exchangeable.
    """
    sides = (evidence.policy.selecting, evidence.reference.selecting), rewards
    many, settings = min(side.shape[1] for both in sides for side in both), params.drift
    old, (ours, theirs) = (tuple(side[:, :many] for side in both) for both in sides)
    procedure, common = evidence.facts.procedure, permuting(params, seed)
    before = np.clip(win_rates(procedure, *old), 0.0, 1.0)
    now = np.clip(win_rates(procedure, ours, theirs), 0.0, 1.0)
    common |= {"threshold": settings.reward_distance}
    return {
        "win_rate": win_rate_drift(before, now, **common | {"threshold": settings.win_rate}),
        "reference_reward": reward_drift(old[1], theirs, **common),
        "policy_reward": reward_drift(old[0], ours, **common),
    }


def token_lengths(deployed: Path, prompts: Sequence[Dialogue]) -> tuple[list[int], int]:
    """Tokens of prompts as the policy reads them, and how many it takes."""
    from infalign.lm.models import load_format

    settings = json.loads((deployed / "settings.json").read_text(encoding="utf-8"))
    ids = load_format(deployed / "policy").encode_prompts(prompts)
    return [len(row) for row in ids], int(settings["prompt_tokens"])


def columns_here(root: Path, objective: str) -> Columns:
    from infalign.rewards.opening import columns_of

    return columns_of(root / "results" / "prepare" / "prompts.parquet", objective)


class Remeasuring:
    """What is deployed of a champion, and its reference policy, at work.

    Args:
        folders: of both.
        columns: the other columns of the prompts' rows.
    """

    def __init__(self, params: Params, folders: tuple[Path, Path], columns: Columns) -> None:
        from infalign.lm.memory import Budget
        from infalign.rewards.classifier import Passes
        from infalign.rewards.packaged import open_packaged

        self.params, self.deployed, self.reference = params, *folders
        self.settings = json.loads((self.deployed / "settings.json").read_text(encoding="utf-8"))
        self.precision = self.settings.get("precision", "float32")  # older packages do not say
        passes = Passes(params.evaluate.batch_size, Budget(params.run.batch_tokens))
        device = params.run.device
        self.source = open_packaged(self.deployed, device, self.precision, passes, columns)

    def rewards(self, prompts: Mapping[str, Dialogue], seed: int) -> tuple[Array, Array]:
        """Selecting rewards of champion and reference, [prompts, samples] each."""
        from infalign.lm.sampling.randomness import derive_seed

        params, samples = self.params, self.params.drift.samples
        found = []
        for side, folder in (
            ("champion", self.deployed / "policy"),
            ("reference", self.reference),
        ):
            with open_packaged_sampler(params, folder, self.precision, side) as sampler:
                drawn = sampler.draw(
                    list(prompts.values()),
                    list(prompts),
                    np.tile(np.arange(samples), (len(prompts), 1)),
                    seed=derive_seed(seed, "monitor", side),
                    longest=self.settings["response_tokens"],
                )
            asked = [dialogue for dialogue in prompts.values() for _ in range(samples)]
            rewards = self.source.rewards(asked, drawn.text)
            found.append(rewards.reshape(len(prompts), samples))
        return found[0], found[1]

    def shifts(
        self,
        known: tuple[Sequence[Dialogue], Sequence[Dialogue]],
        now: Mapping[str, Dialogue],
        seed: int,
    ) -> dict[str, Drift | None]:
        """How far the prompts themselves have moved; None where there is nothing to compare with.

        Args:
            known: prompts of training, and of the evaluation.
            now: those of the check.
        """
        trained, before = known
        none: dict[str, Drift | None] = dict.fromkeys(
            ("prompt_length", "prompt_hidden", "prompt_novel")
        )
        if len(before) < FEWEST:
            return none
        settings, common = self.params.drift, permuting(self.params, seed)
        groups = [list(group) for group in (trained, before, now.values())]
        counted = (token_lengths(self.deployed, group)[0] for group in groups[1:])
        long = [np.array(tokens, dtype=np.float64)[:, None] for tokens in counted]
        # In one pass: bfloat16 and the shape of a batch may change last digits.
        means = self._means([prompt for group in groups for prompt in group])
        ends = np.cumsum([len(group) for group in groups])
        learnt, old, new = np.split(means, ends[:-1])
        level, novel = {"level": common["level"]}, None
        if len(trained) >= TRAINED:
            novel = novel_drift(learnt, old, new, threshold=settings.novel_share, **level)
        return {
            "prompt_length": reward_drift(
                *long, **common | {"threshold": settings.length_distance}
            ),
            "prompt_hidden": hidden_drift(old, new, threshold=settings.hidden_distance, **common),
            "prompt_novel": novel,
        }

    def _means(self, prompts: Sequence[Dialogue]) -> Array:
        """Hidden means by the reward's first model, or by the reference where it has none."""
        from infalign.lm.models import load_format, load_policy, pick_device
        from infalign.lm.scoring.hidden import prompt_means

        size = self.params.evaluate.batch_size
        for one in _parts(self.source):
            return prompt_means(one.model, one.form, prompts, batch_size=size)
        device = pick_device(self.params.run.device)
        model = load_policy(self.reference, device, self.precision, frozen=True)
        return prompt_means(model, load_format(self.reference), prompts, batch_size=size)


def _parts(source: RewardSource) -> list[Any]:
    """The classifiers of a source of rewards."""
    from infalign.rewards.classifier import Classifier
    from infalign.rewards.total import Sum

    each = [part.source for part in source.parts] if isinstance(source, Sum) else [source]
    return [one for one in each if isinstance(one, Classifier)]
