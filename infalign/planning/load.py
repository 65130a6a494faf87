"""What a run asks of a machine: its settings, with the sizes of its models and the lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from infalign.errors import InputError
from infalign.planning.machines import Processor, processor
from infalign.planning.shapes import (
    Shape,
    classifier_shape,
    counted_shape,
    named_shape,
    tiny_shape,
)
from infalign.settings.params import Params
from infalign.settings.rewards import (
    AnyReward,
    ModelReward,
    TrainedReward,
    is_trained,
    leaves,
)

LENGTHS = (256, 256)  # prompt and response tokens where they follow data that is not there yet


@dataclass(frozen=True)
class Machine:
    """Processors of one kind, as many in each of some nodes."""

    name: str
    kind: Processor
    processes: int
    nodes: int = 1

    @property
    def is_cpu(self) -> bool:
        """Whether it has no GPU."""
        return self.name == "cpu"


@dataclass(frozen=True)
class Load:
    """Everything that bytes and hours are computed from.

    Attributes:
        selecting, judging: the models that the reward and the judge ask, all parts of a sum, of
            the objective whose are the largest.
        trained: reward models that are trained, of one objective.
        prompt, response: the longest, tokens.
        pairs: of preferences an objective, for `sft` and `reward`.
    """

    params: Params
    machine: Machine
    policy: Shape
    selecting: tuple[Shape, ...]
    judging: tuple[Shape, ...]
    trained: tuple[Shape, ...]
    prompt: int
    response: int
    pairs: int

    @property
    def halved(self) -> bool:
        """Whether passes are in bfloat16."""
        precision = self.params.run.precision
        return precision == "bfloat16" or (precision == "auto" and not self.machine.is_cpu)

    @property
    def processes(self) -> int:
        """Of a stage."""
        return self.machine.processes

    @property
    def sharded(self) -> bool:
        """Whether training deals the model out."""
        return self.params.run.sharding == "fsdp2" and self.processes > 1

    def changed(self, **changes: dict[str, Any]) -> Load:
        """The same with other settings of a section."""
        sections = {
            name: getattr(self.params, name).model_copy(update=values)
            for name, values in changes.items()
        }
        return replace(self, params=self.params.model_copy(update=sections))


def load_of(
    params: Params,
    *,
    gpus: int = 0,
    gpu: str = "h100-80g",
    nodes: int = 1,
    model: str | None = None,
    parameters: str | None = None,
    lengths: tuple[int, int] | None = None,
    pairs: int | None = None,
) -> Load:
    """The load of a run of params.yaml on a machine.

    Args:
        gpus: in each node; 0: the cores of this machine.
        model, parameters: another policy than params.yaml's.
        lengths: longest prompt and response, tokens, where params.yaml follows the data.
        pairs: of preferences an objective; None: the built-in corpus's, or 40,000.
    """
    if gpus < 0 or nodes < 1 or (nodes > 1 and not gpus):
        raise InputError("--gpus must be at least 0 and --nodes at least 1, with GPUs for several.")
    name = gpu if gpus else "cpu"
    processes = gpus * nodes if gpus else params.run.processes
    machine = Machine(name, processor(name, processes), processes, nodes)
    given = lengths or LENGTHS
    prompt = params.model.prompt_tokens or given[0]
    response = params.model.response_tokens or given[1]
    policy = _policy(params, model, parameters)
    is_corpus = params.data.path == "results/corpus"
    known = params.corpus.train_prompts * params.corpus.pairs_per_prompt if is_corpus else 40_000
    chosen = [params.objectives[objective] for objective in params.run.objectives]
    rewards, judges = [one.reward for one in chosen], [one.judge for one in chosen]
    halves = sum(any(is_trained(source) for source in sources) for sources in (rewards, judges))
    return Load(
        params,
        machine,
        policy,
        selecting=_largest([_models(params, policy, source) for source in rewards]),
        judging=_largest([_models(params, policy, source) for source in judges]),
        trained=(_trained_model(params, policy),) * halves if halves else (),
        prompt=prompt,
        response=response,
        pairs=pairs or known,
    )


def _policy(params: Params, model: str | None, parameters: str | None) -> Shape:
    if model and parameters:
        raise InputError("--model and --parameters both name a policy: give one of them.")
    if parameters:
        return counted_shape(parameters)
    name = model or params.model.name_or_path
    if name == "tiny":
        return tiny_shape(params.model.tiny)
    return named_shape(name, None if model else params.model.revision)


def _models(params: Params, policy: Shape, source: AnyReward | None) -> tuple[Shape, ...]:
    """The models that a source of rewards asks, all at once."""
    found = []
    for leaf in leaves(source).values() if source is not None else ():
        if isinstance(leaf, TrainedReward):
            found.append(_trained_model(params, policy))
        elif isinstance(leaf, ModelReward):
            found.append(classifier_shape(leaf.path, leaf.revision))
    return tuple(found)


def _trained_model(params: Params, policy: Shape) -> Shape:
    """A reward model that is trained here."""
    settings = params.reward
    if settings.name_or_path == "sft":
        return policy.classifier()
    return classifier_shape(settings.name_or_path, settings.revision)


def _largest(groups: list[tuple[Shape, ...]]) -> tuple[Shape, ...]:
    return max(groups, key=lambda shapes: sum(shape.parameters for shape in shapes), default=())
