"""What align trains on, and for: training prompts with the reference's samples, and a reward.

Reads results/{prepare,sample,calibrate}. The reward is raw, or calibrated against the reference's
samples and transformed (InfAlign, arXiv 2412.19792).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from infalign.data.dialogue import Dialogue, read_prompts
from infalign.errors import InputError
from infalign.files.squares import Square, reference_rewards
from infalign.files.tables import SAMPLES, SELECTING, read_table
from infalign.files.workspace import Workspace
from infalign.settings.params import Params
from infalign.theory.calibration import calibrate_below
from infalign.theory.frontier import solve_beta
from infalign.theory.limits import raw_beta
from infalign.theory.transforms import FLOOR_NATS, Transform, parse_transform

FLOOR_FOLLOWS = 4.0  # times that beta may fall below the theory's before the floor stops following


@dataclass(frozen=True)
class TrainingPrompts:
    """The training prompts of an objective.

    Attributes:
        ids, dialogues: one a prompt.
        rewards: of the reference's samples, in their order [prompts, refs].
        tokens: of those samples, in the same order.
        logp: their log-probability under the reference as it was stored, nats [prompts, refs].
        unseen: id to dialogue of the training split's other prompts, in the order of their ids.
    """

    ids: list[str]
    dialogues: list[Dialogue]
    rewards: np.ndarray
    tokens: list[list[list[int]]]
    logp: np.ndarray
    unseen: dict[str, Dialogue]

    def references(self, chosen: np.ndarray) -> np.ndarray:
        """The chosen prompts' reference rewards, ascending."""
        return np.sort(self.rewards[chosen], axis=1)


def training_prompts(workspace: Workspace, objective: str) -> TrainingPrompts:
    """Training prompts with the reference's samples and their rewards."""
    train = pc.field("split") == "train"
    sampled = workspace.results("sample", "samples.parquet")
    own = train & (pc.field("objective") == objective)
    samples = Square(read_table(sampled, SAMPLES).filter(own), sampled)
    path = workspace.results("calibrate", objective, "calibrated.parquet")
    ids, rewards = reference_rewards(path, "train")
    tokens = samples["tokens"].tolist()
    if ids != samples.prompt_ids or len(tokens[0]) != rewards[SELECTING].shape[1]:
        raise InputError(f"{path}: not the samples of results/sample: run calibrate again.")
    known = read_prompts(workspace.results("prepare", "prompts.parquet"), objective, "train")
    return TrainingPrompts(
        ids,
        [known[i] for i in ids],
        rewards[SELECTING],
        tokens,
        samples["logp"],
        {i: known[i] for i in sorted(known.keys() - set(ids))},
    )


@dataclass(frozen=True)
class Goal:
    """What a variant maximises, and the beta at which the theory meets the KL budget."""

    spelling: str
    transform: Transform | None
    beta: float

    def __call__(self, rewards: np.ndarray, references: np.ndarray) -> np.ndarray:
        """The reward to maximise: raw, or Phi(C) as estimated from K references.

        A policy that treats many prompts alike sees the estimate's mean. A posterior mean would
        be nearer for every single response, but its mean is flatter than Phi where Phi is steep.

        Args:
            rewards: [prompts, samples].
            references: ascending [prompts, refs].
        """
        if self.transform is None:
            return rewards
        below = calibrate_below(rewards, references)
        return self.transform.least_biased(below, references.shape[1])

    def of_references(self, references: np.ndarray) -> np.ndarray:
        """The same of the reference's samples themselves, each against the others.

        Args:
            references: [prompts, refs], in any order.
        """
        if self.transform is None:
            return references
        below = calibrate_below(references, np.sort(references, axis=1)) - 0.5
        return self.transform.least_biased(below, references.shape[1] - 1)

    def floored(self, transformed: np.ndarray, beta: float) -> np.ndarray:
        """The reward with a floor FLOOR_NATS below its top: what lies beneath hardly exists.

        At the optimum a response's density is below exp(-FLOOR_NATS) times the best one's there,
        so that the optimum stays, but a single response can no longer outweigh a whole batch.
        Where beta falls far below the theory's, because the KL does not come, the floor stays
        behind: else nearly all responses would lie on it, and nothing would be left to learn.
        """
        if self.transform is None:
            return transformed
        depth = FLOOR_NATS * max(beta, self.beta / FLOOR_FOLLOWS)
        return np.maximum(transformed, float(self.transform(1.0)) - depth)


def turned(progress: float, identity_share: float) -> float:
    """How far the calibrated reward has turned into the transformed one, 0 to 1.

    Where Phi is steep few responses differ in it, and from a noisy reward a policy learns their
    order sooner by the calibrated reward itself.

    Args:
        progress: share of the steps that are done.
        identity_share: of the steps, for the calibrated reward; it turns over as many more.
    """
    return min(1.0, max(0.0, progress / identity_share - 1)) if identity_share else 1.0


def make_goal(params: Params, objective: str, variant: str, references: np.ndarray) -> Goal:
    """The goal of a variant; for raw rewards beta comes from the tilted reference samples."""
    spelling = params.reward_spelling(objective, variant)
    budget = params.align.kl_nats
    try:
        if spelling == "raw":
            return Goal(spelling, None, raw_beta(references, budget))
        transform = parse_transform(spelling, params.procedure(objective), budget)
        return calibrated_goal(transform, budget)
    except ValueError as error:  # more than the rewards can tell apart
        raise InputError(f"{variant} for {objective} ({spelling}): {error}") from None


def calibrated_goal(transform: Transform, kl_nats: float) -> Goal:
    """The transformed calibrated reward at a KL budget."""
    return Goal(str(transform), transform, solve_beta(transform, kl_nats))
