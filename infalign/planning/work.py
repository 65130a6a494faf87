"""Tokens, operations and seconds of every stage."""

from __future__ import annotations

from dataclasses import dataclass

from infalign.planning.load import Load
from infalign.planning.machines import DECODING, SCORING, TRAINING
from infalign.planning.shapes import Shape


@dataclass(frozen=True)
class Work:
    """What a stage computes, all its instances together.

    Attributes:
        tokens: drawn, scored and trained on.
        operations: of matrix products, 2 a parameter and token forward, 4 backward.
        seconds: on the machine, at the stated shares of its peaks.
    """

    tokens: float
    operations: float
    seconds: float

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens,
            self.operations + other.operations,
            self.seconds + other.seconds,
        )


NOTHING = Work(0.0, 0.0, 0.0)


def work(load: Load, stage: str) -> Work:
    """The work of a stage over all objectives and variants."""
    params = load.params
    objectives, variants = len(params.run.objectives), params.run.variants
    whole = load.prompt + load.response
    if stage == "sft":
        return _trained(load, load.policy, params.sft.epochs * objectives * load.pairs * 2 * whole)
    if stage == "reward":
        return sum(
            (
                _trained(load, shape, params.reward.epochs * objectives * load.pairs * whole)
                for shape in load.trained
            ),
            NOTHING,
        )
    sample = params.sample
    drawn = objectives * (
        sample.train_prompts * sample.train_samples
        + sample.test_prompts * sample.test_samples
        + sample.large_prompts * sample.large_samples
    )
    if stage == "sample":
        return _drawn(load, drawn, sample.batch_size)
    if stage == "calibrate":
        judges = (*load.selecting, *load.judging)
        return sum((_scored(load, shape, drawn * whole) for shape in judges), NOTHING)
    tested = sample.test_prompts * sample.test_samples
    if stage == "evaluate":
        count = objectives * len(variants) * tested
        found = _drawn(load, count, params.evaluate.batch_size)
        for shape in (load.policy, load.policy, *load.selecting, *load.judging):
            found += _scored(load, shape, count * whole)
        return found
    return sum((_aligned(load, name) for name in variants for _ in range(objectives)), NOTHING)


def _aligned(load: Load, variant: str) -> Work:
    """One policy: its steps, and the KL at its end."""
    settings = load.params.align
    method, whole = settings.variants[variant].method, load.prompt + load.response
    a_step = settings.prompts_per_step
    fresh, stored = settings.samples_per_prompt, settings.reference_samples
    rows = settings.steps * a_step * (fresh + stored)
    found = _trained(load, load.policy, rows * whole)
    if method != "offline":
        found += _scored(load, load.policy, rows * whole)
        drawn = settings.steps * a_step * fresh
        found += _drawn(load, drawn, a_step * fresh)
        for shape in load.selecting:
            found += _scored(load, shape, drawn * whole)
    measured = 2.5 * settings.kl_prompts * settings.kl_samples  # settling measures two or three
    found += _drawn(load, measured, load.params.sample.batch_size)
    return found + _scored(load, load.policy, 2 * measured * whole)


def _peak(load: Load) -> float:
    kind = load.machine.kind
    return kind.half if load.halved else kind.single


def _trained(load: Load, shape: Shape, tokens: float) -> Work:
    each = 8 if load.params.run.recompute else 6
    operations = each * shape.active * tokens
    return Work(tokens, operations, operations / (TRAINING * _peak(load) * load.processes))


def _scored(load: Load, shape: Shape, tokens: float) -> Work:
    operations = 2.0 * shape.active * tokens
    return Work(tokens, operations, operations / (SCORING * _peak(load) * load.processes))


def _drawn(load: Load, responses: float, side: int) -> Work:
    """Sampling: each token of a batch reads all weights, and every cached key and value."""
    whole = load.prompt + load.response
    rows = max(1.0, min(side, load.params.run.batch_tokens // whole, responses / load.processes))
    shape, kind = load.policy, load.machine.kind
    read = shape.frozen(load.halved)
    cached = rows * (load.prompt + load.response / 2) * shape.layers * shape.cached
    step = max(
        (read + cached * (2 if load.halved else 4)) / (DECODING * kind.bandwidth),
        2.0 * shape.active * rows / (SCORING * _peak(load)),
    )
    steps = responses / load.processes / rows * load.response
    tokens = responses * load.response
    begun = _scored(load, shape, responses * load.prompt / 4)  # a prompt is read once for several
    return Work(tokens, 2.0 * shape.active * tokens, steps * step) + begun
