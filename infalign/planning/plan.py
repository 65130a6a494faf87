"""A plan: whether a run fits on a machine, which setting would make it, hours, cost, accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infalign.planning.load import Load
from infalign.planning.machines import DECODING, GIB, SCORING, TRAINING
from infalign.planning.memory import STAGES, Part, peak, total
from infalign.planning.work import Work, work
from infalign.theory.planning import interval_width, win_rate_noise

SPARE = 0.9  # of the memory: the rest is the allocator's


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        parts: the peak of a process of each stage.
        work: of each stage.
        remedies: settings that would make it fit, the mildest that suffices; empty where it fits
            or nothing helps.
        widths: of the 95 % interval of a win rate, by objective.
    """

    load: Load
    parts: dict[str, list[Part]]
    work: dict[str, Work]
    remedies: tuple[str, ...]
    widths: dict[str, float]

    @property
    def peaks(self) -> dict[str, float]:
        """Bytes of a process of each stage."""
        return {stage: total(parts) for stage, parts in self.parts.items()}

    @property
    def fits(self) -> bool:
        """Whether every stage has room."""
        return fits(self.load)

    @property
    def hours(self) -> float:
        """Of all stages, one after the other."""
        return sum(each.seconds for each in self.work.values()) / 3600

    def cost(self, price: float) -> float:
        """Of all GPUs at a price an hour each."""
        return self.hours * price * self.load.machine.processes


def fits(load: Load) -> bool:
    """Whether every stage of a load has room in each process."""
    most = SPARE * load.machine.kind.memory
    return all(total(peak(load, stage)) <= most for stage in STAGES)


def plan(load: Load) -> Plan:
    """The plan of a load."""
    return Plan(
        load,
        {stage: peak(load, stage) for stage in STAGES},
        {stage: work(load, stage) for stage in STAGES},
        () if fits(load) else _remedies(load),
        dict(_widths(load)),
    )


def _remedies(load: Load) -> tuple[str, ...]:
    """The mildest settings with which it fits, one added to the other; nothing where none help."""
    given = tuple(_started(load))
    for setting, change in _changes(load):
        load, given = load.changed(**change), (*given, setting)
        if fits(load):
            return given
    return ()


def _started(load: Load) -> Iterator[str]:
    """Settings that start the processes which were planned with."""
    run, machine = load.params.run, load.machine
    if run.processes != machine.processes:
        yield f"run.processes={machine.processes}"
    if run.nodes != machine.nodes:
        yield f"run.nodes={machine.nodes}"


def _changes(load: Load) -> Iterator[tuple[str, dict[str, Any]]]:
    run, align = load.params.run, load.params.align
    if load.halved is False and not load.machine.is_cpu:
        yield "run.precision=bfloat16", {"run": {"precision": "bfloat16"}}
    if not load.sharded and load.processes > 1:
        yield "run.sharding=fsdp2", {"run": {"sharding": "fsdp2"}}
    tokens = run.batch_tokens
    while tokens > 4 * (load.prompt + load.response):
        tokens //= 2
        yield f"run.batch_tokens={tokens}", {"run": {"batch_tokens": tokens}}
    if not run.recompute:
        yield "run.recompute=true", {"run": {"recompute": True}}
    for stage in ("align", "sft", "reward"):
        tight = total(peak(load, stage)) > SPARE * load.machine.kind.memory
        if tight and getattr(load.params, stage).lora_rank is None:
            yield f"{stage}.lora_rank=16", {stage: {"lora_rank": 16}}
    if any(align.variants[name].method != "offline" for name in load.params.run.variants):
        yield 'run.variants=["offline"]', {"run": {"variants": ["offline"]}}


def _widths(load: Load) -> Iterator[tuple[str, float]]:
    """How exactly win rates will be known: without what prompts differ by, which data show."""
    params = load.params
    for objective in params.run.objectives:
        procedure = params.procedure(objective)
        transform = params.objectives[objective].transform
        noise = win_rate_noise(procedure, transform, params.align.kl_nats)
        samples = params.sample.test_samples
        if samples >= noise.n:
            yield objective, interval_width(noise, params.sample.test_prompts, samples)


def as_json(made: Plan, price: float | None) -> dict[str, Any]:
    """Everything of a plan, in bytes, seconds and operations."""
    return {
        "model": made.load.policy.source,
        "parameters": made.load.policy.parameters,
        "machine": made.load.machine.name,
        "processes": made.load.processes,
        "nodes": made.load.machine.nodes,
        "memory": made.load.machine.kind.memory,
        "fits": made.fits,
        "remedies": list(made.remedies),
        "stages": {
            stage: {
                "bytes": total(parts),
                "parts": [part._asdict() for part in parts],
                "tokens": made.work[stage].tokens,
                "operations": made.work[stage].operations,
                "seconds": made.work[stage].seconds,
            }
            for stage, parts in made.parts.items()
        },
        "hours": made.hours,
        "cost": None if price is None else made.cost(price),
        "interval_widths": made.widths,
    }


def as_text(made: Plan, price: float | None) -> str:
    """A plan as a page of a terminal."""
    load, machine = made.load, made.load.machine
    kind = "bfloat16" if load.halved else "float32"
    where = "this machine's cores" if machine.is_cpu else f"{machine.processes} x {machine.name}"
    lines = [
        f"{load.policy.source}: {_counted(load.policy.parameters)} parameters, passes in "
        f"{kind}, prompts of {load.prompt} and responses of {load.response} tokens at most, on "
        f"{where}" + (f" in {machine.nodes} nodes." if machine.nodes > 1 else "."),
        "",
        f"{'stage':10} {'GiB a process':>13} {'tokens':>9} {'operations':>11} {'hours':>7}",
    ]
    for stage, held in made.peaks.items():
        own = made.work[stage]
        lines.append(
            f"{stage:10} {held / GIB:13.2f} {own.tokens:9.2g} {own.operations:11.2g} "
            f"{own.seconds / 3600:7.2f}"
        )
    lines += ["", "align, part by part:"]
    lines += [
        f"  {part.bytes / GIB:8.2f} GiB  {part.name}: {part.why}" for part in made.parts["align"]
    ]
    lines += ["", _verdict(made), *_price(made, price)]
    for objective, width in made.widths.items():
        lines.append(
            f"Win rates of {objective} will be known to {100 * width / 2:.1f} points either way "
            f"({load.params.sample.test_prompts} prompts, {load.params.sample.test_samples} "
            "samples; more where prompts differ)."
        )
    lines.append(
        f"Assumed, not measured: {TRAINING:.0%} of the peak in training, {SCORING:.0%} in scoring, "
        f"{DECODING:.0%} of the bandwidth in decoding; every sequence at its longest."
    )
    return "\n".join(lines)


def _counted(parameters: int) -> str:
    """A number of parameters in words."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.2f} billion"
    return f"{parameters / 1e6:.3g} million"


def _verdict(made: Plan) -> str:
    memory = made.load.machine.kind.memory
    if made.fits:
        started = "".join(f" --set {setting}" for setting in _started(made.load))
        words = f"It fits: {memory / GIB:.0f} GiB a process, a tenth of it to spare"
        return f"{words}; with{started}." if started else f"{words}."
    stage = max(made.peaks, key=lambda name: made.peaks[name])
    words = f"It does not fit: {stage} takes {made.peaks[stage] / GIB:.0f} GiB of"
    words += f" {memory / GIB:.0f} GiB a process"
    if made.remedies:
        return f"{words}; it would with --set {' --set '.join(made.remedies)}."
    return f"{words}, and no setting makes it: take more or larger processors, or a smaller model."


def _price(made: Plan, price: float | None) -> list[str]:
    if made.load.machine.is_cpu:
        return [f"About {made.hours:.1f} hours."]
    words = f"About {made.hours:.1f} hours, {made.hours * made.load.processes:.0f} GPU hours"
    return [f"{words}, {made.cost(price):.0f} at {price:g} an hour." if price else f"{words}."]
