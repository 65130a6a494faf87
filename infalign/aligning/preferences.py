"""Steps of the methods that learn from stored, ranked responses of the reference.

They see what the trainer sees: the same prompts in the same order, as many responses a step, the
selecting reward model's rewards. The best and the worst of n are those of n stored responses drawn
with replacement; n need not be whole. How far a method goes is its own KL weight beta: the tau of
IPO, the beta of DPO, and n = 1 + 1/beta where the best of n is learnt, because the Best-of-n
distribution is the reference tilted by log C at that beta. So one controller steers them all by the
KL of a few fresh responses, which no loss sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from infalign.aligning.losses import bonbon_loss, distillation_loss, dpo_loss, ipo_loss
from infalign.lm.scoring.vocabulary import Reference
from infalign.lm.training.loop import Step
from infalign.lm.training.parallel import Trainable
from infalign.lm.training.parts import batches_of, score_parts

PAIR = 2  # IPO and DPO rank two responses of the reference


@dataclass(frozen=True)
class Stored:
    """Responses of the reference to every training prompt.

    Attributes:
        prompts: token ids.
        responses: token ids [prompts, refs].
        rewards: by the selecting reward model [prompts, refs].
        pad: the padding token.
    """

    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[Sequence[int]]]
    rewards: np.ndarray
    pad: int


@dataclass(frozen=True)
class Method:
    """One of the methods.

    Attributes:
        name: bon_distillation, bonbon, ipo or dpo.
        alpha: of bonbon.
        responses: a prompt and step; pairs are half as many.
        seed: of the draws.
    """

    name: str
    alpha: float
    responses: int
    seed: int

    @property
    def paired(self) -> bool:
        """Whether it learns from pairs."""
        return self.name != "bon_distillation"

    @property
    def draws(self) -> int:
        """Bests of n that are drawn for a prompt."""
        return max(1, self.responses // 2) if self.paired else self.responses

    def n(self, beta: float) -> float:
        """Of how many responses the best, and the worst, is taken."""
        return PAIR if self.name in ("ipo", "dpo") else 1 + 1 / beta


class Control(Protocol):
    """Gives beta, and takes the KL of every step."""

    beta: float

    def update(self, number: int, kl: float) -> None: ...


class PreferenceSteps:
    """What a step computes depends on its number, the weights and the controller's beta."""

    def __init__(
        self,
        policy: Trainable,
        reference: Reference,
        stored: Stored,
        method: Method,
        control: Control,
    ) -> None:
        self._policy, self._reference = policy, reference
        self._stored, self._method, self._control = stored, method, control
        self._order = np.argsort(stored.rewards, axis=1, kind="stable")
        longest = max(len(tokens) for row in stored.responses for tokens in row)
        self._lengths = np.array([len(p) + longest for p in stored.prompts]) * method.responses

    def take(
        self,
        number: int,
        everyone: np.ndarray,
        watch: Callable[[int, np.ndarray], dict[str, float]],
    ) -> Step:
        """One step, or this process's part of one.

        Args:
            number: of the step, from 0.
            everyone: training prompts of the whole step.
            watch: measures fresh responses of the policy to some of them; `kl` steers beta.
        """
        parts = self._policy.parts(everyone, self._lengths[everyone])
        chosen = np.concatenate([part.rows for part in parts])
        places = np.concatenate([part.places for part in parts])
        share = sum(part.share for part in parts)
        fresh = watch(number, chosen)
        kl = self._policy.ranks.mean(fresh["kl"], share)
        self._control.update(number, kl)
        beta = self._control.beta
        tokens = self._responses(chosen, self._drawn(number, everyone, beta)[places])
        device = self._policy.model.device
        batches = batches_of(parts, self._stored.prompts, tokens, self._stored.pad, device)
        scored = score_parts(self._policy, self._reference, batches)
        logp, reference_logp = (scored.sums(v).view(len(chosen), -1) for v in scored.scores[:2])
        ratio = logp - reference_logp
        if number == 0 and (kl != 0 or bool((ratio != 0).any())):
            raise RuntimeError("step 0: a ratio is not 1: the policy is not the reference")
        loss, margin = self._loss(logp, ratio, beta)
        mine = {name: value * share for name, value in (fresh | {"margin": margin}).items()}
        count = self._policy.ranks.total(np.array(sum(len(t) for row in tokens for t in row)))
        return Step(loss * share, mine | {"kl": kl, "beta": beta}, int(count), scored.again)

    def _drawn(self, number: int, everyone: np.ndarray, beta: float) -> np.ndarray:
        """Which stored responses a step takes, the rejected ones last [prompts, responses]."""
        rng = np.random.default_rng([self._method.seed, number])
        n, draws = self._method.n(beta), self._method.draws
        best, worst = best_and_worst(self._order[everyone], n, draws, rng)
        if self._method.name == "dpo":
            best, worst = self._labelled(everyone, best, worst, rng)
        return np.hstack([best, worst]) if self._method.paired else best

    def _loss(
        self, logp: torch.Tensor, ratio: torch.Tensor, beta: float
    ) -> tuple[torch.Tensor, float]:
        """The method's loss, and the mean of h (of log pi - log ref where there are no pairs).

        Args:
            logp, ratio: sums over tokens [prompts, responses].
        """
        if not self._method.paired:
            return distillation_loss(logp), float(ratio.detach().mean())
        best, worst = ratio.chunk(2, dim=1)
        margin = float((best - worst).detach().mean())
        if self._method.name == "ipo":
            return ipo_loss(best, worst, beta), margin
        if self._method.name == "dpo":
            return dpo_loss(best, worst, beta), margin
        n, alpha = self._method.n(beta), self._method.alpha
        return bonbon_loss(logp.chunk(2, dim=1)[0], best, worst, n, alpha), margin

    def _labelled(
        self, chosen: np.ndarray, best: np.ndarray, worst: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Chosen and rejected as Bradley-Terry labels draw them: the better one not always wins."""
        rewards = self._stored.rewards[chosen]
        gap = np.take_along_axis(rewards, best, 1) - np.take_along_axis(rewards, worst, 1)
        kept = rng.random(gap.shape) < 1 / (1 + np.exp(-gap))
        return np.where(kept, best, worst), np.where(kept, worst, best)

    def _responses(self, chosen: np.ndarray, samples: np.ndarray) -> list[list[Sequence[int]]]:
        """The tokens of the chosen prompts' samples, a list for each prompt."""
        stored = self._stored.responses
        return [
            [stored[prompt][sample] for sample in row]
            for prompt, row in zip(chosen, samples, strict=True)
        ]


def best_and_worst(
    order: np.ndarray, n: float, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The best and the worst of n responses drawn with replacement.

    Ranks are those of the largest and the smallest of n uniform numbers: the largest has CDF u^n,
    and given it the smallest of the others is that of n - 1 uniform numbers below it. One draw has
    no worst: for n = 2 best and worst are the pair.

    Args:
        order: indices of the responses by rising reward [prompts, refs].
        n: of how many, above 1, not necessarily whole.
        draws: independent repetitions.

    Returns:
        Indices of the best and of the worst [prompts, draws].
    """
    prompts, refs = order.shape
    first, second = rng.random((2, prompts, draws))
    largest = first ** (1 / n)
    smallest = largest * (1 - second ** (1 / (n - 1)))
    cells = (np.minimum(refs - 1, (u * refs).astype(np.int64)) for u in (largest, smallest))
    best, worst = (np.take_along_axis(order, cell, axis=1) for cell in cells)
    return best, worst
