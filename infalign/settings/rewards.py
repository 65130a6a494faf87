"""Where an objective's rewards come from: `objectives.O.reward`, and `objectives.O.judge`.

A judge is one more source of rewards, which training does not see. Secrets are named here (the
variable of the environment that holds one), never written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, field_validator

from infalign.settings.methods import Commit, Place, Positive, Rate, Section
from infalign.settings.servers import Address, Variable


class TrainedReward(Section):
    """A reward model that is trained here, from the objective's pairs (section `reward`)."""

    kind: Literal["train"] = "train"


class ModelReward(Section):
    """A sequence classifier as it is: nothing is trained."""

    kind: Literal["model"]
    path: Place = Field(description="a local folder or a hub name")
    revision: Commit | None = Field(
        None, description="the commit that a hub name stands for; null: today's of its main branch"
    )
    label: int | str | None = Field(
        None, description="which of several outputs is the reward: its number, or its name"
    )


class FunctionReward(Section):
    """A function of a file of one's own: (dialogues, responses, **columns) -> list of floats."""

    kind: Literal["function"]
    path: Place = Field(description="file and function, as in rewards/concise.py:score")

    @field_validator("path")
    @classmethod
    def _names_a_function(cls, text: str) -> str:
        file, _, name = text.rpartition(":")
        if not file.endswith(".py") or not name.isidentifier():
            raise ValueError("name a file and a function of it, as in rewards/concise.py:score")
        return text

    @property
    def file(self) -> str:
        return self.path.rpartition(":")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(":")[2]


class ServerReward(Section):
    """A server that is asked over HTTP."""

    kind: Literal["http"]
    url: Address = Field(description="the whole address, as in http://127.0.0.1:8000/classify")
    form: Literal["plain", "classify", "pooling"] = Field(
        "plain",
        description="plain: POST {dialogues, responses} -> {rewards}; classify, pooling: vLLM's",
    )
    model: str | None = Field(None, description="the model's name there, where it has several")
    label: int | None = Field(
        None, ge=0, description="which of several outputs is the reward, of classify and pooling"
    )
    batch: Positive = Field(64, description="responses a request, of the form `plain`")
    timeout_seconds: Rate = Field(60.0, description="of a request")
    retries: int = Field(4, ge=0, le=100, description="of a request, with growing waits")
    concurrency: Positive = Field(4, le=256, description="requests side by side")
    api_key_variable: Variable | None = Field(
        None, description="variable of the environment that holds the key; sent as Bearer"
    )


class _Weighted(Section):
    """What a part of a sum has beside its kind."""

    weight: float = Field(1.0, description="what the part's reward is multiplied by")
    standardise: bool = Field(
        False, description="first divide by its spread within a prompt, among the reference's"
    )

    @field_validator("weight")
    @classmethod
    def _counts(cls, weight: float) -> float:
        if not weight:
            raise ValueError("a part without weight does nothing: leave it out")
        return weight


class TrainedPart(_Weighted, TrainedReward):
    """A trained reward model in a sum."""


class ModelPart(_Weighted, ModelReward):
    """A classifier in a sum."""


class FunctionPart(_Weighted, FunctionReward):
    """A function in a sum."""


class ServerPart(_Weighted, ServerReward):
    """A server in a sum."""


def _kind(value: Any) -> str:
    """Which kind of source a mapping of params.yaml describes."""
    if isinstance(value, dict):
        return str(value.get("kind", "" if value else "train"))
    return str(getattr(value, "kind", ""))


Part = Annotated[
    Annotated[TrainedPart, Tag("train")]
    | Annotated[ModelPart, Tag("model")]
    | Annotated[FunctionPart, Tag("function")]
    | Annotated[ServerPart, Tag("http")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="kind must be train, model, function or http",
    ),
]


class SumReward(Section):
    """A weighted sum of rewards."""

    kind: Literal["sum"]
    parts: list[Part] = Field(min_length=1)


RewardSettings = Annotated[
    Annotated[TrainedReward, Tag("train")]
    | Annotated[ModelReward, Tag("model")]
    | Annotated[FunctionReward, Tag("function")]
    | Annotated[ServerReward, Tag("http")]
    | Annotated[SumReward, Tag("sum")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="kind must be train, model, function, http or sum",
    ),
]
# The same for readers: mypy does not look into Annotated unions.
AnyReward: TypeAlias = TrainedReward | ModelReward | FunctionReward | ServerReward | SumReward


def leaves(settings: AnyReward) -> dict[str, Any]:
    """The sources that a reward is made of, none of them a sum, by where they stand below it."""
    if isinstance(settings, SumReward):
        return {f".parts.{number}": part for number, part in enumerate(settings.parts)}
    return {"": settings}


def is_trained(settings: AnyReward | None) -> bool:
    """Whether a reward model has to be trained for it."""
    return settings is not None and any(
        isinstance(leaf, TrainedReward) for leaf in leaves(settings).values()
    )


def named_leaves(objectives: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every source of rewards that is no sum: its objective, its field and its settings."""
    for name, objective in objectives.items():
        for key in ("reward", "judge"):
            settings = getattr(objective, key)
            for place, leaf in leaves(settings).items() if settings is not None else ():
                yield name, f"objectives.{name}.{key}{place}", leaf


def own_paths(objectives: Mapping[str, Any]) -> dict[str, str]:
    """The files and folders of one's own that rewards are made from: path to the setting."""
    found: dict[str, str] = {}
    for _, field, leaf in named_leaves(objectives):
        if isinstance(leaf, FunctionReward):
            found.setdefault(leaf.file, f"{field}.path")
        elif isinstance(leaf, ModelReward) and Path(leaf.path).is_dir():
            found.setdefault(leaf.path, f"{field}.path")
    return found
