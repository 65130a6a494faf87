"""CTRL's trainer: fresh responses of the policy beside stored ones of the reference, step by step.

Every step samples responses of the policy to training prompts, rewards them (raw, or calibrated
against the reference's samples and transformed), puts stored samples of the reference beside them,
and descends the RLOO loss with the KL in the reward (InfAlign, arXiv 2412.19792, algorithm CTRL).
The loss holds for samples of any policy: the reference's show the responses that the policy has
nearly stopped giving, and cost no sampling.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from infalign.aligning.control import BetaControl, check_start
from infalign.aligning.goals import (
    Goal,
    TrainingPrompts,
    calibrated_goal,
    turned,
)
from infalign.aligning.losses import rloo_loss
from infalign.aligning.offline import OfflineSteps
from infalign.aligning.preferences import Method, PreferenceSteps, Stored
from infalign.data.dialogue import Dialogue
from infalign.engines.adapters import Adapters, open_adapters
from infalign.errors import InputError
from infalign.files.tables import SELECTING
from infalign.files.workspace import Workspace
from infalign.lm.freezing import is_frozen
from infalign.lm.models import (
    load_format,
    load_policy,
    precision_on,
)
from infalign.lm.sampling.randomness import derive_seed
from infalign.lm.sampling.sampler import Responses, sample_responses
from infalign.lm.scoring.scorer import divergence
from infalign.lm.training.loop import EpochBatches, Step
from infalign.lm.training.lora import (
    NAME,
    adapter_weights,
    plain,
    with_adapter,
    without_adapter,
    write_adapter,
)
from infalign.lm.training.parallel import Trainable
from infalign.lm.training.parts import batches_of, score_parts
from infalign.processes.ranks import ALONE, Ranks
from infalign.rewards.classifier import Passes
from infalign.rewards.opening import open_source
from infalign.rewards.source import RewardSource
from infalign.theory.calibration import calibrate_below
from infalign.theory.transforms import identity

CPU = torch.device("cpu")


def _check_fits(start: Path, folder: Path) -> None:
    """Raise where a policy to start from is not of the reference's model and tokenizer."""
    own, other = (load_format(each).tokenizer.get_vocab() for each in (start, folder))
    kinds = [json.loads((each / "config.json").read_text("utf-8")) for each in (start, folder)]
    for kind in kinds:
        kind.pop("transformers_version", None)
    if own != other or kinds[0] != kinds[1]:
        raise InputError(
            f"{start} is of another model or tokenizer than results/sft (that of `tiny` is made "
            "anew from the data): set align.start to reference."
        )


class Trainer:
    """On-policy steps: sample, reward, RLOO loss. A step depends on its number and the weights."""

    def __init__(
        self,
        workspace: Workspace,
        objective: str,
        prompts: TrainingPrompts,
        goal: Goal,
        control: BetaControl,
        device: torch.device,
        start: Path | None = None,
    ) -> None:
        self._params, self._prompts = workspace.params, prompts
        self._control, self._begin = control, start
        self._adapters: Adapters | None = None
        self._folder, self._device = workspace.results("sft", "policy"), device
        self._root = workspace.root
        run = workspace.params.run
        self._seed = derive_seed(run.seed, "align")
        if start is not None:
            _check_fits(start, self._folder)
        self._precision = precision_on(run.precision, device)
        self.training = Trainable(self._start, run)
        self.policy: PreTrainedModel = self.training.model
        self.ranks = self.training.ranks
        self.form = load_format(self._folder)
        self._open_source = partial(
            open_source, workspace, objective, SELECTING, Passes(budget=self.training.budget)
        )
        self._encoded = self.form.encode_prompts(prompts.dialogues)
        settings = workspace.params.align
        self._longest = workspace.lengths.response
        lengths = [len(p) for p in self._encoded]
        self._batches = EpochBatches(lengths, settings.prompts_per_step, self._seed)
        self._lengths = (np.array(lengths) + self._longest) * (
            settings.samples_per_prompt + settings.reference_samples
        )
        goals = [goal]
        self._identity_share = 0.0 if goal.transform is None else settings.identity_share
        if self._identity_share:
            goals.append(calibrated_goal(identity(), settings.kl_nats))  # to begin with
        self._goals = [(each, each.of_references(prompts.rewards)) for each in goals]

    @contextlib.contextmanager
    def drawing(self, work: Path, method: str) -> Iterator[None]:
        """While it lasts, an engine draws for an adapter, where generation.engine names one."""
        if method == "ctrl":
            given = (self._params, self.policy, self._folder, self.form, work, self.ranks)
            with open_adapters(*given) as self._adapters:
                yield
            self._adapters = None
        else:
            yield

    @cached_property
    def reference(self) -> Any:
        """The reference; with an adapter, what gives the model without it for a while."""
        if self._params.align.lora_rank:
            return partial(without_adapter, self.policy)
        return self._load(self._folder, self._device, frozen=True)

    @cached_property
    def _beside(self) -> Any:
        """The reference in a step's passes, which are as many in every process."""
        if self._params.align.lora_rank:
            return self.reference
        return self.training.shared_out(partial(self._load, self._folder, frozen=True))

    @cached_property
    def _source(self) -> RewardSource:
        """The selecting reward; where nothing is sampled, no one asks for it."""
        return self._open_source()

    def steps(self, variant: str) -> Callable[[int], Step]:
        """What a step computes: the trainer's own, or that of the method which the variant is."""
        settings = self._params.align
        chosen = settings.variants[variant]
        if chosen.method == "ctrl":
            return self.take
        if chosen.method == "offline":
            offline = OfflineSteps(
                self.training,
                self._prompts,
                self._encoded,
                self._goals[0][0],
                self._control,
                responses=settings.samples_per_prompt + settings.reference_samples,
                seed=self._seed,
                pad=self.form.pad,
            )
            return lambda number: offline.take(number, self._batches.at(number))
        stored = Stored(self._encoded, self._prompts.tokens, self._prompts.rewards, self.form.pad)
        method = Method(
            chosen.method,
            getattr(chosen, "alpha", 0.0),
            settings.samples_per_prompt + settings.reference_samples,
            self._seed,
        )
        steps = PreferenceSteps(self.training, self.reference, stored, method, self._control)
        return lambda number: steps.take(number, self._batches.at(number), self.watch)

    def watch(self, number: int, chosen: np.ndarray) -> dict[str, float]:
        """What fresh responses of the policy are like, measured without training on them."""
        policy = self.training.whole()
        lora = self._params.align.lora_rank
        reference = partial(without_adapter, policy) if lora else self.reference
        responses = self._sample(policy, number, chosen)
        fresh = self._params.align.samples_per_prompt
        asked = [self._prompts.dialogues[i] for i in np.repeat(chosen, fresh)]
        apart = divergence(
            policy,
            reference,
            self.form,
            asked,
            responses.tokens,
            batch_size=len(asked),
            budget=self.training.budget,
        )
        rewards = self._rewards(chosen, responses)
        references = self._prompts.references(chosen)
        below = calibrate_below(rewards, references)
        return {
            "kl": float(apart.kl.mean()),
            "log_ratio": float(apart.log_ratio.mean()),
            "reward": float(rewards.mean()),
            "calibrated": float(below.mean() / references.shape[1]),
            "response_tokens": float(responses.n_tokens.mean()),
            "truncated": float(1 - responses.finished.mean()),
        }

    def _start(self, device: torch.device) -> PreTrainedModel:
        """The policy before training: another one, or the reference, with an empty adapter."""
        load = partial(self._load, self._begin or self._folder)
        settings = self._params.align
        if not settings.lora_rank:
            return load(device)
        return with_adapter(load, device, settings, derive_seed(self._seed, "lora"))

    def _load(self, folder: Path, device: torch.device, frozen: bool = False) -> PreTrainedModel:
        return load_policy(folder, device, self._precision, frozen=frozen)

    def finish(self) -> None:
        """Leave training behind: the policy and the reference as plain, whole models."""
        for name in ("reference", "_beside", "_source"):
            self.__dict__.pop(name, None)
        self.policy = self.training.plain()
        if self._params.align.lora_rank:
            self._adapter = adapter_weights(self.policy), self.policy.peft_config[NAME]
            start = self._begin or self._folder
            self.policy = plain(self.policy, partial(self._load, start, CPU))
        self.reference = self._load(self._folder, self._device, frozen=True)

    def save_adapter(self, folder: Path, scale: float) -> None:
        """Write the adapter by itself, its product times `scale`; `finish` came before."""
        weights, config = self._adapter
        scaled = {n: w * scale if "lora_B" in n else w for n, w in weights.items()}
        write_adapter(scaled, config, folder, self._folder.relative_to(self._root).as_posix())

    def start_weights(self) -> Iterator[torch.Tensor]:
        """The reference's weights, float32, in the policy's order."""
        rounded = is_frozen(self.reference)
        model = load_policy(self._folder, CPU) if rounded else self.reference
        return model.parameters()

    def take(self, number: int) -> Step:
        """One step on fresh responses of the policy and stored ones of the reference."""
        settings = self._params.align
        everyone = self._batches.at(number)
        parts = self.training.parts(everyone, self._lengths[everyone])
        chosen = np.concatenate([part.rows for part in parts])
        places = np.concatenate([part.places for part in parts])
        share = sum(part.share for part in parts)
        fresh = settings.samples_per_prompt
        responses = self._sample(self.training.whole(), number, chosen)
        rewards = self._rewards(chosen, responses)
        references = self._prompts.references(chosen)
        stored = self._stored(number, everyone)[places]
        values = [
            np.hstack(
                [goal(rewards, references), np.take_along_axis(before[chosen], stored, axis=1)]
            )
            for goal, before in self._goals
        ]
        tokens = self._side_by_side(chosen, responses, stored)
        pad = self.form.pad
        batches = batches_of(parts, self._encoded, tokens, pad, self.policy.device)
        scored = score_parts(self.training, self._beside, batches)
        logp, reference_logp = (scored.sums(v).view(len(chosen), -1) for v in scored.scores[:2])
        with torch.no_grad():
            mean = float(scored.sums(scored.scores.kl).view(len(chosen), -1)[:, :fresh].mean())
        kl = self.ranks.mean(mean, share)
        if number == 0 and self._begin is None:
            check_start(kl, logp - reference_logp, scored.tokens, logp.device.type)
        self._control.update(number, kl)
        beta = self._control.beta
        reward = torch.as_tensor(
            self._in_nats(values, beta, number), dtype=logp.dtype, device=logp.device
        )
        step = rloo_loss(reward, logp, reference_logp, 1.0)
        below = calibrate_below(rewards, references) / references.shape[1]
        metrics = {
            "kl": kl,
            "log_ratio": float((logp - reference_logp).detach()[:, :fresh].mean()),
            "beta": beta,
            "reward": float(rewards.mean()),
            "calibrated": float(below.mean()),
            "transformed": float(values[0][:, :fresh].mean()),
            "response_tokens": float(responses.n_tokens.mean()),
            "truncated": float(1 - responses.finished.mean()),
        }
        mine = {name: value * share for name, value in metrics.items()} | {"kl": kl, "beta": beta}
        count = self.ranks.total(np.array(sum(len(t) for row in tokens for t in row)))
        return Step(step.loss * share, mine, int(count), scored.again)

    def _in_nats(self, values: list[np.ndarray], beta: float, number: int) -> np.ndarray:
        """What a step maximises, over beta: the goal, or on the way to it from the identity."""
        share = turned(number / self._params.align.steps, self._identity_share)
        total = np.zeros_like(values[0])
        for (goal, _), found, weight in zip(self._goals, values, (share, 1 - share), strict=False):
            own = beta * (goal.beta / self._goals[0][0].beta)  # steered alike
            total += weight * goal.floored(found, own) / own
        return total

    def _rewards(self, chosen: np.ndarray, responses: Responses) -> np.ndarray:
        """Rewards of fresh responses to the chosen prompts [prompts, samples]."""
        fresh = len(responses.text) // len(chosen)
        asked = [self._prompts.dialogues[i] for i in np.repeat(chosen, fresh)]
        return self._source.rewards(asked, responses.text).reshape(len(chosen), -1)

    def _side_by_side(
        self, chosen: np.ndarray, responses: Responses, stored: np.ndarray
    ) -> list[list[Sequence[int]]]:
        """Tokens of the fresh responses to each prompt, then of the stored ones."""
        fresh = self._params.align.samples_per_prompt
        return [
            [
                *responses.tokens[row * fresh : (row + 1) * fresh],
                *(self._prompts.tokens[prompt][sample] for sample in samples),
            ]
            for row, (prompt, samples) in enumerate(zip(chosen, stored, strict=True))
        ]

    def _stored(self, number: int, chosen: np.ndarray) -> np.ndarray:
        """Which of the reference's samples a step takes [prompts, reference samples]."""
        rng = np.random.default_rng([self._seed, number])
        places = np.tile(np.arange(self._prompts.rewards.shape[1]), (len(chosen), 1))
        return rng.permuted(places, axis=1)[:, : self._params.align.reference_samples]

    def measure_kl(self) -> float:
        """The policy's KL, nats a response, on prompts that training has not seen."""
        settings, prompts = self._params.align, self._prompts
        chosen = dict(list(prompts.unseen.items())[: settings.kl_prompts])
        if len(chosen) < settings.kl_prompts:  # too few to spare: take training prompts as well
            seen = zip(prompts.ids, prompts.dialogues, strict=True)
            chosen |= dict(list(seen)[: settings.kl_prompts - len(chosen)])
        indices = np.tile(np.arange(settings.kl_samples), (len(chosen), 1))
        asked = list(chosen.values())
        responses = self._responses(self.policy, asked, list(chosen), indices, "kl", self.ranks)
        each = [dialogue for dialogue in asked for _ in range(settings.kl_samples)]
        found = divergence(
            self.policy,
            self.reference,
            self.form,
            each,
            responses.tokens,
            batch_size=self._params.sample.batch_size,
            budget=self.training.budget,
            ranks=self.ranks,
        )
        return float(found.kl.mean())

    def _sample(self, policy: PreTrainedModel, number: int, chosen: np.ndarray) -> Responses:
        """Fresh responses: a step's sample indices are its own."""
        k = self._params.align.samples_per_prompt
        indices = np.tile(number * k + np.arange(k), (len(chosen), 1))
        asked = [self._prompts.dialogues[i] for i in chosen]
        ids = [self._prompts.ids[i] for i in chosen]
        if self._adapters is not None:
            wanted = {"seed": self._seed, "longest": self._longest}
            return self._adapters.draw(number, policy, asked, ids, indices, **wanted)
        return self._responses(policy, asked, ids, indices, "align")

    def _responses(
        self,
        policy: PreTrainedModel,
        dialogues: list[Dialogue],
        ids: list[str],
        indices: np.ndarray,
        purpose: str,
        ranks: Ranks = ALONE,
    ) -> Responses:
        return sample_responses(
            policy,
            self.form,
            dialogues,
            ids,
            indices,
            seed=derive_seed(self._params.run.seed, purpose),
            longest=self._longest,
            batch_size=self._params.sample.batch_size,
            budget=self.training.budget,
            ranks=ranks,
        )
