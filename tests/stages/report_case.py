"""Made-up results of every stage before evaluate, so that evaluate and report run without a model.

Responses are drawn from the built-in corpus. A policy picks from a pool of them with weights
exp(Phi(C)/beta), so that its KL, log-ratios and win rates are what an exact optimum would have.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from infalign.aligning.budget import budget_of
from infalign.data.builtin import draw_response, gold_utilities, prompts_of
from infalign.data.dialogue import read_marked
from infalign.files.tables import (
    CALIBRATED,
    EVALUATION_REWARDS,
    EVALUATION_SAMPLES,
    PROMPTS,
    SAMPLES,
    Table,
    write_table,
)
from infalign.files.workspace import Workspace, write_json
from infalign.settings.params import Params, check_params, load_params
from infalign.stages import evaluate
from infalign.theory.calibration import calibrate, expected_calibration_error
from infalign.theory.limits import raw_beta
from infalign.theory.transforms import parse_transform

ROOT = Path(__file__).parents[2]


def case_params(prompts: int = 6, samples: int = 8, **changes: Any) -> Params:
    """The project's params, made small; `changes` replace whole sections' entries."""
    tree = load_params(ROOT / "params.yaml").model_dump(mode="json")
    small: dict[str, dict[str, Any]] = {
        "sample": {"test_prompts": prompts, "test_samples": samples, "large_prompts": 1},
        "evaluate": {"best_of": [1, 2, 4], "bootstrap": 100},
        "report": {"examples": 2},
        **changes,
    }
    for section, values in small.items():
        tree[section] |= values
    return check_params(tree, "case")


def write_inputs(root: Path, params: Params, gold: bool = True) -> None:
    """Everything that evaluate and report read, except what evaluate itself writes."""
    results = root / "results"
    metrics: dict[str, Any] = {"objectives": {}}
    tables: dict[str, list[dict[str, Any]]] = {"prompts": [], "samples": []}
    for objective in params.run.objectives:
        case = _Case(params, objective)
        if not gold:
            del case.rewards["gold"]
        metrics["objectives"][objective] = case.counts() | {"gold": "builtin" if gold else None}
        tables["prompts"] += case.prompt_rows()
        tables["samples"] += case.sample_rows()
        folder = results / "calibrate" / objective
        _write(folder / "calibrated.parquet", case.calibrated_rows(), CALIBRATED)
        write_json(folder / "errors.json", case.errors())
        write_json(
            folder / "metrics.json",
            {"test_tied_share": 0.02, "uniformity_ks": 0.012, "scale_change": 0.0}
            | {"calibration_error": {"8": 0.11, "32": 0.056, "64": 0.04}},
        )
        for variant in params.run.variants:
            trained = results / "align" / objective / variant
            _history(trained, case.rng, params.align.kl_nats)
            write_json(trained / "metrics.json", budget_of(params.align)._asdict())
            case.write_policy(root, variant)
    _write(results / "prepare" / "prompts.parquet", tables["prompts"], PROMPTS)
    _write(results / "sample" / "samples.parquet", tables["samples"], SAMPLES)
    write_json(results / "prepare" / "metrics.json", metrics)
    write_json(
        results / "sft" / "metrics.json",
        {"parameters": 205120, "held_out_perplexity": 3.21, "ended_share": 0.99}
        | {"empty_share": 0.0},
    )
    accuracy = {
        "accuracy": 0.742,
        "accuracy_low": 0.71,
        "accuracy_high": 0.77,
        "held_out_pairs": 1000,
    }
    halves = {"selecting": accuracy, "independent": accuracy}
    for objective in params.run.objectives:
        write_json(results / "reward" / objective / "metrics.json", halves)
    write_json(
        results / "sample" / "metrics.json",
        {
            "responses": 40960,
            "response_tokens": 13.2,
            "truncated_share": 0.004,
            "repeated_share": 0.03,
        },
    )


def run_evaluate(root: Path, params: Params) -> None:
    """Run evaluate for every objective on made-up policies and publish."""
    for objective in params.run.objectives:
        workspace = Workspace(params, root, f"evaluate@{objective}")
        evaluate.run(workspace, objective)
        workspace.publish(evaluate.needs(params, objective).outputs)


class _Case:
    """One objective's prompts, a pool of responses to each, and their rewards [prompts, pool]."""

    def __init__(self, params: Params, objective: str) -> None:
        self.params, self.objective = params, objective
        settings = params.objectives[objective]
        self.rng = np.random.default_rng(sum(objective.encode()))
        self.samples = params.sample.test_samples
        self.prompts = prompts_of(settings.subset, 0, params.sample.test_prompts)
        self.ids = [f"{position:016x}" for position in range(len(self.prompts))]
        text = random.Random(objective)
        pool = 4 * self.samples
        self.pool = [
            [draw_response(settings.subset, prompt, text) for _ in range(pool)]
            for prompt in self.prompts
        ]
        gold = np.array(
            [
                gold_utilities(settings.gold, [prompt] * pool, responses)
                for prompt, responses in zip(self.prompts, self.pool, strict=True)
            ]
        )
        stake = np.exp(0.7 * self.rng.normal(size=(len(gold), 1)))
        noise = self.rng.normal(size=(3, *gold.shape)) * gold.std()
        self.rewards = {
            "selecting": stake * (gold + 0.5 * noise[0]),
            "independent": stake * (gold + 0.5 * noise[1]),
            "gold": gold,
        }
        self.own = self.rng.integers(0, pool, (len(gold), self.samples))

    def counts(self) -> dict[str, Any]:
        return {
            "pairs": {"train": 4700, "test": 960},
            "prompts": {"train": 1190, "test": 250},
            "dropped": {"identical": 31, "empty_response": 0},
            "dialogues_cut": 12,
            "responses_cut": 3,
            "accuracy_ceiling": 0.781,
        }

    def prompt_rows(self) -> list[dict[str, Any]]:
        return [
            {"prompt_id": i, "objective": self.objective, "split": "test", "source": "made up"}
            | {"dialogue": read_marked(prompt).text, "columns": "{}"}
            for i, prompt in zip(self.ids, self.prompts, strict=True)
        ]

    def sample_rows(self) -> list[dict[str, Any]]:
        return [
            {"objective": self.objective, "split": "test", "tokens": [1] * n, "logp": -1.0}
            | {"n_tokens": n}
            | {"prompt_id": i, "sample_index": s, "response": text, "finished": n < 22}
            for i, s, text, n in self._chosen(self.own)
        ]

    def calibrated_rows(self) -> list[dict[str, Any]]:
        found = {
            name: np.take_along_axis(self.rewards[name], self.own, 1)
            for name in ("selecting", "independent")
        }
        calibrated = calibrate(found["selecting"], found["selecting"], leave_one_out=True)
        return [
            {"prompt_id": i, "sample_index": s, "split": "test"}
            | {"reward": found["selecting"][p, s], "independent_reward": found["independent"][p, s]}
            | {"calibrated": calibrated[p, s]}
            for p, i in enumerate(self.ids)
            for s in range(self.samples)
        ]

    def errors(self) -> list[dict[str, float]]:
        return [
            {"references": k, "expected": expected_calibration_error(k)}
            | {"measured": expected_calibration_error(k) * (1 + 0.03 * self.rng.normal())}
            for k in self.params.calibrate.error_references
        ]

    def write_policy(self, root: Path, variant: str) -> None:
        """The unfinished work of evaluate in which this variant is sampled and scored."""
        weights = self._weights(self.params.reward_spelling(self.objective, variant))
        size = weights.shape[1]
        picks = np.array([self.rng.choice(size, self.samples, p=row) for row in weights])
        ratio = np.log(np.maximum(weights * size, 1e-300))
        kl = (weights * ratio).sum(1)
        rows = [
            {"policy": variant, "prompt_id": i, "sample_index": s, "response": text}
            | {"n_tokens": n, "finished": n < 22, "kl": kl[int(i, 16)]}
            | {"log_ratio": ratio[int(i, 16), picks[int(i, 16), s]]}
            for i, s, text, n in self._chosen(picks)
        ]
        scores = [
            {"policy": variant, "prompt_id": i, "sample_index": s, "judge": judge}
            | {"reward": rewards[int(i, 16), picks[int(i, 16), s]]}
            for judge, rewards in self.rewards.items()
            for i, s, _, _ in self._chosen(picks)
        ]
        folder = root / ".infalign" / "work" / f"evaluate@{self.objective}" / "policies"
        _write(folder / f"{variant}.samples.parquet", rows, EVALUATION_SAMPLES)
        _write(folder / f"{variant}.rewards.parquet", scores, EVALUATION_REWARDS)

    def _weights(self, spelling: str) -> np.ndarray:
        """exp(R / beta) over the pool, at about the KL budget."""
        rewards, budget = self.rewards["selecting"], self.params.align.kl_nats
        if spelling != "raw":
            procedure = self.params.procedure(self.objective)
            transform = parse_transform(spelling, procedure, budget)
            centred = calibrate(rewards, rewards)
            rewards = transform(centred)
        beta = raw_beta(rewards, budget * self.rng.uniform(0.95, 1.05))
        weights = np.exp((rewards - rewards.max(1, keepdims=True)) / beta)
        return weights / weights.sum(1, keepdims=True)

    def _chosen(self, picks: np.ndarray) -> list[tuple[str, int, str, int]]:
        """(prompt id, sample index, response, tokens) of picked responses, in order."""
        return [
            (i, s, self.pool[p][pick], len(self.pool[p][pick].split()) + 2)
            for p, i in enumerate(self.ids)
            for s, pick in enumerate(picks[p])
        ]


def _history(folder: Path, rng: np.random.Generator, budget: float) -> None:
    folder.mkdir(parents=True)
    with open(folder / "history.jsonl", "w", encoding="utf-8") as stream:
        for step in range(150):
            done = 1 - np.exp(-step / 30)
            row = {
                "step": step,
                "loss": 1 - done,
                "kl": budget * done * (1 + 0.03 * rng.normal()) + 1e-4,
                "reward": done + 0.1 * rng.normal(),
                "calibrated": 0.5 + 0.25 * done + 0.01 * rng.normal(),
                "response_tokens": 13 + done + 0.2 * rng.normal(),
            }
            stream.write(json.dumps(row) + "\n")


def _write(path: Path, rows: list[dict[str, Any]], kind: Table) -> None:
    write_table(path, {name: [row[name] for row in rows] for name in kind.schema.names}, kind)
