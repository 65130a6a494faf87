"""params.yaml as one frozen, strict object. What is in it is what ran: unknown keys are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from infalign.errors import InputError
from infalign.settings.methods import (
    BLIND,
    Align,
    Compare,
    Name,
    Positive,
    Rate,
    Section,
    Share,
    check_transform,
)
from infalign.theory.procedures import parse_procedure

MODELS = ("run.seed", "run.device", "run.threads", "run.precision", "run.batch_tokens")
TRAINING = (*MODELS, "run.processes", "run.sharding", "run.recompute")  # what rounding depends on
_ALIGN = (
    "kl_nats beta steps prompts_per_step samples_per_prompt reference_samples learning_rate "
    "warmup_share max_grad_norm identity_share lora_rank checkpoint_every kl_prompts kl_samples"
)


def policy_params(objective: str, variant: str) -> tuple[str, ...]:
    """The dotted keys that an aligned policy depends on."""
    return (
        *TRAINING,
        "model.response_tokens",
        "sample.batch_size",
        f"objectives.{objective}",
        *(f"align.{name}" for name in _ALIGN.split()),
        f"align.variants.{variant}",
    )


def contender_params(objective: str, variant: str) -> tuple[str, ...]:
    """The same of a policy with a budget of its own, trained in one process and measured."""
    own = ("align.kl_nats", "run.processes", "run.sharding")
    return (
        *(key for key in policy_params(objective, variant) if key not in own),
        "sample.test_samples",
        "evaluate.bootstrap",
        "evaluate.batch_size",
    )


def policy_inputs(objective: str) -> tuple[str, ...]:
    """The results that an aligned policy is made from."""
    return (
        "results/prepare",
        "results/sft",
        "results/sample",
        f"results/reward/{objective}",
        f"results/calibrate/{objective}",
    )


class Run(Section):
    """What runs, and on what."""

    seed: int = Field(ge=0, lt=2**31, description="seed of every stage but corpus")
    objectives: list[Name] = Field(min_length=1, description="names in `objectives` to run")
    variants: list[Name] = Field(min_length=1, description="names in `align.variants` to run")
    device: Literal["auto", "cpu", "cuda"] = Field(description="where tensors live")
    threads: Positive = Field(description="CPU threads of one stage; changes rounding")
    concurrency: Positive = Field(description="stages side by side")
    processes: Positive = Field(description="of one stage that runs models, as torchrun's")
    sharding: Literal["ddp", "fsdp2"] = Field(
        description="several processes in training: each holds the whole model, or a share of it"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        description="of matrix products; weights are float32; auto: bfloat16 on CUDA"
    )
    batch_tokens: Positive = Field(
        description="tokens computed side by side, prompts and padding included; halved when "
        "memory runs out"
    )
    recompute: bool = Field(
        description="gradient checkpointing: compute layers again in backward, to save memory"
    )


class Corpus(Section):
    """The built-in preference data."""

    seed: int = Field(ge=0, lt=2**31)
    train_prompts: Positive = Field(description="distinct training prompts a subset")
    test_prompts: Positive = Field(description="distinct held-out prompts a subset")
    pairs_per_prompt: Positive = Field(description="preference pairs a prompt")


class Data(Section):
    """Which preference data to align on."""

    path: str = Field(min_length=1, description="folder of HH files, inside or outside the project")
    test_share: Share = Field(description="share of prompts held out where a subset has one file")


class Tiny(Section):
    """The Llama-type model built from scratch where model.name_or_path is `tiny`."""

    vocab_size: int = Field(ge=300, description="tokens in the trained tokenizer")
    hidden_size: Positive
    intermediate_size: Positive
    layers: Positive
    heads: Positive

    @model_validator(mode="after")
    def _heads_divide(self) -> Tiny:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be an even multiple of heads")
        return self


class Model(Section):
    """The policy's starting point and its lengths."""

    name_or_path: str = Field(min_length=1, description="`tiny`, a local folder or a hub name")
    prompt_tokens: Positive = Field(description="longest prompt, tokens; longer lose first turns")
    response_tokens: int = Field(ge=2, description="longest response, tokens, EOS included")
    tiny: Tiny


class Objective(Section):
    """What one policy is aligned for."""

    subset: str = Field(min_length=1, description="folder below data.path")
    procedure: str = Field(description="inference-time procedure: standard, best_of:4, …")
    transform: str = Field(description="transformation of the calibrated reward: exp:10, …")
    gold: Literal["helpfulness", "harmlessness"] | None = Field(
        description="gold utility, used on the built-in corpus only"
    )

    @field_validator("procedure")
    @classmethod
    def _procedure(cls, text: str) -> str:
        return str(parse_procedure(text))

    @model_validator(mode="after")
    def _transform(self) -> Objective:
        check_transform(self.transform)
        return self


class Sft(Section):
    """The reference policy."""

    epochs: Rate = Field(description="passes over the responses")
    batch_size: Positive = Field(description="responses a step")
    learning_rate: Rate
    warmup_share: float = Field(ge=0, lt=1, description="share of steps that warm up")
    weight_decay: float = Field(ge=0)


class Reward(Section):
    """The reward models."""

    name_or_path: str = Field(min_length=1, description="`sft`, a local folder or a hub name")
    epochs: Rate = Field(description="passes over the pairs")
    batch_size: Positive = Field(description="pairs a step")
    learning_rate: Rate
    warmup_share: float = Field(ge=0, lt=1, description="share of steps that warm up")
    weight_decay: float = Field(ge=0)


class Sample(Section):
    """Responses of the reference policy."""

    train_prompts: Positive = Field(description="training prompts an objective")
    test_prompts: Positive = Field(description="evaluation prompts an objective")
    train_samples: int = Field(ge=2, description="responses a training prompt (K)")
    test_samples: int = Field(ge=2, description="responses an evaluation prompt")
    large_prompts: Positive = Field(description="evaluation prompts sampled many times")
    large_samples: int = Field(ge=2, description="responses each, to measure calibration error")
    shard_responses: Positive = Field(description="responses in one resumable shard, about")
    batch_size: Positive = Field(description="sequences decoded side by side")


class Calibrate(Section):
    """Calibrated rewards."""

    batch_size: Positive = Field(description="sequences scored side by side")
    error_references: list[Annotated[int, Field(ge=2)]] = Field(
        min_length=1, description="numbers of references at which the calibration error is measured"
    )


class Evaluate(Section):
    """Win rates."""

    best_of: list[Positive] = Field(min_length=1, description="N of Best-of-N and Worst-of-N")
    bootstrap: int = Field(ge=100, description="replicates of the bootstrap over prompts")
    batch_size: Positive = Field(description="sequences sampled and scored side by side")


class Report(Section):
    """The page."""

    examples: Positive = Field(description="prompts shown side by side, an objective")


class Promotion(Section):
    """Which version of a model becomes the champion; no stage reads this."""

    after_run: bool = Field(description="register, gate and promote when a pipeline run ends")
    approval: bool = Field(description="a pipeline run waits for a human before it promotes")
    approval_seconds: Positive = Field(description="how long it waits")
    variant: Name = Field(description="name in `run.variants` that is registered")
    win_rate: float = Field(
        ge=0, le=1, description="lower bound of the interval of the win rate over the reference"
    )
    champion_margin: float = Field(
        ge=0, le=1, description="win rate that may be lost against the champion, interval included"
    )
    kl_nats: Rate = Field(description="largest KL from the reference, nats a response")
    length_ratio: list[Rate] = Field(
        min_length=2,
        max_length=2,
        description="smallest and largest mean length as a share of the reference's",
    )
    truncated: float = Field(ge=0, le=1, description="largest share of responses that were cut")
    calibration_error: float = Field(
        ge=0, le=1, description="largest mean error of calibrated rewards at the K trained with"
    )
    judge_margin: float = Field(
        ge=0, le=1, description="win rate by the selecting reward above that by the judge, at most"
    )
    other_margin: float = Field(
        ge=0, le=1, description="win rate that may be lost to the reference on other objectives"
    )
    other_samples: Positive = Field(description="responses to each prompt of other objectives")
    bootstrap: int = Field(ge=100, description="replicates of the bootstrap over prompts")

    @model_validator(mode="after")
    def _ordered(self) -> Promotion:
        low, high = self.length_ratio
        if low >= high:
            raise ValueError("length_ratio must rise: smallest, then largest")
        return self


class Schedule(Section):
    """Scheduled runs: what happens to those that overlap, come late or fall silent."""

    overlap: Literal["skip", "wait"] = Field(
        description="a run that is due while another one has the workspace"
    )
    wait_minutes: Rate = Field(description="longest wait for the other run, minutes; then: skipped")
    missed: Literal["skip", "latest"] = Field(
        description="runs that were due while nothing served them: none, or the latest only"
    )
    late_minutes: Rate = Field(description="a run that begins so long after its time was missed")
    silent_minutes: float = Field(
        ge=1, description="a running flow without a heartbeat for so long is dead, minutes"
    )


class Drift(Section):
    """The check of a champion on fresh prompts."""

    prompts: int = Field(ge=2, description="fresh prompts an objective")
    samples: int = Field(ge=2, description="responses a prompt, of champion and reference")
    win_rate: Share = Field(description="loss of win rate that raises the alarm")
    reward_distance: Share = Field(
        description="Kolmogorov-Smirnov distance of the reference's rewards that raises the alarm"
    )
    p_value: Share = Field(description="an alarm's chance without any drift, at most")


class Serving(Section):
    """Bounds of the scoring server."""

    request_bytes: Positive = Field(description="longest request")
    prompts: Positive = Field(description="prompts a request")
    n: Positive = Field(description="largest N of a procedure: responses drawn for a prompt")
    new_tokens: Positive = Field(description="longest response, tokens")
    poll_seconds: Rate = Field(description="time between two looks at the alias")
    drain_seconds: Rate = Field(description="time that a replaced server has to finish its answers")


def _distinct(field: str, values: Sequence[object]) -> None:
    """Raise ValueError for a list with an entry twice."""
    if len(set(values)) != len(values):
        raise ValueError(f"{field} names an entry twice: {values}")


class Params(Section):
    """The whole of params.yaml."""

    run: Run
    corpus: Corpus
    data: Data
    model: Model
    objectives: dict[Name, Objective] = Field(min_length=1)
    sft: Sft
    reward: Reward
    sample: Sample
    calibrate: Calibrate
    align: Align
    evaluate: Evaluate
    report: Report
    compare: Compare
    promotion: Promotion
    schedule: Schedule
    drift: Drift
    serving: Serving

    @model_validator(mode="after")
    def _names(self) -> Params:
        for field, names, known in (
            ("run.objectives", self.run.objectives, self.objectives),
            ("run.variants", self.run.variants, self.align.variants),
            ("promotion.variant", [self.promotion.variant], self.align.variants),
            ("compare.objectives", self.compare.objectives, self.objectives),
            ("compare.variants", self.compare.variants, self.align.variants),
            ("compare.poison.variants", self.compare.poison.variants, self.align.variants),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"{field} names {name!r}, which is not one of {sorted(known)}")
            _distinct(field, names)
        for field, values in (
            ("compare.kl_nats", self.compare.kl_nats),
            ("compare.seeds", self.compare.seeds),
            ("compare.judges", self.compare.judges),
            ("compare.poison.kl_nats", self.compare.poison.kl_nats),
            ("compare.poison.seeds", self.compare.poison.seeds),
        ):
            _distinct(field, values)
        if "reference" in self.run.variants:
            raise ValueError("run.variants: `reference` is the reference policy's own name")
        return self

    @model_validator(mode="after")
    def _both_kinds(self) -> Params:
        blind = [self.is_blind(name) for name in self.compare.variants]
        if all(blind) or not any(blind):
            raise ValueError(
                "compare.variants needs both kinds: one that knows the procedure (`ctrl`) and one "
                f"that does not (`identity`, `rlhf`, `ipo`, …), found {self.compare.variants}"
            )
        return self

    @model_validator(mode="after")
    def _enough_samples(self) -> Params:
        largest = max([*self.evaluate.best_of, *(self.procedure(o).n for o in self.objectives)])
        if largest > self.sample.test_samples:
            raise ValueError(
                f"evaluate.best_of and objectives need N = {largest} samples a prompt, "
                f"sample.test_samples gives {self.sample.test_samples}"
            )
        if self.align.reference_samples > self.sample.train_samples:
            raise ValueError(
                f"align.reference_samples = {self.align.reference_samples} are more than the "
                f"responses that are stored, sample.train_samples = {self.sample.train_samples}"
            )
        return self

    def procedure(self, objective: str) -> Any:
        """The objective's inference-time procedure."""
        return parse_procedure(self.objectives[objective].procedure)

    def is_blind(self, variant: str) -> bool:
        """Whether a variant's goal knows nothing of the inference-time procedure."""
        return self.align.variants[variant].reward in BLIND

    def reward_spelling(self, objective: str, variant: str) -> str:
        """What a variant maximises for an objective: `raw` or a transformation's spelling.

        For a baseline: what its exact optimum maximises.
        """
        spelling = self.align.variants[variant].reward
        return self.objectives[objective].transform if spelling == "objective" else spelling


_NUMBER = re.compile(r"^[+-]?\d+(\.\d*)?[eE][+-]?\d+$")


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml; every fault is one sentence naming file, field, value, remedy."""
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run from the project's root.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    return check_params(tree, str(path))


def check_params(tree: Any, source: str) -> Params:
    """Check an already parsed tree; `source` is the name used in messages."""
    if not isinstance(tree, dict):
        raise InputError(f"{source} must be a mapping of sections, found {type(tree).__name__}.")
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise InputError("; ".join(_sentence(source, e) for e in error.errors())) from None


def _sentence(source: str, error: Any) -> str:
    """One pydantic error as words: file, field, value, remedy."""
    places = list(error["loc"])
    if places[:2] == ["align", "variants"]:
        del places[3:4]  # the kind of variant, which params.yaml does not spell
    field = ".".join(str(part) for part in places)
    value = error["input"]
    if error["type"] == "extra_forbidden":
        return f"{source}: unknown key {field!r}: remove it or correct its spelling"
    if error["type"] == "missing":
        return f"{source}: {field!r} is missing: add it"
    if error["type"] == "value_error" and not field:
        return f"{source}: {error['ctx']['error']}"
    hint = ""
    if isinstance(value, str) and _NUMBER.match(value):
        hint = " (YAML reads 1e-5 as text: write 1.0e-5)"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{source}: {field} = {value!r}: {message[:1].lower()}{message[1:]}{hint}"
