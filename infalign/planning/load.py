"""What a run asks of a machine: its settings, with the sizes of its models and the lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from infalign.errors import InputError
from infalign.planning.machines import Processor, processor
from infalign.planning.shapes import Shape, counted_shape, named_shape, tiny_shape
from infalign.settings.params import Params
from infalign.settings.rewards import ModelReward, SumReward, TrainedReward

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
        rewards: the classifier that training selects by, and the judge; None where none is a model.
        prompt, response: the longest, tokens.
        pairs: of preferences an objective, for `sft` and `reward`.
    """

    params: Params
    machine: Machine
    policy: Shape
    rewards: tuple[Shape | None, Shape | None]
    prompt: int
    response: int
    pairs: int

    @property
    def trained(self) -> list[Shape]:
        """The reward models that `reward` trains, of the largest objective."""
        sources = [self.params.objectives[name] for name in self.params.run.objectives]
        asked = zip(*((one.reward, one.judge) for one in sources), strict=True)
        found = zip(self.rewards, asked, strict=True)
        return [
            shape
            for shape, kinds in found
            if shape is not None and any(isinstance(kind, TrainedReward) for kind in kinds)
        ]

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
    machine = Machine(name, processor(name), processes, nodes)
    given = lengths or LENGTHS
    prompt = params.model.prompt_tokens or given[0]
    response = params.model.response_tokens or given[1]
    policy = _policy(params, prompt + response, model, parameters)
    is_corpus = params.data.path == "results/corpus"
    known = params.corpus.train_prompts * params.corpus.pairs_per_prompt if is_corpus else 40_000
    return Load(params, machine, policy, _rewards(params, policy), prompt, response, pairs or known)


def _policy(params: Params, positions: int, model: str | None, parameters: str | None) -> Shape:
    if model and parameters:
        raise InputError("--model and --parameters both name a policy: give one of them.")
    if parameters:
        return counted_shape(parameters)
    name = model or params.model.name_or_path
    if name == "tiny":
        return tiny_shape(params.model.tiny, positions)
    return named_shape(name, None if model else params.model.revision)


def _rewards(params: Params, policy: Shape) -> tuple[Shape | None, Shape | None]:
    """The largest selecting reward and judge of the objectives that are models."""
    chosen = [params.objectives[name] for name in params.run.objectives]
    selecting = [s for one in chosen for s in _models(params, policy, one.reward)]
    judging = [s for one in chosen for s in _models(params, policy, one.judge)]
    return _largest(selecting), _largest(judging)


def _models(params: Params, policy: Shape, source: object) -> list[Shape]:
    """The models that a source of rewards asks."""
    if isinstance(source, TrainedReward):
        name = params.reward.name_or_path
        return [(policy if name == "sft" else named_shape(name)).classifier()]
    if isinstance(source, ModelReward):
        return [named_shape(source.path, source.revision).classifier()]
    parts = source.parts if isinstance(source, SumReward) else ()
    return [shape for part in parts for shape in _models(params, policy, part)]


def _largest(shapes: list[Shape]) -> Shape | None:
    return max(shapes, key=lambda shape: shape.parameters, default=None)
