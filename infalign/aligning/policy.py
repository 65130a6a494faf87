"""One policy from beginning to end: trained by its variant's method, its KL settled, written.

The steps are the trainer's (`ctrl`) or a method's on stored samples (`preferences`, `offline`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from infalign.aligning.budget import budget_of
from infalign.aligning.control import BetaControl, Settled, settle
from infalign.aligning.ctrl import Trainer
from infalign.aligning.goals import (
    make_goal,
    training_prompts,
)
from infalign.errors import InputError
from infalign.files.sources import START
from infalign.files.workspace import Workspace, write_json
from infalign.lm.models import (
    pick_device,
    save_model,
)
from infalign.lm.training.loop import Schedule, optimise
from infalign.lm.training.quantising import check_quantising
from infalign.theory.levels import has_few_levels, spendable

KL_TOLERANCE = 0.05  # relative miss of the budget that is worth a word
FAR, FAR_NATS = 10.0, 20.0  # a KL beyond both these budgets and these nats is no training any more


def train_policy(workspace: Workspace, objective: str, variant: str) -> None:
    """Train one policy at the KL budget; write it with its history and metrics, or resume."""
    params, settings = workspace.params, workspace.params.align
    device = pick_device(params.run.device)
    check_quantising(params, device)
    if settings.lora_bits and settings.variants[variant].method == "offline":
        raise InputError(
            f"{workspace.instance}: offline learns from the stored log-probabilities of the "
            f"reference, and align.lora_bits = {settings.lora_bits} trains over a rounding of it: "
            "set it to null."
        )
    prompts = training_prompts(workspace, objective)
    goal = make_goal(params, objective, variant, prompts.rewards)
    budget = budget_of(settings)
    _check_spendable(workspace.instance, prompts.rewards, budget.kl_nats)
    start = start_of(workspace, objective, variant)
    control = BetaControl(settings.beta or goal.beta, budget.kl_nats, settings.steps, bool(start))
    trainer = Trainer(workspace, objective, prompts, goal, control, device, start)
    schedule = Schedule(
        settings.steps,
        settings.learning_rate,
        settings.warmup_share,
        max_grad_norm=settings.max_grad_norm,
        checkpoint_every=settings.checkpoint_every,
    )
    with trainer.drawing(workspace.work, settings.variants[variant].method):
        optimise(
            trainer.training,
            schedule,
            trainer.steps(variant),
            workspace.work,
            name=workspace.instance,
            state=control,
            bounds={"kl": max(FAR_NATS, FAR * settings.kl_nats)},
            optimizer=settings.optimizer,
        )
    trainer.finish()
    if budget.kl_nats is not None:
        settled = settle(
            trainer.policy, trainer.start_weights(), trainer.measure_kl, budget.kl_nats
        )
        if abs(settled.kl / budget.kl_nats - 1) > KL_TOLERANCE and trainer.ranks.main:
            print(
                f"{workspace.instance}: the KL is {settled.kl:.3f}, not {budget.kl_nats} nats: "
                "raise align.steps or align.learning_rate.",
                flush=True,
            )
    else:
        settled = Settled(1.0, trainer.measure_kl())
    if not trainer.ranks.main:
        return
    out = workspace.out / "align" / objective / variant
    save_model(trainer.policy, trainer.form.tokenizer, out / "policy")
    if settings.lora_rank:
        trainer.save_adapter(out / "adapter", settled.scale)
    shutil.copyfile(workspace.work / "history.jsonl", out / "history.jsonl")
    write_json(
        out / "metrics.json",
        {"reward": goal.spelling, "first_beta": goal.beta, "beta": control.beta}
        | settled._asdict()
        | budget._asdict(),
    )


def _check_spendable(instance: str, rewards: np.ndarray, kl_nats: float | None) -> None:
    """Say where a reward of few levels has nothing to buy with the whole KL budget."""
    if kl_nats is None or not has_few_levels(rewards):
        return
    most = spendable(rewards)
    if most < kl_nats:
        print(
            f"{instance}: a policy that gives the best level of every prompt is {most:.3g} nats "
            f"away, and align.kl_nats = {kl_nats:g} spends more, for nothing: lower it.",
            flush=True,
        )


def start_of(workspace: Workspace, objective: str, variant: str) -> Path | None:
    """The policy to start from, where that is not the reference.

    The loss has its minimum at the same policy wherever training starts (`losses.rloo_loss`), and
    its KL is counted from the reference.
    """
    settings = workspace.params.align
    folder = workspace.root / START / objective / "policy"
    started = settings.start == "champion" and settings.variants[variant].method == "ctrl"
    return folder if started and folder.is_dir() else None
