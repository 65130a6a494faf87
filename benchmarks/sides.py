"""The sides of the comparison with TRL: `python -m benchmarks.sides NAME FOLDER`.

`ours` is a step of the align stage, `trl` one of TRL's RLOOTrainer: sample, reward with the reward
model, log-probabilities of policy and reference, loss, backward, AdamW; float32, no dropout.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.case import Case, prompt_texts
from benchmarks.turns import ROOT, Finished, Gate

STEPS = 10**6  # more than will be asked for
BETA = 0.1  # KL weight


def ours(folder: Path, gate: Gate) -> None:
    """Steps of infalign's trainer."""
    from infalign.aligning.control import BetaControl
    from infalign.aligning.ctrl import Trainer
    from infalign.aligning.goals import Goal, TrainingPrompts
    from infalign.data.framing import asked
    from infalign.files.workspace import Workspace
    from infalign.lm.training.loop import Schedule, Step, optimise
    from infalign.settings.params import Params, load_params
    from infalign.theory.transforms import parse_transform

    case, texts = Case.load(folder), prompt_texts(folder)
    whole = load_params(ROOT / "params.yaml")
    changes = {
        "prompts_per_step": case.prompts,
        "samples_per_prompt": case.samples,
        "reference_samples": 0,
        "learning_rate": case.learning_rate,
        "lora_rank": case.lora_rank or None,
    }
    tree = whole.model_dump()
    tree["align"] |= changes
    tree["model"] |= {"response_tokens": case.response_tokens}
    params = Params.model_validate(tree)
    rewards = np.random.default_rng(0).normal(size=(len(texts), params.sample.train_samples))
    ids = [f"{i:016x}" for i in range(len(texts))]
    dialogues = [asked(text) for text in texts]
    trainer = Trainer(
        Workspace(params, folder, "align@helpful-ctrl"),
        "helpful",
        TrainingPrompts(ids, dialogues, rewards, [[] for _ in texts], np.zeros_like(rewards), {}),
        Goal("exp:10", parse_transform("exp:10", params.procedure("helpful"), 0.5), BETA),
        BetaControl(BETA, None, STEPS),
        torch.device("cpu"),
    )
    counts: dict[str, float] = {}

    def take(number: int) -> Step:
        gate.step(counts)
        step = trainer.take(number)
        counts["sampled"] = round(step.metrics["response_tokens"] * case.responses)
        counts["trained"] = step.tokens
        return step

    schedule = Schedule(STEPS, case.learning_rate, 0.0, checkpoint_every=STEPS)
    (folder / "ours").mkdir(exist_ok=True)
    optimise(trainer.policy, schedule, take, folder / "ours", name="ours")


def trl(folder: Path, gate: Gate) -> None:
    """Steps of TRL's RLOOTrainer."""
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl import RLOOConfig, RLOOTrainer

    from infalign.lm.training.lora import SCALE

    case = Case.load(folder)
    policy, judge = (
        str(folder / "results" / x) for x in ("sft/policy", "reward/helpful/selecting")
    )
    counts: dict[str, float] = {}

    class Counting(RLOOTrainer):
        def _generate_single_turn(self, *arguments: Any) -> Any:
            completions = super()._generate_single_turn(*arguments)
            counts["sampled"] = sum(len(c) for c in completions)
            return completions

        def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
            counts["trained"] = int(inputs["completion_mask"].sum())
            return super().compute_loss(model, inputs, **options)

    class Turn(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **options: Any) -> None:
            gate.step(counts)

    adapter = None
    if case.lora_rank:
        from peft import LoraConfig

        rank, scale = case.lora_rank, round(SCALE * case.lora_rank)
        adapter = LoraConfig(
            r=rank, lora_alpha=scale, lora_dropout=0.0, target_modules="all-linear"
        )
    settings = RLOOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=case.responses,
        num_generations=case.samples,
        max_completion_length=case.response_tokens,
        max_steps=STEPS,
        learning_rate=case.learning_rate,
        lr_scheduler_type="constant",
        beta=BETA,
        disable_dropout=True,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Counting(
        model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        reward_funcs=AutoModelForSequenceClassification.from_pretrained(judge, dtype=torch.float32),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompt_texts(folder)}),
        processing_class=AutoTokenizer.from_pretrained(policy),
        reward_processing_classes=AutoTokenizer.from_pretrained(judge),
        callbacks=[Turn()],
        peft_config=adapter,
    )
    trainer.train()


def sampler(folder: Path, gate: Gate, batch: str) -> None:
    """Our sampler's samples of a batch."""
    from infalign.data.framing import asked
    from infalign.lm.models import load_format, load_policy
    from infalign.lm.sampling.sampler import sample_responses

    case, size = Case.load(folder), int(batch)
    policy = load_policy(folder / "results/sft/policy", torch.device("cpu"))
    form = load_format(folder / "results/sft/policy")
    prompts = [asked(text) for text in prompt_texts(folder)[: size // case.samples]]
    ids = [f"{i:016x}" for i in range(len(prompts))]
    counts: dict[str, float] = {}
    for number in range(STEPS):
        gate.step(counts)
        indices = np.tile(number * case.samples + np.arange(case.samples), (len(prompts), 1))
        found = sample_responses(
            policy,
            form,
            prompts,
            ids,
            indices,
            seed=0,
            longest=case.response_tokens,
            batch_size=size,
        )
        counts = {"responses": len(found.text), "sampled": int(found.n_tokens.sum())}


def generate(folder: Path, gate: Gate, batch: str) -> None:
    """The same of `model.generate`, as TRL calls it, from text to text."""
    from transformers import GenerationConfig

    from infalign.lm.models import load_policy, load_tokenizer

    case, size = Case.load(folder), int(batch)
    policy = load_policy(folder / "results/sft/policy", torch.device("cpu"))
    tokenizer = load_tokenizer(folder / "results/sft/policy")
    tokenizer.padding_side = "left"
    prompts = [p for p in prompt_texts(folder)[: size // case.samples] for _ in range(case.samples)]
    config = GenerationConfig(
        max_new_tokens=case.response_tokens,
        do_sample=True,
        top_k=0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    counts: dict[str, float] = {}
    while True:
        gate.step(counts)
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        with torch.no_grad():
            whole = policy.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                generation_config=config,
            )
        tokens = whole[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        counts = {"responses": len(texts), "sampled": tokens.numel()}


SIDES = {"ours": ours, "trl": trl, "sampler": sampler, "generate": generate}


def main(name: str, folder: str, *more: str) -> None:
    """Take steps until no more turns are wanted."""
    gate = Gate()
    with contextlib.suppress(Finished):
        SIDES[name](Path(folder), gate, *more)


if __name__ == "__main__":
    main(*sys.argv[1:])
