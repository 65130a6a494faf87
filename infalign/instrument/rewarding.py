"""The transformed calibrated reward as a callable for other people's trainers.

The estimate is the one that align trains on (`Transform.least_biased` of the count of reference
samples below), with the same floor, scaled to 0 … 1: an affine map of the reward, and the KL weight
divided by the same span, have the same optimum (InfAlign, arXiv 2412.19792).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from infalign.errors import InputError
from infalign.instrument.charts import Axis, Line, Point, chart, ticks
from infalign.instrument.reading import Source
from infalign.instrument.references import References, read_references
from infalign.instrument.trainers import refuse_distortion
from infalign.theory.checks import FloatArray
from infalign.theory.frontier import solve_beta
from infalign.theory.procedures import Procedure
from infalign.theory.transforms import FLOOR_NATS, Transform, parse_transform

LEAST_TOP = 0.2  # of 1: what the estimate gives a response above all references, at least
RewardFunction = Callable[..., Sequence[float]]


class CalibratedReward:
    """A reward for CTRL in any trainer: how a response compares with the reference's, transformed.

    Called as TRL calls its reward functions; `verl` and `openrlhf` give the forms of those. Use
    `beta` as the trainer's KL weight: with it the theory's optimum spends `kl_nats` a response.

    Attributes:
        transform: Φ of the calibrated reward.
        kl_nats: the KL budget that `beta` belongs to, nats a response.
        beta: KL weight for rewards on the scale 0 … 1.
        references: the reference's rewards of every known prompt.
    """

    __name__ = "calibrated_reward"

    def __init__(
        self,
        references: Source,
        reward: RewardFunction,
        transform: str | Transform = "exp:10",
        *,
        procedure: str | Procedure | None = None,
        kl_nats: float = 0.5,
        column: str = "reward",
        objective: str | None = None,
    ) -> None:
        """Read the reference's rewards, and solve for the KL weight.

        Args:
            references: the `results/` of a finished run, or samples of the reference with their
                rewards: a file, columns, rows or a table, as `infalign.measure` takes them.
            reward: gives the raw reward of each response: `reward(prompts=…, completions=…,
                **columns)`, one finite number each. The one that scored the references.
            transform: its spelling; `auto` and `optimal` need a procedure.
            procedure: what the policy is deployed with.
            kl_nats: KL budget, nats a response.
            column: the references' column of rewards.
            objective: of a results folder with several.

        Raises:
            InputError: for references that cannot be read, or a spelling that cannot.
        """
        self.references: References = read_references(references, column, objective)
        self._reward = reward
        try:
            self.transform = parse_transform(transform, procedure, kl_nats)
            beta = solve_beta(self.transform, kl_nats)
        except ValueError as error:
            raise InputError(str(error)) from None
        self.kl_nats = float(kl_nats)
        self._top = float(self.transform(1.0))
        self._low = max(float(self.transform(0.0)), self._top - FLOOR_NATS * beta)
        self.beta = beta / (self._top - self._low)
        self._check_counts()

    def _check_counts(self) -> None:
        """Refuse so few references that the best response's reward is far from 1."""
        fewest = min(len(rewards) for rewards in self.references.rewards.values())
        if self._of_counts(np.array([fewest]), fewest)[0] >= LEAST_TOP:
            return
        enough = fewest
        while self._of_counts(np.array([enough]), enough)[0] < LEAST_TOP:
            enough += 1
        raise InputError(
            f"{self.references.place} has prompts with {fewest} reference samples, too few to tell "
            f"what {self.transform} is worth at its top: sample at least {enough}, better "
            f"{4 * enough}, for every prompt."
        )

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """Rewards from 0 to 1, one a response.

        Args:
            prompts: texts or messages, one a response.
            completions: the responses, as the trainer gives them.
            columns: further columns of the data set, handed to the reward; where `prompt_id` is
                among them it says which prompt is meant.

        Raises:
            InputError: for a prompt without references, or a reward that is no finite number.
        """
        named = columns.get("prompt_id")
        references = [self.references.of(name) for name in (prompts if named is None else named)]
        if len(references) != len(completions):
            raise InputError(
                f"{len(completions)} responses to {len(references)} prompts: give one prompt each."
            )
        return self.scaled(self._raw(prompts, completions, columns), references).tolist()

    def _raw(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> FloatArray:
        given = self._reward(prompts=prompts, completions=completions, **columns)
        raw = np.array([np.nan if value is None else value for value in given], dtype=np.float64)
        if raw.shape != (len(completions),):
            raise InputError(
                f"the reward gave {len(raw)} numbers for {len(completions)} responses: it must "
                "give one each, in their order."
            )
        wrong = np.flatnonzero(~np.isfinite(raw))
        if len(wrong):
            said = str(completions[int(wrong[0])])[:80]
            raise InputError(
                f"the reward of the response {said!r} is {raw[wrong[0]]}: it must be finite."
            )
        return raw

    def scaled(self, rewards: FloatArray, references: Sequence[FloatArray]) -> FloatArray:
        """The transformed calibrated reward of each response, on the scale 0 … 1.

        Args:
            rewards: raw, [responses].
            references: each response's reference rewards, ascending.
        """
        below, many = np.empty(len(rewards)), np.empty(len(rewards), dtype=np.intp)
        for i, (value, of_it) in enumerate(zip(rewards, references, strict=True)):
            less, upto = of_it.searchsorted(value, "left"), of_it.searchsorted(value, "right")
            below[i], many[i] = (less + upto) / 2, len(of_it)
        found = np.empty(len(rewards))
        for k in np.unique(many):
            same = many == k
            found[same] = self._of_counts(below[same], int(k))
        return found

    def _of_counts(self, below: FloatArray, references: int) -> FloatArray:
        """The estimate of Φ(C), scaled, of responses with so many references below them."""
        found = self.transform.least_biased(below, references)
        return np.clip((found - self._low) / (self._top - self._low), 0.0, 1.0)

    def shape(self, calibrated: FloatArray) -> FloatArray:
        """Φ of calibrated rewards that are known exactly, on the same scale."""
        with np.errstate(invalid="ignore"):
            return np.clip((self.transform(calibrated) - self._low) / (self._top - self._low), 0, 1)

    def check(self, settings: Any) -> None:
        """Refuse a trainer's settings that would distort Φ, or sample from another policy.

        Args:
            settings: TRL's `RLOOConfig` or `GRPOConfig`, or anything with fields of those names.

        Raises:
            InputError: naming the field, its value and what to write.
        """
        refuse_distortion(settings, self.beta)

    def verl(
        self,
        data_source: Any = None,
        solution_str: str | None = None,
        ground_truth: Any = None,
        extra_info: Mapping[str, Any] | None = None,
        *,
        solution_strs: Sequence[str] | None = None,
        extra_infos: Sequence[Mapping[str, Any]] | None = None,
        **_: Any,
    ) -> float | list[float]:
        """verl's `custom_reward_function`, for one response or for the manager `batch`.

        verl hands no prompt to it: `extra_info` must hold `prompt_id` or `prompt`.
        """
        if solution_strs is None:
            return self._of_verl([solution_str or ""], [extra_info or {}])[0]
        return self._of_verl(solution_strs, extra_infos or [{}] * len(solution_strs))

    def _of_verl(
        self, completions: Sequence[str], infos: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        named = [info.get("prompt_id", info.get("prompt")) for info in infos]
        if any(name is None for name in named):
            raise InputError(
                "extra_info has neither prompt_id nor prompt: write one of them into the data's "
                "extra_info, because verl hands no prompt to a reward function."
            )
        prompts = [info.get("prompt", info.get("prompt_id")) for info in infos]
        return self(prompts, completions, prompt_id=named)

    def openrlhf(
        self, tensor: Callable[[list[float]], Any], end: str = ""
    ) -> Callable[..., dict[str, Any]]:
        """OpenRLHF's `reward_func`, for the file that `--remote_rm_url` names.

        Args:
            tensor: makes its tensors: `torch.tensor`.
            end: the end-of-text token as the tokenizer writes it; a response is read up to it.
        """

        def reward_func(
            queries: Sequence[str], prompts: Sequence[str], labels: Any = None, **_: Any
        ) -> dict[str, Any]:
            said = [_response(q, p, end) for q, p in zip(queries, prompts, strict=True)]
            rewards = tensor(self(prompts, said))
            return {"rewards": rewards, "scores": rewards, "extra_logs": {"calibrated": rewards}}

        return reward_func

    def __repr__(self) -> str:
        return (
            f"CalibratedReward({self.transform}, kl_nats={self.kl_nats:g}, beta={self.beta:.4g}, "
            f"{len(self.references)} prompts of {self.references.place})"
        )

    def _repr_html_(self) -> str:
        ranks = np.linspace(0.0, 1.0, 101)
        curve = [Point(float(c), float(r)) for c, r in zip(ranks, self.shape(ranks), strict=True)]
        drawn = chart(
            f"{self.transform}, scaled; β = {self.beta:.4g} for {self.kl_nats:g} nats",
            [Line(str(self.transform), curve, None)],
            Axis("calibrated reward C", ticks(0.0, 1.0, 1)),
            Axis("reward", ticks(0.0, 1.0, 1)),
        )
        return f'<div class="infalign"><figure>{drawn}</figure></div>'


def _response(query: str, prompt: str, end: str) -> str:
    """What follows the prompt in a whole text, up to its end."""
    place = query.find(prompt)  # a beginning-of-text token may stand before it
    if place < 0:
        raise InputError(f"the query {query[:60]!r} does not hold its prompt {prompt[:60]!r}.")
    said = query[place + len(prompt) :]
    return said.partition(end)[0] if end else said
