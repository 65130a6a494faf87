"""Settings of other trainers that would change what is maximised, or what is sampled."""

from __future__ import annotations

from typing import Any

from infalign.errors import InputError

OFF = (None, False)
# Field, the values with which nothing is distorted, what any other does.
FIELDS: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("normalize_advantages", OFF, "divides by the batch's standard deviation, which changes β"),
    (
        "scale_rewards",
        (*OFF, "none"),
        "divides by the group's standard deviation, which distorts Φ",
    ),
    (
        "loss_type",
        (None, "dapo", "dr_grpo"),
        "may divide a response's loss by its length, which favours long ones",
    ),
    ("reward_clip_range", OFF, "clips the reward, which distorts Φ"),
    ("mask_truncated_completions", OFF, "leaves cut responses out of what is maximised"),
    ("sync_ref_model", OFF, "moves the reference that the rewards are calibrated against"),
    ("temperature", (None, 1, 1.0), "samples from another policy than the one that is measured"),
    ("top_p", (None, 1, 1.0), "samples from another policy than the one that is measured"),
    ("top_k", (None, 0, -1), "samples from another policy than the one that is measured"),
    ("min_p", (None, 0, 0.0), "samples from another policy than the one that is measured"),
    ("repetition_penalty", (None, 1, 1.0), "samples from another policy than the one measured"),
    ("generation_kwargs", (None, {}), "may sample from another policy than the one measured"),
)


def refuse_distortion(settings: Any, beta: float) -> None:
    """Refuse settings under which a trainer maximises something else than E[Φ(C)] - β KL.

    Args:
        settings: has TRL's fields, or some of them; what it lacks is not asked.
        beta: the KL weight that belongs to the reward.

    Raises:
        InputError: naming the field, its value and what to write.
    """
    for name, allowed, does in FIELDS:
        value = getattr(settings, name, allowed[0])
        if not any(
            value == fine and isinstance(value, bool) == isinstance(fine, bool) for fine in allowed
        ):
            raise InputError(f"{name} is {value!r}, which {does}: write {name}={allowed[-1]!r}.")
    if not getattr(settings, "beta", beta):
        raise InputError(
            f"beta is {settings.beta!r}, with which nothing holds the policy to the reference: "
            f"write beta={beta:.4g}, which belongs to the KL budget."
        )
    weights = getattr(settings, "reward_weights", None)
    if weights is not None and any(weight != 1 for weight in weights):
        raise InputError(
            f"reward_weights is {weights!r}, which changes β with it: leave it out, and set beta."
        )
