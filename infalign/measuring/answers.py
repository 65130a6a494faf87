"""Answers to the evaluation prompts, and their rewards, as arrays.

The reference's are those of the stage sample; a policy's are drawn here. One policy is sampled and
scored at a time, and one that is finished is kept after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc

from infalign.data.dialogue import Dialogue, read_prompts
from infalign.files.squares import Array, Square, policy_rewards, reference_rewards
from infalign.files.tables import (
    EVALUATION_REWARDS,
    EVALUATION_SAMPLES,
    GOLD,
    REFERENCE,
    SAMPLES,
    read_table,
    write_table,
)
from infalign.files.workspace import Workspace
from infalign.measuring.contest import Contest, PolicyResponses
from infalign.processes.ranks import join
from infalign.settings.params import Params
from infalign.theory.procedures import parse_procedure

T = TypeVar("T")


def contest_of(
    params: Params,
    objective: str,
    variants: Iterable[str],
    kl_nats: float,
    families: Iterable[str] = (),
) -> Contest:
    """How policies of an objective are compared: standard, these procedures, and its own."""
    own = params.objectives[objective].procedure
    return Contest(
        params.procedure(objective),
        tuple(parse_procedure(name) for name in dict.fromkeys(("standard", *families, own))),
        {name: params.reward_spelling(objective, name) for name in variants},
        kl_nats,
        params.evaluate.bootstrap,
        params.run.seed,
    )


@dataclass(frozen=True)
class _Prompts:
    """The evaluation prompts of an objective, in the order of their ids."""

    ids: list[str]
    dialogues: list[Dialogue]

    def __len__(self) -> int:
        return len(self.ids)

    def each(self, samples: int) -> tuple[list[str], list[Dialogue]]:
        """Ids and dialogues, each repeated for every sample."""
        return _repeat(self.ids, samples), _repeat(self.dialogues, samples)


def _repeat(values: Sequence[T], times: int) -> list[T]:
    return [value for value in values for _ in range(times)]


def answered(workspace: Workspace, objective: str, name: str) -> tuple[Path, Path]:
    """Sample and score one policy unless that is done: where its responses and rewards are."""
    finish(workspace, objective, name, evaluation_prompts(workspace, objective))
    return part_path(workspace, name, "samples"), part_path(workspace, name, "rewards")


def read_responses(samples: Path, rewards: Path) -> PolicyResponses:
    """One policy's responses to the evaluation prompts, from its two tables."""
    square = Square(read_table(samples, EVALUATION_SAMPLES), samples)
    return PolicyResponses(
        policy_rewards(read_table(rewards, EVALUATION_REWARDS), rewards),
        *(square[name] for name in ("kl", "log_ratio", "n_tokens", "finished")),
    )


def evaluation_prompts(workspace: Workspace, objective: str) -> _Prompts:
    """The prompts that every policy answers: those that calibrate rewarded, of the split `test`."""
    path = workspace.results("calibrate", objective, "calibrated.parquet")
    ids, _ = reference_rewards(path, "test")
    known = read_prompts(workspace.results("prepare", "prompts.parquet"), objective)
    return _Prompts(ids, [known[prompt] for prompt in ids])


def part_path(workspace: Workspace, name: str, word: str) -> Path:
    return workspace.work / "policies" / f"{name}.{word}.parquet"


def finish(workspace: Workspace, objective: str, name: str, prompts: _Prompts) -> None:
    """Sample and score one policy, unless that is done; samples are kept while scoring."""
    sampled, scored = (part_path(workspace, name, word) for word in ("samples", "rewards"))
    ranks = join(workspace.params.run)
    if not ranks.first(sampled.exists()):
        draw = _reference_samples if name == REFERENCE else _policy_samples
        drawn = draw(workspace, objective, name, prompts)
        if ranks.main:
            write_table(sampled, drawn, EVALUATION_SAMPLES)
            print(f"{workspace.instance}: {name} sampled", flush=True)
    ranks.wait()
    if not ranks.first(scored.exists()):
        samples = read_table(sampled, EVALUATION_SAMPLES).to_pydict()
        rewards = _rewards(workspace, objective, name, prompts, samples)
        if ranks.main:
            write_table(scored, rewards, EVALUATION_REWARDS)
            print(f"{workspace.instance}: {name} scored", flush=True)


def _reference_samples(
    workspace: Workspace, objective: str, name: str, prompts: _Prompts
) -> dict[str, Any]:
    """The reference's responses, already sampled."""
    path = workspace.results("sample", "samples.parquet")
    own = (pc.field("objective") == objective) & (pc.field("split") == "test")
    square = Square(read_table(path, SAMPLES).filter(own), path)
    names = ("prompt_id", "sample_index", "response", "n_tokens", "finished")
    columns: dict[str, Any] = {column: square[column].reshape(-1) for column in names}
    zeros = np.zeros(len(columns["response"]))
    return columns | {"policy": [name] * len(zeros), "kl": zeros, "log_ratio": zeros}


def _policy_samples(
    workspace: Workspace, objective: str, name: str, prompts: _Prompts
) -> dict[str, Any]:
    """Responses of a variant, with KL and log-ratio against the reference.

    The stream of random numbers is not the reference's: samples that share theirs would tie with
    themselves. It is one for all variants, which makes paired differences less noisy.
    """
    from infalign.engines.samplers import open_sampler
    from infalign.lm.memory import Budget
    from infalign.lm.models import load_format, load_policy, pick_device
    from infalign.lm.sampling.randomness import derive_seed
    from infalign.lm.scoring.scorer import divergence

    params = workspace.params
    device, samples = pick_device(params.run.device), params.sample.test_samples
    precision, ranks = params.run.precision, join(params.run)
    budget = Budget(params.run.batch_tokens)
    folder = workspace.results("align", objective, name, "policy")
    policy = load_policy(folder, device, precision, frozen=True)
    form = load_format(workspace.results("sft", "policy"))
    indices = np.tile(np.arange(samples), (len(prompts), 1))
    with open_sampler(
        params,
        policy,
        folder,
        form,
        name=f"align/{objective}/{name}",
        batch_size=params.evaluate.batch_size,
        budget=budget,
        ranks=ranks,
    ) as sampler:
        responses = sampler.draw(
            prompts.dialogues,
            prompts.ids,
            indices,
            seed=derive_seed(params.run.seed, "evaluate"),
            longest=workspace.lengths.response,
            ranks=ranks,
        )
    ids, dialogues = prompts.each(samples)
    reference = load_policy(workspace.results("sft", "policy"), device, precision, frozen=True)
    apart = divergence(
        policy,
        reference,
        form,
        dialogues,
        responses.tokens,
        batch_size=params.evaluate.batch_size,
        budget=budget,
        ranks=ranks,
    )
    return {
        "policy": [name] * len(ids),
        "prompt_id": ids,
        "sample_index": indices.reshape(-1),
        "response": responses.text,
        "n_tokens": responses.n_tokens,
        "finished": responses.finished,
        "kl": apart.kl,
        "log_ratio": apart.log_ratio,
    }


def _rewards(
    workspace: Workspace,
    objective: str,
    name: str,
    prompts: _Prompts,
    samples: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """Every judge's rewards of one policy's responses; the reference's are known but for gold."""
    known = dict(zip(prompts.ids, prompts.dialogues, strict=True))
    asked = [known[prompt] for prompt in samples["prompt_id"]]
    if name == REFERENCE:
        judged = _reference_rewards(workspace, objective)
    else:
        judged = _source_rewards(workspace, objective, asked, samples["response"])
    gold = workspace.params.objectives[objective].gold
    if gold and _is_builtin(workspace, objective):
        from infalign.data.builtin import gold_utilities

        judged[GOLD] = gold_utilities(gold, [d.marked for d in asked], samples["response"])
    rows = len(asked)
    return {
        "policy": [name] * (rows * len(judged)),
        "prompt_id": list(samples["prompt_id"]) * len(judged),
        "sample_index": list(samples["sample_index"]) * len(judged),
        "judge": _repeat(list(judged), rows),
        "reward": np.concatenate(list(judged.values())),
    }


def _reference_rewards(workspace: Workspace, objective: str) -> dict[str, Array]:
    path = workspace.results("calibrate", objective, "calibrated.parquet")
    return {judge: x.reshape(-1) for judge, x in reference_rewards(path, "test")[1].items()}


def _source_rewards(
    workspace: Workspace, objective: str, prompts: Sequence[Dialogue], responses: Sequence[str]
) -> dict[str, Array]:
    from infalign.rewards.classifier import passes_of
    from infalign.rewards.opening import judges_of, open_source

    passes = passes_of(workspace.params.run, workspace.params.evaluate.batch_size)
    return {
        judge: open_source(workspace, objective, judge, passes).rewards(prompts, responses)
        for judge in judges_of(workspace, objective)
    }


def _is_builtin(workspace: Workspace, objective: str) -> bool:
    """Whether an objective's prompts are of the built-in corpus, whose gold utility is known."""
    found = json.loads(workspace.results("prepare", "metrics.json").read_text(encoding="utf-8"))
    return bool(found["objectives"][objective]["gold"] == "builtin")
