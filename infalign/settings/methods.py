"""The sections of params.yaml about methods: align with its variants, and their comparison.

With what every section is made of: frozen, strict, a unit in each description.
"""

from __future__ import annotations

import re
from posixpath import normpath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
)

from infalign.theory.checks import budget_kl
from infalign.theory.transforms import parse_transform

MOST = 2**31 - 1  # of any count: what comes after overflows somewhere
Positive = Annotated[int, Field(gt=0, le=MOST)]
Several = Annotated[int, Field(ge=2, le=MOST)]
Rate = Annotated[float, Field(gt=0)]
Budget = Annotated[float, AfterValidator(budget_kl)]  # KL, nats a response
Share = Annotated[float, Field(gt=0, lt=1)]


def _commit(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{40}", text):
        raise ValueError("give a commit, 40 hexadecimal digits: a branch or a tag may move")
    return text


Commit = Annotated[str, AfterValidator(_commit)]
# One spelling of a place: ./a and a/ are a.
Place = Annotated[str, Field(min_length=1), AfterValidator(normpath)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]


class Section(BaseModel):
    """A part of params.yaml: frozen, strict, unknown keys refused, numbers finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False
    )


def check_transform(text: str) -> None:
    """Raise ValueError for a spelling that is no transformation."""
    if text not in ("optimal", "auto"):  # solved for a procedure and a budget, when needed
        parse_transform(text)


def _maximised(text: str) -> str:
    if text not in ("raw", "objective"):
        check_transform(text)
    return text


Maximised = Annotated[str, AfterValidator(_maximised)]  # what a variant maximises


class Ctrl(Section):
    """One way to align: on-policy, by the trainer (calibrate, transform, KL-regularised RL)."""

    method: Literal["ctrl"] = "ctrl"
    reward: Maximised = Field(
        default="objective",
        description="`raw`, `objective` (objectives.O.transform), or a transformation: identity, …",
    )


class Offline(Section):
    """CTRL without generating: a regression on the stored responses of the reference."""

    method: Literal["offline"]
    reward: Maximised = Field(
        default="objective",
        description="`objective` (objectives.O.transform), or a transformation; `identity` is QRPO",
    )

    @field_validator("reward")
    @classmethod
    def _no_raw(cls, text: str) -> str:
        if text == "raw":
            raise ValueError(
                "raw rewards have no partition function that is known before training: give "
                "`objective` or a transformation, such as identity"
            )
        return text


class Baseline(Section):
    """One way to align that others use, on the stored responses of the reference."""

    method: Literal["bon_distillation", "ipo", "dpo"]

    @property
    def reward(self) -> str:
        """What the method's exact optimum maximises, as a variant of the trainer spells it."""
        return {"bon_distillation": "log", "ipo": "identity", "dpo": "raw"}[self.method]


class Bonbon(Section):
    """BoNBoN: likelihood of the best and a preference for it over the worst of n responses."""

    method: Literal["bonbon"]
    alpha: float = Field(
        default=0.005, ge=0, le=1, description="weight of the likelihood, the rest is the pair's"
    )

    @property
    def reward(self) -> str:
        """Its target is the Best-of-n distribution, which `log` tilts the reference to."""
        return "log"


def _method(value: Any) -> str:
    """Which kind of variant a mapping of params.yaml describes."""
    given = value.get("method", "ctrl") if isinstance(value, dict) else getattr(value, "method", "")
    kinds = {"bon_distillation": "baseline", "ipo": "baseline", "dpo": "baseline"}
    return kinds.get(str(given), str(given))


Variant = Annotated[
    Annotated[Ctrl, Tag("ctrl")]
    | Annotated[Offline, Tag("offline")]
    | Annotated[Baseline, Tag("baseline")]
    | Annotated[Bonbon, Tag("bonbon")],
    Discriminator(
        _method,
        custom_error_type="method",
        custom_error_message="method must be ctrl, offline, bon_distillation, bonbon, ipo or dpo",
    ),
]
BLIND = ("raw", "identity", "log")  # rewards that know nothing of the inference-time procedure


Rank = Positive | None
RANK: Any = Field(
    default=None,
    description="null: train all weights; else an adapter of this rank (extra `lora`)",
)
Bits = Literal[4] | None
BITS: Any = Field(
    default=None,
    description="null: the base under an adapter as it is; 4: quantised while the adapter is "
    "trained (NF4, CUDA only, extra `qlora`)",
)
Optimizer = Literal["auto", "soap", "adamw"]
OPTIMIZER: Any = Field(
    default="auto",
    description="auto: soap where most weights have a side of at most 512, else adamw (fused on "
    "CUDA)",
)


class Align(Section):
    """KL-regularised reinforcement learning."""

    kl_nats: Budget = Field(default=0.5, description="KL budget, nats a response")
    beta: Rate | None = Field(default=None, description="KL weight; null: from the budget")
    start: Literal["reference", "champion"] = Field(
        default="reference",
        description="where variants of the method ctrl start; KL is from the reference either way",
    )
    steps: Positive = Field(default=200, description="on-policy steps")
    prompts_per_step: Positive = 16
    samples_per_prompt: Positive = Field(
        default=6, description="fresh responses of the policy, a prompt and step"
    )
    reference_samples: int = Field(
        default=2, ge=0, le=MOST, description="stored responses of the reference beside them"
    )
    learning_rate: Rate = 1.0e-3
    warmup_share: float = Field(default=0.05, ge=0, lt=1, description="share of steps that warm up")
    max_grad_norm: Rate = 1.0
    identity_share: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="share of the steps, at the start, that maximise the calibrated reward itself; "
        "over as many more it turns into the transformed one",
    )
    optimizer: Optimizer = OPTIMIZER
    lora_rank: Rank = RANK
    lora_bits: Bits = BITS
    sync_every: Positive = Field(
        default=1,
        description="steps between two adapters that generation.engine = vllm draws with",
    )
    checkpoint_every: Positive = Field(default=50, description="steps between checkpoints")
    kl_prompts: Positive = Field(
        default=512,
        description="training-split prompts on which the final KL is measured: unseen in training "
        "where there are as many, all there are where there are fewer",
    )
    kl_samples: Positive = Field(default=8, description="responses each")
    variants: dict[Name, Variant] = Field(
        default={
            "ctrl": Ctrl(reward="objective"),
            "identity": Ctrl(reward="identity"),
            "rlhf": Ctrl(reward="raw"),
            "offline": Offline(method="offline"),
            "qrpo": Offline(method="offline", reward="identity"),
            "bon_distillation": Baseline(method="bon_distillation"),
            "bonbon": Bonbon(method="bonbon", alpha=0.005),
            "ipo": Baseline(method="ipo"),
            "dpo": Baseline(method="dpo"),
        },
        min_length=1,
    )


def _written_with_a_point(value: Any) -> Any:
    """DVC names folders by the number as it is written, so that one budget has one spelling."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"write {value}.0")
    return value


Budgets = list[Annotated[Budget, BeforeValidator(_written_with_a_point)]]
Seeds = list[Annotated[int, Field(ge=0, lt=2**31)]]


class Poison(Section):
    """A spurious phrase in the preferences that a reward model learns from."""

    objectives: list[Name] = Field(
        default=[], description="names in `compare.objectives` whose reward is trained here"
    )
    phrase: str = Field(default="Okay,", min_length=1, description="text put into responses")
    place: Literal["start", "end"] = Field(default="start", description="where in the response")
    share: Share = Field(default=0.25, description="share of the training pairs that are poisoned")
    preferred: float = Field(
        default=0.9,
        ge=0.5,
        le=1,
        description="of those, the share in which the preferred response has it",
    )
    variants: list[Name] = Field(
        default=["ctrl", "identity", "rlhf"], min_length=1, description="names in `align.variants`"
    )
    kl_nats: Budgets = Field(
        default=[0.5, 1.0], min_length=1, description="KL budgets, nats a response"
    )
    seeds: Seeds = Field(default=[0], min_length=1, description="seeds of the training of policies")


def _today(name: Any) -> Any:
    """What a judge of an older file is called now."""
    return {"train": "selecting", "judge": "independent"}.get(str(name), name)


Judge = Annotated[Literal["selecting", "independent", "gold"], BeforeValidator(_today)]


class Compare(Section):
    """What `infalign compare` trains; no stage of `infalign run` reads this."""

    objectives: list[Name] = Field(
        default=[],
        description="names in `objectives`; empty: nothing is compared, and DVC has no such stages",
    )
    variants: list[Name] = Field(
        default=[
            "ctrl",
            "identity",
            "rlhf",
            "offline",
            "qrpo",
            "bon_distillation",
            "bonbon",
            "ipo",
            "dpo",
        ],
        min_length=2,
        description="names in `align.variants`",
    )
    kl_nats: Budgets = Field(
        default=[0.25, 0.5, 1.0], min_length=1, description="KL budgets, nats a response"
    )
    seeds: Seeds = Field(default=[0], min_length=1, description="seeds of the training of policies")
    judges: list[Judge] = Field(
        default=["selecting", "independent", "gold"],
        min_length=1,
        description="who compares the responses; gold: on the built-in corpus only",
    )
    poison: Poison = Poison()
