"""CTRL in TRL: its RLOOTrainer maximises the transformed calibrated reward of a finished run.

    infalign run
    pip install -c constraints.txt -e '.[bench]'
    python examples/trl_ctrl.py --objective helpful --out trl

Reads params.yaml and results/: the reference policy, its rewards on the training prompts, and the
objective's reward. Writes OUT/policy, a plain Hugging Face folder, and OUT/samples.jsonl, its
responses to the evaluation prompts, and ends with `infalign measure` of them beside the run's own
policies.

How TRL is set:

- `beta` is `CalibratedReward.beta`. Choose the KL budget from `infalign frontier --procedure
  best_of:4 --kl 0.25 --kl 0.5 --kl 1`: it says what win rate each budget allows, and with which
  transformation. The β printed there belongs to Φ as it is; this one to rewards from 0 to 1.
- RLOOTrainer subtracts β times the log-ratio of the whole response from the reward, and compares
  with the other responses to the prompt. That is the objective of CTRL, E[Φ(C)] - β KL.
- `normalize_advantages` here, and `scale_rewards` in GRPO, divide by a standard deviation. Where a
  group's responses are all much alike, that stretches small differences to the size of large ones:
  Φ is no longer what is maximised. `reward_clip_range` cuts Φ off. Another temperature or top_p
  samples from another policy than the one that the win rate is of. `CalibratedReward.check` refuses
  all of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import infalign
from infalign.data.dialogue import Dialogue, read_prompts
from infalign.files.names import SELECTING
from infalign.files.squares import reference_rewards
from infalign.files.workspace import Workspace
from infalign.lm.memory import Budget
from infalign.lm.models import load_format, load_policy
from infalign.lm.sampling.sampler import sample_responses
from infalign.lm.scoring.scorer import divergence
from infalign.rewards.classifier import Passes
from infalign.rewards.opening import judges_of, open_source
from infalign.settings.params import load_params

CPU = torch.device("cpu")
SEED = 1000  # of the samples that are measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, sample, measure."""
    asked = options().parse_args(arguments)
    workspace = Workspace(load_params(Path("params.yaml")), Path(), f"trl@{asked.objective}")
    settings = workspace.params.objectives[asked.objective]
    source = open_source(workspace, asked.objective, SELECTING, Passes(512, Budget()))
    known = read_prompts(workspace.results("prepare", "prompts.parquet"), asked.objective)
    by_text = {dialogue.marked: dialogue for dialogue in known.values()}

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        dialogues = [by_text[prompt] for prompt in prompts]
        return source.rewards(dialogues, [text.strip() for text in completions]).tolist()

    calibrated = infalign.CalibratedReward(
        "results",
        reward,
        settings.transform,
        procedure=settings.procedure,
        kl_nats=workspace.params.align.kl_nats,
        objective=asked.objective,
    )
    print(calibrated)
    table = workspace.results("calibrate", asked.objective, "calibrated.parquet")
    asked.out.mkdir(parents=True, exist_ok=True)
    train(
        workspace,
        calibrated,
        [known[i].marked for i in reference_rewards(table, "train")[0]],
        asked,
    )
    test = {i: known[i] for i in reference_rewards(table, "test")[0]}
    write_samples(workspace, test, asked)
    measure = [sys.executable, "-m", "flows.cli", "measure", "--procedure", settings.procedure]
    measure += ["--reference", f"results/evaluate/{asked.objective}"]
    measure += ["--policy", f"trl={asked.out / 'samples.jsonl'}"]
    return subprocess.run(
        [*measure, "--page", str(asked.out / "index.html")], check=False
    ).returncode


def options() -> argparse.ArgumentParser:
    """What may be chosen; the sizes are those of params.yaml's section align."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", default="helpful")
    parser.add_argument("--out", type=Path, default=Path("trl"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=16, help="a step")
    parser.add_argument("--generations", type=int, default=6, help="responses a prompt")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    return parser


def train(
    workspace: Workspace,
    calibrated: infalign.CalibratedReward,
    prompts: list[str],
    asked: argparse.Namespace,
) -> None:
    """Steps of TRL's trainer on the training prompts."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import RLOOConfig, RLOOTrainer

    sft = str(workspace.results("sft", "policy"))
    tokenizer = AutoTokenizer.from_pretrained(sft)
    settings = RLOOConfig(
        output_dir=str(asked.out / "trainer"),
        beta=calibrated.beta,
        num_generations=asked.generations,
        per_device_train_batch_size=asked.prompts * asked.generations,
        max_completion_length=workspace.lengths.response,
        max_steps=asked.steps,
        learning_rate=asked.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=max(1, asked.steps // 20),
        max_grad_norm=1.0,
        disable_dropout=True,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_steps=max(1, asked.steps // 10),
        seed=workspace.params.run.seed,
    )
    calibrated.check(settings)
    trainer = RLOOTrainer(
        model=AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32),
        reward_funcs=calibrated,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.model.save_pretrained(asked.out / "policy")
    tokenizer.save_pretrained(asked.out / "policy")


def write_samples(
    workspace: Workspace, prompts: dict[str, Dialogue], asked: argparse.Namespace
) -> None:
    """The policy's responses to the evaluation prompts, with every judge's rewards and KL."""
    form, sft = load_format(workspace.results("sft", "policy")), workspace.results("sft", "policy")
    policy, reference = (load_policy(place, CPU) for place in (asked.out / "policy", sft))
    many = workspace.params.sample.test_samples
    drawn = sample_responses(
        policy,
        form,
        list(prompts.values()),
        list(prompts),
        np.tile(np.arange(many), (len(prompts), 1)),
        seed=SEED,
        longest=workspace.lengths.response,
        batch_size=512,
    )
    dialogues = [dialogue for dialogue in prompts.values() for _ in range(many)]
    apart = divergence(policy, reference, form, dialogues, drawn.tokens, batch_size=512)
    columns = {"kl": apart.kl, "log_ratio": apart.log_ratio}
    for judge in judges_of(workspace, asked.objective):
        source = open_source(workspace, asked.objective, judge, Passes(512, Budget()))
        name = "reward" if judge == SELECTING else judge
        columns[name] = source.rewards(dialogues, drawn.text)
    with open(asked.out / "samples.jsonl", "w", encoding="utf-8") as stream:
        for row, (name, text) in enumerate(
            zip((i for i in prompts for _ in range(many)), drawn.text, strict=True)
        ):
            told = {"prompt_id": name, "sample_index": row % many, "response": text}
            told |= {column: float(values[row]) for column, values in columns.items()}
            stream.write(json.dumps(told, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
