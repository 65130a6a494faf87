"""params.yaml as one frozen, strict object. What is in it is what ran: unknown keys are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from infalign.errors import InputError
from infalign.settings.combinations import check_combinations
from infalign.settings.kinds import with_defaults, with_poisoned
from infalign.settings.methods import (
    BITS,
    BLIND,
    MOST,
    OPTIMIZER,
    RANK,
    Align,
    Bits,
    Commit,
    Compare,
    Name,
    Optimizer,
    Place,
    Positive,
    Rank,
    Rate,
    Section,
    Several,
    Share,
    check_transform,
)
from infalign.settings.operating import Drift, Intake, Promotion, Schedule, Serving
from infalign.settings.reading import dotted, meant, read_text, read_tree, sentence
from infalign.settings.rewards import RewardSettings, TrainedReward
from infalign.settings.servers import Generation
from infalign.theory.procedures import parse_procedure

MODELS = ("run.seed", "run.device", "run.threads", "run.precision", "run.batch_tokens")
TRAINING = (*MODELS, "run.processes", "run.sharding", "run.recompute")  # what rounding depends on
_ALIGN = (
    "kl_nats beta start steps prompts_per_step samples_per_prompt reference_samples learning_rate "
    "warmup_share max_grad_norm identity_share optimizer lora_rank lora_bits sync_every "
    "checkpoint_every kl_prompts kl_samples"
)


def objective_params(objective: str) -> tuple[str, ...]:
    """The dotted keys of an objective, but for what its rewards come from: see results/sources."""
    return tuple(f"objectives.{objective}.{name}" for name in ("procedure", "transform", "gold"))


def policy_params(objective: str, variant: str) -> tuple[str, ...]:
    """The dotted keys that an aligned policy depends on."""
    return (
        *TRAINING,
        "model.response_tokens",
        "generation.engine",
        "sample.batch_size",
        *objective_params(objective),
        *(f"align.{name}" for name in _ALIGN.split()),
        f"align.variants.{variant}",
    )


def contender_params(objective: str, variant: str) -> tuple[str, ...]:
    """The same of a policy with a budget of its own, trained and measured in one process alone."""
    shared = ("run.processes", "run.sharding", "generation.engine", "align.sync_every")
    own = ("align.kl_nats", "align.start", *shared)
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
        f"results/sources/{objective}.json",
        f"results/reward/{objective}",
        f"results/calibrate/{objective}",
    )


class Run(Section):
    """What runs, and on what."""

    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of every stage but corpus")
    objectives: list[Name] = Field(
        default=["helpful", "harmless"], min_length=1, description="names in `objectives` to run"
    )
    variants: list[Name] = Field(
        default=["ctrl", "identity", "rlhf"],
        min_length=1,
        description="names in `align.variants` to run",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where tensors live")
    threads: Positive = Field(default=1, description="CPU threads of one stage; changes rounding")
    concurrency: Positive = Field(default=2, description="stages side by side")
    processes: Positive = Field(
        default=1, description="of one stage that runs models, as torchrun's; in all nodes together"
    )
    nodes: Positive = Field(
        default=1,
        description="machines that share a stage's processes and one file system; each starts it",
    )
    launcher: Literal["local", "slurm", "kubernetes"] = Field(
        default="local",
        description="where a stage runs: here, or as a job of the cluster, from run.job_template",
    )
    job_template: str | None = Field(
        default=None,
        min_length=1,
        description="of a stage's job; null: deploy/slurm.sh or deploy/kubernetes-job.yaml",
    )
    sharding: Literal["ddp", "fsdp2"] = Field(
        default="ddp",
        description="several processes in training: each holds the whole model, or a share of it",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of matrix products; weights are float32; auto: bfloat16 on CUDA",
    )
    batch_tokens: Positive = Field(
        default=65536,
        description="tokens computed side by side, prompts and padding included; halved when "
        "memory runs out",
    )
    recompute: bool = Field(
        default=False,
        description="gradient checkpointing: compute layers again in backward, to save memory",
    )


class Corpus(Section):
    """The built-in preference data."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    train_prompts: Positive = Field(default=1200, description="distinct training prompts a subset")
    test_prompts: Positive = Field(default=250, description="distinct held-out prompts a subset")
    pairs_per_prompt: Positive = Field(default=8, description="preference pairs a prompt")


COLUMNS = (  # what a column of preference data may be
    "prompt",
    "chosen",
    "rejected",
    "messages",
    "response_1",
    "response_2",
    "strength",
    "score_1",
    "score_2",
)


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"{name!r} is none of {list(names)}: correct it")
        return name

    return check


Columns = dict[Annotated[str, AfterValidator(_one_of(COLUMNS))], str]
Splits = dict[Annotated[str, AfterValidator(_one_of(("train", "test")))], Sequence[str]]


class Data(Section):
    """Which preference data to align on."""

    path: Place = Field(
        default="results/corpus",
        description="folder or file of preference data, inside or outside the project",
    )
    columns: Columns = Field(
        default={}, description="names of columns, where they are others: {prompt: instruction}"
    )
    splits: Splits = Field(
        default={}, description="names of splits, where they are others: {train: [train_prefs]}"
    )
    test_share: Share = Field(
        default=0.2, description="share of prompts held out where the data has one split"
    )
    file_bytes: int = Field(
        default=20000000000,
        gt=0,
        le=2**50,
        description="largest file, bytes, unpacked; it is read in pieces",
    )
    line_bytes: Positive = Field(default=10000000, description="longest row of a file, bytes")
    kept_bytes: Positive = Field(
        default=400000000,
        description="memory for an objective's pairs, bytes, about; beyond it prompts are chosen "
        "by their hash",
    )
    most_pairs: Positive | None = Field(
        default=None, description="pairs of an objective at most; null: as many as fit"
    )
    suites: dict[Name, Place] = Field(
        default={},
        description="files of pinned prompts, by name, which train nobody: {safety: safety.jsonl}",
    )


class Tiny(Section):
    """The Llama-type model built from scratch where model.name_or_path is `tiny`."""

    vocab_size: int = Field(
        default=1024, ge=300, le=MOST, description="tokens in the trained tokenizer"
    )
    hidden_size: Positive = 64
    intermediate_size: Positive = 176
    layers: Positive = 2
    heads: Positive = 4

    @model_validator(mode="after")
    def _heads_divide(self) -> Tiny:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be an even multiple of heads")
        return self


class Model(Section):
    """The policy's starting point and its lengths."""

    name_or_path: str = Field(
        default="tiny", min_length=1, description="`tiny`, a local folder or a hub name"
    )
    revision: Commit | None = Field(
        default=None, description="the commit that a hub name stands for"
    )
    folder: str = Field(
        default="models/none",
        min_length=1,
        description="the local folder, for DVC, else models/none",
    )
    kind: Literal["scratch", "base", "instruct"] = Field(
        default="scratch",
        description="scratch (`tiny`), base or instruct (it has a chat template): which defaults "
        "suit it",
    )
    format: Literal["auto", "chat", "plain"] = Field(
        default="auto", description="chat: by the tokenizer's chat template; auto: where it has one"
    )
    template_arguments: dict[str, bool | int | float | str | None] = Field(
        default={}, description="of the chat template: enable_thinking, date_string, …"
    )
    prompt_tokens: Positive | None = Field(
        default=28, description="longest prompt, tokens; longer lose first turns; null: as the data"
    )
    response_tokens: Several | None = Field(
        default=20, description="longest response, tokens, its end included; null: as the data"
    )
    length_quantile: Share = Field(
        default=0.95, description="of the data's lengths, where they are to follow the data"
    )
    tiny: Tiny = Tiny()


class Objective(Section):
    """What one policy is aligned for."""

    data: Place | None = Field(
        default=None, description="folder or file of its own; null: data.path"
    )
    subset: str | None = Field(
        default=None, min_length=1, description="folder below the data; null: the data itself"
    )
    columns: Columns = Field(default={}, description="names of columns; empty: data.columns")
    procedure: str = Field(
        default="best_of:4", description="inference-time procedure: standard, best_of:4, …"
    )
    transform: str = Field(
        default="auto", description="transformation of the calibrated reward: exp:10, …"
    )
    gold: Literal["helpfulness", "harmlessness"] | None = Field(
        default=None, description="gold utility, used on the built-in corpus only"
    )
    reward: RewardSettings = Field(
        default=TrainedReward(), description="what training and the procedure select by"
    )
    judge: RewardSettings | None = Field(
        default=TrainedReward(),
        description="an independent source of rewards that only compares; null: there is none",
    )

    @model_validator(mode="before")
    @classmethod
    def _judge(cls, tree: Any) -> Any:
        """Without a word about a judge there is one where the reward is trained, from the pairs."""
        if isinstance(tree, dict) and "judge" not in tree and isinstance(tree.get("reward"), dict):
            kind = tree["reward"].get("kind", "train")
            return tree | {"judge": {"kind": "train"} if kind == "train" else None}
        return tree

    @field_validator("subset")
    @classmethod
    def _below(cls, name: str | None) -> str | None:
        if name is None or name == ".":
            return None
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise ValueError("a subset is a folder below data.path: name it without `..` or root")
        return name

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

    epochs: float = Field(
        default=0.45, ge=0, description="passes over the responses; 0: the given model as it is"
    )
    held_out_pairs: Positive = Field(
        default=4096, description="pairs on which the reference is measured, at most"
    )
    batch_size: Positive = Field(default=96, description="responses a step")
    learning_rate: Rate = 1.2e-2
    warmup_share: float = Field(default=0.05, ge=0, lt=1, description="share of steps that warm up")
    weight_decay: float = Field(default=0.01, ge=0)
    optimizer: Optimizer = OPTIMIZER
    lora_rank: Rank = RANK
    lora_bits: Bits = BITS


class Reward(Section):
    """The reward models."""

    name_or_path: str = Field(
        default="sft", min_length=1, description="`sft`, a local folder or a hub name"
    )
    revision: Commit | None = Field(
        default=None, description="the commit that a hub name stands for"
    )
    folder: str = Field(
        default="models/none",
        min_length=1,
        description="the local folder, for DVC, else models/none",
    )
    epochs: Rate = Field(default=1.0, description="passes over the pairs")
    held_out_pairs: Positive = Field(
        default=4096, description="pairs on which accuracy is measured, at most"
    )
    batch_size: Positive = Field(default=32, description="pairs a step")
    learning_rate: Rate = 2.0e-3
    warmup_share: float = Field(default=0.1, ge=0, lt=1, description="share of steps that warm up")
    weight_decay: float = Field(default=0.01, ge=0)
    lora_rank: Rank = RANK
    lora_bits: Bits = BITS


class Sample(Section):
    """Responses of the reference policy."""

    train_prompts: Positive = Field(default=384, description="training prompts an objective")
    test_prompts: Positive = Field(default=128, description="evaluation prompts an objective")
    train_samples: Several = Field(default=32, description="responses a training prompt (K)")
    test_samples: Several = Field(default=64, description="responses an evaluation prompt")
    large_prompts: Positive = Field(default=32, description="evaluation prompts sampled many times")
    large_samples: Several = Field(
        default=256, description="responses each, to measure calibration error"
    )
    shard_responses: Positive = Field(
        default=2048, description="responses in one resumable shard, about"
    )
    batch_size: Positive = Field(default=512, description="sequences decoded side by side")


class Calibrate(Section):
    """Calibrated rewards."""

    batch_size: Positive = Field(default=512, description="sequences scored side by side")
    error_references: list[Several] = Field(
        default=[4, 8, 16, 32, 64],
        min_length=1,
        description="numbers of references at which the calibration error is measured",
    )


class Evaluate(Section):
    """Win rates."""

    best_of: list[Positive] = Field(
        default=[1, 2, 4, 8], min_length=1, description="N of Best-of-N and Worst-of-N"
    )
    bootstrap: int = Field(
        default=1000, ge=100, le=MOST, description="replicates of the bootstrap over prompts"
    )
    batch_size: Positive = Field(
        default=512, description="sequences sampled and scored side by side"
    )


class Report(Section):
    """The page."""

    examples: Positive = Field(default=6, description="prompts shown side by side, an objective")


class Params(Section):
    """The whole of params.yaml."""

    run: Run = Run()
    corpus: Corpus = Corpus()
    data: Data = Data()
    model: Model = Model()
    objectives: dict[Name, Objective] = Field(
        default={
            "helpful": Objective(
                subset="helpful-base", procedure="best_of:4", transform="exp:10", gold="helpfulness"
            ),
            "harmless": Objective(
                subset="harmless-base",
                procedure="worst_of:4",
                transform="exp:-10",
                gold="harmlessness",
            ),
        },
        min_length=1,
    )
    generation: Generation = Generation()
    sft: Sft = Sft()
    reward: Reward = Reward()
    sample: Sample = Sample()
    calibrate: Calibrate = Calibrate()
    align: Align = Align()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    compare: Compare = Compare()
    intake: Intake = Intake()
    promotion: Promotion = Promotion()
    schedule: Schedule = Schedule()
    drift: Drift = Drift()
    serving: Serving = Serving()

    @model_validator(mode="before")
    @classmethod
    def _kind(cls, tree: Any) -> Any:
        """What is not given has the default of the model's kind, or follows from the rest."""
        return with_poisoned(with_defaults(tree)) if isinstance(tree, dict) else tree

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
                    near = meant(name, known)
                    raise ValueError(
                        f"{field} names {name!r}, which is not one of {sorted(known)}{near}"
                    )
        if "reference" in self.run.variants:
            raise ValueError("run.variants: `reference` is the reference policy's own name")
        return self

    @model_validator(mode="after")
    def _together(self) -> Params:
        check_combinations(self)
        return self

    @property
    def running(self) -> dict[str, Objective]:
        """The objectives that run."""
        return {name: self.objectives[name] for name in self.run.objectives}

    def procedure(self, objective: str) -> Any:
        """The objective's inference-time procedure."""
        return parse_procedure(self.objectives[objective].procedure)

    def data_path(self, objective: str) -> str:
        """The folder or file of an objective's data."""
        return self.objectives[objective].data or self.data.path

    def is_blind(self, variant: str) -> bool:
        """Whether a variant's goal knows nothing of the inference-time procedure."""
        return self.align.variants[variant].reward in BLIND

    def reward_spelling(self, objective: str, variant: str) -> str:
        """What a variant maximises for an objective: `raw` or a transformation's spelling.

        For a baseline: what its exact optimum maximises.
        """
        spelling = self.align.variants[variant].reward
        return self.objectives[objective].transform if spelling == "objective" else spelling


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml; every fault is one sentence naming file, field, value, remedy."""
    return check_params(read_tree(read_text(Path(path)), str(path)), str(path))


def check_params(tree: Any, source: str) -> Params:
    """Check an already parsed tree; `source` is the name used in messages."""
    if not isinstance(tree, dict):
        raise InputError(f"{source} must be a mapping of sections, found {type(tree).__name__}.")
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        known = dotted(Params().model_dump())
        raise InputError("; ".join(sentence(source, e, known) for e in error.errors())) from None
