"""The sections of params.yaml about methods: align with its variants, and their comparison.

With what every section is made of: frozen, strict, a unit in each description.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
)

from infalign.theory.transforms import parse_transform

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]


class Section(BaseModel):
    """A part of params.yaml: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


def check_transform(text: str) -> None:
    """Raise ValueError for a spelling that is no transformation."""
    if text not in ("optimal", "auto"):  # solved for a procedure and a budget, when needed
        parse_transform(text)


class Ctrl(Section):
    """One way to align: on-policy, by the trainer (calibrate, transform, KL-regularised RL)."""

    method: Literal["ctrl"] = "ctrl"
    reward: str = Field(
        description="`raw`, `objective` (objectives.O.transform), or a transformation: identity, …"
    )

    @field_validator("reward")
    @classmethod
    def _reward(cls, text: str) -> str:
        if text not in ("raw", "objective"):
            check_transform(text)
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
    alpha: float = Field(ge=0, le=1, description="weight of the likelihood, the rest is the pair's")

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
    | Annotated[Baseline, Tag("baseline")]
    | Annotated[Bonbon, Tag("bonbon")],
    Discriminator(
        _method,
        custom_error_type="method",
        custom_error_message="method must be ctrl, bon_distillation, bonbon, ipo or dpo",
    ),
]
BLIND = ("raw", "identity", "log")  # rewards that know nothing of the inference-time procedure


class Align(Section):
    """KL-regularised reinforcement learning."""

    kl_nats: Rate = Field(le=5, description="KL budget, nats a response")
    beta: Rate | None = Field(description="KL weight; null: from the budget")
    steps: Positive = Field(description="on-policy steps")
    prompts_per_step: Positive
    samples_per_prompt: int = Field(
        ge=1, description="fresh responses of the policy, a prompt and step"
    )
    reference_samples: int = Field(
        ge=0, description="stored responses of the reference beside them"
    )
    learning_rate: Rate
    warmup_share: float = Field(ge=0, lt=1, description="share of steps that warm up")
    max_grad_norm: Rate
    identity_share: float = Field(
        ge=0,
        le=0.5,
        description="share of the steps, at the start, that maximise the calibrated reward itself; "
        "over as many more it turns into the transformed one",
    )
    lora_rank: Positive | None = Field(
        description="null: train all weights; else an adapter of this rank (extra `lora`)"
    )
    checkpoint_every: Positive = Field(description="steps between checkpoints")
    kl_prompts: Positive = Field(
        description="training-split prompts, unseen in training where there are as many, on which "
        "the final KL is measured"
    )
    kl_samples: Positive = Field(description="responses each")
    variants: dict[Name, Variant] = Field(min_length=1)


def _written_with_a_point(value: Any) -> Any:
    """DVC names folders by the number as it is written, so that one budget has one spelling."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"write {value}.0")
    return value


Budgets = list[Annotated[float, Field(ge=0.001, le=5), BeforeValidator(_written_with_a_point)]]
Seeds = list[Annotated[int, Field(ge=0, lt=2**31)]]


class Poison(Section):
    """A spurious phrase in the preferences that a reward model learns from."""

    phrase: str = Field(min_length=1, description="text put into responses")
    place: Literal["start", "end"] = Field(description="where in the response")
    share: Share = Field(description="share of the training pairs that are poisoned")
    preferred: float = Field(
        ge=0.5, le=1, description="of those, the share in which the preferred response has it"
    )
    variants: list[Name] = Field(min_length=1, description="names in `align.variants`")
    kl_nats: Budgets = Field(min_length=1, description="KL budgets, nats a response")
    seeds: Seeds = Field(min_length=1, description="seeds of the training of policies")


class Compare(Section):
    """What `infalign compare` trains; no stage of `infalign run` reads this."""

    objectives: list[Name] = Field(
        description="names in `objectives`; empty: nothing is compared, and DVC has no such stages"
    )
    variants: list[Name] = Field(min_length=2, description="names in `align.variants`")
    kl_nats: Budgets = Field(min_length=1, description="KL budgets, nats a response")
    seeds: Seeds = Field(min_length=1, description="seeds of the training of policies")
    judges: list[Literal["selecting", "independent", "gold"]] = Field(
        min_length=1, description="who compares the responses; gold: on the built-in corpus only"
    )
    poison: Poison
