"""Bytes that one process of a stage holds at its peak, part by part.

Weights, gradients and optimisers are counted exactly from the shapes of all weights. What passes
keep for backward is counted from a layer of the Llama type: residual stream, norms, projections,
attention and the feed-forward products, float32 or with bfloat16 products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from infalign.files import stages
from infalign.lm.training.bases import short_sides, suits
from infalign.planning.load import Load
from infalign.planning.shapes import Shape, Weight
from infalign.settings.methods import Align
from infalign.settings.params import Reward, Sft

STAGES = tuple(word for word, stage in stages.STAGES.items() if stage.models and not stage.compares)
LOGITS = 2**25  # values held at once (infalign.lm.scoring.vocabulary)
COPIES = 5  # of a slice of logits: logits, log-probabilities, both models', a product
BACKWARD = 8  # the same with their gradients
HEAP = 1.35  # what the C library holds for what passes keep, of many sizes: measured on CPU


class Part(NamedTuple):
    """Something that takes memory, and why."""

    name: str
    bytes: float
    why: str


def peak(load: Load, stage: str) -> list[Part]:
    """The parts of a stage's peak in one process."""
    parts = {
        "sft": _sft,
        "reward": _reward,
        "sample": _sample,
        "calibrate": _calibrate,
        "align": _align,
        "evaluate": _evaluate,
    }[stage](load)
    base = Part("process", load.machine.kind.base, "libraries, or the device's context")
    return [base, *(part for part in parts if part.bytes > 0)]


def total(parts: Sequence[Part]) -> float:
    """Bytes of all of them."""
    return sum(part.bytes for part in parts)


def _align(load: Load) -> list[Part]:
    """Of the variant that holds the most."""
    variants = load.params.align.variants
    methods = {variants[name].method for name in load.params.run.variants}
    return max((_aligned(load, method) for method in sorted(methods)), key=total)


def _aligned(load: Load, method: str) -> list[Part]:
    settings, run, n = load.params.align, load.params.run, load.processes
    policy, rank = load.policy, load.params.align.lora_rank
    parts = _trained(load, policy, settings, settings.optimizer)
    if load.sharded and method != "offline":
        parts.append(
            Part("sampling copy", policy.frozen(load.halved), "whole, filled at every step")
        )
    if rank is None and method != "offline":
        shared = load.sharded and method == "ctrl"
        held = policy.frozen_shares(n, load.halved) if shared else policy.frozen(load.halved)
        parts.append(Part("reference", held, "frozen" + (", its layers in shares" * shared)))
    if method != "offline":
        parts += _frozen(load, "reward model", load.selecting)
    rows = settings.samples_per_prompt + settings.reference_samples
    prompts = max(1, settings.prompts_per_step // n)
    tokens = prompts * rows * (load.prompt + load.response)
    cut = max(1, -(-tokens // run.batch_tokens))
    inside = max(1, -(-prompts // cut))
    drawn = prompts * settings.samples_per_prompt
    during = max(
        _activations(load, policy, inside, rows) + _logits(load, inside * rows, BACKWARD),
        _drawing(load, policy, drawn, load.params.sample.batch_size),
    )
    parts.append(Part("passes", during, f"{cut} part{'s' * (cut > 1)} of {inside} prompts"))
    settled = _settling(load)
    return max(parts, settled, key=total)


def _settling(load: Load) -> list[Part]:
    """The end of align: whole models, without optimiser or reward, and their KL."""
    policy, n = load.policy, load.processes
    parts = [Part("policy", 4 * policy.parameters, "whole, float32")]
    if load.sharded:
        rank = load.params.align.lora_rank
        weights = (*policy.adapter(rank), *policy.weights) if rank else policy.weights
        halved = load.halved and rank is not None
        held = sum(w.share(n) * (2 if halved and w.linear else 4) for w in weights)
        parts.append(Part("shares", held, "of what was trained"))
    if load.params.align.lora_bits:
        parts.append(Part("quantised base", policy.quantised(load.halved), "of what was trained"))
    parts.append(Part("reference", policy.frozen(load.halved), "frozen, whole"))
    if load.machine.is_cpu:
        copies = 4 * policy.parameters * (1 + load.halved)
        parts.append(Part("ends of the line", copies, "trained and first weights"))
    rows = min(load.params.sample.batch_size, load.params.align.kl_prompts * 8)
    parts.append(Part("passes", _scoring(load, policy, rows, models=2), "the KL's"))
    return parts


def _frozen(load: Load, word: str, shapes: Sequence[Shape]) -> list[Part]:
    """Models that are whole in every process."""
    return [Part(word, shape.frozen(load.halved), "frozen, whole") for shape in shapes]


def _sft(load: Load) -> list[Part]:
    if not load.params.sft.epochs:
        rows = load.params.sample.batch_size
        whole = Part("policy", 4 * load.policy.parameters, "taken as it is")
        return [whole, Part("passes", _scoring(load, load.policy, rows), "perplexity")]
    settings = load.params.sft
    parts = _trained(load, load.policy, settings, settings.optimizer)
    return [*parts, _pairs(load, "sft", load.policy, load.params.sft.batch_size // 2)]


def _reward(load: Load) -> list[Part]:
    if not load.trained:
        return []
    shape = max(load.trained, key=lambda one: one.parameters)
    parts = _trained(load, shape, load.params.reward, "adamw")
    return [*parts, _pairs(load, "reward", shape, load.params.reward.batch_size)]


def _pairs(load: Load, stage: str, shape: Shape, pairs: int) -> Part:
    """A step over both responses of some pairs."""
    own = max(1, pairs // load.processes)
    cut = max(1, -(-(own * 2 * (load.prompt + load.response)) // load.params.run.batch_tokens))
    inside = max(1, -(-own // cut))
    logits = _logits(load, inside * 2, BACKWARD) if stage == "sft" else 0.0
    held = _activations(load, shape, inside, 2) + logits
    return Part("passes", held, f"{cut} part{'s' * (cut > 1)} of {inside} pairs")


def _sample(load: Load) -> list[Part]:
    rows = load.params.sample.batch_size
    return [
        Part("policy", load.policy.frozen(load.halved), "frozen"),
        Part("passes", _drawing(load, load.policy, rows, rows), "keys, values, probabilities"),
    ]


def _calibrate(load: Load) -> list[Part]:
    parts = _frozen(load, "reward model", load.selecting) + _frozen(load, "judge", load.judging)
    if parts:
        shape = max((*load.selecting, *load.judging), key=lambda s: s.parameters)
        rows = load.params.calibrate.batch_size
        parts.append(Part("passes", _scoring(load, shape, rows, models=0), "of the reward"))
    return parts


def _evaluate(load: Load) -> list[Part]:
    rows = load.params.evaluate.batch_size
    passes = max(
        _drawing(load, load.policy, rows, rows), _scoring(load, load.policy, rows, models=2)
    )
    return [
        Part("policy", load.policy.frozen(load.halved), "frozen"),
        Part("reference", load.policy.frozen(load.halved), "frozen"),
        Part("passes", passes, "drawing, or the KL's"),
    ]


def _trained(
    load: Load, shape: Shape, settings: Align | Sft | Reward, optimizer: str
) -> list[Part]:
    """Weights, gradients and optimiser of what is trained, and what is gathered in passes."""
    rank, is_small = settings.lora_rank, settings.lora_bits is not None
    n = load.processes if load.sharded else 1
    trained = list(shape.weights) if rank is None else shape.adapter(rank)
    numbers = sum(weight.share(n) for weight in trained)
    if optimizer == "auto":
        optimizer = suits(weight.shape for weight in trained)
    soap = optimizer == "soap"
    state = sum(_soap(w, n) if soap else 2 * w.share(n) for w in trained)
    how = "in shares" if load.sharded else "whole"
    parts = []
    if rank is not None:
        base = (
            sum(w.share(n) * (2 if load.halved and w.linear else 4) for w in shape.weights)
            if load.sharded
            else shape.frozen(load.halved)
        )
        if is_small:
            base = shape.quantised(load.halved)
        kept = "in 4 bits" if is_small else f"frozen, {how}"
        parts.append(Part("base under the adapter", base, kept))
    parts += [
        Part("weights", 4 * numbers, f"trained, float32, {how}"),
        Part("gradients", 4 * numbers, f"float32, {how}"),
        Part("optimiser", 4 * state, "SOAP" if soap else "AdamW: mean and square"),
    ]
    if load.sharded:
        size = 2 if rank is not None and load.halved else 4
        ends = 4 * sum(w.count for w in shape.weights if not w.layer)
        parts.append(Part("gathered", 2 * size * shape.largest_layer + ends, "two layers, ends"))
    return parts


def _soap(weight: Weight, processes: int) -> int:
    """Numbers of SOAP's state: mean and square, and two matrices for each short side."""
    short = short_sides(weight.shape).values()
    own = 2 * (weight.count if short else weight.share(processes))  # with a basis: all of it
    return own + sum(2 * side * side for side in short)


def _activations(load: Load, shape: Shape, prompts: int, rows: int) -> float:
    """Bytes that a differentiated pass keeps: prompts, each once, and responses behind them."""
    whole = load.prompt + load.response
    sequences, heap = prompts * rows, HEAP if load.machine.is_cpu else 1.0
    if load.params.run.recompute:
        tokens = sequences * whole
        one = tokens * _layer(load, shape) + sequences * whole * 2 * shape.hidden * _size(load)
        return heap * (shape.layers * tokens * shape.hidden * 4 + one)
    tokens = prompts * load.prompt + sequences * load.response
    keys = sequences * whole * 2 * shape.hidden * _size(load)  # as many heads as the queries have
    return heap * shape.layers * (tokens * _layer(load, shape) + keys)


def _layer(load: Load, shape: Shape) -> int:
    """Bytes a token that a layer keeps, without keys and values."""
    h, i = shape.hidden, shape.inner
    return 30 * h + 8 * i if load.halved else 4 * (9 * h + 4 * i)


def _size(load: Load) -> int:
    return 2 if load.halved else 4


def _logits(load: Load, sequences: int, copies: int = COPIES) -> float:
    """Bytes of logits and what is made of them."""
    values = sequences * load.response * load.policy.vocabulary
    return copies * 4 * min(values, LOGITS)


def _drawing(load: Load, shape: Shape, rows: int, most: int) -> float:
    """Bytes of sampling so many sequences, as many side by side as are allowed."""
    whole = load.prompt + load.response
    side = max(1, min(rows, most, load.params.run.batch_tokens // whole))
    keys = shape.layers * shape.cached * whole * _size(load)
    return side * (keys + 20 * shape.vocabulary)  # a float32 and two float64 of each probability


def _scoring(load: Load, shape: Shape, rows: int, models: int = 1) -> float:
    """Bytes of passes without gradients over so many sequences."""
    whole = load.prompt + load.response
    side = max(1, min(rows, load.params.run.batch_tokens // whole))
    keys = shape.layers * shape.cached * whole * _size(load)
    layer = whole * (4 * 4 * shape.hidden + 3 * _size(load) * shape.inner)
    return side * (keys + layer) + (_logits(load, side) if models else 0)
