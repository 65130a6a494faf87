"""CTRL without generating: a regression on the stored responses of the reference.

Under the reference the calibrated reward C is uniform for every prompt, so that the partition
function of the optimum is known before training, log Z = ln of the integral of exp(Phi(u)/beta)
over u, and the optimum satisfies log pi - log ref = Phi(C)/beta - log Z for every response. The
loss is the squared error of that. Nothing is sampled, no reference model and no reward model is in
memory: what training needs of them stands in the tables of `sample` and `calibrate`. With
`identity` it is QRPO (arXiv 2507.08068).

How far the policy is from its reference is estimated from the same stored responses, which beta
answers to; the KL at the end is measured on fresh ones, as every policy's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from infalign.aligning.control import check_stored
from infalign.aligning.goals import Goal, TrainingPrompts
from infalign.aligning.losses import regression_loss
from infalign.aligning.preferences import Control
from infalign.lm.training.loop import Step
from infalign.lm.training.parallel import Trainable
from infalign.lm.training.parts import batches_of, log_prob_parts
from infalign.theory.calibration import calibrate_below
from infalign.theory.frontier import log_partition
from infalign.theory.levels import FEW_LEVELS, tied_shares


class OfflineSteps:
    """What a step computes depends on its number, the weights and the controller's beta.

    Args:
        prompts: with the reference's samples, their rewards and their log-probabilities.
        encoded: token ids of every prompt.
        goal: with a transformation.
        responses: stored ones a prompt and step.
        seed: of which ones.
        pad: the padding token.
    """

    def __init__(
        self,
        policy: Trainable,
        prompts: TrainingPrompts,
        encoded: Sequence[Sequence[int]],
        goal: Goal,
        control: Control,
        *,
        responses: int,
        seed: int,
        pad: int,
    ) -> None:
        assert goal.transform is not None, "raw rewards have no known partition function"
        self._policy, self._prompts, self._encoded = policy, prompts, encoded
        self._goal, self._transform, self._control = goal, goal.transform, control
        self._seed, self._pad = seed, pad
        self._values = goal.of_references(prompts.rewards)
        self._calibrated = _own_calibrated(prompts.rewards)
        self._tied = tied_shares(prompts.rewards) > FEW_LEVELS
        self._responses = min(responses, prompts.rewards.shape[1])
        longest = max(len(tokens) for row in prompts.tokens for tokens in row)
        self._lengths = np.array([len(p) + longest for p in encoded]) * self._responses

    def take(self, number: int, everyone: np.ndarray) -> Step:
        """One step, or this process's part of one.

        Args:
            number: of the step, from 0.
            everyone: training prompts of the whole step.
        """
        parts = self._policy.parts(everyone, self._lengths[everyone])
        chosen = np.concatenate([part.rows for part in parts])
        places = np.concatenate([part.places for part in parts])
        share = sum(part.share for part in parts)
        drawn = self._drawn(number, everyone)[places]
        tokens = [
            [self._prompts.tokens[prompt][sample] for sample in row]
            for prompt, row in zip(chosen, drawn, strict=True)
        ]
        device = self._policy.model.device
        batches = batches_of(parts, self._encoded, tokens, self._pad, device)
        scored = log_prob_parts(self._policy, batches)
        logp = scored.sums(scored.scores.logp).view(len(chosen), -1)
        stored = _picked(self._prompts.logp, chosen, drawn)
        ratio = logp - torch.as_tensor(stored, dtype=logp.dtype, device=device)
        if number == 0:
            check_stored(ratio, scored.tokens, device.type)
        found = ratio.detach().double().cpu().numpy()
        counted = np.concatenate([np.full(len(part.rows), part.share > 0) for part in parts])
        kl = divergence_of(self._policy.ranks.total(weight_sums(found[counted])))
        self._control.update(number, kl)
        beta = self._control.beta
        target = torch.as_tensor(
            _picked(self._targets(beta), chosen, drawn), dtype=logp.dtype, device=device
        )
        loss = regression_loss(ratio, target)
        weights = np.exp(found - found.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        metrics = {
            "log_ratio": float((weights * found).sum(axis=1).mean()),
            "residual": float(loss.detach()),
        } | {
            name: float((weights * _picked(values, chosen, drawn)).sum(axis=1).mean())
            for name, values in (
                ("reward", self._prompts.rewards),
                ("calibrated", self._calibrated),
                ("response_tokens", self._n_tokens()),
            )
        }
        mine = {name: value * share for name, value in metrics.items()} | {"kl": kl, "beta": beta}
        count = self._policy.ranks.total(np.array(sum(len(t) for row in tokens for t in row)))
        return Step(loss * share, mine, int(count), scored.again)

    def _targets(self, beta: float) -> np.ndarray:
        """log pi* - log ref of every stored response at a beta, nats [prompts, refs]."""
        exponents = self._goal.floored(self._values, beta) / beta
        # Tied responses share one estimate, and their rank cells have its width: each sample one
        # of `refs` equal parts. Of a prompt whose samples all tie nothing is to be learnt.
        top = exponents.max(axis=1, keepdims=True)
        cells = top + np.log(np.exp(exponents - top).mean(axis=1, keepdims=True))
        known = log_partition(self._transform, beta)
        return np.asarray(exponents - np.where(self._tied[:, None], cells, known))

    def _drawn(self, number: int, everyone: np.ndarray) -> np.ndarray:
        """Which stored responses a step takes, each at most once [prompts, responses]."""
        rng = np.random.default_rng([self._seed, number])
        places = np.tile(np.arange(self._prompts.rewards.shape[1]), (len(everyone), 1))
        return rng.permuted(places, axis=1)[:, : self._responses]

    def _n_tokens(self) -> np.ndarray:
        return np.array([[len(tokens) for tokens in row] for row in self._prompts.tokens])


def weight_sums(ratio: np.ndarray) -> np.ndarray:
    """What `divergence_of` needs of some responses of the reference; sums of sums are sums.

    Args:
        ratio: log pi - log ref, of any shape.

    Returns:
        Their number, the sum of w = pi / ref, and that of w ln w.
    """
    weights = np.exp(ratio)
    return np.array([ratio.size, weights.sum(), (weights * ratio).sum()])


def divergence_of(sums: np.ndarray) -> float:
    """The KL of a policy, nats a response, from responses of its reference, by `weight_sums`.

    Weights are divided by their own mean: the mean of w ln w alone is unbiased, but a few large
    weights, as a policy has while it learns, would carry it away.
    """
    count, total, mixed = sums
    return float(mixed / total - np.log(total / count))


def _own_calibrated(rewards: np.ndarray) -> np.ndarray:
    """Calibrated rewards of the reference's samples, each against the others [prompts, refs]."""
    below = calibrate_below(rewards, rewards, leave_one_out=True)
    return np.asarray(below / (rewards.shape[1] - 1))


def _picked(values: np.ndarray, chosen: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values[chosen], drawn, axis=1)
